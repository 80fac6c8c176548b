"""Two characters a patch: words are cut into pairs, and each pair starts a patch.

Equal words then have equal patches wherever they stand. Pairs never cross words. A pair that is wider than a patch
takes two. What a pair is made of:

- `code-point`, as PIXEL-M4 drew (specs, PIXEL 1.4): two code points, each drawn by itself and on the baseline of its
  own font: no kerning, Arabic letters isolated, Devanagari vowel signs alone. No space is drawn, so that where a word
  of even length ends cannot be seen. Needed for its weights.
- `grapheme`: two grapheme clusters shaped together: joined Arabic, conjuncts, kerning. With `word_gap = "space"` the
  space after a word is a cluster like any other, and text can be read back.
"""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from render.bidi import mostly_rtl, needs_bidi
from render.graphemes import boundaries
from render.itemize import SPACES
from render.pieces import BIDI, Line, Part, Piece, in_a_row, line_of
from render.strip import Draft
from render.typesetter import Typesetter

_WORD = re.compile(r"\S+")
_BETWEEN_SPACES = re.compile("[^ ]+")


def text(setter: Typesetter, draft: Draft, text: str) -> None:
    """One text."""
    if _is_original(setter):
        _lay_original(setter, draft, text.split(), 0, 0, _turns(text), _places(text))
    else:
        draft.end = draft.edge(lay_units(setter, draft, text, 0, 0))


def pair(setter: Typesetter, draft: Draft, first: str, second: str) -> None:
    """Two texts with a black patch between them."""
    if _is_original(setter):
        rtl = _turns(first + second)
        _lay_original(setter, draft, first.split(), 0, 0, rtl, _places(first))
        start = draft.separator(draft.end)
        _lay_original(setter, draft, second.split(), start, 1, rtl, _places(second))
    else:
        start = draft.separator(draft.edge(lay_units(setter, draft, first, 0, 0)))
        draft.end = draft.edge(lay_units(setter, draft, second, start, 1))
    draft.word_starts = None


def words(setter: Typesetter, draft: Draft, words: Sequence[str]) -> None:
    """A list of words, from left to right in the order given."""
    if _is_original(setter):
        _lay_original(setter, draft, words, 0, 0, _turns("".join(words)), None)
        return
    lay_words(setter, draft, words, "" if setter.config.word_gap == "none" else " ")


def cut(setter: Typesetter, word: str) -> list[str]:
    """The pairs of a word."""
    if setter.config.unit == "code-point" or setter.is_simple(word):
        return [word[start : start + 2] for start in range(0, len(word), 2)]
    ends = boundaries(word)
    edges = [0, *ends[1::2]] if len(ends) % 2 == 0 else [0, *ends[1::2], len(word)]
    return [word[start:end] for start, end in pairwise(edges)]


def unit(setter: Typesetter, text: str, rtl: int) -> Piece:
    """One pair, or another unit, on the whole patches that it needs."""
    size, patch = setter.column_bytes, setter.config.patch_width
    if _is_original(setter):
        # Each letter by itself, so that ink over the edge of the unit reaches into the next patch, as it did. A letter
        # alone decides its direction: a bracket has none, and is not mirrored.
        letters = [setter.cache[letter, 0] for letter in text]
        order = range(len(text) - 1, -1, -1) if rtl else range(len(text))
        parts, width = in_a_row([letters[i] for i in order], order, size)
    else:
        # shaped together, with all its ink on its own patches
        piece = setter.cache[text, rtl]
        left = len(piece.before) // size
        parts, width = [Part(piece, left, 0)], left + (len(piece.strip) + len(piece.after)) // size
    return setter.join(parts, -(-width // patch) * patch, len(text), rtl)


def _is_original(setter: Typesetter) -> bool:
    return setter.config.word_gap == "none" and setter.config.unit == "code-point"


def _turns(text: str) -> bool:
    return not text.isascii() and needs_bidi(text) and mostly_rtl(text)


def _places(text: str) -> Callable[[], Sequence[int]]:
    return lambda: [match.start() for match in _WORD.finditer(text)]


# ---- grapheme clusters, also of the layout `adaptive` ----------------------------------------------------------------


def lay_units(setter: Typesetter, draft: Draft, text: str, x: int, which: int) -> int:
    """Words of a text from column x on, in visual order. Returns the column after them."""
    alone = setter.config.layout == "adaptive"
    line = setter.word_line(text, spaces=setter.config.word_gap == "space", alone=alone)
    end = draft.add(line, x, which)
    draft.word_starts = lambda: _starts_of_words(draft, line, text, x, end)
    return end


def _starts_of_words(draft: Draft, line: Line, text: str, x: int, end: int) -> list[int]:
    """Patches of the pieces that begin a word of the text, from left to right, and the patch after the last."""
    words = {match.start() for match in _BETWEEN_SPACES.finditer(SPACES.sub(" ", text))}
    edges = _edges(line, x)
    begins = []
    for piece, first, edge in zip(line.pieces, line.first_characters(), edges):
        # a piece may begin with the space that stands left of a word
        if not words.isdisjoint(range(first, first + piece.length)):
            begins.append(edge)
    return [edge // draft.geometry.patch_width for edge in [*begins, end]]


def lay_words(setter: Typesetter, draft: Draft, words: Sequence[str], gap: str) -> None:
    """Given words, each with a gap after it but the last one."""
    x, first, starts = 0, 0, [0]
    for i, word in enumerate(words):
        if draft.is_full(x):
            break
        token = word + (gap if i + 1 < len(words) else "")
        line = setter.word_line(token, spaces=True, alone=setter.config.layout == "adaptive")
        x = draft.add(line, x, 0, first)
        first += len(word) + 1
        starts.append(x // draft.geometry.patch_width)
    draft.word_starts, draft.end, draft.num_words = starts, draft.edge(x), len(starts) - 1


# ---- as PIXEL-M4 drew ------------------------------------------------------------------------------------------------


def _lay_original(
    setter: Typesetter,
    draft: Draft,
    words: Sequence[str],
    x: int,
    which: int,
    rtl: bool,
    starts: Callable[[], Sequence[int]] | None,
) -> None:
    """Words from column x on. rtl: whether the letters of a pair run from right to left.

    starts: index of each word in its text, which turns the words round too; None for a list, whose words keep their
    order.
    """
    places = starts or (lambda: list(accumulate([len(word) + 1 for word in words], initial=0))[:-1])
    order = range(len(words) - 1, -1, -1) if rtl and starts else range(len(words))
    line = _original_line(setter, words, rtl, order, places)
    end = draft.add(line, x, which)
    num_words = len(words)
    if draft.clips and end > draft.limit and words:
        edges = _edges(line, x)
        num_words = _num_kept(edges, draft.limit)
        draft.take_back()
        # drawn anew: the pieces of a line of plain words are measures without ink
        kept = order[:num_words]
        line = line_of([setter.words[words[i], int(rtl)] for i in kept], lambda: _in_order(places(), kept))
        draft.add(line, x, which)
        end = edges[num_words]
    last = draft.end = draft.edge(end)
    draft.num_words = num_words
    draft.word_starts = lambda: [min(edge, last) // draft.geometry.patch_width for edge in _edges(line, x)]


def _original_line(
    setter: Typesetter, words: Sequence[str], rtl: bool, order: Sequence[int], places: Callable[[], Sequence[int]]
) -> Line:
    if rtl:
        return line_of([setter.words[words[i], 1] for i in order], lambda: _in_order(places(), order))
    line = setter.words_in_order(words, places)
    if line.flags & BIDI:  # a few letters from right to left do not turn a text round: they stand in its order
        return line_of([setter.words[word, 0] for word in words], places)
    return line


def _num_kept(edges: Sequence[int], limit: int) -> int:
    """Words of a line that is too long which stay: up to the first that ends over the limit (specs 1.4).

    When only the last word is too long, the one before it goes as well, and the first word always stays.
    """
    begin_inside = [i for i, edge in enumerate(edges[:-2]) if edge <= limit]  # all words but the last
    return max(1, begin_inside[-1]) if begin_inside else 1


def _edges(line: Line, x: int) -> list[int]:
    """Columns between the pieces of a line that begins at column x, and its end."""
    return list(accumulate([piece.width for piece in line.pieces], initial=x))


def _in_order(places: Sequence[int], order: Sequence[int]) -> list[int]:
    return [places[i] for i in order]
