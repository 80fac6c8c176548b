"""The text of benchmarks/multilingual.py: an even part of each language, documents held out, and rows to measure on.

Languages have very different amounts of text, and drawing Han or Devanagari takes longer than drawing Latin. So of each
no more than some megabytes are taken, by whole documents from all over its files; every 20th of those is held out. Both
parts are kept in the folder of the runs, as JSON lines of a document each, and so are the held-out rows, with a
record of what could not be drawn: a second call finds the very same text.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infer.benchmarks.bits_per_character import evenly
from infer.benchmarks.text_rows import cut_rows
from pixelcore.documents import find_files, read_documents
from pixelcore.durable import write_file, write_json
from pixelcore.errors import UserError
from render import Renderer
from render.scripts import script_of
from train.data.split import overlap_share

HELD_OUT = 20  # every so many-th document


@dataclass(frozen=True)
class Language:
    """name: as given. training, held_out: JSON lines. script: ISO 15924, of most of its letters. rows: held-out texts
    that fit a row. missing_glyphs: characters of the held-out text that no font has, spaces in the rows. overlap: share
    of the held-out windows of 50 characters that occur in the training text."""

    name: str
    training: Path
    held_out: Path
    script: str
    rows: tuple[str, ...]
    missing_glyphs: int
    overlap: float

    def training_texts(self) -> list[str]:
        return list(read_documents(self.training))


def find_languages(data: Sequence[str], renderer: Renderer, runs: Path, megabytes: float) -> list[Language]:
    """Take the text of each language, unless it is there. data: LANG=PATH each; a language may have several paths.

    Raises UserError for what is no such pair, and for text that cannot be read or is too little.
    """
    paths: dict[str, list[Path]] = {}
    for given in data:
        name, equals, path = given.partition("=")
        if not (name.isalnum() and equals and path):
            raise UserError(f"--data {given}: give a language and its text, as in uk=texts/uk.txt.gz")
        paths.setdefault(name, []).extend(find_files(path))
    folder = runs / "text"
    folder.mkdir(parents=True, exist_ok=True)
    return [_language(name, files, renderer, folder, megabytes) for name, files in paths.items()]


def _language(name: str, files: Sequence[Path], renderer: Renderer, folder: Path, megabytes: float) -> Language:
    training, held_out, facts = (folder / f"{name}{end}" for end in (".jsonl", "-held-out.jsonl", ".json"))
    if not facts.exists():
        print(f"{name}: taking its text and cutting held-out rows", file=sys.stderr)
        taken = even_part([text for file in files for text in read_documents(file)], megabytes)
        parts: tuple[list[str], list[str]] = ([], [])
        for number, text in enumerate(taken):
            parts[number % HELD_OUT == HELD_OUT // 2].append(text)
        if not parts[1]:
            raise UserError(
                f"--data {name}: {len(taken)} documents, and one in {HELD_OUT} is held out: give more text, or more "
                "--megabytes"
            )
        for file, texts in zip((training, held_out), parts, strict=True):
            write_file(file, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode())
        rows = cut_rows(parts[1], renderer, renderer.config.max_patches)
        write_json(
            facts,
            {
                "script": script_of_most(parts[0]),
                "rows": rows.texts,
                "missing_glyphs": rows.replaced,
                "overlap": overlap_share(*parts),
            },
        )
    found = json.loads(facts.read_text(encoding="utf-8"))
    return Language(name, training, held_out, **found | {"rows": tuple(found["rows"])})


def even_part(documents: Sequence[str], megabytes: float) -> list[str]:
    """About so much of the documents, or all of them where they are less, from all over them."""
    total = sum(len(text.encode()) for text in documents)
    return evenly(documents, max(1, int(len(documents) * megabytes * 1e6 / max(total, 1))))


def script_of_most(texts: Iterable[str]) -> str:
    """The script of most letters. Raises UserError where there are none."""
    counts = Counter[str]()
    for text in texts:
        for character, count in Counter(text).items():
            if script := script_of(character):
                counts[script] += count
    if not counts:
        raise UserError("--data: a text without a single letter")
    return counts.most_common(1)[0][0]
