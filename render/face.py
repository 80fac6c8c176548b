"""What the renderer asks of a font: which characters it has, where its glyphs go, and what they look like.

Two things answer to this: font files (fonts.py: HarfBuzz places, FreeType draws) and the font of this project, which is
kept as text (font/). All distances are whole pixels: the renderer never places a glyph between two pixels, so that a
glyph looks the same wherever it stands and everything above it can be cached.
"""

from typing import NamedTuple, Protocol

import numpy as np


class Glyph(NamedTuple):
    """One placed glyph of a shaped piece of text, in visual order (left to right, whatever the direction)."""

    id: int
    cluster: int  # index of the first character, in the shaped text, of the cluster that the glyph belongs to
    advance: int  # px from this origin to the next
    x: int  # px right of the origin
    y: int  # px above the baseline


class Bitmap(NamedTuple):
    """The ink of a glyph."""

    coverage: np.ndarray  # uint8 [rows, columns], 0 = paper, 255 = full ink
    left: int  # px from the origin to the first column
    top: int  # px from the baseline up to the upper edge of the first row


class Face(Protocol):
    """A font at one size. Glyph 0 is what stands for a character that it does not have."""

    @property
    def name(self) -> str:
        """For people: file name with face and instance, or `builtin`."""
        ...

    @property
    def sha256(self) -> str:
        """Hex digest of the file, or of the text that the font is kept in."""
        ...

    @property
    def ascent(self) -> int:
        """px of a line above the baseline."""
        ...

    @property
    def descent(self) -> int:
        """px of a line below the baseline, positive."""
        ...

    def covers(self, character: str) -> bool:
        """Whether the font has a glyph for a character."""
        ...

    def shape(self, text: str, script: str | None, rtl: bool) -> list[Glyph]:
        """Place the glyphs of a run of one script (ISO 15924, None = unknown) and direction."""
        ...

    def bitmap(self, glyph: int) -> Bitmap:
        """The ink of a glyph by its id."""
        ...
