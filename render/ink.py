"""Ink: what glyphs look like, and columns of them.

Each glyph is kept as a cell: its columns as high as the strip, with paper above and below, ready to be joined. Inks of
letters that follow each other rarely share a column, so that the columns of a text are cells with paper between them.
Where a few columns are shared the inks are added; marks above letters, and glyphs in colour, are added up pixel by
pixel instead, the long way round.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from render.config import RenderConfig
from render.face import Bitmap
from render.fonts import Chain, FontFile
from render.pieces import PAPER, blank

_GLYPH_BYTES = 8 << 20  # of bitmaps and cells
_TO_BINARY = bytes(PAPER if value > PAPER // 2 else 0 for value in range(256))

# A glyph where it stands: index of its font, its id, px from the start of the text to its origin, px above the line
Placed = tuple[int, int, int, int]
# Columns of a glyph and px from its origin to them; None for a glyph in colour, which has to be mixed
Cell = tuple[bytes | None, int]


class Columns(NamedTuple):
    """Ink of a text: columns of the strip, and where they stand from its beginning."""

    strip: bytes
    first: int
    end: int


class Ink:
    """Draws glyphs of a chain of fonts on columns of one height and colour, and keeps what they look like."""

    def __init__(self, chain: Chain, config: RenderConfig):
        self._chain = chain
        self._height, self._channels = config.height, config.channels
        self._column_bytes = config.height * config.channels
        self._is_binary = config.color == "binary"
        self._bitmaps: dict[tuple[int, int], Bitmap] = {}  # by font and glyph
        self._cells: dict[tuple[int, int], dict[int, Cell]] = {}  # by font and baseline, then glyph
        self.num_bytes = 0

    def forget(self) -> None:
        """Drop what is kept."""
        self._bitmaps, self.num_bytes = {}, 0
        for cells in self._cells.values():  # emptied, not replaced: `_joined` holds one of them while it draws
            cells.clear()

    def draw(self, placed: Sequence[Placed], width: int, baseline: int) -> Columns:
        """Columns from 0 to `width`, and those left and right of them that glyphs reach."""
        columns = self._joined(placed, width, baseline) or self._composed(placed, width, baseline)
        return Columns(self.shown(columns.strip), columns.first, columns.end) if self._is_binary else columns

    def shown(self, columns: bytes) -> bytes:
        """Grey columns as the strip has them: of two values if it is binary."""
        return columns.translate(_TO_BINARY) if self._is_binary else columns

    def _joined(self, placed: Sequence[Placed], width: int, baseline: int) -> Columns | None:
        """Cells with paper between; None if glyphs stand on each other. This runs for every new word."""
        size = self._column_bytes
        chunks: list[bytes] = []
        left = end = 0
        font, cells = -1, {}
        for face, glyph, x, up in placed:
            if face != font:
                font, cells = face, self._cells.setdefault((face, baseline), {})
            ink, offset = (not up and cells.get(glyph)) or self.cell(face, glyph, baseline - up)
            if ink is None:
                return None
            if not ink:
                continue
            column = x + offset
            if not chunks:
                end = left = min(0, column)
            if column > end:
                chunks.append(blank((column - end) * size))
            elif column < end:
                shared = (end - column) * size
                if not len(chunks[-1]) >= shared <= len(ink):
                    return None
                chunks[-1], tail = chunks[-1][:-shared], chunks[-1][-shared:]
                ink = bytes(map(added, tail, ink)) + ink[shared:]
            chunks.append(ink)
            end = column + len(ink) // size
        if width > end:
            chunks.append(blank((width - end) * size))
        return Columns(b"".join(chunks), left, max(width, end))

    def cell(self, face: int, glyph: int, baseline: int) -> Cell:
        """A glyph that stands on a row of the strip."""
        cells = self._cells.setdefault((face, baseline), {})
        cell = cells.get(glyph)
        if cell is None:
            ink = self._bitmap(face, glyph)
            columns = np.full((ink.coverage.shape[1], self._height, self._channels), PAPER, np.uint8)
            is_grey = ink.coverage.ndim == 2
            if is_grey:
                row, first, last = self._rows(ink, baseline)
                columns[:, row : row + last - first] -= ink.coverage[first:last].T[:, :, None]
            cell = cells[glyph] = (columns.tobytes() if is_grey else None, ink.left)
            self.num_bytes += columns.size + 200
        return cell

    def _bitmap(self, face: int, glyph: int) -> Bitmap:
        """A glyph: grey [rows, columns], or premultiplied RGBA [rows, columns, 4] in colour."""
        ink = self._bitmaps.get((face, glyph))
        if ink is None:
            font = self._chain.faces[face]
            colored = font.color(glyph) if isinstance(font, FontFile) and font.has_color else None
            ink = Bitmap(*colored) if colored else font.bitmap(glyph)
            if self.num_bytes + ink.coverage.size + 200 > _GLYPH_BYTES:
                self.forget()
            else:
                self.num_bytes += ink.coverage.size + 200
            self._bitmaps[face, glyph] = ink
        return ink

    def _rows(self, ink: Bitmap, baseline: int) -> tuple[int, int, int]:
        """Row of the strip where a glyph begins, and which of its rows are inside: first and end."""
        top = baseline - ink.top
        first = min(max(0, -top), ink.coverage.shape[0])
        return max(0, top), first, max(first, min(ink.coverage.shape[0], self._height - top))

    def _composed(self, placed: Sequence[Placed], width: int, baseline: int) -> Columns:
        """Ink of glyphs added up pixel by pixel."""
        inks = [(self._bitmap(face, glyph), x, up) for face, glyph, x, up in placed]
        left = min([0, *(ink.left + x for ink, x, _ in inks if ink.coverage.size)])
        end = max([width, *(ink.left + x + ink.coverage.shape[1] for ink, x, _ in inks if ink.coverage.size)])
        paper = np.full((end - left, self._height, self._channels), PAPER, np.int32)
        for ink, x, up in inks:
            row, first, last = self._rows(ink, baseline - up)
            column = ink.left + x - left
            target = paper[column : column + ink.coverage.shape[1], row : row + last - first]
            _add_ink(target, ink.coverage[first:last].swapaxes(0, 1))
        return Columns(np.maximum(paper, 0).astype(np.uint8).tobytes(), left, end)


def added(paper: int, other: int) -> int:
    """A value of paper where two inks add up."""
    return paper + other - PAPER if paper + other > PAPER else 0


def _add_ink(paper: np.ndarray, ink: np.ndarray) -> None:
    """Darken paper, int32 [columns, rows, channels], by grey [columns, rows] or RGBA [columns, rows, 4] ink."""
    if ink.ndim == 2:
        paper -= ink[:, :, None]
        return
    alpha = ink[:, :, 3:].astype(np.int32)
    color = ink[:, :, :3].astype(np.int32)
    if paper.shape[2] == 1:  # the brightness that the eye sees, ITU-R BT.601
        color = (color * np.array([299, 587, 114])).sum(2, keepdims=True) // 1000
    paper[:] = color + paper * (255 - alpha) // 255
