"""Sentences on patch edges: each sentence starts a patch, and runs on as continuous text does.

What a sentence looks like then does not depend on those before it, so a model that writes patches meets it in one
drawing instead of one for each column where it could begin. A sentence ends with . ! ? or | where white space follows:
a rule that needs no language, and that also cuts after "Mr." and between question, bar and answer. Sentences keep the
order of the text from left to right, as words do (layouts/words.py); one that is cut for some other reason, by the
length of the strip, is just shorter. A list of words is drawn as in every layout that has no patches for words.
"""

import re

from render.layouts.words import lay
from render.strip import Draft
from render.typesetter import Typesetter

STOPS = ".!?|"
_SENTENCE = re.compile(rf"\S.*?(?:(?<=[{STOPS}])(?=\s)|\Z)", re.DOTALL)


def cut(text: str) -> list[tuple[int, str]]:
    """The sentences of a text, each with the index of its first character; no white space around any."""
    return [(match.start(), match.group()) for match in _SENTENCE.finditer(text, 0, len(text.rstrip()))]


def text(setter: Typesetter, draft: Draft, text: str) -> None:
    """One text."""
    _lay(setter, draft, text, setter.config.pad, 0)


def pair(setter: Typesetter, draft: Draft, first: str, second: str) -> None:
    """Two texts with a black patch between them."""
    text(setter, draft, first)
    _lay(setter, draft, second, draft.separator(draft.end), 1)
    draft.word_starts = None


def _lay(setter: Typesetter, draft: Draft, text: str, x: int, which: int) -> None:
    found = cut(text)
    lay(setter, draft, [sentence for _, sentence in found], x, which, [first for first, _ in found], Typesetter.line)
