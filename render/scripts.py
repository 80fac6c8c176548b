"""Which script a character belongs to, and the runs of a text that can be shaped together.

A shaper needs to know the script: it decides which features of the font apply, and Arabic letters only join when they
are shaped as Arabic. Letters have one script (UAX #24); spaces, digits, punctuation (Common) and most combining marks
(Inherited) take theirs from the text around them. The rules, which are also Pango's: such a character goes with what
comes before it; at the start of a text, with the first letter; and a closing bracket or quotation mark with the
opening one, so that a word of another script between brackets does not split them.

The scripts themselves come from HarfBuzz, the library that will use them.
"""

import re
import unicodedata
from collections import deque
from itertools import groupby, pairwise

import uharfbuzz

from render.bidi import PAIRED_BRACKETS


def script_of(character: str) -> str | None:
    """ISO 15924 code, such as "Latn"; None if it takes the script of its neighbours or is unassigned."""
    return _SCRIPTS[character]


class _Scripts(dict[str, "str | None"]):
    """Script of every character met so far."""

    def __missing__(self, character: str) -> str | None:
        if len(self) > _MOST_SCRIPTS:
            self.clear()
        if "\ud800" <= character <= "\udfff":  # HarfBuzz takes no lone surrogates
            script = None
        else:
            buffer = uharfbuzz.Buffer()  # pyright: ignore[reportAttributeAccessIssue]  # compiled, without stubs
            buffer.add_str(character)
            buffer.guess_segment_properties()
            script = buffer.script
        self[character] = script
        return script


_MOST_SCRIPTS = 1 << 16  # bounds the memory of a process that reads every code point there is
_SCRIPTS = _Scripts()


def script_runs(text: str) -> list[tuple[int, int, str | None]]:
    """(start, end, script) of the runs of one script, in order; they cover the text.

    The script is None only where nothing in the text has one; then there is one run. No run for an empty text.
    """
    if text.isascii():
        return [(0, len(text), "Latn" if _latin_letter(text) else None)] if text else []
    scripts = set(map(_SCRIPTS.__getitem__, text)) - {None}
    if len(scripts) <= 1:
        return [(0, len(text), scripts.pop() if scripts else None)]
    changes = _changes(text)
    changes[0] = (0, changes[0][1])
    runs: list[tuple[int, int, str | None]] = []
    for (start, script), (end, _) in pairwise([*changes, (len(text), "")]):
        if runs and runs[-1][2] == script:
            start = runs.pop()[0]
        runs.append((start, end, script))
    return runs


_latin_letter = re.compile("[A-Za-z]").search


def _changes(text: str) -> list[tuple[int, str]]:
    """Where the script of the text changes, and to what; what precedes the first is still without one."""
    changes: list[tuple[int, str]] = []
    script = None
    opened: deque[tuple[str, str | None]] = deque(maxlen=_MOST_OPENED)  # what closes a pair, the script around it
    shared = end = 0  # text[shared:end] has no script of its own
    for own, group in groupby(map(_SCRIPTS.__getitem__, text)):
        start, end = end, end + sum(1 for _ in group)
        if own is None:
            for sign in _PAIRED.finditer(text, start, end):
                if sign[0] in _CLOSED_BY:
                    opened.append((_CLOSED_BY[sign[0]], script))
                elif changes and _closes_a_pair(opened, sign[0]):
                    around = opened.pop()[1] or changes[0][1]
                    if around != script:
                        script = around
                        changes.append((sign.start(), script))
            continue
        first = _run_start(text, shared, start, end)
        shared = end
        if first < end and own != script:
            while changes and changes[-1][0] >= first:
                changes.pop()
            script = own
            changes.append((first, script))
    return changes


def _closes_a_pair(opened: deque[tuple[str, str | None]], sign: str) -> bool:
    """Whether a pair is open that the sign closes. If so, what was opened inside it is forgotten."""
    for depth, (closing, _) in enumerate(reversed(opened)):
        if closing == sign:
            for _ in range(depth):
                opened.pop()
            return True
    return False


def _run_start(text: str, shared: int, start: int, end: int) -> int:
    """Where the run of the letters text[start:end] begins. text[shared:start] has no script of its own.

    Not at start if they begin with marks, because a mark stays with its base: it takes a base without a script along,
    and follows one that has another script.
    """
    if not _is_mark(text[start]):
        return start
    for base in range(start - 1, shared - 1, -1):
        if not _is_mark(text[base]) and text[base] not in _JOINERS:
            return base
    if shared == 0:
        return start
    return next((index for index in range(start, end) if not _is_mark(text[index])), end)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


_JOINERS = "\u200c\u200d"
# What is opened and never closed is forgotten at this depth, so that no closing sign searches long.
_MOST_OPENED = 64
_PAIRS = PAIRED_BRACKETS + "<>\u00ab\u00bb\u2018\u2019\u201c\u201d\u2039\u203a"
_CLOSED_BY = dict(zip(_PAIRS[::2], _PAIRS[1::2]))
_PAIRED = re.compile(f"[{re.escape(_PAIRS)}]")
