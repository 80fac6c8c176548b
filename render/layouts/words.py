"""Words on patch edges: each word starts a patch, with at least a space before the next one.

The first word starts `pad` columns in, as in PIXEL. Words keep the order of the text from left to right also where they
are written from right to left: labels count words. Source: specs, PIXEL 1.3 (words).
"""

import re
from collections.abc import Callable, Sequence

from render.pieces import FLAGS, NOT_DRAWN, Line
from render.strip import Draft
from render.typesetter import Typesetter

_WORD = re.compile(r"\S+")


def text(setter: Typesetter, draft: Draft, text: str) -> None:
    """One text, cut at white space."""
    _lay(setter, draft, text, setter.config.pad, 0)


def pair(setter: Typesetter, draft: Draft, first: str, second: str) -> None:
    """Two texts with a black patch between them."""
    text(setter, draft, first)
    _lay(setter, draft, second, draft.separator(draft.end), 1)
    draft.word_starts = None


def words(setter: Typesetter, draft: Draft, words: Sequence[str]) -> None:
    """A text that was cut into words by whoever gives them. Spans count characters of the words joined by spaces."""
    firsts, place = [], 0
    for word in words:
        firsts.append(place)
        place += len(word) + 1
    lay(setter, draft, words, setter.config.pad, 0, firsts, _line)


def _lay(setter: Typesetter, draft: Draft, text: str, x: int, which: int) -> None:
    found = list(_WORD.finditer(text))
    lay(setter, draft, [match.group() for match in found], x, which, [match.start() for match in found], _line)


def lay(
    setter: Typesetter,
    draft: Draft,
    words: Sequence[str],
    x: int,
    which: int,
    firsts: Sequence[int],
    line_of: Callable[[Typesetter, str], Line],
) -> None:
    """Words, or whole sentences, on patch edges from column x on, with at least a space before the next one.

    which: text of a pair; firsts: index of the first character of each. line_of: draws one.
    """
    patch = draft.geometry.patch_width
    starts = [x // patch]
    last = len(words) - 1
    for i, word in enumerate(words):
        if draft.is_full(x):
            break
        draft.add(line_of(setter, word + " " if i < last else word), x, which, firsts[i])
        x = draft.edge(draft.width + (setter.config.pad if i == last else 0))
        starts.append(x // patch)
    draft.end = draft.edge(x if words else x + setter.config.pad)
    draft.word_starts, draft.num_words = starts, len(starts) - 1


def _line(setter: Typesetter, word: str) -> Line:
    piece = setter.cache[word]
    return setter.line(word) if piece.kind & NOT_DRAWN else Line([piece], None, piece.kind & FLAGS)
