"""What benchmarks/mini.py holds fixed: the budgets, the texts by their hashes, and the rows that all families read.

A budget is a number of floating point operations, the same on every machine, and the minutes it is meant to take on
the machine that it is named after. The texts are told by sha256: of each file, once it is unpacked, and of these
hashes in the order of the files, so that neither names nor compression matter. A text with another hash makes a
table that compares with nothing, so it is refused, unless one says that the text is one's own.

The novels are cut into rows once, by the renderer of PIXAR, and these rows are the documents of all families; PIXEL,
whose rows are much shorter, has them as the paragraphs of one text. A folder of runs keeps what they were made with.
"""

import argparse
import gzip
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import presets
from benchmarks.what_masked_pixels_teach import HELD_OUT, training_works
from infer.benchmarks.bits_per_character import evenly
from infer.benchmarks.text_rows import cut_rows
from pixelcore.documents import read_documents
from pixelcore.durable import write_file, write_json
from pixelcore.errors import UserError
from pixelcore.tasks import TASKS
from pixelcore.tokenizer import train_tokenizer
from render import Renderer
from render.config import RenderConfig
from train.config import DrawnSettings
from train.job import read_settings

PIXEL_PATCHES = 17  # of a row of PIXEL, its last stage
TASK_OPTIONS: dict[str, dict[str, Any]] = {"classify": {"layout": "sib200"}, "tag": {}}
# of the ten novels and the two that are held out, of SIB-200 in English, of UD English-EWT with its whole training file
SHA256 = {
    "books": "22427b422171e295afe255b9f7f0ef96f0e758f96ac474bb8d48ce28314707da",
    "sib": "155c8f10d3af92d7a55628092606d0302c89faef5add5a1791b21d69d3e07a65",
    "treebank": "7cef833fd18e91ccf97571810e72380a63003d5312c53f64db9f4270046ce08a",
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """minutes: that all of it is meant to take. flops: of the training of each model. share: of each novel that is
    read. layers, width, heads: of every trunk; its feed-forward has 4 widths, or 8/3 where it is gated, which is as
    many parameters. row_patches: of a row, drawn for PIXAR. units: patches or tokens of a step. pieces: of the
    vocabulary of byte pairs. components: of the mixture. fine_steps: of fine-tuning, by task. rows, read_rows: held-out
    ones that are predicted, and of which masked characters are read. written: units of each of
    eight texts. workers: processes that draw, besides the one that trains."""

    minutes: float
    flops: float
    share: float
    layers: int
    width: int
    heads: int
    row_patches: int
    units: int
    pieces: int
    components: int
    fine_steps: dict[str, int]
    rows: int
    read_rows: int
    written: int
    workers: int

    @property
    def gated(self) -> int:
        """Width of a gated feed-forward."""
        return 8 * self.width // 3


BUDGETS = {
    "cpu": Budget(
        minutes=60,
        flops=8e12,
        share=0.15,
        layers=4,
        width=192,
        heads=6,
        row_patches=96,
        units=2048,
        pieces=2048,
        components=32,
        fine_steps={"classify": 220, "tag": 300},
        rows=200,
        read_rows=200,
        written=48,
        workers=0,
    ),
    "gpu": Budget(
        minutes=10,
        flops=1e14,
        share=0.4,
        layers=6,
        width=384,
        heads=6,
        row_patches=96,
        units=8192,
        pieces=2048,
        components=32,
        fine_steps={"classify": 264, "tag": 500},
        rows=400,
        read_rows=200,
        written=64,
        workers=4,
    ),
    "smoke": Budget(
        minutes=1,
        flops=2e9,
        share=1.0,
        layers=2,
        width=24,
        heads=2,
        row_patches=48,
        units=192,
        pieces=320,
        components=2,
        fine_steps={"classify": 2, "tag": 2},
        rows=6,
        read_rows=6,
        written=4,
        workers=0,
    ),
}


# ------------------------------------------------------------------ texts by hash


def texts_of(options: argparse.Namespace) -> dict[str, list[Path]]:
    """The files of each text, training text first."""
    if options.data:
        books = [Path(path) for path in (*options.data, *options.held_out)]
    else:
        books = [*training_works(options.books), *(options.books / name for name in HELD_OUT)]
    found = {"books": books}
    for name, kind, folder in (("sib", "classify", options.sib), ("treebank", "tag", options.treebank)):
        if folder is not None:
            splits = TASKS[kind].find_splits(folder, task_options(kind))
            missing = [role for role in ("train", "valid", "test") if role not in splits]
            if missing:
                raise UserError(f"{folder}: has no {missing[0]} file: a folder with train, dev and test is needed")
            found[name] = [path for role in ("train", "valid", "test") for path in paths_of(splits[role])]
    return found


def task_options(kind: str) -> Any:
    return TASKS[kind].OPTIONS(**TASK_OPTIONS[kind])


def paths_of(split: Path | tuple[Path, ...]) -> tuple[Path, ...]:
    """The files of a split, which is one or several."""
    return (split,) if isinstance(split, Path) else split


def sha256_of(files: Sequence[Path]) -> str:
    """Of the hashes of the files' contents, unpacked."""
    whole = hashlib.sha256()
    for file in files:
        try:
            content = gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
        except OSError as cause:
            raise UserError(f"{file}: cannot be read ({cause.strerror or cause}): name another folder") from cause
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """What the runs of a folder are made with: the budget and the hashes. Raises UserError for a text that is not the
    fixed one, and where the folder's runs were made with something else."""
    found = {name: sha256_of(files) for name, files in texts_of(options).items()}
    if not options.own_text:
        for name, value in found.items():
            if value != SHA256[name]:
                raise UserError(
                    f"--{name}: sha256 {value[:16]} is not that of the fixed text, {SHA256[name][:16]}: figures would "
                    "compare with nobody's; give the text that benchmarks/mini_plan.py names, or say --own-text"
                )
    wanted = {"budget": options.budget, "sha256": found, "own_text": options.own_text}
    file = options.runs / "plan.json"
    if file.exists():
        kept = json.loads(file.read_text())
        known, given = ({**one, **one["sha256"]} for one in (kept, wanted))
        for name, value in given.items():
            if name != "sha256" and known.get(name, value) != value:
                raise UserError(
                    f"--runs {options.runs}: its runs were made with {name} = {known[name]}, not {value}: choose "
                    "another folder, or what they were made with"
                )
        wanted["sha256"] = kept["sha256"] | found  # a task may be asked later
    options.runs.mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)
    return wanted


# ------------------------------------------------------------------ rows


def prepare(options: argparse.Namespace, budget: Budget) -> dict[str, list[str]]:
    """The rows for training and those that are held out, as files that all families are given: of each a .jsonl and
    the same as paragraphs of a .txt, and the vocabulary of byte pairs."""
    files = texts_of(options)["books"]
    number = len(options.data) if options.data else len(files) - len(HELD_OUT)
    rows = {}
    for role, works in (("training", files[:number]), ("held-out", files[number:])):
        rows[role] = _rows(options.runs, role, works, budget)
    vocabulary = options.runs / "bpe.model"
    if not vocabulary.exists():
        write_file(vocabulary, train_tokenizer(rows["training"], budget.pieces, max_bytes=4 << 20).model_bytes)
    return rows


def _rows(folder: Path, role: str, works: Sequence[Path], budget: Budget) -> list[str]:
    file = folder / f"{role}.jsonl"
    if not file.exists():
        print(f"cutting the {role} text into rows: {len(works)} files", file=sys.stderr)
        texts = [cut for work in works for cut in _beginning(work, budget.share)]
        # of one width less, so that training, which measures rows by sums, finds that they fit
        rows = cut_rows(texts, _renderer_of("pixar-novels"), budget.row_patches - 1).texts
        write_file(folder / f"{role}.txt", "".join(row + "\n" for row in rows).encode())
        write_file(file, "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows).encode())
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def _beginning(work: Path, share: float) -> list[str]:
    """The first documents of a work, so many of its characters."""
    documents = list(read_documents(work))
    room = int(share * sum(map(len, documents)))
    found: list[str] = []
    for document in documents:
        if room <= 0:
            break
        found.append(document[:room])
        room -= len(document)
    return found


def pixar_renderer() -> Renderer:
    """That of the preset, for strips of any length."""
    settings = read_settings(presets.load("pixar-novels"), ["render.max_patches=65536"], "preset pixar-novels")
    assert isinstance(settings, DrawnSettings)
    return Renderer(RenderConfig.from_dict(settings.render.plain.to_dict()))


def short_rows(options: argparse.Namespace, held_out: Sequence[str], budget: Budget) -> list[str]:
    """Held-out rows as short as PIXEL's, evenly taken: what is hidden in them is asked of all encoders."""
    file = options.runs / "short.jsonl"
    if not file.exists():
        rows = cut_rows(["\n".join(held_out)], _renderer_of("pixel-novels"), PIXEL_PATCHES).texts
        chosen = evenly(rows, budget.read_rows)
        write_file(file, "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in chosen).encode())
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def _renderer_of(preset: str) -> Renderer:
    """That of a preset, for strips of any length."""
    settings = read_settings(presets.load(preset), ["render.max_patches=65536"], f"preset {preset}")
    assert isinstance(settings, DrawnSettings)
    return Renderer(settings.render.plain)
