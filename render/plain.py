"""Plain words: how a line that was never seen before becomes columns with hardly any work.

A plain word is one of which nothing needs to be known but its columns: no ink outside them, nothing missing, left to
right. A line of plain words is one look-up per word and one join.

New words do not end; new letters between two neighbours soon do. In most fonts a letter is drawn by its two neighbours
alone: kerning looks at two glyphs, and locality.py finds the letters for which the font's rules do not look further.
So the columns of a new word are joined from triples: for each letter, its columns as they are between the letter before
and the one after (NUL where the word begins and ends). A triple is in turn two pairs: the letter as in the pair with
the one after, and on it whatever ink of the one before reaches over. Where a pair is in doubt (a ligature, a letter
that moves another) the answer is None, and the word is drawn: that is why the result is the very bytes that drawing the
line in one go would give.

In many fonts a j reaches left of its box, a pixel or two under the word before it. If that made a word unusual, most
lines would be. Words are therefore kept *shifted*: their columns begin two left of their box, in the space before, and
end two before its end, where the space after has no ink. So the ink of a j is in its own word's columns, and shifted
words still fit each other.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import NamedTuple

from render.cache import Cache
from render.fonts import FontFile
from render.ink import added
from render.itemize import Run
from render.pen import Pen, PlainGlyph
from render.pieces import OVERHANG, Line, Piece, blank, cost_of_columns, cost_of_piece, ends_blank, packed_spans
from render.tokens import only

_SHIFT = 2  # columns that words are kept further left than they stand, where a font's space has room for it
_TRIPLE_BYTES = 240  # of an entry; its columns are mostly those of a pair, the very same bytes
# By length of a word, what cuts the framed word into threes: much faster than slicing it in a loop
_THREES = [itemgetter(*(slice(i, i + 3) for i in range(max(1, length)))) for length in range(64)]


class Pair(NamedTuple):
    """The first of two letters, as far as the second one changes it: ink in its own box, and right and left of that."""

    columns: (
        bytes | None
    )  # of the box, with what the second's ink reaches into it; None if the two cannot be told apart
    after: bytes
    before: bytes


_TANGLED = Pair(None, b"", b"")


class PlainWords:
    """Columns of plain words, and the triples and pairs of letters that they are made of.

    pen: draws what is not known; pieces: words that are known with all there is to them; build: draws such a word
    without keeping it; pad: columns before a line, so that its first word can be shifted too; limits: bytes for words,
    triples and measures.
    """

    def __init__(self, pen: Pen, pieces: Cache, build: Callable[[str], Piece], pad: int, limits: tuple[int, int, int]):
        self._pen, self._pieces, self._build = pen, pieces, build
        self._column_bytes = pen.column_bytes
        first = pen.chain.faces[0]
        self._is_local = only(first.local_characters(pen.simple) if isinstance(first, FontFile) else pen.simple)
        space = pen.draw(" ", 0, None).width
        self.shift = min(_SHIFT, pad, max(0, space - 1))
        self._shift_bytes = self.shift * self._column_bytes
        self._after_bytes = (space - self.shift) * self._column_bytes  # of the space after a word, what the word keeps
        self._words = Cache(self._word, cost_of_columns, limits[0], on_trial=self._is_local)
        self._triples = Cache(self._triple, lambda triple, columns: _TRIPLE_BYTES, limits[1])
        self._pairs: dict[str, Pair] = {}
        self._alone: dict[str, Sequence[PlainGlyph]] = {}
        self._measures = Cache(self._measure, cost_of_piece, limits[2])
        self.caches = (self._words, self._triples, self._measures)

    def forget(self) -> None:
        """Drop what is not in `caches`."""
        self._pairs.clear()
        self._alone.clear()

    def line(self, text: str) -> Line | None:
        """A line of plain words, or None if not all are."""
        words = text.split(" ")
        last = words.pop()
        strips = list(map(self._words.__getitem__, words))
        after = b""
        if last:
            strips.append(self._words[last])
        if not all(strips) or not text:
            return None
        if not last:
            strips.append(blank(self._shift_bytes))
        elif self._is_local(last) and ends_blank(strips[-1], self._after_bytes):
            strips[-1] = strips[-1][: len(strips[-1]) - self._after_bytes]
        else:  # ink of the last letter reaches over the end of the line, or the space was another font's
            piece = self._pieces[last]
            strips[-1], after = self._before(piece) + piece.strip, piece.after
        return Line(lambda: self._measured(words, last), strips=strips, left=self.shift, after=after)

    def _measured(self, words: Sequence[str], last: str) -> list[Piece]:
        pieces = [self._measures[word + " "] for word in words]
        return [*pieces, self._measures[last]] if last else pieces

    def _word(self, word: str) -> bytes | None:
        """Shifted columns of a word and the space after it, or None if that is not all there is to it."""
        word += " "
        letters = self._letters(word)
        if letters is not None:
            return b"".join(letters)
        piece = self._build(word)
        return None if piece.kind & ~OVERHANG or not piece.length or piece.after else self._shifted(piece)

    def _shifted(self, piece: Piece) -> bytes | None:
        cut = self._shift_bytes
        if len(piece.before) > cut or not ends_blank(piece.strip, cut):
            return None
        return self._before(piece) + piece.strip[: len(piece.strip) - cut]

    def _before(self, piece: Piece) -> bytes:
        """The columns left of a word that it is shifted by, with its ink."""
        return blank(self._shift_bytes - len(piece.before)) + piece.before

    def _letters(self, word: str) -> list[bytes] | None:
        """Shifted columns of each letter; None if one of them has none of its own."""
        if not 1 < len(word) < len(_THREES) or not self._is_local(word):
            return None
        letters = list(map(self._triples.__getitem__, _THREES[len(word)](f"\0{word}\0")))
        return letters if all(letters) else None

    def _measure(self, word: str) -> Piece:
        """A plain word without its columns: what is asked of it when its line was put together without it."""
        letters = self._letters(word) if word.endswith(" ") else None
        if letters is None:
            return self._pieces[word].measured()
        widths = [len(columns) // self._column_bytes for columns in letters]
        widths[0] -= self.shift
        widths[-1] += self.shift
        return Piece(b"", 0, len(word), packed_spans([1] * len(widths), widths))

    # ---- letters between two others ----------------------------------------------------------------------------------

    def _triple(self, triple: str) -> bytes | None:
        """Columns of the middle one of three letters, NUL where a word begins and ends; None if it has none alone.

        The first letter of a word has the columns left of it too, and the space that ends it lacks as many.
        """
        before, letter, after = triple
        if after == "\0":
            columns, outside = blank(self._pen.draw(letter, 0, None).width * self._column_bytes), b""
        else:
            columns, _, outside = self._pair(letter + after)
        reaching = self._pair(before + letter) if before != "\0" else None
        if columns is None or (reaching and (reaching.columns is None or len(reaching.after) > len(columns))):
            return None
        if reaching and reaching.after:
            columns = _darkened(columns, 0, reaching.after)
        if before == "\0":
            if len(outside) > self._shift_bytes:
                return None
            columns = blank(self._shift_bytes - len(outside)) + outside + columns
        if after == "\0":
            if letter != " " or not ends_blank(columns, self._shift_bytes):
                return None
            columns = columns[: len(columns) - self._shift_bytes]
        return self._pen.ink.shown(columns)

    def _pair(self, letters: str) -> Pair:
        pair = self._pairs.get(letters)
        if pair is None:
            pair = self._pairs[letters] = self._look_at(letters)
        return pair

    def _look_at(self, letters: str) -> Pair:
        """What one letter and the one after it do to each other, from their glyphs."""
        both = self._glyphs(letters)
        alone = self._alone.get(letters[1])
        if alone is None:
            alone = self._alone[letters[1]] = self._glyphs(letters[1])
        if len(both) != 2 or len(alone) != 1:
            return _TANGLED
        (glyph, _, width, right, up), second = both
        # the second is a cluster of its own, as wide as by itself and in the same place
        if second[1] != 1 or second[2:] != alone[0][2:]:
            return _TANGLED
        size, baseline = self._column_bytes, self._pen.first_baseline
        ink, offset = self._pen.ink.cell(0, glyph, baseline - up)
        other, other_offset = self._pen.ink.cell(0, second[0], baseline - second[4])
        reach = -(second[3] + other_offset) if other else 0  # columns of the first that the second's ink goes over
        if ink is None or other is None or width <= 0 or reach > width:
            return _TANGLED
        start = right + offset if ink else 0
        end = start + len(ink) // size
        left, stop = min(0, start), max(width, end)
        drawn = blank((start - left) * size) + ink + blank((stop - end) * size)
        first, last = -left * size, (width - left) * size
        before, columns, after = drawn[:first], drawn[first:last], drawn[last:]
        if reach > 0:
            columns = _darkened(columns, (width - reach) * size, other[: reach * size])
        return Pair(columns, after, before)

    def _glyphs(self, text: str) -> Sequence[PlainGlyph]:
        return self._pen.glyphs(text, Run(0, len(text), "Latn", 0, 0), False)


def _darkened(columns: bytes, at: int, ink: bytes) -> bytes:
    """Columns with more ink added from a byte on."""
    return columns[:at] + bytes(map(added, columns[at : at + len(ink)], ink)) + columns[at + len(ink) :]
