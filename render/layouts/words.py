"""Words on patch edges: each word starts a patch, with at least a space before the next one.

The first word starts `pad` columns in, as in PIXEL. Words keep the order of the text from left to right also where they
are written from right to left: labels count words. Source: specs, PIXEL 1.3 (words).
"""

import re
from collections.abc import Sequence

from render.pieces import FLAGS, NOT_DRAWN, Line
from render.strip import Draft
from render.typesetter import Typesetter

_WORD = re.compile(r"\S+")


def text(setter: Typesetter, draft: Draft, text: str) -> None:
    """One text, cut at white space."""
    found = list(_WORD.finditer(text))
    _lay(setter, draft, [match.group() for match in found], setter.config.pad, 0, [match.start() for match in found])


def pair(setter: Typesetter, draft: Draft, first: str, second: str) -> None:
    """Two texts with a black patch between them."""
    text(setter, draft, first)
    start = draft.separator(draft.end)
    found = list(_WORD.finditer(second))
    _lay(setter, draft, [match.group() for match in found], start, 1, [match.start() for match in found])
    draft.word_starts = None


def words(setter: Typesetter, draft: Draft, words: Sequence[str]) -> None:
    """A text that was cut into words by whoever gives them. Spans count characters of the words joined by spaces."""
    firsts, place = [], 0
    for word in words:
        firsts.append(place)
        place += len(word) + 1
    _lay(setter, draft, words, setter.config.pad, 0, firsts)


def _lay(setter: Typesetter, draft: Draft, words: Sequence[str], x: int, which: int, firsts: Sequence[int]) -> None:
    patch = draft.geometry.patch_width
    starts = [x // patch]
    last = len(words) - 1
    for i, word in enumerate(words):
        if draft.is_full(x):
            break
        piece = setter.cache[word + " " if i < last else word]
        if piece.kind & NOT_DRAWN:
            line = setter.line(word + " " if i < last else word)
        else:
            line = Line([piece], None, piece.kind & FLAGS)
        draft.add(line, x, which, firsts[i])
        x = draft.edge(draft.width + (setter.config.pad if i == last else 0))
        starts.append(x // patch)
    draft.end = draft.edge(x if words else x + setter.config.pad)
    draft.word_starts, draft.num_words = starts, len(starts) - 1
