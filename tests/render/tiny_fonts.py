"""Fonts made for the tests, of boxes on a grid: 16 units to the em, so that at 16 px a unit is a pixel.

Drawn without hinting at 16 px, a glyph of such a font is full ink inside its boxes and nothing outside.
"""

import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont
from fontTools.ttLib.tables.DefaultTable import DefaultTable
from fontTools.ttLib.tables.TupleVariation import TupleVariation
from PIL import Image

EM = 16
ASCENT, DESCENT = 13, 3  # together the rows of a strip, so that the baseline is row 13

Box = tuple[int, int, int, int]  # left, lowest, right and highest edge; the baseline is 0
Glyphs = Mapping[str, tuple[int, Sequence[Box]]]  # advance and boxes of each character
Color = tuple[float, float, float, float]

LETTERS: Glyphs = {
    " ": (4, []),
    "a": (6, [(0, 0, 5, 5)]),
    "b": (6, [(0, 0, 5, 8)]),
    "c": (6, [(0, 0, 2, 5), (0, 0, 5, 2)]),
}


def name_of(character: str) -> str:
    return f"u{ord(character):04X}"


def font_of(glyphs: Glyphs, layers: Mapping[str, Sequence[tuple[Sequence[Box], Color]]] | None = None) -> TTFont:
    """A font of boxes. layers: colours of some characters, one box or several each, from the lowest layer up."""
    layers = layers or {}
    boxes = {".notdef": (6, [(0, 0, 5, 12)]), **{name_of(c): glyph for c, glyph in glyphs.items()}}
    for character, parts in layers.items():
        for number, (shape, _) in enumerate(parts):
            boxes[f"{name_of(character)}.{number}"] = (glyphs[character][0], shape)
    builder = FontBuilder(EM, isTTF=True)
    builder.setupGlyphOrder(list(boxes))
    builder.setupCharacterMap({ord(c): name_of(c) for c in glyphs})
    builder.setupGlyf({name: _outline(shape) for name, (_, shape) in boxes.items()})
    builder.setupHorizontalMetrics(
        {name: (advance, min((box[0] for box in shape), default=0)) for name, (advance, shape) in boxes.items()}
    )
    builder.setupHorizontalHeader(ascent=ASCENT, descent=-DESCENT)
    builder.setupNameTable({"familyName": "Tiny", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=ASCENT, sTypoDescender=-DESCENT, usWinAscent=ASCENT, usWinDescent=DESCENT)
    builder.setupPost()
    if layers:
        colors = [color for parts in layers.values() for _, color in parts]
        numbers = iter(range(len(colors)))
        builder.setupCPAL([colors])
        builder.setupCOLR(
            {name_of(c): [(f"{name_of(c)}.{n}", next(numbers)) for n in range(len(p))] for c, p in layers.items()}
        )
    return builder.font


def _outline(boxes: Sequence[Box]):
    pen = TTGlyphPen(None)
    for left, low, right, high in boxes:
        pen.moveTo((left, low))
        for corner in ((left, high), (right, high), (right, low)):
            pen.lineTo(corner)
        pen.closePath()
    return pen.glyph()


def saved(font: TTFont | TTCollection, path: Path) -> Path:
    font.save(path)
    return path


def collection_of(*fonts: TTFont) -> TTCollection:
    collection = TTCollection()
    collection.fonts = list(fonts)
    return collection


def variable_font() -> TTFont:
    """The letter a, 5 wide and 6 with its space at wght 400, twice that at wght 800; and an axis that moves nothing."""
    font = font_of({" ": (4, []), "a": (6, [(0, 0, 5, 5)])})
    builder = FontBuilder(font=font)
    builder.setupFvar([("wght", 400, 400, 800, "Weight"), ("wdth", 50, 100, 200, "Width")], [])
    # points of the box (two left, two right), then the four phantom points: the second of them carries the advance
    moves = [(0, 0), (0, 0), (5, 0), (5, 0), (0, 0), (6, 0), (0, 0), (0, 0)]
    builder.setupGvar({".notdef": [], name_of(" "): [], name_of("a"): [TupleVariation({"wght": (0, 1, 1)}, moves)]})
    return builder.font


def png_font(pictures: Mapping[str, np.ndarray], top: int, advance: int) -> TTFont:
    """Emoji as Noto keeps them: PNG of 32 px to the em and no outlines.

    pictures: RGBA uint8 [rows, columns, 4]; top: px of the picture from the baseline up; advance: px of 32.
    """
    font = font_of({character: (advance * EM // 32, []) for character in pictures})
    images = []
    for picture in pictures.values():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "png")
        head = struct.pack(">BBbbBI", *picture.shape[:2], 0, top, advance, file.tell())
        images.append(head + file.getvalue())
    return _with_bitmaps(font, "CB", 32, 32, 17, images)


def bitmap_font(letters: Mapping[str, np.ndarray], size: int) -> TTFont:
    """Black bitmaps of one size and no outlines (OTB). letters: bool [rows, columns], standing on the baseline."""
    font = font_of({character: (EM // 2, []) for character in letters})
    images = []
    for letter in letters.values():
        rows, columns = letter.shape
        images.append(struct.pack(">BBbbB", rows, columns, 0, rows, size // 2) + np.packbits(letter, axis=1).tobytes())
    return _with_bitmaps(font, "EB", size, 1, 1, images)


def _with_bitmaps(font: TTFont, kind: str, ppem: int, depth: int, image_format: int, images: list[bytes]) -> TTFont:
    """Put images of the glyphs 1, 2, ... in place of the outlines (OpenType: CBDT and CBLC, or EBDT and EBLC)."""
    version = struct.pack(">HH", 3 if kind == "CB" else 2, 0)
    offsets = [sum(map(len, images[:i])) for i in range(len(images) + 1)]
    index = struct.pack(f">HHI{len(offsets)}I", 1, image_format, len(version), *offsets)
    array = struct.pack(">HHI", 1, len(images), 8)
    line = struct.pack(">bbB9b", ppem * ASCENT // EM, -ppem * DESCENT // EM, ppem, *[0] * 9)
    size = struct.pack(">4I", 8 + 48, len(array) + len(index), 1, 0) + line + line
    size += struct.pack(">HHBBBb", 1, len(images), ppem, ppem, depth, 1)
    for tag, data in (
        (kind + "LC", version + struct.pack(">I", 1) + size + array + index),
        (kind + "DT", version + b"".join(images)),
    ):
        table = DefaultTable(tag)
        table.data = data
        font[tag] = table
    del font["glyf"], font["loca"]
    return font
