"""Tokens: the parts of a text that are drawn and kept as one piece.

That is a word with the space after it, and in scripts that are written without spaces, a character.
"""

import re
from collections.abc import Callable, Sequence

# Scripts written without spaces, one character a token; the marks that may follow one
_ALONE = (
    "\u2e80-\u2fdf\u3000-\u3029\u3030-\u3098\u309b-\u30ff\u3105-\u312f\u3190-\u31ff\u3200-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\ufe30-\ufe4f\uff01-\uffef\U0001b000-\U0001b2ff\U00020000-\U0003ffff"
)
_FOLLOWS = "\u0300-\u036f\u200c\u200d\u20d0-\u20ff\u302a-\u302f\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
_TOKENS = re.compile(f"[^ {_ALONE}]* |[{_ALONE}][{_FOLLOWS}]* ?|[^ {_ALONE}]+")
_WITH_SPACE = re.compile("[^ ]* |[^ ]+")
ALONE = re.compile(f"[{_ALONE}]")


def tokens_of(text: str) -> list[str]:
    """The text cut after each space and around each character of a script written without spaces."""
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
    return re.compile("[" + "".join(map(re.escape, characters)) + "]*").fullmatch
