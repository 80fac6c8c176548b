"""The typesetter: puts lines together from pieces, and keeps the pieces.

    text -> tokens -> a piece for each, from a cache -> Line

Three kinds of line, from the most frequent to the rarest: of plain words, joined without looking at one of them
(plain.py); of pieces that need a look (overhanging ink, fonts of other heights, several scripts); and lines with
letters that run from right to left, which are cut at changes of direction and put in visual order first.

In some layouts words stand on patches of their own. Their pieces are whole patches: each word is made of units that
the layout cuts and draws (`Words`), and the same three kinds of line are put together from those.
"""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

from render.bidi import levels as bidi_levels
from render.bidi import needs_bidi, visual_runs
from render.cache import Cache
from render.config import RenderConfig
from render.fonts import FontFile
from render.itemize import SPACES, itemize
from render.pen import Pen
from render.pieces import (
    BIDI,
    CUT,
    FLAGS,
    MISSING,
    OVERHANG,
    RTL,
    WHOLE,
    Line,
    Part,
    Piece,
    cost_of_columns,
    cost_of_piece,
    cost_of_units,
    ends_blank,
    flags_of,
    in_a_row,
    join,
    line_of,
)
from render.plain import PlainWords
from render.tokens import ALONE, tokens_of, words_of

_CACHE_BYTES = 120 << 20  # of the 128 MB that a renderer may keep; glyphs take the rest (ink.py)
# Sixteenths of it for each cache, where words share patches and where they stand on patches of their own: a layout of
# one sort has no use for most caches of the other. Half is for what most rows are made of, plain words; the other
# caches hold what those are made of, and words that are not plain.
_SHARES = {
    "pieces": (5, 2),
    "plain words": (8, 0),
    "triples": (2, 0),
    "measures": (1, 0),
    "units": (0, 2),
    "words": (0, 2),
    "plain units": (0, 1),
    "plain words on patches": (0, 8),
    "measures on patches": (0, 1),
}
_WORD = re.compile(r"\S+")


class Words(NamedTuple):
    """How a layout puts words on patches of their own.

    cut: texts of the units that a word is made of; unit: draws one (and whether right to left) on whole patches.
    """

    cut: "Callable[[Typesetter, str], list[str]]"
    unit: "Callable[[Typesetter, str, int], Piece]"


class Typesetter:
    """Draws pieces and lines of text under one configuration, and keeps the pieces.

    Its caches, by key: `cache`, a text, (text, is right to left) or (text, is right to left, baseline); and for words
    on patches of their own `units`, (text, is right to left), and `words`, a text or (text, is right to left).
    """

    def __init__(self, config: RenderConfig, words: Words | None = None):
        self.config = config
        self._pen = Pen(config)
        self.chain, self.is_simple, self.column_bytes = self._pen.chain, self._pen.is_simple, self._pen.column_bytes
        self._on_patches = words
        limit = {name: share[1 if words else 0] * (_CACHE_BYTES // 16) for name, share in _SHARES.items()}
        self.cache = Cache(self._build, cost_of_piece, limit["pieces"])
        limits_of_plain = limit["plain words"], limit["triples"], limit["measures"]
        self._plain = PlainWords(self._pen, self.cache, self._build, config.pad, limits_of_plain)
        self.units = Cache(self._build_unit, cost_of_piece, limit["units"])
        self.words = Cache(self._build_word, cost_of_piece, limit["words"])
        self._plain_units = Cache(self._plain_unit, cost_of_columns, limit["plain units"])
        limit_of_words = limit["plain words on patches"]
        self._plain_words = Cache(self._plain_word, cost_of_units, limit_of_words, on_trial=self.is_simple)
        self._word_measures = Cache(self._measure_word, cost_of_piece, limit["measures on patches"])
        on_patches = self.units, self.words, self._plain_units, self._plain_words, self._word_measures
        self._caches: list[Cache] = [self.cache, *self._plain.caches, *on_patches]

    def forget(self) -> None:
        """Empty the caches."""
        for cache in self._caches:
            cache.forget()
        self._plain.forget()
        self._pen.ink.forget()

    @property
    def cache_bytes(self) -> int:
        """Bytes of the caches."""
        return sum(cache.num_bytes for cache in self._caches) + self._pen.ink.num_bytes

    def baseline(self, ascent: int, descent: int) -> int:
        """Row on which the letters of a line of this height stand."""
        return self._pen.baseline(ascent, descent)

    def draw(self, text: str, rtl: int, baseline: int | None) -> Piece:
        """Shape and draw a text of one direction, uncached. baseline: a row, or None = as its fonts have it."""
        return self._pen.draw(text, rtl, baseline)

    def join(self, parts: Sequence[Part], width: int, length: int, rtl: int) -> Piece:
        """One piece from several, see pieces.py."""
        return join(parts, width, length, self.column_bytes, rtl)

    # ---- running text ------------------------------------------------------------------------------------------------

    def line(self, text: str, base: str | None = None) -> Line:
        """One line of running text, shaped and in visual order. base: `ltr`, `rtl` or `auto`, else the config's."""
        base = base or self.config.direction
        if base != "rtl":
            line = self._plain.line(text)
            if line is not None:
                return line
        cache, tokens = self.cache, words_of(text)
        pieces = [cache[token] for token in tokens]
        flags = flags_of({piece.kind for piece in pieces})
        if flags & CUT:
            tokens = tokens_of(text)
            pieces = [cache[token] for token in tokens]
            flags |= flags_of({piece.kind for piece in pieces})
        if flags & WHOLE and not flags & BIDI and base != "rtl":
            return line_of([cache[text, 0]])
        if flags & BIDI or base == "rtl":
            return self._bidi_line(text, tokens_of(text), base, cache)
        baseline = self._pen.common_baseline({piece.kind for piece in pieces})
        if baseline is not None:
            pieces = [cache[token, 0, baseline] for token in tokens]
        return Line(pieces, None, flags)

    def _build(self, key: str | tuple[str, int] | tuple[str, int, int]) -> Piece:
        if not isinstance(key, str):
            return self.draw(*key) if len(key) == 3 else self.draw(*key, None)
        return self.draw(key, 0, None) if self.is_simple(key) else self._sentinel(key) or self.draw(key, 0, None)

    def _sentinel(self, token: str) -> Piece | None:
        """What stands for a token that cannot be drawn without looking at its line; None for one that can."""
        if needs_bidi(token):
            return Piece(b"", BIDI, len(token), b"")
        if len(token) > 1 and ALONE.search(token) and len(tokens_of(token)) > 1:
            return Piece(b"", CUT, len(token), b"")
        reaching = self._pen.reaching
        if not reaching or (0 not in reaching and all(map(self.chain.faces[0].covers, token))):
            return None
        # Han, kana and their punctuation look over spaces in no font; Hangul does, and Latin of some fonts
        for run in itemize(token, self.chain):
            if run.face in reaching and not all(map(ALONE.match, token[run.start : run.end].strip(" "))):
                return Piece(b"", WHOLE, len(token), b"")
        return None

    # ---- right to left -----------------------------------------------------------------------------------------------

    def _bidi_line(self, text: str, tokens: list[str], base: str, cache: Cache, keep_spaces: bool = True) -> Line:
        """A line cut at its tokens and where the direction changes, in visual order.

        cache: pieces by (text, is right to left); keep_spaces: whether spaces belong to the pieces, else they are left
        out.
        """
        _, levels = bidi_levels(SPACES.sub(" ", text), base)
        items = _of_one_level(tokens, levels)
        if not keep_spaces:
            items = [(start, end) for start, end in items if text[start:end] != " "]
        keys = [(text[start:end], levels[start] & 1) for start, end in items]
        if not keep_spaces:
            keys = [(part.strip(" "), rtl) for part, rtl in keys]
        pieces = [cache[key] for key in keys]
        baseline = self._pen.common_baseline({piece.kind for piece in pieces})
        if baseline is not None:
            pieces = [cache[(*key, baseline)] for key in keys]
        order = _visual_order([levels[start] for start, _ in items])
        return line_of([pieces[i] for i in order], [items[i][0] for i in order])

    def _bidi_words(self, text: str, tokens: list[str], spaces: bool) -> Line:
        if spaces:
            return self._bidi_line(text, tokens, self.config.direction, self.words)
        starts = [match.start() for match in _WORD.finditer(text)]
        tokens = [token + " " for token in tokens]
        line = self._bidi_line("".join(tokens), tokens, self.config.direction, self.words, keep_spaces=False)
        # spaces of the text that are not single ones move what stands after them
        shift = [start - first for start, first in zip(starts, accumulate(map(len, tokens), initial=0))]
        owner = [i for i, token in enumerate(tokens) for _ in token]
        line.starts = [first + shift[owner[first]] for first in line.first_characters()]
        return line

    # ---- words on patches of their own -------------------------------------------------------------------------------

    def word_line(self, text: str, spaces: bool, alone: bool) -> Line:
        """One line of words that stand on patches of their own.

        spaces: whether the space after a word belongs to it, else it is left out; alone: whether each character of a
        script written without spaces is a word.
        """
        if not spaces:
            tokens = text.split()
            line = self.words_in_order(tokens, lambda: [match.start() for match in _WORD.finditer(text)])
        else:
            if not text.isprintable():
                text = SPACES.sub(" ", text)
            tokens = tokens_of(text) if alone and not text.isascii() else words_of(text)
            line = self.words_in_order(tokens, None)
        if line.flags & BIDI or self.config.direction == "rtl":
            return self._bidi_words(text, tokens, spaces)
        return line

    def words_in_order(self, tokens: Sequence[str], starts: Sequence[int] | Callable[[], Sequence[int]] | None) -> Line:
        """Words on patches of their own, from left to right. starts: as in Line."""
        words = list(map(self._plain_words.__getitem__, tokens))
        if self.config.direction != "rtl" and (None not in words or self._reach_into(words, tokens)):
            strips = list(chain.from_iterable(words))
            return Line(lambda: [self._word_measures[token] for token in tokens], starts, strips=strips)
        return line_of([self.words[token] for token in tokens], starts)

    def _reach_into(self, words: list[tuple[bytes, ...] | None], tokens: Sequence[str]) -> bool:
        """Fill in words whose ink reaches left of their patches, where the word before has none there; else False."""
        for i in [i for i, word in enumerate(words) if word is None]:
            word, before = self.words[tokens[i]], words[i - 1] if i else None
            reach = len(word.before)
            if word.kind != OVERHANG or word.after or not before or not ends_blank(before[-1], reach):
                return False
            words[i - 1] = (*before[:-1], before[-1][: len(before[-1]) - reach])
            words[i] = (word.before + word.strip,)
        return True

    def _plain_word(self, token: str) -> tuple[bytes, ...] | None:
        """Columns of a word, unit by unit, or None if that is not all there is to it.

        Units are few, so that those of all words stay in the processor's cache: joined words would not.
        """
        if self.is_simple(token):
            units = tuple(map(self._plain_units.__getitem__, self._units_of(token)))
            if None not in units:
                return units
        word = self.words[token]
        return None if word.kind & (FLAGS & ~RTL) else (word.strip,)

    def _plain_unit(self, text: str) -> bytes | None:
        unit = self.units[text, 0]
        return None if unit.kind & FLAGS else unit.strip

    def _measure_word(self, token: str) -> Piece:
        """A plain word without its columns."""
        units = [self.units[text, 0] for text in self._units_of(token)]
        return Piece(b"", 0, len(token), b"".join([unit.spans for unit in units]))

    def _build_word(self, key: str | tuple[str, int]) -> Piece:
        """A word: text left to right where it may be, or (text, is right to left)."""
        token, rtl = (key, 0) if isinstance(key, str) else key
        if isinstance(key, str) and not self.is_simple(key) and needs_bidi(key):
            return Piece(b"", BIDI, len(key), b"")
        texts = self._units_of(token)
        units = [self.units[text, rtl] for text in texts]
        starts = list(accumulate(map(len, texts), initial=0))[:-1]
        if rtl:
            units.reverse()
            starts.reverse()
        if flags_of({unit.kind for unit in units}) & (MISSING | OVERHANG):
            parts, width = in_a_row(units, starts, self.column_bytes)
            return self.join(parts, width, len(token), rtl)
        strip, spans = b"".join([unit.strip for unit in units]), b"".join([unit.spans for unit in units])
        return Piece(strip, RTL if rtl else 0, len(token), spans)

    def _units_of(self, token: str) -> list[str]:
        assert self._on_patches, "a layout without Words asks for words on patches"
        return self._on_patches.cut(self, token)

    def _build_unit(self, key: tuple[str, int]) -> Piece:
        assert self._on_patches, "a layout without Words asks for words on patches"
        return self._on_patches.unit(self, *key)


def _of_one_level(tokens: Sequence[str], levels: Sequence[int]) -> list[tuple[int, int]]:
    """Start and end of parts of a text that lie in one token and on one level each."""
    items: list[tuple[int, int]] = []
    start = 0
    for token in tokens:
        end = min(start + len(token), len(levels))
        while start < end:
            stop = start + 1
            while stop < end and levels[stop] == levels[start]:
                stop += 1
            items.append((start, stop))
            start = stop
    return items


def _visual_order(levels: Sequence[int]) -> list[int]:
    """Indices from left to right of items with one level each (UAX #9, rule L2)."""
    order: list[int] = []
    for start, end, level in visual_runs(bytes(levels)):
        order += range(end - 1, start - 1, -1) if level & 1 else range(start, end)
    return order


def check_fits_grid(setter: Typesetter) -> str | None:
    """A line of warning for a binary strip whose first font is not drawn on whole pixels at this size."""
    face = setter.chain.faces[0]
    if setter.config.color != "binary" or not isinstance(face, FontFile):
        return None
    exact = face.pixel_exact_sizes()
    if setter.config.size in exact:
        return None
    sizes = "pixel-exact at " + ", ".join(map(str, exact[:4])) if exact else "it is no pixel font"
    return f"{face.name}: {setter.config.size:g} px is off its grid ({sizes}): letters lose pixels in binary"
