"""Strips for people to look at: several versions of one strip, one under another, labelled, patch above patch.

A strip is hundreds of patches long and nothing shows it whole, so a panel folds it like a line of text, all versions of
a piece together before the next piece begins. A ruler over each piece counts patches. Colour says what happened to a
patch and never touches ink: painted patches stand on a tint, hidden ones are covered, and where a version has nothing
to show the ground is left. Words are written with the renderer and the font of this project.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from render import RenderConfig, Renderer

COLUMNS = 64  # patches in a line
SCALE = 2  # of the picture, pixels for one of the strip
_RULER_EVERY = 8  # patches
_MARGIN, _ROW_GAP, _PIECE_GAP, _PANEL_GAP = 12, 3, 10, 26  # px
_GROUND, _INK, _FAINT = (243, 244, 247), (40, 44, 56), (120, 126, 140)
_TINT, _COVER = (214, 232, 255), (176, 190, 212)
_GLYPH_ROWS = 16  # of labels; the ruler has half as many


@dataclass(frozen=True)
class Row:
    """One version of a strip. patches: uint8 [L, Y, X] or [L, Y, X, 3]. Masks, bool [L]: `tinted` for painted patches,
    `covered` for hidden ones, `absent` for those that this version does not have."""

    label: str
    patches: NDArray[np.uint8]
    tinted: NDArray[np.bool_] | None = None
    covered: NDArray[np.bool_] | None = None
    absent: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Panel:
    """Versions of one strip, all of its length, and a line of words under them."""

    rows: Sequence[Row]
    note: str = ""


def stack(panels: Sequence[Panel], *, columns: int = COLUMNS, scale: int = SCALE) -> NDArray[np.uint8]:
    """Panels as one picture: uint8 RGB [height, width, 3]."""
    gutter = max(_words(row.label, 2).shape[1] for panel in panels for row in panel.rows) + 2 * _MARGIN
    blocks: list[NDArray[np.uint8]] = [_space(_MARGIN)]
    for index, panel in enumerate(panels):
        if index:
            blocks.append(_space(_PANEL_GAP))
        blocks += _panel(panel, columns, scale, gutter)
    width = max(block.shape[1] for block in blocks) + _MARGIN
    return np.concatenate([_wide(block, width) for block in [*blocks, _space(_MARGIN)]])


def _panel(panel: Panel, columns: int, scale: int, gutter: int) -> list[NDArray[np.uint8]]:
    length = len(panel.rows[0].patches)
    blocks: list[NDArray[np.uint8]] = []
    for first in range(0, length, columns):
        last = min(first + columns, length)
        if first:
            blocks.append(_space(_PIECE_GAP))
        blocks.append(_ruler(first, last, panel.rows[0].patches.shape[2] * scale, gutter))
        for row in panel.rows:
            piece = _cells(row, first, last, scale)
            blocks += [_labelled(row.label, piece, gutter), _space(_ROW_GAP)]
    if panel.note:
        large = _words(panel.note, 2)
        shade = large if gutter + large.shape[1] <= max(block.shape[1] for block in blocks) else _words(panel.note, 1)
        note = np.full((len(shade) + _ROW_GAP, gutter + shade.shape[1], 3), _GROUND, np.uint8)
        note[_ROW_GAP:, gutter:] = _inked(shade, _FAINT)
        blocks.append(note)
    return blocks


def _cells(row: Row, first: int, last: int, scale: int) -> NDArray[np.uint8]:
    """Patches side by side and enlarged, with their colours: uint8 [Y, X, 3]."""
    cells = row.patches[first:last]
    cells = np.repeat(cells[..., None], 3, 3) if cells.ndim == 3 else cells.copy()
    if row.tinted is not None:
        which = row.tinted[first:last]
        cells[which] = (cells[which].astype(np.uint16) * np.array(_TINT, np.uint16) // 255).astype(np.uint8)
    for mask, color in ((row.covered, _COVER), (row.absent, _GROUND)):
        if mask is not None:
            cells[mask[first:last]] = color
    strip = np.concatenate(list(cells), axis=1)
    return np.repeat(np.repeat(strip, scale, 0), scale, 1)


def _labelled(label: str, piece: NDArray[np.uint8], gutter: int) -> NDArray[np.uint8]:
    shade = _words(label, 2)
    block = np.full((max(len(piece), len(shade)), gutter + piece.shape[1], 3), _GROUND, np.uint8)
    top = (len(block) - len(shade)) // 2
    left = gutter - _MARGIN - shade.shape[1]
    block[top : top + len(shade), left : left + shade.shape[1]] = _inked(shade, _INK)
    block[: len(piece), gutter:] = piece
    return block


def _ruler(first: int, last: int, patch_px: int, gutter: int) -> NDArray[np.uint8]:
    numbers = [(patch, _words(str(patch), 1)) for patch in range(first, last, _RULER_EVERY)]
    width = max(gutter + (patch - first) * patch_px + shade.shape[1] + 4 for patch, shade in numbers)
    ruler = np.full((_GLYPH_ROWS // 2 + 2, max(width, gutter + (last - first) * patch_px), 3), _GROUND, np.uint8)
    for patch, shade in numbers:
        x = gutter + (patch - first) * patch_px
        ruler[2:, x] = _FAINT
        ruler[: len(shade), x + 3 : x + 3 + shade.shape[1]] = _inked(shade, _FAINT)
    return ruler


def _words(text: str, size: int) -> NDArray[np.uint8]:
    """A line of words: uint8 [rows, columns], 0 = ink. size: pixels for one of the font's."""
    return _writer(size)(text, 1 << 16).pixels[:, :-1]


@functools.cache
def _writer(size: int) -> Renderer:
    rows = size * _GLYPH_ROWS // 2
    # patches of one column: a line ends where its last letter does, and the end patch is the column that is cut off
    return Renderer(RenderConfig(layout="continuous", height=rows, patch_width=1, size=rows, lift=0))


def _inked(shade: NDArray[np.uint8], color: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The words in a colour on the ground."""
    paper = shade[..., None] / 255
    return np.rint(np.array(_GROUND) * paper + np.array(color) * (1 - paper)).astype(np.uint8)


def _space(rows: int) -> NDArray[np.uint8]:
    return np.full((rows, 1, 3), _GROUND, np.uint8)


def _wide(block: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    wide = np.full((len(block), width, 3), _GROUND, np.uint8)
    wide[:, : block.shape[1]] = block
    return wide
