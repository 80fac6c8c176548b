"""One word a line, its label in the last column, a blank line between sentences: the format of most named entities.

Two customs are read. CoNLL's (.txt, .conll, .bio): the first column is the word and the last its label, spaces or tabs
between them, and a line -DOCSTART- begins a document. Universal NER's (.iob2): tabs, a number, the word, its label and
columns on who said so, with comments before a sentence.
"""

from collections.abc import Sequence
from pathlib import Path

from pixelcore.errors import UserError
from pixelcore.tasks.examples import WordsExample
from pixelcore.tasks.text_files import ending_of, numbered_lines

DOCUMENT = "-DOCSTART-"


def read_columns(path: Path) -> list[WordsExample]:
    """All sentences of a file, .gz too. Raises UserError with the line of what cannot be read, and for a file without
    sentences."""
    numbered = ending_of(path) == ".iob2"
    examples: list[WordsExample] = []
    rows: list[tuple[str, str]] = []
    lines: list[str] = []
    name = ""

    def finish() -> None:
        nonlocal name
        if rows:
            words, labels = zip(*rows, strict=True)
            identity = name or f"{path.name}:{len(examples) + 1}"
            examples.append(WordsExample(id=identity, words=words, labels=labels, lines=tuple(lines)))
            name = ""
        rows.clear()
        lines.clear()

    for number, line in numbered_lines(path):
        if not line.strip() or line.startswith(DOCUMENT):
            finish()
        elif numbered and line.startswith("#") and "\t" not in line:
            lines.append(line)
            if line.replace(" ", "").startswith("#sent_id="):
                name = line.partition("=")[2].strip()
        else:
            rows.append(_row(line, numbered, f"{path}:{number}"))
            lines.append(line)
    finish()
    if not examples:
        raise UserError(f"{path}: no sentence in it: give a file with a word and its label on each line")
    return examples


def _row(line: str, numbered: bool, where: str) -> tuple[str, str]:
    """Word and label of a line."""
    fields = line.split("\t") if numbered or "\t" in line else line.split()
    least = 3 if numbered else 2
    if len(fields) < least or (numbered and not fields[0].isdecimal()):
        asked = "a number, a word and its label, with tabs between them" if numbered else "a word and its label"
        raise UserError(f"{where}: {line[:40]!r} must be {asked}: correct the line")
    word, label = (fields[1], fields[2]) if numbered else (fields[0], fields[-1])
    if not word.strip() or not label.strip():
        raise UserError(f"{where}: an empty {'label' if word.strip() else 'word'}: correct the line")
    return word.strip(), label.strip()


def written(words: Sequence[str], labels: Sequence[str]) -> list[str]:
    """A sentence in CoNLL's columns; a blank line ends it."""
    return [f"{word}\t{label}" for word, label in zip(words, labels, strict=True)] + [""]
