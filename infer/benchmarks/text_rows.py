"""Held-out documents cut into rows, so that models of strips and models of tokens are asked about the very same texts.

The rules are those by which training makes rows: the paragraphs of a document (its lines) are joined by single spaces
as long as the row as it is drawn, end patch included, fits; then the next row begins. A paragraph that is wider than a
row is cut between words, a word that is wider than a row between grapheme clusters. White space of any kind and length
is one space, and a character that no font has becomes one too. (Training goes by sums of widths where it can, and now
and then ends a row a word earlier.)

The end of a document is the end of its last row, which is as short as what was left; training leaves out rows that are
very short, here every row counts. A row ends with an end patch, or with </s> as tokens, whether its document ends there
or goes on in the next row. The space at which a document is cut stands in neither row and is not counted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from pixelcore.errors import UserError
from render import Renderer, Strip
from render.graphemes import boundaries

_ANY_WIDTH = 1 << 30  # patches that no text has


@dataclass(frozen=True, kw_only=True)
class TextRows:
    """texts: in the order of the documents. replaced: characters that no font has, each a space now. left_out: clusters
    that are wider than a row."""

    texts: tuple[str, ...]
    replaced: int
    left_out: int


class _Unit(NamedTuple):
    """What a row takes whole: a paragraph, a word or a cluster, and what joins it to the text before it."""

    before: str
    text: str


def cut_rows(documents: Iterable[str], renderer: Renderer, row_patches: int) -> TextRows:
    """The rows of documents, in their order. row_patches: of the longest row, end patch included.

    Raises UserError where there is no row at all.
    """

    def fits(text: str) -> bool:
        return renderer(text, _ANY_WIDTH).num_patches <= row_patches

    texts: list[str] = []
    replaced = left_out = 0
    for document in documents:
        units: list[_Unit] = []
        for line in document.split("\n"):
            paragraph, missing = _drawable(line, renderer)
            replaced += missing
            units += _units(paragraph, fits) if paragraph else []
        rows, wide = _filled(units, fits)
        texts += rows
        left_out += wide
    if not texts:
        raise UserError("the data has no text that can be drawn: nothing to evaluate")
    return TextRows(texts=tuple(texts), replaced=replaced, left_out=left_out)


def _drawable(line: str, renderer: Renderer) -> tuple[str, int]:
    """A line without the characters that no font has, and how many they were; single spaces, none around it."""
    text, count = " ".join(line.split()), 0
    while text and (places := _missing(renderer(text, _ANY_WIDTH))):
        count += len(places)
        # what is left may join anew, so it is looked at again
        text = " ".join("".join(" " if place in places else c for place, c in enumerate(text)).split())
    return text, count


def _missing(strip: Strip) -> set[int]:
    return {missing.index for missing in strip.missing}


def _units(paragraph: str, fits: Callable[[str], bool]) -> Iterator[_Unit]:
    if fits(paragraph):
        yield _Unit(" ", paragraph)
        return
    for word in paragraph.split(" "):
        if fits(word):
            yield _Unit(" ", word)
            continue
        for number, (start, end) in enumerate(pairwise([0, *boundaries(word)])):
            yield _Unit("" if number else " ", word[start:end])


def _filled(units: Sequence[_Unit], fits: Callable[[str], bool]) -> tuple[list[str], int]:
    """Rows of as many units as fit, and how many units fit no row."""
    rows: list[str] = []
    start, wide, guess = 0, 0, 1
    while start < len(units):
        most = len(units) - start
        count = _longest(most, min(guess, most), lambda n, start=start: fits(_joined(units[start : start + n])))
        if count:
            rows.append(_joined(units[start : start + count]))
        else:
            wide += 1
        start += max(count, 1)
        guess = max(count, 1)
    return rows, wide


def _longest(most: int, guess: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 0 to `most` that fits, where every smaller one does; looked for around a guess."""
    low, high, step = 0, most + 1, 1  # `low` fits and `high` does not
    tried = guess
    while high - low > 1:
        if fits(tried):
            low = tried
            tried = min(low + step, (low + high) // 2 if high <= most else most)
        else:
            high = tried
            tried = max(high - step, (low + high) // 2 if low else 1)
        step *= 2
        tried = min(max(tried, low + 1), high - 1)
    return low


def _joined(units: Sequence[_Unit]) -> str:
    return units[0].text + "".join([unit.before + unit.text for unit in units[1:]])
