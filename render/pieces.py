"""Pieces: drawn text in the form in which it can be put together quickly.

A strip is stored column by column: all rows of column 0, then all rows of column 1. A word is then one run of bytes,
a line is its words joined, and a patch is a run of bytes inside the line. Because glyphs stand on whole pixels and a
font does not kern across a space, the bytes of a word (with the space after it) are the same wherever it stands. So
a line that was never seen before is one dictionary look-up per word and one `bytes.join` (typesetter.py).

Two things break the rule and are marked in the kind of a piece: ink that leaves the box of its advance (a j reaches
under the letter before it), which is merged in after the join; and fonts whose lines have another height, which move
the whole line in the compatible configurations: those pieces are drawn again at the line's baseline and cached so.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

# Piece.kind is a number of bits. Three say what is special about the drawn columns,
OVERHANG = 1  # ink stands left or right of the box: Piece.before, Piece.after
MISSING = 2  # some characters are in no font: Piece.missing
RTL = 4  # the text runs from right to left
# three say why there are none,
BIDI = 8  # letters are written from right to left: how the token is cut and turned, its line decides
CUT = 16  # scripts without spaces: the token is to be cut into characters
WHOLE = 32  # a font looks at the words around: the line is to be shaped in one go
NOT_DRAWN = BIDI | CUT | WHOLE
FLAGS = OVERHANG | MISSING | RTL | NOT_DRAWN
# and the number above them is an index: which height of a line the fonts of the piece ask for (pen.py).
METRICS_SHIFT = 6

PAPER = 255


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
    in parts, the first `left` of them left of its beginning; after: columns of ink right of its end.
    """

    __slots__ = ("_pieces", "after", "flags", "left", "starts", "strips")

    def __init__(
        self,
        pieces: list[Piece] | Callable[[], list[Piece]],
        starts: Sequence[int] | Callable[[], Sequence[int]] | None = None,
        flags: int = 0,
        strips: list[bytes] | None = None,
        left: int = 0,
        after: bytes = b"",
    ):
        self._pieces, self.starts, self.flags = pieces, starts, flags
        self.strips, self.left, self.after = strips, left, after

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
    return Line(pieces, starts, flags_of({piece.kind for piece in pieces}))


def flags_of(kinds: Iterable[int]) -> int:
    """All that is special about any of these kinds."""
    flags = 0
    for kind in kinds:
        flags |= kind
    return flags & FLAGS


# ---- one piece from several ------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A piece where it stands in a larger one."""

    piece: Piece
    x: int  # its first column
    start: int  # its first character


def in_a_row(pieces: Iterable[Piece], starts: Iterable[int], size: int) -> tuple[list[Part], int]:
    """Pieces side by side from column 0 on, and the column after them. size: bytes of a column."""
    parts: list[Part] = []
    x = 0
    for piece, start in zip(pieces, starts):
        parts.append(Part(piece, x, start))
        x += len(piece.strip) // size
    return parts, x


def join(parts: Sequence[Part], width: int, length: int, size: int, rtl: int) -> Piece:
    """One piece of `width` columns from several, in the order from left to right.

    Each was laid out by itself, see `merge`. length: characters, for whoever counts on after it; size: bytes of a
    column; rtl: whether the text runs from right to left.
    """
    kind = (MISSING if any(piece.kind & MISSING for piece, _, _ in parts) else 0) | (RTL if rtl else 0)
    missing = tuple((place + start, letter) for piece, _, start in parts for place, letter in piece.missing)
    spans = _joined_spans(parts, width, size)
    strip = _side_by_side(parts, width, size)
    if strip is not None:
        return Piece(strip, kind, length, spans, missing)
    left = max([0, *(len(piece.before) // size - x for piece, x, _ in parts)])
    right = max([0, *(x + (len(piece.strip) + len(piece.after)) // size for piece, x, _ in parts)])
    columns = np.full((left + max(width, right), size), PAPER, np.uint8)
    for piece, x, _ in parts:
        ink = piece.before + piece.strip + piece.after
        merge(columns, ink, left + x - len(piece.before) // size, own_layout=True)
    before, after = if_inked(columns[:left].tobytes()), if_inked(columns[left + width :].tobytes())
    strip = columns[left : left + width].tobytes()
    return Piece(strip, kind | (OVERHANG if before or after else 0), length, spans, missing, before, after)


def _side_by_side(parts: Sequence[Part], width: int, size: int) -> bytes | None:
    """Columns of parts with paper between; None if ink of one may stand in the columns of another, or outside."""
    end = 0
    chunks: list[bytes] = []
    for piece, x, _ in parts:
        if x < end or piece.kind & OVERHANG:
            return None
        chunks += (blank((x - end) * size), piece.strip)
        end = x + len(piece.strip) // size
    return b"".join((*chunks, blank((width - end) * size))) if end <= width else None


def _joined_spans(parts: Sequence[Part], width: int, size: int) -> bytes:
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


def packed_spans(lengths: Iterable[int], widths: Iterable[int]) -> bytes:
    """Piece.spans of clusters with these numbers of characters and columns."""
    # two int32 as one int64 whose low half is written first
    return array("q", [width << 32 | length for length, width in zip(lengths, widths)]).tobytes()


# ---- columns as bytes ------------------------------------------------------------------------------------------------


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


def if_inked(columns: bytes) -> bytes:
    """The columns, or none if they are paper."""
    return columns if columns.strip(b"\xff") else b""


def ends_blank(columns: bytes, num_bytes: int) -> bool:
    """Whether the last bytes are paper."""
    return columns.endswith(blank(num_bytes))


def blank(num_bytes: int) -> bytes:
    """Bytes of paper."""
    return _BLANK[:num_bytes] if num_bytes <= len(_BLANK) else bytes([PAPER]) * num_bytes


_BLANK = bytes([PAPER]) * (1 << 14)


# ---- what a cache is charged for -------------------------------------------------------------------------------------

_LONGEST_KEPT = 64  # characters of a text


def cost_of_piece(key: str | tuple, piece: Piece) -> int:
    """Bytes that a piece and its key, a text or a tuple that begins with one, take."""
    text = key if isinstance(key, str) else key[0]
    if len(text) > _LONGEST_KEPT:
        return 1 << 40  # a whole line without spaces, hardly to come again: too dear for any cache
    return len(piece.strip) + len(piece.spans) + len(piece.before) + len(piece.after) + 8 * len(text) + 400


def cost_of_columns(text: str, columns: bytes | None) -> int:
    """Bytes that the columns of a text and the text take."""
    return len(columns or b"") + len(text) + 220


def cost_of_units(text: str, units: tuple[bytes, ...] | None) -> int:
    """Bytes that the columns of a text, in parts, and the text take, were none of them shared with other texts."""
    return sum(map(len, units or ())) + len(text) + 270
