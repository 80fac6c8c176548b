"""Words on patch edges: each word starts a patch, with at least a space before the next one.

The first word starts `pad` columns in, as in PIXEL. Words keep the order of the text from left to right also where they
are written from right to left: labels count words. Source: specs, PIXEL 1.3 (words).
"""

import re
from collections.abc import Sequence

from render.pieces import Typesetter
from render.strip import Draft

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


def _lay(
    setter: Typesetter, draft: Draft, words: Sequence[str], x: int, which: int, firsts: Sequence[int]
) -> None:
    starts = [x // draft.geometry.patch_width]
    for i, word in enumerate(words):
        if draft.is_full(x):
            break
        if i + 1 < len(words):
            x = draft.edge(draft.add(setter.line(word + " "), x, which, firsts[i]))
        else:
            x = draft.edge(draft.add(setter.line(word), x, which, firsts[i]) + setter.config.pad)
        starts.append(x // draft.geometry.patch_width)
    if not words:
        x = draft.edge(x + setter.config.pad)
    draft.word_starts, draft.end = starts, x
    draft.num_words = len(starts) - 1
