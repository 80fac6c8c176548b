"""Documents become rows: texts that fill a strip as well as they can.

A strip has room for a few hundred words, a paragraph has some dozens. So the paragraphs of a document are joined by
single spaces, as long as the row as it is drawn, end patch included, fits; then the next row begins. Rows never cross
documents. Only drawing tells how wide a text is: paragraphs are drawn once to measure them, the sum of their widths
says where a row should end, and the joined row is drawn to see whether it does. That drawing is the row's: its length
and a hash of its pixels are kept, so that a renderer that has changed can be told from one that has not.

A paragraph that is wider than a row is cut between words, where the one drawing of the whole paragraph shows them; its
first words fill the row before it. A word that is wider than a row (a paragraph of Chinese is one) is cut between
grapheme clusters. The original clips such a paragraph to one row instead, and loses the rest; it also forgets the
spaces between paragraphs when it adds up widths. Source: specs/pixel.md, sections 4.1 and 4.4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from render import Renderer, Strip
from render.graphemes import boundaries
from train.data.strips.clean import CLEAN_RULES, clean
from train.data.strips.drawing import hash_of

ANY_WIDTH = 1 << 30  # patches that no text has
# Widths are rounded up to patches: two texts of a and b patches may fit in a + b - 2 when they are joined.
ROUNDING = 2

# What is counted, and how it is told to people. Characters are those of the cleaned text, spaces included.
COUNTS = {
    "documents": "documents",
    "paragraphs": "paragraphs that are not empty",
    "characters": "characters of paragraphs",
    **{rule: f"characters replaced by a space: {rule}" for rule in CLEAN_RULES},
    "cut_paragraphs": "paragraphs wider than a row",
    "rows": "rows",
    "short_rows": "rows left out as too short",
    "short_characters": "characters of rows left out",
    "wide_characters": "characters left out as wider than a row",
}


class Row(NamedTuple):
    """A text that fits a strip, the patches of that strip, and `hash_of` it."""

    text: str
    num_patches: int
    pixels_hash: int


class DocumentRows(NamedTuple):
    """The rows of a document in its order, and what became of the rest, by the names of COUNTS."""

    rows: list[Row]
    counts: dict[str, int]


class _Unit(NamedTuple):
    """What a row takes or leaves: a paragraph, a word of a cut paragraph, a cluster of a cut word.

    before: what joins it to the text before it. width: patches, about. rounding: what is known to be too much of it.
    """

    before: str
    text: str
    width: float
    rounding: int = 0


@dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Makes rows of documents: `maker(document)`. Can be sent to another process.

    clean: names out of CLEAN_RULES. row_patches: of the longest row, end patch included. min_patches: shorter rows are
    left out.
    """

    renderer: Renderer
    clean: tuple[str, ...]
    row_patches: int
    min_patches: int

    def __call__(self, document: str) -> DocumentRows:
        """The rows of one document, whose paragraphs are its lines."""
        counts = dict.fromkeys(COUNTS, 0) | {"documents": 1}
        draw = _Drawing(self.renderer)
        units: list[_Unit] = []
        for line in document.split("\n"):
            paragraph, replaced = clean(line, self.clean, draw)
            for rule, count in replaced.items():
                counts[rule] += count
            if paragraph:
                counts["paragraphs"] += 1
                counts["characters"] += len(paragraph)
                strip = draw(paragraph)
                if strip.num_patches <= self.row_patches:
                    units.append(_Unit(" ", paragraph, strip.num_patches - 1, ROUNDING))
                else:
                    counts["cut_paragraphs"] += 1
                    units += self._words(paragraph, strip)
        rows = []
        for row in self._fill(units, draw, counts):
            if row.num_patches < self.min_patches:
                counts["short_rows"] += 1
                counts["short_characters"] += len(row.text)
            else:
                rows.append(row)
        counts["rows"] = len(rows)
        return DocumentRows(rows, counts)

    def _fill(self, units: list[_Unit], draw: "_Drawing", counts: dict[str, int]) -> Iterator[Row]:
        config = self.renderer.config
        room = self.row_patches - 1  # without the end patch
        start = 0
        while start < len(units):
            stop = max(start + 1, _reach(units, start, 2 * config.pad / config.patch_width, room))
            too_far = len(units) + 1
            strip = draw(_joined(units[start:stop]))
            while strip.num_patches > self.row_patches and stop > start + 1:
                too_far, excess = stop, strip.num_patches - self.row_patches
                while excess > 0 and stop > start + 1:
                    stop -= 1
                    excess -= units[stop].width
                strip = draw(_joined(units[start:stop]))
            if strip.num_patches > self.row_patches:  # one word, or one cluster, is too wide
                parts = _clusters(units[start])
                if len(parts) == 1:
                    counts["wide_characters"] += len(units[start].text)
                    parts = []
                units[start : start + 1] = parts
                continue
            while (further := min(_reach(units, stop, strip.num_patches - 1, room), too_far - 1)) > stop:
                longer = draw(_joined(units[start:further]))
                if longer.num_patches > self.row_patches:
                    too_far = further
                else:
                    strip, stop = longer, further
            yield Row(_joined(units[start:stop]), strip.num_patches, hash_of(strip))
            start = stop

    def _words(self, text: str, strip: Strip) -> Iterator[_Unit]:
        """The words of a paragraph that was drawn as this strip; of those that are too wide, the clusters."""
        edges = (_edges(strip, len(text)) / self.renderer.config.patch_width).tolist()
        start = 0
        for word in text.split(" "):
            end = start + len(word)
            unit = _Unit(" ", word, edges[min(end + 1, len(text))] - edges[start])
            if unit.width <= self.row_patches - 1:
                yield unit
            else:
                for part in _clusters(unit):
                    end = start + len(part.text)
                    yield part._replace(width=edges[end] - edges[start])
                    start = end
            start = end + 1


class _Drawing:
    """Draws texts of any width, and remembers the last one: what was cleaned is measured next."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._last: tuple[str, Strip] | None = None

    def __call__(self, text: str) -> Strip:
        if self._last is None or self._last[0] != text:
            self._last = text, self._renderer(text, ANY_WIDTH)
        return self._last[1]


def _reach(units: Sequence[_Unit], start: int, width: float, room: float) -> int:
    """Where a row that is so wide may end, if the units from `start` on join it: after those that fit by their widths,
    else after the first, if it could fit."""
    stop = start
    while stop < len(units) and width + units[stop].width <= room:
        width += units[stop].width
        stop += 1
    if stop == start < len(units) and width + units[start].width - units[start].rounding <= room:
        stop += 1
    return stop


def _joined(units: Sequence[_Unit]) -> str:
    return units[0].text + "".join([unit.before + unit.text for unit in units[1:]])


def _clusters(unit: _Unit) -> list[_Unit]:
    """A unit cut between its grapheme clusters, its width shared out by their characters."""
    ends = boundaries(unit.text)
    share = unit.width / len(unit.text)
    parts = [_Unit("", unit.text[start:end], share * (end - start)) for start, end in pairwise([0, *ends])]
    return [parts[0]._replace(before=unit.before), *parts[1:]]


def _edges(strip: Strip, length: int) -> NDArray[np.float64]:
    """Columns of the characters before each character, and of all: [length + 1]. Whatever the direction of the text."""
    _, first, _, left, right = strip.clusters().T
    return np.bincount(first + 1, weights=right - left, minlength=length + 1).cumsum()
