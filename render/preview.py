"""Strips in a terminal: two pixels, one over the other, in each character.

A character cell is about twice as high as wide, so the half blocks ▀ and ▄ make square pixels of it. How much more than
ink and paper can be shown depends on where the output goes:

- `plain`: ink or nothing. A file, a pipe, a terminal that wants no colour (NO_COLOR is set).
- `grey`: four shades, the black, dark grey, light grey and white that every terminal has.
- `color`: every pixel as it is, where the terminal says that it takes 24 bits (COLORTERM).

A strip is folded into rows of whole patches that fit the terminal. Separators are hatched in `plain`, because a row of
letters is black on the terminal's ground too.
"""

import os
import shutil
from typing import TextIO

import numpy as np

from render.strip import Strip

PLAIN, GREY, COLOR = "plain", "grey", "color"
_BLOCKS = np.array(list(" ▀▄█"))  # by upper ink + 2 * lower ink
_HATCH = "▒"
_RULER_PATCH, _RULER_WORD, _RULER_SEPARATOR = "╷", "▼", "■"
_INK_BELOW = 144  # strokes of small letters are grey: at the middle they would fall apart
_SHADES = ("30", "90", "37", "97"), ("40", "100", "47", "107")  # dark to light, as foreground and as background


def mode_of(stream: TextIO) -> str:
    """What the stream can show."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return PLAIN
    return COLOR if os.environ.get("COLORTERM") in ("truecolor", "24bit") else GREY


def patches_per_row(strip: Strip) -> int:
    """As many as the terminal is wide, at least one; a pipe counts as 80 characters unless COLUMNS says otherwise."""
    return max(1, shutil.get_terminal_size().columns // strip.patches.shape[2])


def preview(strip: Strip, mode: str = PLAIN, columns: int | None = None, grid: bool = False) -> str:
    """A strip as lines of characters.

    columns: patches in a row; None = what the terminal holds. grid: a ruler over each row, ╷ where a patch begins, ▼
    where a word does, ■ over separators.
    """
    columns = columns or patches_per_row(strip)
    patches = _in_color(strip.patches) if mode == COLOR else _in_grey(strip.patches)
    if patches.shape[1] % 2:
        patches = np.concatenate([patches, np.full_like(patches[:, :1], 255)], 1)
    lines: list[str] = []
    for first in range(0, strip.num_patches, columns):
        row = patches[first : first + columns].swapaxes(0, 1)  # [height, patches, width] or [..., 3]
        numbers = range(first, first + row.shape[1])
        if grid:
            lines.append(_ruler(strip, numbers))
        if mode == PLAIN:
            lines += _plain(row, [number in strip.separators for number in numbers])
        else:
            pixels = row.reshape(len(row), -1, *row.shape[3:]).tolist()
            lines += [_colored(list(map(_code, above, below))) for above, below in zip(pixels[0::2], pixels[1::2])]
    return "\n".join(lines)


def _in_color(patches: np.ndarray) -> np.ndarray:
    return np.repeat(patches[..., None], 3, 3) if patches.ndim == 3 else patches


def _in_grey(patches: np.ndarray) -> np.ndarray:
    """The brightness that the eye sees (ITU-R BT.601)."""
    if patches.ndim == 3:
        return patches
    return (patches.astype(np.uint32) @ np.array([299, 587, 114], np.uint32) // 1000).astype(np.uint8)


def _ruler(strip: Strip, numbers: range) -> str:
    width = strip.patches.shape[2]
    begins = set() if strip.word_starts is None else set(strip.word_starts[:-1].tolist())
    marks = [
        _RULER_SEPARATOR * width
        if number in strip.separators
        else (_RULER_WORD if number in begins else _RULER_PATCH).ljust(width)
        for number in numbers
    ]
    return "".join(marks).rstrip()


def _plain(row: np.ndarray, is_separator: list[bool]) -> list[str]:
    ink = row < _INK_BELOW
    characters = _BLOCKS[ink[0::2] + 2 * ink[1::2]]
    characters[:, is_separator] = _HATCH
    return ["".join(line.ravel()).rstrip() for line in characters]


def _code(above: int | list[int], below: int | list[int]) -> str:
    """Colours of the upper and the lower pixel: of four shades for grey values, 24 bits for red, green and blue."""
    if isinstance(above, int) and isinstance(below, int):
        return f"{_SHADES[0][above >> 6]};{_SHADES[1][below >> 6]}"
    return "38;2;{};{};{};48;2;{};{};{}".format(*above, *below)  # type: ignore[misc]


def _colored(codes: list[str]) -> str:
    """One line of half blocks; a colour is said again only where it changes."""
    parts, last = [], None
    for code in codes:
        parts.append("▀" if code == last else f"\x1b[{code}m▀")
        last = code
    return "".join(parts) + "\x1b[0m"
