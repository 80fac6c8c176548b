"""Tokens: the parts of a text that are drawn and kept as one piece.

That is a word with the space after it, and in text that is written without spaces, a Han character or what stands
between two of them.
"""

import re
from collections.abc import Callable, Sequence

# Scripts written without spaces
_HAN = "\u2e80-\u2fdf\u3190-\u319f\u31c0-\u31ef\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = (
    "\u3000-\u3029\u3030-\u3098\u309b-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u33ff"
    "\ufe30-\ufe4f\uff01-\uffef\U0001b000-\U0001b2ff"
)
_FOLLOWS = "\u0300-\u036f\u200c\u200d\u20d0-\u20ff\u302a-\u302f\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
# Fonts kern kana and punctuation, so that a run of them is one token; a Han character kerns with nothing
_TOKENS = re.compile(f"[^ {_HAN}]* |[{_HAN}][{_FOLLOWS}]* ?|[^ {_HAN}]+")
_WITH_SPACE = re.compile("[^ ]* |[^ ]+")
# Characters that have a patch of their own where patches follow the script
ALONE = re.compile(f"[{_HAN}{_KANA}]")


def tokens_of(text: str) -> list[str]:
    """The text cut after each space and around each Han character."""
    return _TOKENS.findall(text)


def words_of(text: str) -> list[str]:
    """The text cut after each space: half the time of `tokens_of`."""
    if "\0" in text:
        return _WITH_SPACE.findall(text)
    words = text.replace(" ", " \0").split("\0")
    if not words[-1]:
        words.pop()
    return words


def only(characters: Sequence[str]) -> Callable[[str], object]:
    """A test for text of these characters alone."""
    if not characters:
        return lambda text: False
    return frozenset(characters).issuperset
