"""Pieces: drawn text in the form in which it can be put together quickly, and the cache that keeps it.

A strip is stored column by column: all rows of column 0, then all rows of column 1. A word is then one run of bytes,
a line is its words joined, and a patch is a run of bytes inside the line. Because glyphs stand on whole pixels and a
font does not kern across a space, the bytes of a word (with the space after it) are the same wherever it stands. So
a line that was never seen before is one dictionary look-up per word and one `bytes.join`.

Two things break the rule and are marked in the kind of a piece: ink that leaves the box of its advance (a j reaches
under the letter before it), which is merged in after the join; and fonts whose lines have another height, which move
the whole line in the compatible configurations: those pieces are drawn again at the line's baseline and cached so.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from render.bidi import levels as bidi_levels
from render.bidi import needs_bidi, visual_runs
from render.cache import Cache
from render.config import RenderConfig
from render.face import Bitmap, Face, Glyph
from render.fonts import FontFile, open_chain
from render.graphemes import boundaries
from render.itemize import SPACES, Run, itemize
from render.scripts import script_of

# Bits of Piece.kind; above them stands the index of the line metrics.
OVERHANG, MISSING, RTL = 1, 2, 4
BIDI = 8  # nothing was drawn: the token has letters that are written from right to left, the line decides
_CUT = 16  # nothing was drawn: the token holds scripts without spaces, to be cut into characters
_WHOLE = 32  # nothing was drawn: a font of the token looks at the words around it, the line is to be shaped whole
NOT_DRAWN = BIDI | _CUT | _WHOLE
FLAGS = 63
_METRICS_SHIFT = 6
_CACHE_BYTES = 120 << 20  # of the 128 MB that a renderer may keep; glyphs take the rest
_GLYPH_BYTES = 8 << 20
_LONGEST_KEPT = 64  # characters of a cached token
PAPER = 255

# Scripts written without spaces, one character a token; the marks that may follow one
_ALONE = (
    "\u2e80-\u2fdf\u3000-\u3029\u3030-\u3098\u309b-\u30ff\u3105-\u312f\u3190-\u31ff\u3200-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\ufe30-\ufe4f\uff01-\uffef\U0001b000-\U0001b2ff\U00020000-\U0003ffff"
)
_FOLLOWS = "\u0300-\u036f\u200c\u200d\u20d0-\u20ff\u302a-\u302f\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
_TOKENS = re.compile(f"[^ {_ALONE}]* |[{_ALONE}][{_FOLLOWS}]* ?|[^ {_ALONE}]+")
ALONE = re.compile(f"[{_ALONE}]")
_WORD = re.compile(r"\S+")
_WITH_SPACE = re.compile("[^ ]* |[^ ]+")


class Piece:
    """Drawn text: a word with its space, a character, or a whole patch-aligned word.

    strip: its columns; before, after: columns of ink left and right of them, empty for nearly all; length: characters;
    spans: int32 pairs (characters, columns) of its clusters from left to right, as bytes; in a piece of the kind RTL
    the characters count from its end; missing: (place, character).
    """

    __slots__ = ("after", "before", "kind", "length", "missing", "spans", "strip")

    def __init__(
        self,
        strip: bytes,
        kind: int,
        length: int,
        spans: bytes,
        missing: tuple[tuple[int, str], ...] = (),
        before: bytes = b"",
        after: bytes = b"",
    ):
        self.strip, self.kind, self.length, self.spans = strip, kind, length, spans
        self.missing, self.before, self.after = missing, before, after

    @property
    def width(self) -> int:
        """Columns of the box, also of a piece that was only measured."""
        return sum(memoryview(self.spans).cast("i")[1::2])

    def measured(self) -> "Piece":
        """The piece without its columns."""
        return Piece(b"", self.kind, self.length, self.spans, self.missing)


class Line:
    """Pieces in visual order.

    pieces: drawn ones, or a call that draws them, where the columns were put together without. starts: index in the
    text of the first character of each, or a call for it; None = one after another. strips: columns of the whole line
    in parts, the first `left` of them left of its beginning.
    """

    __slots__ = ("_pieces", "flags", "left", "starts", "strips")

    def __init__(
        self,
        pieces: list[Piece] | Callable[[], list[Piece]],
        starts: Sequence[int] | Callable[[], Sequence[int]] | None = None,
        flags: int = 0,
        strips: list[bytes] | None = None,
        left: int = 0,
    ):
        self._pieces, self.starts, self.flags, self.strips, self.left = pieces, starts, flags, strips, left

    @property
    def pieces(self) -> list[Piece]:
        """The pieces, drawn now if they were not needed before."""
        if callable(self._pieces):
            self._pieces = self._pieces()
        return self._pieces

    def first_characters(self) -> Sequence[int]:
        """Index in the text of the first character of each piece."""
        if self.starts is None:
            return list(accumulate([piece.length for piece in self.pieces], initial=0))[:-1]
        return self.starts() if callable(self.starts) else self.starts


def line_of(pieces: list[Piece], starts: Sequence[int] | Callable[[], Sequence[int]] | None = None) -> Line:
    """A line with the flags of its pieces."""
    flags = 0
    for kind in {piece.kind for piece in pieces}:
        flags |= kind
    return Line(pieces, starts, flags & FLAGS)


# A glyph where it stands: index of its font, its id, px from the start of the piece to its origin, px above the line
_Placed = tuple[int, int, int, int]
_TO_BINARY = bytes(PAPER if value > PAPER // 2 else 0 for value in range(256))


class Words(NamedTuple):
    """How a layout puts words on patches of their own.

    cut: ends of the units that a word is made of; unit: draws one (and whether right to left) on whole patches.
    """

    cut: "Callable[[Typesetter, str], list[int]]"
    unit: "Callable[[Typesetter, str, int], Piece]"


class Typesetter:
    """Draws pieces of text under one configuration, and keeps them."""

    def __init__(self, config: RenderConfig, words: "Words | None" = None):
        self.config = config
        self.chain = open_chain(config.fonts, config.size, config.hinting, config.height, boxes=config.missing == "box")
        self.height, self.channels = config.height, config.channels
        self.column_bytes = config.height * config.channels
        self._metrics: list[tuple[int, int]] = [(self.chain.faces[0].ascent, self.chain.faces[0].descent)]
        self._cells: dict[tuple[int, int], dict[int, tuple[bytes | None, int]]] = {}
        self._inks: dict[tuple[int, int], Bitmap] = {}
        self._cell_bytes = 0
        first = self.chain.faces[0]
        # fonts that draw a word otherwise beside a space: lines with their letters are shaped whole
        self._reaching = {i for i, face in enumerate(self.chain.faces) if _reaches_over_spaces(face)}
        simple = [] if 0 in self._reaching else _simple_characters(first)
        self.is_simple = _only(simple)
        self._is_local = _only(first.local_characters(simple) if isinstance(first, FontFile) else simple)
        # columns by which a word is kept further left than it stands, see _plain_token
        space = self.draw(" ", 0, None).width
        self._shift = min(2, config.pad, max(0, space - 1))
        self._shift_bytes = self._shift * self.column_bytes
        self._after_bytes = (space - self._shift) * self.column_bytes  # of a space, what a plain word keeps
        self._pairs: dict[str, tuple[bytes | None, bool, bool]] = {}
        self._alone: dict[str, Sequence[tuple[int, int, int, int, int]]] = {}
        # Most of the memory is for what most rows are made of: plain words. The other caches hold what those are made
        # of, and words that are not plain.
        share = _CACHE_BYTES // 16
        self.cache = Cache(self._build, _cost, (2 if words else 6) * share)
        self.plain = Cache(self._plain_token, _cost_of_columns, (1 if words else 5) * share, self._is_local)
        # most triples have the columns of a pair, the very same bytes, so that only the entry itself costs memory
        self._triples = Cache(self._middle, lambda triple, columns: 240, 2 * share)
        self._on_patches = words
        self.units = Cache(self._build_unit, _cost, share)
        self.words = Cache(self._build_word, _cost, 2 * share)
        self.measures = Cache(self._measure, _cost, share)
        self.word_measures = Cache(self._measure_word, _cost, share)
        self.plain_units = Cache(self._plain_unit, _cost_of_columns, share)
        self.plain_words = Cache(self._plain_word, _cost_of_columns, (6 if words else 1) * share, self.is_simple)
        self._caches = [self.cache, self.plain, self._triples, self.measures]
        self._caches += [self.units, self.words, self.word_measures, self.plain_units, self.plain_words]

    def forget(self) -> None:
        """Empty the caches."""
        for cache in self._caches:
            cache.forget()
        self._pairs, self._inks, self._cell_bytes = {}, {}, 0
        for cells in self._cells.values():
            cells.clear()

    @property
    def cache_bytes(self) -> int:
        """Bytes of the caches."""
        return sum(cache.num_bytes for cache in self._caches) + self._cell_bytes

    def baseline(self, ascent: int, descent: int) -> int:
        """Row on which the letters of a line stand: its middle `lift` rows above the strip's (specs, PIXEL 1.1)."""
        if ascent + descent == self.height:
            return ascent  # drawn for these rows, such as the font of this project
        return int(np.floor(self.height / 2 - (ascent + descent) / 2 - self.config.lift + ascent + 0.5))

    # ---- lines ------------------------------------------------------------------------------------------------------

    def line(self, text: str, base: str | None = None) -> Line:
        """One line of running text, shaped and in visual order. base: `ltr`, `rtl` or `auto`, else the config's."""
        base = base or self.config.direction
        tokens = self._tokens(text)
        cache = self.cache
        if base != "rtl":
            strips = self._plain_strips(tokens)
            if strips is not None:
                return Line(lambda: [self.measures[token] for token in tokens], strips=strips, left=self._shift)
        pieces = [cache[token] for token in tokens]
        kinds = {piece.kind for piece in pieces}
        flags = 0
        for kind in kinds:
            flags |= kind
        if flags & _CUT:
            tokens = _TOKENS.findall(text)
            pieces = [cache[token] for token in tokens]
            kinds = {piece.kind for piece in pieces}
            for kind in kinds:
                flags |= kind
        if flags & _WHOLE and not flags & BIDI and base != "rtl":
            return line_of([cache[text, 0]])
        if flags & BIDI or base == "rtl":
            return self._bidi_line(text, _TOKENS.findall(text), base, cache)
        if len(kinds) > 1 and len(metrics := {kind >> _METRICS_SHIFT for kind in kinds}) > 1:
            baseline = self._common_baseline(metrics)
            pieces = [cache[token, 0, baseline] for token in tokens]
        return Line(pieces, None, flags & FLAGS)

    def _plain_strips(self, tokens: Sequence[str]) -> list[bytes] | None:
        """Columns of a line of plain words, the first `_shift` of them left of it; None if not all words are plain."""
        if not tokens:
            return None
        last = tokens[-1]
        strips = list(map(self.plain.__getitem__, tokens[:-1]))
        strips.append(self.plain[last if last.endswith(" ") else last + " "])
        if None in strips:
            return None
        if last.endswith(" "):
            strips.append(blank(self._shift_bytes))
        elif not strips[-1].endswith(blank(self._after_bytes)):
            return None  # ink of the last letter stands where the line has ended
        else:
            strips[-1] = strips[-1][: len(strips[-1]) - self._after_bytes]
        return strips

    def _tokens(self, text: str) -> list[str]:
        if "\0" in text:
            return _WITH_SPACE.findall(text)
        tokens = text.replace(" ", " \0").split("\0")
        if not tokens[-1]:
            tokens.pop()
        return tokens

    def word_line(self, text: str, spaces: bool, alone: bool) -> Line:
        """One line of words that stand on patches of their own.

        spaces: whether the space after a word belongs to it, else it is left out; alone: whether each character of a
        script written without spaces is a word.
        """
        if spaces and not text.isprintable():
            text = SPACES.sub(" ", text)
        if not spaces:
            tokens = text.split()
        elif alone and not text.isascii():
            tokens = _TOKENS.findall(text)
        else:
            tokens = _WITH_SPACE.findall(text) if "\0" in text else text.replace(" ", " \0").split("\0")
            if tokens and not tokens[-1]:
                tokens.pop()
        starts = None if spaces else lambda: [match.start() for match in _WORD.finditer(text)]
        line = self.words_in_order(tokens, starts)
        if line.flags & BIDI or self.config.direction == "rtl":
            return self._bidi_words(text, tokens, spaces)
        return line

    def words_in_order(self, tokens: Sequence[str], starts: Sequence[int] | Callable[[], Sequence[int]] | None) -> Line:
        """Words on patches of their own, from left to right. starts: as in Line."""
        strips = list(map(self.plain_words.__getitem__, tokens))
        if self.config.direction != "rtl" and (None not in strips or self._reach_into(strips, tokens)):
            return Line(lambda: [self.word_measures[token] for token in tokens], starts, strips=strips)
        return line_of([self.words[token] for token in tokens], starts)

    def _reach_into(self, strips: list[bytes | None], tokens: Sequence[str]) -> bool:
        """Fill in words whose ink reaches left of their patches, where the word before has none there; else False."""
        for i in [i for i, strip in enumerate(strips) if strip is None]:
            word, before = self.words[tokens[i]], strips[i - 1] if i else None
            reach = len(word.before)
            if word.kind != OVERHANG or word.after or before is None or not before.endswith(blank(reach)):
                return False
            strips[i - 1], strips[i] = before[: len(before) - reach], word.before + word.strip
        return True

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

    def _bidi_line(self, text: str, tokens: list[str], base: str, cache: Cache, keep_spaces: bool = True) -> Line:
        _, levels = bidi_levels(SPACES.sub(" ", text), base)
        items: list[tuple[int, int]] = []  # of one token and one level each
        start = 0
        for token in tokens:
            end = min(start + len(token), len(text))
            while start < end:
                stop = start + 1
                while stop < end and levels[stop] == levels[start]:
                    stop += 1
                if keep_spaces or text[start:stop] != " ":
                    items.append((start, stop))
                start = stop
        order = visual_order([levels[start] for start, _ in items])
        keys = [(text[start:end], levels[start] & 1) for start, end in items]
        if not keep_spaces:
            keys = [(part.strip(" "), rtl) for part, rtl in keys]
        pieces = [cache[key] for key in keys]
        metrics = {piece.kind >> _METRICS_SHIFT for piece in pieces}
        if len(metrics) > 1:
            baseline = self._common_baseline(metrics)
            pieces = [cache[(*key, baseline)] for key in keys]
        return line_of([pieces[i] for i in order], [items[i][0] for i in order])

    def _common_baseline(self, metrics: Iterable[int]) -> int:
        ascents, descents = zip(*(self._metrics[index] for index in metrics))
        return self.baseline(max(ascents), max(descents))

    # ---- pieces -----------------------------------------------------------------------------------------------------

    def _build(self, key: str | tuple[str, int] | tuple[str, int, int]) -> Piece:
        """A piece: text left to right where it may be; (text, is right to left); (text, direction, baseline)."""
        if not isinstance(key, str):
            return self.draw(*key) if len(key) == 3 else self.draw(*key, None)
        return self.draw(key, 0, None) if self.is_simple(key) else self._sentinel(key) or self.draw(key, 0, None)

    def _sentinel(self, token: str) -> Piece | None:
        """What stands for a token that cannot be drawn without looking at its line; None for one that can."""
        if needs_bidi(token):
            return Piece(b"", BIDI, len(token), b"")
        if len(token) > 1 and ALONE.search(token) and len(_TOKENS.findall(token)) > 1:
            return Piece(b"", _CUT, len(token), b"")
        first = self.chain.faces[0]
        if not self._reaching or (0 not in self._reaching and all(map(first.covers, token))):
            return None
        if any(run.face in self._reaching for run in itemize(token, self.chain)):
            # Han and kana stand alone in every font; what looks over spaces is Hangul, and Latin of some fonts
            return None if ALONE.match(token) else Piece(b"", _WHOLE, len(token), b"")
        return None

    # ---- plain words: columns only -----------------------------------------------------------------------------------

    def _plain_token(self, token: str) -> bytes | None:
        """Columns of a word with the space after it, or None if that is not all there is to it.

        They begin two columns left of the word and end two columns before its end, where the space has none: the ink of
        a j that reaches left of its box then is its own, and rows of such words need no look at all.
        """
        if len(token) > 1 and self._is_local(token):
            framed = f"\0{token}\0"
            parts = list(map(self._triples.__getitem__, [framed[i : i + 3] for i in range(len(token))]))
            if None not in parts:
                return b"".join(parts)
        piece = self._build(token)
        cut = self._shift_bytes
        if (
            not piece.length
            or piece.kind & ~OVERHANG
            or piece.after
            or len(piece.before) > cut
            or not _ends_blank(piece.strip, cut)
        ):
            return None
        return blank(cut - len(piece.before)) + piece.before + piece.strip[: len(piece.strip) - cut]

    def _measure(self, token: str) -> Piece:
        """A plain word without its columns: what is asked of it when its line was put together without it."""
        if token.endswith(" ") and len(token) > 1 and self._is_local(token):
            framed = f"\0{token}\0"
            parts = list(map(self._triples.__getitem__, [framed[i : i + 3] for i in range(len(token))]))
            if None not in parts:
                widths = [len(part) // self.column_bytes for part in parts]
                widths[0] -= self._shift
                widths[-1] += self._shift
                return Piece(b"", 0, len(token), array("q", [width << 32 | 1 for width in widths]).tobytes())
        return self.cache[token].measured()

    def _measure_word(self, token: str) -> Piece:
        edges = self._cut_word(token)
        units = [self.units[token[start:end], 0] for start, end in zip([0, *edges], edges)]
        return Piece(b"", 0, len(token), b"".join([unit.spans for unit in units]))

    def _middle(self, triple: str) -> bytes | None:
        """Columns of the middle one of three letters, NUL where a word begins and ends; None if it has none alone.

        New words are made of triples that were seen before: they cost a few look-ups. And most triples are two pairs.
        """
        before, letter, after = triple
        cut = self._shift_bytes
        alone = before == "\0" or not self._pair(before + letter)[1]
        if after == "\0":
            if letter == " " and alone:
                return blank(self._after_bytes)
            columns, reaches = self._letter(before + letter, 1)
            return (
                None if columns is None or reaches or not _ends_blank(columns, cut) else columns[: len(columns) - cut]
            )
        columns, _, is_reached = self._pair(letter + after)
        if columns is not None and alone and not is_reached:
            return blank(cut) + columns if before == "\0" else columns
        if before != "\0":
            return self._letter(triple, 1)[0]
        columns, reaches = self._letter(letter + after, 0)
        return None if columns is None or len(reaches) > cut else blank(cut - len(reaches)) + reaches + columns

    def _pair(self, pair: str) -> tuple[bytes | None, bool, bool]:
        """Columns of the first of two letters with its own ink alone, None if that is not all inside; whether its ink
        reaches into the second's columns, or its presence moves the second; whether the second's reaches into its."""
        known = self._pairs.get(pair)
        if known is None:
            run = Run(0, 2, "Latn", 0, 0)
            both = self._glyphs(pair, run, 0, False)
            alone = self._alone.get(pair[1])
            if alone is None:
                alone = self._alone[pair[1]] = self._glyphs(pair[1], run, 0, False)
            known = None, True, True
            if (
                len(both) == 2
                and len(alone) == 1
                and both[1][1] == 1
                and both[1][2:] == alone[0][2:]
                and not both[0][4]
            ):
                baseline, size = self.baseline(*self._metrics[0]), self.column_bytes
                (glyph, _, width, right, _), second = both
                ink, offset = self._cell(0, glyph, baseline)
                other, shift = self._cell(0, second[0], baseline - second[4])
                start = right + offset
                end = start + len(ink or b"") // size
                reached = other is None or (bool(other) and second[3] + shift < 0)
                columns = None
                if ink is not None and (not ink or (start >= 0 and end <= width)):
                    columns = blank(start * size) + ink + blank((width - end) * size) if ink else blank(width * size)
                    columns = columns.translate(_TO_BINARY) if self.config.color == "binary" else columns
                known = columns, ink is None or (bool(ink) and end > width), reached
            self._pairs[pair] = known
        return known

    def _letter(self, text: str, place: int) -> tuple[bytes | None, bytes]:
        """Columns of one letter of two or three, and the ink left or right of the text at its end of it. None where the
        letters share a cluster, or where ink reaches over a whole letter."""
        piece = self.draw(text, 0, None)
        pairs = memoryview(piece.spans).cast("i").tolist()
        widths = pairs[1::2]
        size = self.column_bytes
        if pairs[::2] != [1] * len(text) or min(widths) * size <= max(len(piece.before), len(piece.after), 0):
            return None, b""
        if len(text) == 3 and self._reaches_over(text, widths):
            return None, b""
        start = sum(widths[:place])
        columns = piece.strip[start * size : (start + widths[place]) * size]
        return columns, piece.after if place == len(text) - 1 else piece.before if not place else b""

    def _reaches_over(self, text: str, widths: list[int]) -> bool:
        """Whether ink of the first of three letters reaches the third's columns, or the other way round."""
        baseline, size = self.baseline(*self._metrics[0]), self.column_bytes
        glyphs = self._glyphs(text, Run(0, 3, "Latn", 0, 0), 0, False)
        (ink, offset), (other, shift) = (self._cell(0, glyphs[i][0], baseline - glyphs[i][4]) for i in (0, 2))
        end = glyphs[0][3] + offset + len(ink or b"") // size
        start = widths[0] + widths[1] + glyphs[2][3] + shift
        return end > widths[0] + widths[1] or (bool(other) and start < widths[0])

    def _plain_word(self, token: str) -> bytes | None:
        """Columns of a word on patches of its own, or None if that is not all there is to it."""
        if self.is_simple(token):
            edges = self._cut_word(token)
            units = list(map(self.plain_units.__getitem__, [token[a:b] for a, b in zip([0, *edges], edges)]))
            if None not in units:
                return b"".join(units)
        word = self.words[token]
        return None if word.kind & (FLAGS & ~RTL) else word.strip

    def _plain_unit(self, text: str) -> bytes | None:
        piece = self.units[text, 0]
        return None if piece.kind & FLAGS else piece.strip

    def _build_word(self, key: str | tuple[str, int]) -> Piece:
        """A word on patches of its own: text left to right where it may be, or (text, is right to left)."""
        token, rtl = (key, 0) if isinstance(key, str) else key
        if isinstance(key, str) and not self.is_simple(key) and needs_bidi(key):
            return Piece(b"", BIDI, len(key), b"")
        edges = self._cut_word(token)
        units = [self.units[token[start:end], rtl] for start, end in zip([0, *edges], edges)]
        flags = 0
        for unit in units:
            flags |= unit.kind
        if flags & (MISSING | OVERHANG):
            parts, x = [], 0
            for unit, start in reversed(list(zip(units, [0, *edges]))) if rtl else zip(units, [0, *edges]):
                parts.append((unit, x, start))
                x += len(unit.strip) // self.column_bytes
            return self.join(parts, x, len(token))
        if rtl:
            units.reverse()
        strip, spans = b"".join([unit.strip for unit in units]), b"".join([unit.spans for unit in units])
        return Piece(strip, RTL if rtl else 0, len(token), spans)

    def _cut_word(self, token: str) -> list[int]:
        assert self._on_patches, "a layout without Words asks for words on patches"
        return self._on_patches.cut(self, token)

    def _build_unit(self, key: tuple[str, int]) -> Piece:
        assert self._on_patches, "a layout without Words asks for words on patches"
        return self._on_patches.unit(self, *key)

    def draw(self, text: str, rtl: int, baseline: int | None) -> Piece:
        """Shape and draw a text of one direction, uncached. baseline: a row, or None = as its fonts have it."""
        length = len(text)
        if self.is_simple(text):
            runs, index = (Run(0, length, "Latn", 0, rtl),), 0
        else:
            if not text.isprintable():
                text = SPACES.sub(" ", text)
            runs = itemize(text, self.chain)
            index = self._metrics_index({run.face for run in runs})
        if baseline is None:
            baseline = self.baseline(*self._metrics[index])
        missing: list[tuple[int, str]] = []
        for run in runs:
            if run.face < 0:
                missing += [(i, text[i]) for i in range(run.start, run.end)]
        strip, before, after, spans = self._draw_runs(text, runs, rtl, baseline)
        flags = (MISSING if missing else 0) | (OVERHANG if before or after else 0) | (RTL if rtl else 0)
        return Piece(strip, index << _METRICS_SHIFT | flags, length, spans, tuple(missing), before, after)

    def _draw_runs(self, text: str, runs: Sequence[Run], rtl: int, baseline: int) -> tuple[bytes, bytes, bytes, bytes]:
        """The columns of the box, those left and right of it that have ink, and the spans of the clusters.

        Inks of letters that follow each other rarely share a column, so the columns of a word are those of its letters
        with paper between, joined. Marks and colours go the long way round. This runs for every new word.
        """
        placed: list[_Placed] = []
        starts: list[int] = []  # of clusters, from left to right
        widths: list[int] = []
        chunks: list[bytes] = []
        size = self.column_bytes
        left = x = end = 0
        plain = True
        for run in reversed(runs) if rtl else runs:
            face = run.face if run.face >= 0 else self.chain.missing
            first = run.start
            cells = self._cells.setdefault((face, baseline), {})
            at = -1
            for glyph, cluster, advance, right, up in self._glyphs(text[first : run.end], run, face, bool(rtl)):
                if cluster != at:
                    at = cluster
                    starts.append(first + cluster)
                    widths.append(advance)
                else:
                    widths[-1] += advance
                placed.append((face, glyph, x + right, up))
                ink, offset = (not up and cells.get(glyph)) or self._cell(face, glyph, baseline - up)
                if ink and plain:
                    column = x + right + offset
                    shared = end - column if chunks else min(0, -column)
                    if shared < 0:
                        chunks.append(blank(-shared * size))
                    elif shared:
                        cut = shared * size
                        if len(chunks[-1]) >= cut <= len(ink):
                            chunks[-1], tail = chunks[-1][:-cut], chunks[-1][-cut:]
                            ink = bytes(map(_darken, tail, ink)) + ink[cut:]
                        else:
                            plain = False
                    elif not chunks:
                        left = min(0, column)
                    chunks.append(ink)
                    end = column + len(ink) // size
                elif ink is None:
                    plain = False
                x += advance
        # clusters are whole and in order, so each ends where the next one in the text begins
        ends = [len(text), *starts[:-1]] if rtl else [*starts[1:], len(text)]
        spans = array("q", [width << 32 | stop - start for start, stop, width in zip(starts, ends, widths)]).tobytes()
        if plain:
            chunks.append(blank((x - end) * size if x > end else 0))
            strip, end = b"".join(chunks), max(x, end)
        else:
            strip, left, end = self._compose(placed, x, baseline)
        if self.config.color == "binary":
            strip = strip.translate(_TO_BINARY)
        if not left and end == x:
            return strip, b"", b"", spans
        edges = -left * size, (x - left) * size
        return strip[edges[0] : edges[1]], _if_inked(strip[: edges[0]]), _if_inked(strip[edges[1] :]), spans

    def _glyphs(self, part: str, run: Run, face: int, rtl: bool) -> Sequence[tuple[int, int, int, int, int]]:
        font = self.chain.faces[face]
        if not isinstance(font, FontFile):
            return font.shape(part, run.script, rtl)
        if run.face >= 0:
            return font.place(part, run.script, rtl)
        # glyph 0 for each cluster, also for characters that the font maps to something invisible
        ends = boundaries(part)
        advance = font.shape("\uffff", None, False)[0].advance
        glyphs = [Glyph(0, start, advance, 0, 0) for start in [0, *ends[:-1]]]
        return glyphs[::-1] if rtl else glyphs

    def _metrics_index(self, faces: set[int]) -> int:
        if self.config.baseline == "fixed":
            return 0
        used = [self.chain.faces[face if face >= 0 else self.chain.missing] for face in faces] or self.chain.faces[:1]
        metrics = (max(face.ascent for face in used), max(face.descent for face in used))
        if metrics not in self._metrics:
            self._metrics.append(metrics)
        return self._metrics.index(metrics)

    # ---- ink --------------------------------------------------------------------------------------------------------

    def _ink(self, face: int, glyph: int) -> Bitmap:
        """Bitmap of a glyph: grey [rows, columns], or premultiplied RGBA [rows, columns, 4] in colour."""
        ink = self._inks.get((face, glyph))
        if ink is None:
            font = self.chain.faces[face]
            colored = font.color(glyph) if isinstance(font, FontFile) and font.has_color else None
            ink = Bitmap(*colored) if colored else font.bitmap(glyph)
            self._inks[face, glyph] = ink
            self._cell_bytes += ink.coverage.size + 200
            if self._cell_bytes > _GLYPH_BYTES:
                self._inks, self._cell_bytes = {(face, glyph): ink}, 0
                for cells in self._cells.values():
                    cells.clear()
        return ink

    def _cell(self, face: int, glyph: int, baseline: int) -> tuple[bytes | None, int]:
        """Columns of a glyph and px from its origin to them; None for a glyph in colour, which has to be mixed."""
        cells = self._cells.setdefault((face, baseline), {})
        cell = cells.get(glyph)
        if cell is None:
            ink = self._ink(face, glyph)
            columns = np.full((ink.coverage.shape[1], self.height, self.channels), PAPER, np.uint8)
            if ink.coverage.ndim == 2:
                row, first, last = self._rows(ink, baseline)
                columns[:, row : row + last - first] -= ink.coverage[first:last].T[:, :, None]
            cell = cells[glyph] = (columns.tobytes() if ink.coverage.ndim == 2 else None, ink.left)
            self._cell_bytes += columns.size + 200
        return cell

    def _rows(self, ink: Bitmap, baseline: int) -> tuple[int, int, int]:
        """Row of the strip where a glyph begins, and which of its rows are inside: first and end."""
        top = baseline - ink.top
        first = min(max(0, -top), ink.coverage.shape[0])
        return max(0, top), first, max(first, min(ink.coverage.shape[0], self.height - top))

    def _compose(self, placed: Sequence[_Placed], width: int, baseline: int) -> tuple[bytes, int, int]:
        """Ink of glyphs added up pixel by pixel: columns, the first of them and the end; `width` of them at least."""
        inks = [(self._ink(face, glyph), x, up) for face, glyph, x, up in placed]
        left = min([0, *(ink.left + x for ink, x, _ in inks if ink.coverage.size)])
        end = max([width, *(ink.left + x + ink.coverage.shape[1] for ink, x, _ in inks if ink.coverage.size)])
        paper = np.full((end - left, self.height, self.channels), PAPER, np.int32)
        for ink, x, up in inks:
            row, first, last = self._rows(ink, baseline - up)
            column = ink.left + x - left
            target = paper[column : column + ink.coverage.shape[1], row : row + last - first]
            _add_ink(target, ink.coverage[first:last].swapaxes(0, 1))
        return np.maximum(paper, 0).astype(np.uint8).tobytes(), left, end

    def join(self, parts: Sequence[tuple[Piece, int, int]], width: int, length: int) -> Piece:
        """One piece from several, from left to right: (piece, column, first character) each, on `width` columns.

        Each was laid out by itself, see `merge`. length: characters, for whoever counts on after it.
        """
        size = self.column_bytes
        missing: list[tuple[int, str]] = []
        flags = 0
        for piece, _, start in parts:
            flags |= piece.kind
            if piece.missing:
                missing += [(place + start, character) for place, character in piece.missing]
        spans = _joined_spans(parts, width, size)
        end, chunks = 0, []
        for piece, x, _ in parts:
            if x < end or piece.kind & OVERHANG:
                break
            chunks += (blank((x - end) * size), piece.strip)
            end = x + len(piece.strip) // size
        else:
            if end <= width:
                strip = b"".join((*chunks, blank((width - end) * size)))
                return Piece(strip, flags & (MISSING | RTL), length, spans, tuple(missing))
        right = max([0, *(x + (len(piece.strip) + len(piece.after)) // size for piece, x, _ in parts)])
        left = max([0, *(len(piece.before) // size - x for piece, x, _ in parts)])
        columns = np.full((left + max(width, right), size), PAPER, np.uint8)
        for piece, x, _ in parts:
            ink = piece.before + piece.strip + piece.after
            merge(columns, ink, left + x - len(piece.before) // size, own_layout=True)
        before, after = _if_inked(columns[:left].tobytes()), _if_inked(columns[left + width :].tobytes())
        kind = flags & (MISSING | RTL) | (OVERHANG if before or after else 0)
        strip = columns[left : left + width].tobytes()
        return Piece(strip, kind, length, spans, tuple(missing), before, after)


def _joined_spans(parts: Sequence[tuple[Piece, int, int]], width: int, size: int) -> bytes:
    """Spans of pieces at given columns; columns between two pieces count to the cluster before them."""
    if not any(piece.spans for piece, _, _ in parts):
        return b""
    edges = [x for _, x, _ in parts[1:]] + [width]
    joined, end = array("i"), 0
    for (piece, _, _), edge in zip(parts, edges):
        joined.frombytes(piece.spans)
        if joined:
            joined[-1] += edge - end - len(piece.strip) // size
            end = edge
    return joined.tobytes()


def _darken(paper: int, other: int) -> int:
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


def merge(columns: np.ndarray, ink: bytes, x: int, own_layout: bool = False) -> None:
    """Add ink, given as columns of bytes, to columns [width, column bytes] from x on; what falls outside is lost.

    own_layout: whether the ink was laid out by itself, as the originals do with each letter of a pair. Cairo adds up
    the inks of one layout, and lays the ink of another over what is there already: it shows where grey meets grey.
    """
    add = np.frombuffer(ink, np.uint8).reshape(-1, columns.shape[1])
    first, last = max(0, -x), min(len(add), len(columns) - x)
    if first >= last:
        return
    target, paper = columns[x + first : x + last], add[first:last]
    if own_layout:
        below = (PAPER - target).astype(np.uint32) * paper + 128
        target[:] = paper - ((below + (below >> 8)) >> 8)  # rounded as Pixman rounds a product of bytes
    else:
        target -= np.minimum(target, PAPER - paper)  # inks add up and saturate, without leaving 8 bits


def visual_order(levels: Sequence[int]) -> list[int]:
    """Indices from left to right of items with one level each (UAX #9, rule L2)."""
    order: list[int] = []
    for start, end, level in visual_runs(bytes(levels)):
        order += range(end - 1, start - 1, -1) if level & 1 else range(start, end)
    return order


def _if_inked(columns: bytes) -> bytes:
    return columns if columns.strip(b"\xff") else b""


def _ends_blank(columns: bytes, num_bytes: int) -> bool:
    return columns.endswith(blank(num_bytes))


def _cost_of_columns(key: str, columns: bytes | None) -> int:
    return len(columns or b"") + len(key) + 220


_BLANK = bytes([PAPER]) * (1 << 14)


def blank(num_bytes: int) -> bytes:
    """Bytes of paper."""
    return _BLANK[:num_bytes] if num_bytes <= len(_BLANK) else bytes([PAPER]) * num_bytes


def _cost(key: object, piece: Piece) -> int:
    text = key if isinstance(key, str) else key[0]  # type: ignore[index]
    if len(text) > _LONGEST_KEPT:
        return 1 << 40  # a whole line without spaces, hardly to come again
    return len(piece.strip) + len(piece.spans) + len(piece.before) + len(piece.after) + 8 * len(text) + 400


# Latin letters and punctuation; not the fraction slash, which HarfBuzz takes as a wish for a fraction
_SIMPLE = ((0x20, 0x7F), (0xA1, 0xAD), (0xAE, 0x180), (0x2010, 0x2028), (0x2030, 0x2044), (0x20A0, 0x20C0))


def _simple_characters(face: Face) -> list[str]:
    """What is one Latin run in one font, without looking."""
    return [chr(code) for first, end in _SIMPLE for code in range(first, end) if face.covers(chr(code))]


def _only(characters: Sequence[str]) -> Callable[[str], object]:
    """A test for text of these characters alone."""
    if not characters:
        return lambda text: False
    return re.compile("[" + "".join(map(re.escape, characters)) + "]*").fullmatch


def _reaches_over_spaces(face: object) -> bool:
    """Whether a font kerns a letter with a space, or draws it otherwise beside one: then words cannot stand alone.

    All its letters, each between two spaces, are shaped at once and compared with what each is by itself.
    """
    if not isinstance(face, FontFile):
        return False
    letters = [c for c in map(chr, sorted(face.characters)) if c.isalpha() and not ALONE.match(c)][:4000]
    space = face.shape(" ", None, False)
    if not letters or not space:
        return False
    by_script: dict[str | None, list[str]] = {}
    for letter in letters:
        by_script.setdefault(script_of(letter), []).append(letter)
    for script, members in by_script.items():
        row = face.shape(" ".join(members) + " ", script, False)
        alone = [glyph for letter in members for glyph in [*face.shape(letter, script, False), *space]]
        if [(glyph.id, glyph.advance) for glyph in row] != [(glyph.id, glyph.advance) for glyph in alone]:
            return True
    return False


def check_fits_grid(setter: Typesetter) -> str | None:
    """A line of warning for a binary strip whose first font is not drawn on whole pixels at this size."""
    face = setter.chain.faces[0]
    if setter.config.color != "binary" or not isinstance(face, FontFile):
        return None
    exact = face.pixel_exact_sizes()
    if setter.config.size in exact:
        return None
    sizes = ", ".join(map(str, exact[:4])) or "no size"
    return f"{face.name}: {setter.config.size:g} px is off its grid (pixel-exact at {sizes}): letters lose pixels"
