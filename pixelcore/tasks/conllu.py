"""CoNLL-U, the format of Universal Dependencies, in and out.

A sentence is lines up to a blank one: comments, then a line of ten columns with tabs between them for each word. Words
have whole numbers, from 1. Lines numbered 3-4 show how words are written together and lines numbered 5.1 stand for
words that are not there: no task here has labels for them, so they are skipped, and kept for writing back. Whether
heads make a tree is not asked; whether there is a word of that number is.
Source: universaldependencies.org/format.html.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pixelcore.errors import UserError
from pixelcore.tasks.text_files import numbered_lines

COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_NOT_A_WORD = re.compile(r"\d+-\d+|\d+\.\d+")
_SENTENCE_ID = re.compile(r"#\s*sent_id\s*=\s*(\S.*)")


@dataclass(frozen=True)
class Sentence:
    """id: as its comment says, else its number in the file. lines: all of them. words: which of these are words.
    where: file and line at which each word stands, for errors."""

    id: str
    lines: tuple[str, ...]
    words: tuple[int, ...]
    path: Path
    first_line: int

    def column(self, name: str) -> tuple[str, ...]:
        """What the words have in a column of `COLUMNS`."""
        place = COLUMNS.index(name)
        return tuple(self.lines[line].split("\t")[place] for line in self.words)

    def where(self, word: int) -> str:
        """File and line of a word, counted from 0."""
        return f"{self.path}:{self.first_line + self.words[word]}"

    def heads(self) -> tuple[int, ...] | None:
        """The head of each word, 0 the root; None where no word has one. Raises UserError for a head that is no word of
        the sentence."""
        given = self.column("head")
        if all(head == "_" for head in given):
            return None
        for word, head in enumerate(given):
            if not head.isdecimal() or int(head) > len(given):
                raise UserError(
                    f"{self.where(word)}: head {head!r} of {self.column('form')[word]!r} must be a number from 0, the "
                    f"root, to {len(given)}, the words of the sentence: correct the line"
                )
        return tuple(map(int, given))


def read_sentences(path: Path) -> list[Sentence]:
    """All sentences of a file, .gz too; comments without words are no sentence. Raises UserError with the line of what
    cannot be read, and for a file without sentences."""
    sentences: list[Sentence] = []
    lines: list[str] = []
    start = number = 1
    for number, line in numbered_lines(path):
        if line.strip():
            lines.append(line)
            continue
        _finish(sentences, lines, path, start)
        lines, start = [], number + 1
    _finish(sentences, lines, path, start)
    if not sentences:
        raise UserError(f"{path}: no sentence in {number} lines: give a CoNLL-U file")
    return sentences


def _finish(sentences: list[Sentence], lines: Sequence[str], path: Path, start: int) -> None:
    words = []
    name = f"{path.name}:{len(sentences) + 1}"
    for place, line in enumerate(lines):
        if line.startswith("#"):
            found = _SENTENCE_ID.match(line)
            name = found[1].strip() if found else name
            continue
        columns = line.split("\t")
        if len(columns) != len(COLUMNS):
            raise UserError(
                f"{path}:{start + place}: {len(columns)} columns; a line of CoNLL-U has {len(COLUMNS)}, with tabs "
                "between them: correct the line"
            )
        if _NOT_A_WORD.fullmatch(columns[0]):
            continue
        if columns[0] != str(len(words) + 1):
            raise UserError(
                f"{path}:{start + place}: word number {columns[0]!r}, and {len(words) + 1} comes next: correct the "
                "line, or put a blank line between sentences"
            )
        if not columns[1].strip():
            raise UserError(f"{path}:{start + place}: the word is empty: correct the line")
        words.append(place)
    if words:
        sentences.append(Sentence(name, tuple(lines), tuple(words), path, start))


def written(lines: Sequence[str], columns: Mapping[str, Sequence[str]]) -> list[str]:
    """The lines of a sentence with other values in these columns of its words, one for each word; a blank line ends
    it."""
    places = {name: COLUMNS.index(name) for name in columns}
    changed, word = [], 0
    for line in lines:
        fields = line.split("\t")
        if not line.startswith("#") and fields[0].isdecimal():
            for name, place in places.items():
                fields[place] = columns[name][word]
            line, word = "\t".join(fields), word + 1
        changed.append(line)
    assert all(len(values) == word for values in columns.values()), f"{word} words"
    return [*changed, ""]
