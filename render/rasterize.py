"""Glyphs to grey pixels, by FreeType: one font file at one size.

FreeType is called through its C functions. The objects that freetype-py offers on top would turn each bitmap into a
Python list, pixel by pixel; here it is copied once. A bitmap depends on the file, the size and the hinting alone:
glyphs stand on whole pixels, so there is one bitmap of each.

Light hinting moves outlines up and down to whole rows and leaves their widths alone, which is what the originals drew
with (fontconfig's default). PIXAR's strips come out equal without hinting.
"""

# freetype-py makes its constants at import:
# pyright: reportAttributeAccessIssue=false

import ctypes
import weakref

import freetype.raw as ft
import numpy as np

from render.errors import RenderError
from render.face import Bitmap

_UNITS = 64  # FreeType measures in 1/64 px,
_FIXED = 1 << 16  # and what is no length in 1/65536
_HAS_COLOR = 1 << 14  # FT_FACE_FLAG_COLOR, which freetype-py does not name
_FLAGS = {"light": ft.FT_LOAD_TARGET_LIGHT, "none": ft.FT_LOAD_NO_HINTING}
_NOTHING = np.zeros((0, 0), np.uint8)


class Rasterizer:
    """FreeType's view of a font.

    data: bytes of the font file, kept alive here. ascent, descent: px of a line, where `has_size`. Raises RenderError
    naming `where` if FreeType cannot open it.
    """

    def __init__(self, data: bytes, index: int, size: float, hinting: str, where: str, axes: dict[str, float]):
        self._data, self._flags = data, _FLAGS[hinting]
        self._library, self._face = ft.FT_Library(), ft.FT_Face()
        _check(ft.FT_Init_FreeType(ctypes.byref(self._library)), "FreeType does not start")
        weakref.finalize(self, ft.FT_Done_FreeType, self._library)
        status = ft.FT_New_Memory_Face(self._library, data, len(data), index, ctypes.byref(self._face))
        _check(status, f"{where}: not a font that FreeType can open; give a TTF, OTF or TTC file")
        if axes:
            self._set_axes(axes, where)
        self.has_size = self._set_size(size, where)
        # FreeType has rounded these outwards to whole pixels; fonts of bitmaps only state them per size
        metrics = self._face.contents.size.contents.metrics
        self.ascent, self.descent = metrics.ascender // _UNITS, -(metrics.descender // _UNITS)

    def _set_axes(self, axes: dict[str, float], where: str) -> None:
        master = ctypes.POINTER(ft.FT_MM_Var)()
        _check(ft.FT_Get_MM_Var(self._face, ctypes.byref(master)), f"{where}: not a variable font; leave the axes out")
        axis = [master.contents.axis[i] for i in range(master.contents.num_axis)]
        known = {a.tag.to_bytes(4, "big").decode("latin-1"): (a.minimum, a.default, a.maximum) for a in axis}
        ft.FT_Done_MM_Var(self._library, master)
        for tag, value in axes.items():
            if tag not in known:
                raise RenderError(f"{where}: has no axis {tag!r}; its axes are {', '.join(known)}")
            low, _, high = (number / _FIXED for number in known[tag])
            if not low <= value <= high:
                raise RenderError(f"{where}: {tag} = {value:g}; this font has {low:g} to {high:g}")
        values = (ft.FT_Fixed * len(known))()
        for i, (tag, (_, default, _)) in enumerate(known.items()):
            values[i] = round(axes[tag] * _FIXED) if tag in axes else default
        status = ft.FT_Set_Var_Design_Coordinates(self._face, len(known), values)
        _check(status, f"{where}: FreeType refuses the axes")

    def _set_size(self, size: float, where: str) -> bool:
        """False for emoji kept as PNG of another size: shape.py scales them, and there is nothing to draw here."""
        if ft.FT_Set_Char_Size(self._face, 0, int(size * _UNITS), 0, 0) == 0:
            return True
        # a font of bitmaps: only its own sizes can be set
        strikes = [self._face.contents.available_sizes[i] for i in range(self._face.contents.num_fixed_sizes)]
        for i, strike in enumerate(strikes):
            if strike.height == round(size):
                _check(ft.FT_Select_Size(self._face, i), f"{where}: FreeType refuses size {strike.height}")
                return True
        if strikes and self._face.contents.face_flags & _HAS_COLOR:
            return False
        heights = ", ".join(str(strike.height) for strike in strikes) or "none"
        raise RenderError(f"{where}: has bitmaps of {heights} px only, not of {size:g}; set render.size to one of them")

    def draw(self, glyph: int) -> Bitmap:
        """The ink of a glyph. A glyph that FreeType cannot draw (an emoji kept as PNG) has none."""
        if ft.FT_Load_Glyph(self._face, glyph, self._flags) != 0:
            return Bitmap(_NOTHING, 0, 0)
        slot = self._face.contents.glyph
        if ft.FT_Render_Glyph(slot, ft.FT_RENDER_MODE_NORMAL) != 0:
            return Bitmap(_NOTHING, 0, 0)
        bitmap = slot.contents.bitmap
        pitch, rows, columns = bitmap.pitch, bitmap.rows, bitmap.width
        if not rows or not columns:
            return Bitmap(_NOTHING, 0, 0)
        packed = np.frombuffer(ctypes.string_at(bitmap.buffer, rows * abs(pitch)), np.uint8).reshape(rows, abs(pitch))
        if bitmap.pixel_mode == ft.FT_PIXEL_MODE_MONO:
            coverage = np.unpackbits(packed, axis=1)[:, :columns] * np.uint8(255)
        else:
            coverage = packed[:, :columns]
        return Bitmap(np.ascontiguousarray(coverage), slot.contents.bitmap_left, slot.contents.bitmap_top)


def _check(status: int, message: str) -> None:
    if status:
        raise RenderError(f"{message} (FreeType error {status})")


def freetype_version() -> str:
    """Version of the FreeType library in use, such as 2.13.2."""
    library, numbers = ft.FT_Library(), [ctypes.c_int() for _ in range(3)]
    _check(ft.FT_Init_FreeType(ctypes.byref(library)), "FreeType does not start")
    ft.FT_Library_Version(library, *map(ctypes.byref, numbers))
    ft.FT_Done_FreeType(library)
    return ".".join(str(number.value) for number in numbers)
