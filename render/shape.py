"""Characters to placed glyphs, by HarfBuzz: one font file at one size.

Shaping picks the glyphs of a run (joined Arabic, Devanagari conjuncts, ligatures) and says where each goes. HarfBuzz
computes in fractions of a pixel; every distance is rounded here once, as Pango does, so that glyphs stand on whole
pixels. Advances are those of the outlines, not of the hinted glyphs: with them the originals' rows come out equal.
"""

# compiled, without stubs:
# pyright: reportAttributeAccessIssue=false

import io
from collections.abc import Iterable

import numpy as np
import uharfbuzz as hb
from PIL import Image

from render.locality import far_reaching

_UNITS = 1024  # to a pixel
_HALF = _UNITS // 2


class Shaper:
    """HarfBuzz's view of a font. data: bytes of the file; axes: of a variable font, by tag; ascent, descent: px."""

    def __init__(self, data: bytes, index: int, size: float, axes: dict[str, float]):
        self._face = hb.Face(data, index)
        self._font = hb.Font(self._face)
        scale = round(size * _UNITS)
        self._font.scale = (scale, scale)
        if axes:
            self._font.set_variations(axes)
        self._characters = self._face.unicodes
        line = self._font.get_font_extents("ltr")
        self.ascent, self.descent = -(-line.ascender // _UNITS), -(line.descender // _UNITS)  # rounded outwards
        self._buffer = hb.Buffer()

    def covers(self, character: str) -> bool:
        """Whether the character has a glyph."""
        return ord(character) in self._characters

    @property
    def characters(self) -> frozenset[int]:
        """Code points that have a glyph."""
        return frozenset(self._characters)

    def place(self, text: str, script: str | None, rtl: bool) -> list[tuple[int, int, int, int, int]]:
        """Place the glyphs of one run, in visual order: the fields of Glyph; clusters count the characters of `text`.

        Plain tuples: this runs for every new word, and naming the fields would double its time.
        """
        buffer = self._buffer
        buffer.reset()
        # code points, not a string: a lone surrogate is a character like any other here
        buffer.add_codepoints(list(map(ord, text)))
        # digits and punctuation alone are set like the Latin text that they usually stand in
        buffer.script = script or "Latn"
        buffer.direction = "rtl" if rtl else "ltr"
        buffer.language = "en"  # a fixed one: the default would be this machine's
        hb.shape(self._font, buffer)
        return [
            (
                info.codepoint,
                info.cluster,
                (position.x_advance + _HALF) // _UNITS,
                (position.x_offset + _HALF) // _UNITS,
                (position.y_offset + _HALF) // _UNITS,
            )
            for info, position in zip(buffer.glyph_infos or (), buffer.glyph_positions or ())
        ]

    def local_characters(self, characters: Iterable[str]) -> list[str]:
        """Those of these characters that are drawn by their two neighbours alone, in text of nothing else."""
        glyphs = {character: {placed[0] for placed in self.place(character, None, False)} for character in characters}
        far = far_reaching(self._face, frozenset().union(*glyphs.values()))
        return [character for character, own in glyphs.items() if not own & far]

    @property
    def has_color(self) -> bool:
        """Whether some glyphs are kept in colour, as PNG or as layers."""
        face = self._face
        return bool(face.has_color_png or face.has_color_paint or face.has_color_layers)

    def color(self, glyph: int) -> tuple[np.ndarray, int, int] | None:
        """A glyph in colour: premultiplied RGBA uint8 [rows, columns, 4], px from the origin to the first column,
        px from the baseline up to the first row. None if the font keeps it in black only."""
        png = self._font.get_glyph_color_png(glyph) if self._face.has_color_png else None
        if png is not None and len(png.data):
            return self._scaled_png(glyph, bytes(png.data))
        painted = self._face.has_color_layers and self._face.get_glyph_color_layers(glyph)
        if painted or (self._face.has_color_paint and self._face.glyph_has_color_paint(glyph)):
            return self._painted(glyph)
        return None

    def _scaled_png(self, glyph: int, png: bytes) -> tuple[np.ndarray, int, int]:
        box = self._font.get_glyph_extents(glyph)
        columns, rows = max(1, round(box.width / _UNITS)), max(1, round(-box.height / _UNITS))
        with Image.open(io.BytesIO(png)) as picture:
            # scaled with colours multiplied by alpha, or transparent pixels would bleed their colour into the edge
            small = picture.convert("RGBA").convert("RGBa").resize((columns, rows), Image.Resampling.BOX)
        pixels = np.frombuffer(small.tobytes(), np.uint8).reshape(rows, columns, 4)
        return pixels, round(box.x_bearing / _UNITS), round(box.y_bearing / _UNITS)

    def _painted(self, glyph: int) -> tuple[np.ndarray, int, int] | None:
        paint = hb.RasterPaint()
        paint.scale_factor = (_UNITS, _UNITS)
        box = self._font.get_glyph_extents(glyph)
        if box is None or not paint.set_glyph_extents(box):
            return None
        paint.paint_glyph(self._font, glyph)
        image = paint.render()
        if image is None:
            return None
        extents = image.extents
        raw = np.frombuffer(bytes(image.buffer), np.uint8).reshape(extents.height, extents.stride)
        bgra = raw[:, : extents.width * 4].reshape(extents.height, extents.width, 4)
        # HarfBuzz's rows run upwards from the origin
        return bgra[::-1, :, [2, 1, 0, 3]], extents.x_origin, extents.y_origin + extents.height


def harfbuzz_version() -> str:
    """Version of the HarfBuzz library in use, such as 15.0.0."""
    return hb.version_string()
