"""A rendered text: its pixels, and what stands where on them.

A `Draft` says where lines and separators go; finished, it is a `Strip`. The pixels are put together at once, column by
column. Which characters stand on which patch is worked out when it is first asked for: most of training never asks.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from render.pieces import MISSING, OVERHANG, RTL, Line, Piece, blank, merge


class Missing(NamedTuple):
    """A character that no font of the chain has."""

    text: int  # 0, or 1 for the second of a pair
    index: int
    character: str


@dataclass(frozen=True, slots=True)
class Geometry:
    """Of a strip: pixels of a patch, and values of a pixel."""

    height: int
    patch_width: int
    channels: int

    @property
    def column_bytes(self) -> int:
        return self.height * self.channels


class Strip:
    """One rendered text (or pair, or list of words), from its first column to the end patch."""

    __slots__ = (
        "_char_spans",
        "_clusters",
        "_columns",
        "_geometry",
        "_lines",
        "_missing",
        "_word_starts",
        "drawn",
        "separators",
    )

    def __init__(
        self,
        geometry: Geometry,
        columns: np.ndarray,
        lines: list[tuple[int, Line, int, int]],
        separators: tuple[int, ...],
        word_starts: Sequence[int] | Callable[[], Sequence[int]] | None,
        drawn: tuple[int, ...],
    ):
        self._geometry, self._columns, self._lines = geometry, columns, lines
        self._char_spans: np.ndarray | None = None
        self._clusters: np.ndarray | None = None
        self._missing: tuple[Missing, ...] | None = None
        # Patches that are black all over; the last one ends the strip.
        self.separators = separators
        self._word_starts = word_starts
        # How many characters of each text (how many words of a list) the strip holds. Where the end patch covers what
        # does not fit (overflow = "clip"), the length of a text.
        self.drawn = drawn

    @property
    def word_starts(self) -> np.ndarray | None:
        """int32 [words + 1], from left to right the first patch of each word, then the patch after the last one.

        None where words share patches, and for pairs.
        """
        starts = self._word_starts
        return None if starts is None else np.array(starts() if callable(starts) else starts, np.int32)

    @property
    def num_patches(self) -> int:
        """Patches of the strip, the end patch counted."""
        return len(self._columns) // self._geometry.patch_width

    @property
    def columns(self) -> np.ndarray:
        """The pixels as they lie in memory: uint8 [width, height], or [width, height, 3]; 0 = ink, 255 = paper."""
        shape = (self._geometry.height,) if self._geometry.channels == 1 else (self._geometry.height, 3)
        return self._columns.reshape(-1, *shape)

    @property
    def pixels(self) -> np.ndarray:
        """uint8 [height, width], or [height, width, 3]; 0 = ink, 255 = paper. A view of `columns`."""
        return self.columns.swapaxes(0, 1)

    @property
    def patches(self) -> np.ndarray:
        """uint8 [num_patches, height, patch_width] (or [..., 3]): a view of `columns`."""
        columns = self.columns
        return columns.reshape(-1, self._geometry.patch_width, *columns.shape[1:]).swapaxes(1, 2)

    @property
    def char_spans(self) -> np.ndarray:
        """int32 [num_patches, 3]: which text (0 or 1), first character, end. -1, -1, -1 for separators.

        The characters are those whose clusters have columns on the patch, in the order of the text, whatever their
        direction; a patch between clusters has an empty span at the place where it stands.
        """
        if self._char_spans is None:
            self._char_spans = self._spans_of_patches()
        return self._char_spans

    def clusters(self) -> np.ndarray:
        """int32 [clusters, 5]: text, first character, end, first column, end column; from left to right."""
        if self._clusters is None:
            self._clusters = _clusters_of(self._lines)
        return self._clusters

    def _spans_of_patches(self) -> np.ndarray:
        width, count = self._geometry.patch_width, self.num_patches
        clusters = self.clusters()
        clusters = clusters[clusters[:, 3] < count * width]
        first = clusters[:, 3] // width
        last = np.minimum(np.maximum(clusters[:, 4] - 1, clusters[:, 3]) // width, count - 1)
        # one row for each patch that a cluster reaches
        times = last - first + 1
        rows = np.repeat(np.arange(len(clusters)), times)
        patches = np.repeat(first - np.cumsum(times) + times, times) + np.arange(len(rows))
        starts = np.full(count, np.iinfo(np.int32).max, np.int32)
        ends = np.full(count, -1, np.int32)
        np.minimum.at(starts, patches, clusters[rows, 1])
        np.maximum.at(ends, patches, clusters[rows, 2])
        black = np.zeros(count, bool)
        black[list(self.separators)] = True
        spans = np.stack([np.cumsum(black) - black, starts, ends], 1).astype(np.int32)
        spans[black] = -1
        place = 0
        for patch in np.flatnonzero(ends < 0).tolist():  # nothing stands there: the place after what stands before
            if not black[patch]:
                place = spans[patch - 1, 2] if patch and not black[patch - 1] else 0
                spans[patch, 1:] = place
        return spans

    @property
    def missing(self) -> tuple[Missing, ...]:
        """Characters that no font has, in the order of the text; also those that the end patch cut off."""
        if self._missing is None:
            found = []
            for text, line, _, first in self._lines:
                if line.flags & MISSING:
                    for piece, start in zip(line.pieces, line.first_characters()):
                        found += [Missing(text, first + start + place, c) for place, c in piece.missing]
            self._missing = tuple(sorted(found))
        return self._missing

    @property
    def missing_glyphs(self) -> dict[str, int]:
        """How often each character that no font has occurs."""
        return dict(Counter(missing.character for missing in self.missing))

    def shift(self, text: int, offset: int) -> None:
        """Count the characters of one text from `offset` on: of a window into a longer text."""
        if offset:
            self._lines = [
                (which, line, x, first + offset if which == text else first) for which, line, x, first in self._lines
            ]
            self._char_spans = self._clusters = self._missing = None

    def __reduce__(self):
        # where the clusters are is worked out here: the pieces that it comes from stay with the renderer
        made = (self._geometry, self._columns, [], self.separators, self.word_starts, self.drawn)
        return _unpickled, (made, self.clusters(), self.missing)


def _unpickled(made: tuple, clusters: np.ndarray, missing: tuple[Missing, ...]) -> Strip:
    strip = Strip(*made)
    strip._clusters, strip._missing = clusters, missing
    return strip


def _clusters_of(lines: list[tuple[int, Line, int, int]]) -> np.ndarray:
    """Rows of `Strip.clusters` of all lines: (which text, line, first column, index of its first character)."""
    texts: list[int] = []
    starts: list[int] = []  # of the pieces, in characters
    begins: list[int] = []  # of the lines, in columns
    pieces: list[Piece] = []
    for text, line, x, first in lines:
        pieces += line.pieces
        texts += [text] * len(line.pieces)
        begins += [x] * len(line.pieces)
        starts += [first + start for start in line.first_characters()]
    spans = [piece.spans for piece in pieces]
    pairs = np.frombuffer(b"".join(spans), np.int32).reshape(-1, 2)
    counts = np.array([len(span) // 8 for span in spans], np.int64)
    owner = np.repeat(np.arange(len(pieces)), counts)
    sums = np.cumsum(pairs, 0, np.int64)
    # sums run through all pieces; what stood before the piece, or before its line, is taken off again
    padded = np.concatenate([np.zeros((1, 2), np.int64), sums])
    heads = np.cumsum(counts) - counts
    lengths_of_lines = np.array([len(line.pieces) for _, line, _, _ in lines], np.int64)
    first_of_line = np.repeat(np.cumsum(lengths_of_lines) - lengths_of_lines, lengths_of_lines)
    characters = sums[:, 0] - padded[heads, 0][owner]
    columns = sums[:, 1] - padded[heads[first_of_line], 1][owner]
    rtl = np.array([bool(piece.kind & RTL) for piece in pieces], bool)[owner]
    lengths = np.bincount(owner, pairs[:, 0], len(pieces)).astype(np.int64)[owner]
    rows = np.empty((len(pairs), 5), np.int32)
    rows[:, 0] = np.array(texts, np.int32)[owner]
    rows[:, 2] = np.array(starts, np.int64)[owner] + np.where(rtl, lengths - characters + pairs[:, 0], characters)
    rows[:, 1] = rows[:, 2] - pairs[:, 0]
    rows[:, 4] = np.array(begins, np.int64)[owner] + columns
    rows[:, 3] = rows[:, 4] - pairs[:, 1]
    return rows


class Draft:
    """A strip in the making, filled from left to right by a layout.

    limit: columns that a strip may have, end patch included; None = any number. A layout asks `edge` for the next patch
    edge; beyond the limit it gets the last patch of the strip again, as the originals do, and `overflows` is set.
    """

    def __init__(self, geometry: Geometry, limit: int, clips: bool):
        self.geometry, self.limit, self.clips = geometry, limit, clips
        self.overflows = False
        self.end = 0  # column of the end patch
        self.word_starts: Sequence[int] | Callable[[], Sequence[int]] | None = None  # patches
        self.num_words: int | None = None  # of a list, how many are drawn
        self._parts: list[bytes] = []
        self._width = 0
        self._lines: list[tuple[int, Line, int, int]] = []  # text, line, column, first character
        self._black: list[int] = []
        self._before = 0, 0, 0  # parts, columns and reaching inks before the last `add`
        self._reaching: list[tuple[bytes, int]] = []  # columns of ink outside of its box, and where they stand

    @property
    def width(self) -> int:
        """Columns so far."""
        return self._width

    def add(self, line: Line, x: int, text: int = 0, first: int = 0) -> int:
        """Put a line at column x. Returns the column after it.

        text: which of a pair it belongs to; first: index in that text of the line's first character.
        """
        size = self.geometry.column_bytes
        self._before = len(self._parts), self._width, len(self._reaching)
        strips = line.strips
        if strips is None:
            strips = [piece.strip for piece in line.pieces]
            if line.flags & OVERHANG and not _settle(line.pieces, strips):
                self._reaching += _overhang(line.pieces, x, size)
        self._lines.append((text, line, x, first))
        begin = x - line.left
        if begin < self._width <= x and strips and strips[0].startswith(blank((self._width - begin) * size)):
            strips = [strips[0][(self._width - begin) * size :], *strips[1:]]
            begin = self._width
        self._advance_to(begin)
        self._parts += strips
        self._width = begin + sum(map(len, strips)) // size
        if line.after:
            self._reaching.append((line.after, self._width))
        return self._width

    def take_back(self) -> None:
        """Undo the last `add`."""
        self._lines.pop()
        count, self._width, reaching = self._before
        del self._parts[count:]
        del self._reaching[reaching:]

    def separator(self, x: int) -> int:
        """A black patch at column x. Returns the column after it."""
        self._black.append(x)
        return x + self.geometry.patch_width

    def edge(self, x: int) -> int:
        """The first patch edge from column x on, at most the last patch of the strip."""
        width = self.geometry.patch_width
        found = -(-x // width) * width
        if found > self.limit - width:
            self.overflows = True
            return self.limit - width
        return found

    def is_full(self, x: int) -> bool:
        """Whether column x is that of the last patch, where only the end patch can go."""
        full = x >= self.limit - self.geometry.patch_width
        self.overflows |= full
        return full

    def finish(self, drawn: tuple[int, ...]) -> Strip:
        """The strip. drawn: characters of each text that it holds, or words of a list."""
        geometry = self.geometry
        size, patch = geometry.column_bytes, geometry.patch_width
        width = self.end + patch
        self._black.append(self.end)
        self._advance_to(width)
        columns = np.frombuffer(bytearray().join(self._parts), np.uint8).reshape(-1, size)[:width]
        for ink, x in self._reaching:
            merge(columns, ink, x)
        for x in self._black:
            columns[x : x + patch] = 0
        separators = tuple(sorted({x // patch for x in self._black}))
        return Strip(geometry, columns, self._lines, separators, self.word_starts, drawn)

    def _advance_to(self, x: int) -> None:
        size = self.geometry.column_bytes
        if x > self._width:
            self._parts.append(blank((x - self._width) * size))
        elif x < self._width:  # only where the strip is full: the new line goes over the end of the old one
            joined = b"".join(self._parts)[: x * size]
            self._parts = [joined]
        self._width = x


def _settle(pieces: list[Piece], strips: list[bytes]) -> bool:
    """Let ink that leaves its box take blank columns of the neighbour: the space before a j.

    False, and no change, where a neighbour has ink there itself.
    """
    settled = list(strips)
    for i in [i for i, piece in enumerate(pieces) if piece.kind & OVERHANG]:
        before, after = pieces[i].before, pieces[i].after
        if before:
            if not i or not settled[i - 1].endswith(blank(len(before))):
                return False
            settled[i - 1] = settled[i - 1][: -len(before)]
        if after:
            if i + 1 == len(pieces) or not settled[i + 1].startswith(blank(len(after))):
                return False
            settled[i + 1] = settled[i + 1][len(after) :]
        settled[i] = before + settled[i] + after
    strips[:] = settled
    return True


def _overhang(pieces: list[Piece], x: int, size: int) -> Iterator[tuple[bytes, int]]:
    """Ink left and right of the boxes of pieces that stand side by side from column x on."""
    for piece in pieces:
        if piece.before:
            yield piece.before, x - len(piece.before) // size
        x += len(piece.strip) // size
        if piece.after:
            yield piece.after, x
