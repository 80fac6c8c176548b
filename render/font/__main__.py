"""Look at the built-in font in a terminal: `python -m render.font "text" "another line"`."""

import sys

import numpy as np

from render.font import PixelFont

PANGRAM = "The quick brown fox jumps over the lazy dog. 0123456789"
BLOCKS = " ▀▄█"  # by upper pixel + 2 * lower pixel


def ink(font: PixelFont, text: str) -> np.ndarray:
    """One line from left to right, uint8 [ascent + descent, columns], 0 = paper, 255 = ink."""
    glyphs = font.shape(text, None, False)
    rows_YX = np.zeros((font.ascent + font.descent, sum(glyph.advance for glyph in glyphs)), np.uint8)
    origin = 0
    for glyph in glyphs:
        coverage, left, top = font.bitmap(glyph.id)
        left, top = origin + glyph.x + left, font.ascent - glyph.y - top
        room = rows_YX[top : top + coverage.shape[0], left : left + coverage.shape[1]]
        np.maximum(room, coverage, out=room)
        origin += glyph.advance
    return rows_YX


def preview(font: PixelFont, text: str) -> str:
    """A line in block characters, two rows of pixels in a row of text."""
    pixels_YX = (ink(font, text) > 0).astype(int)
    pairs = pixels_YX[0::2] + 2 * pixels_YX[1::2]
    return "\n".join("".join(BLOCKS[pair] for pair in row).rstrip() for row in pairs)


def main(argv: list[str]) -> int:
    font = PixelFont()
    for line in argv or [PANGRAM]:
        print(preview(font, line))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
