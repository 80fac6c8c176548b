"""The built-in font: every string has a picture, on a machine that has no font at all.

A character is one of three things. Some are drawn (source.py says where and how). Letters with marks are composed of
drawings by their Unicode decomposition: the mark stands in the rows that the letter leaves free, a letter that leaves
none is replaced by its low form, and where that does not exist the mark stands to the right of the letter. All the rest
is a box with the hexadecimal digits of the code point, as GNU Unifont shows what it lacks: nobody reads a text in
boxes, but no two characters look the same, so a model can tell them apart.

Everything is a whole number of pixels, black or white; a scale of 2 doubles each pixel for layouts with 16 rows. There
is no kerning and there are no ligatures: a line is the sum of its clusters, and no character looks like two others side
by side, so that it can be read back. Left out on purpose: towers of marks (the second mark over a letter stands beside
it, later ones are drawn over that one), scripts that join their letters.
"""

import unicodedata
from typing import NamedTuple, TypeVar

import numpy as np

from render.errors import RenderError
from render.face import Bitmap, Glyph
from render.font.source import DIGIT_ROWS, ROWS, Cell, load_source

ASCENT, DESCENT = 6, 2  # rows at scale 1
# Glyph ids: the code point, plus a multiple of this for the other forms of a drawing.
FORM = 0x110000
PLAIN, SHORT, MIRRORED, MARK = range(4)  # from MARK on: the drawings of a mark, narrowest first
MIRRORS = "()[]{}<>«»‹›≤≥"  # pairs whose drawings mirror each other
ABOVE = 0b11  # the rows that a small letter without ascender leaves free
OGONEK = "\u0328"  # hangs from the right foot of a letter, not from its middle
BESIDE = 2  # px between a letter and the mark that finds no room on it; 1 would look like a letter and an accent alone
MAX_CACHED = 16_384  # bitmaps; a text of boxes alone has a million
MAX_COMPOSED = 4  # marks of a cluster that may melt into one character

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Form(NamedTuple):
    """What placing a glyph asks of it."""

    id: int
    width: int  # px of ink and paper between its first and last column
    rows: int  # bit i is set where row i has ink


class _Placed(NamedTuple):
    """A letter and its marks: where their first columns are, in px from the left edge of the cluster."""

    glyphs: list[tuple[int, int]]  # id, px; the base comes first
    width: int  # px


class PixelFont:
    """The font of this project at 8 rows times `scale`; implements `render.face.Face`.

    Glyph ids are code points for characters and boxes, and code points plus multiples of 0x110000 for other forms.
    Raises RenderError if `scale` is not a whole number >= 1.
    """

    def __init__(self, scale: int = 1):
        if not isinstance(scale, int) or isinstance(scale, bool) or scale < 1:
            raise RenderError(f"the built-in font cannot be scaled by {scale!r}; give a whole number, 1 = 8 rows")
        self.scale = scale
        self._source = load_source()
        self._cells: dict[int, Cell] = {}
        self._bitmaps: dict[int, Bitmap] = {}
        self._composed: dict[str, Cell | None] = {}
        self._forms: dict[int, _Form] = {}
        self._advances: dict[str, int] = {}  # px, of what stands alone
        glyphs, marks = self._source.glyphs, self._source.marks
        self._marks = {mark for mark in marks if len(mark) == 1}
        invisible = {character for character, cell in glyphs.items() if not cell.advance}
        self._extenders = self._marks | {c for c in invisible if unicodedata.category(c) == "Mn" or c in "\u200c\u200d"}
        self._mirrors = {c: MIRRORS[i ^ 1] for i, c in enumerate(MIRRORS) if c in glyphs and MIRRORS[i ^ 1] in glyphs}

    def __reduce__(self):
        return PixelFont, (self.scale,)

    @property
    def name(self) -> str:
        return "builtin" if self.scale == 1 else f"builtin x{self.scale}"

    @property
    def sha256(self) -> str:
        return self._source.sha256

    @property
    def ascent(self) -> int:
        return ASCENT * self.scale

    @property
    def descent(self) -> int:
        return DESCENT * self.scale

    def covers(self, character: str) -> bool:
        """Whether a character is drawn or composed; boxes do not count."""
        return character in self._source.glyphs or character in self._marks or self._compose(character) is not None

    def characters(self) -> list[str]:
        """All characters that the font covers, by code point. Looks at all of Unicode: takes about a second."""
        return [chr(code) for code in range(FORM) if self.covers(chr(code))]

    # placing

    def shape(self, text: str, script: str | None, rtl: bool) -> list[Glyph]:
        """Place the glyphs of a run, from left to right; marks follow their letter. The script makes no difference."""
        advances = self._advances
        if not rtl and self._extenders.isdisjoint(text):
            return [
                Glyph(ord(character), index, advances.get(character) or self._advance(character), 0, 0)
                for index, character in enumerate(text)
            ]
        clusters = []
        start = 0
        while start < len(text):
            end = start + 1
            while end < len(text) and text[end] in self._extenders:
                end += 1
            clusters.append(self._cluster(text[start], text[start + 1 : end], start, rtl))
            start = end
        return [glyph for cluster in (reversed(clusters) if rtl else clusters) for glyph in cluster]

    def _advance(self, character: str) -> int:
        # a mark has one too, for where no letter stands before it
        return _remember(self._advances, character, self._cell(ord(character)).advance * self.scale)

    def _cluster(self, base: str, extenders: str, start: int, rtl: bool) -> list[Glyph]:
        """The glyphs of a character and the marks and joiners behind it."""
        base_id = ord(base)
        if rtl and unicodedata.mirrored(base) and self.covers(base):
            base_id = ord(self._mirrors[base]) if base in self._mirrors else MIRRORED * FORM + base_id
        used = 0
        while used < min(len(extenders), MAX_COMPOSED):
            composed = unicodedata.normalize("NFC", base + extenders[used])
            if len(composed) > 1 or not self.covers(composed):
                break
            base, base_id, used = composed, ord(composed), used + 1
        marks = [mark for mark in extenders[used:] if mark in self._marks]
        silent = [Glyph(ord(c), start, 0, 0, 0) for c in extenders[used:] if c not in self._marks]
        if not marks:
            advance = self._cell(base_id).advance * self.scale
            return [Glyph(base_id, start, advance, 0, 0), *silent]
        placed = self._place(base, base_id, marks)
        advance = (placed.width + 1) * self.scale
        (base_id, left), *rest = placed.glyphs
        glyphs = [Glyph(base_id, start, advance, left * self.scale, 0)]
        glyphs += [Glyph(mark, start, 0, left * self.scale - advance, 0) for mark, left in rest]
        return glyphs + silent

    def _place(self, base: str, base_id: int, marks: list[str] | str) -> _Placed:
        """Put marks over, under and, where there is no room, to the right of a letter."""
        letter = self._form(base_id)
        if base in self._source.shorts and any(self._mark(mark, 0).rows & ABOVE for mark in marks):
            letter = self._form(SHORT * FORM + ord(base))
        taken = letter.rows
        left, right = 0, letter.width
        placed = []
        beside = []
        for mark in marks:
            form = self._mark(mark, letter.width)
            if form.rows & taken:
                beside.append(form)
                continue
            taken |= form.rows
            x = letter.width - form.width if mark == OGONEK else -((form.width - letter.width) // 2)
            left, right = min(left, x), max(right, x + form.width)
            placed.append((form.id, x))
        if beside:
            placed += [(form.id, right + BESIDE) for form in beside]
            right += BESIDE + max(form.width for form in beside)
        return _Placed([(letter.id, -left), *((glyph, x - left) for glyph, x in placed)], right - left)

    def _mark(self, mark: str, width: int) -> _Form:
        """The drawing of a mark for a letter of a width in px: as odd or even as the letter, as wide as it allows."""
        widths = [cell.width for cell in self._source.marks[mark]]
        same = [w for w in widths if w % 2 == width % 2] or widths
        best = max((w for w in same if w <= width), default=same[0])
        return self._form((MARK + widths.index(best)) * FORM + ord(mark[0]))

    def _form(self, glyph: int) -> _Form:
        found = self._forms.get(glyph)
        if found is None:
            cell = self._cell(glyph)
            rows = int(np.packbits(cell.ink.any(axis=1), bitorder="little")[0])
            found = _remember(self._forms, glyph, _Form(glyph, cell.width, rows))
        return found

    # drawing

    def bitmap(self, glyph: int) -> Bitmap:
        """The ink of a glyph, read-only, cropped to its rows and columns; [0, 0] for a glyph without ink."""
        if found := self._bitmaps.get(glyph):
            return found
        ink = self._cell(glyph).ink
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        if rows.size:
            top, left = int(rows[0]), int(columns[0])
            ink = ink[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
        else:
            top, left, ink = ASCENT, 0, ink[:0, :0]
        coverage = np.repeat(np.repeat(ink, self.scale, 0), self.scale, 1) * np.uint8(255)
        coverage.setflags(write=False)
        return _remember(self._bitmaps, glyph, Bitmap(coverage, left * self.scale, (ASCENT - top) * self.scale))

    def _cell(self, glyph: int) -> Cell:
        return self._cells.get(glyph) or _remember(self._cells, glyph, self._draw(glyph))

    def _draw(self, glyph: int) -> Cell:
        """The drawing that an id stands for. Raises RenderError if it stands for none."""
        form, code = divmod(glyph, FORM)
        character = chr(code)
        source = self._source
        if form == PLAIN:
            if character in source.glyphs:
                return source.glyphs[character]
            if character in self._marks:
                return source.marks[character][0]
            return self._compose(character) or self._box(code)
        if form == SHORT and character in source.shorts:
            return source.shorts[character]
        if form == MIRRORED and self.covers(character):
            cell = self._cell(code)
            return Cell(cell.ink[:, ::-1], cell.advance)
        drawings = source.marks.get(character, [])
        if MARK <= form < MARK + len(drawings):
            return drawings[form - MARK]
        raise RenderError(f"the built-in font has no glyph with the id {glyph}; take the ids that shape() gives")

    def _compose(self, character: str) -> Cell | None:
        """A letter with its marks as one drawing; None if a part is not drawn or two of them would share a place."""
        if character in self._composed:
            return self._composed[character]
        source = self._source
        parts = source.compositions.get(character) or unicodedata.normalize("NFD", character)
        base, marks = parts[:1], parts[1:]
        cell = None
        if parts != character and base in source.glyphs:
            if not marks:
                cell = source.glyphs[base]
            elif marks in source.marks or self._marks.issuperset(marks):
                cell = self._paint(base, [marks] if marks in source.marks else list(marks))
        return _remember(self._composed, character, cell)

    def _paint(self, base: str, marks: list[str]) -> Cell | None:
        placed = self._place(base, ord(base), marks)
        ink = np.zeros((ROWS, placed.width), bool)
        for glyph, left in placed.glyphs:
            cell = self._cell(glyph)
            room = ink[:, left : left + cell.width]
            if (room & cell.ink).any():
                return None
            room |= cell.ink
        return Cell(ink, placed.width + 1)

    def _box(self, code: int) -> Cell:
        """Two rows of hexadecimal digits between two bars: four in the basic plane, six beyond it."""
        digits = f"{code:04X}" if code <= 0xFFFF else f"{code:06X}"
        per_row = len(digits) // 2
        pitch = self._source.digits[0].advance
        ink = np.zeros((ROWS, 2 + pitch * per_row + 1), bool)
        ink[:, [0, -1]] = True
        for place, digit in enumerate(digits):
            row, column = divmod(place, per_row)
            drawing = self._source.digits[int(digit, 16)].ink
            top, left = row * (ROWS - DIGIT_ROWS), 2 + pitch * column
            ink[top : top + DIGIT_ROWS, left : left + drawing.shape[1]] = drawing
        return Cell(ink, ink.shape[1] + 1)


def _remember(cache: dict[Key, Value], key: Key, value: Value) -> Value:
    """Put a value into a cache that starts anew when it is full."""
    if len(cache) >= MAX_CACHED:
        cache.clear()
    cache[key] = value
    return value
