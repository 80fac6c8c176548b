"""The order in which text that mixes directions is drawn: the Unicode Bidirectional Algorithm, UAX #9.

A text is stored in the order it is spoken. Hebrew and Arabic run right to left, numbers and Latin words inside them
left to right, and such pieces nest: every character gets an embedding level, even = left to right, odd = right to
left, and the drawing order follows from the levels alone (`visual_runs`). The annex finds the levels by rules over the
bidirectional class of each character. P gives the direction of the paragraph, X reads the explicit formatting
characters and cuts the text into sequences to be settled one by one, W settles marks and numbers, N gives brackets and
other neutrals a direction, I turns directions into levels, L1 takes white space at the end out of them, L2 reorders.

Here a class is one letter and a text is a bytes object of such letters, so that a rule which looks at neighbours is a
regular expression, and Python loops over formatting characters and brackets, never over every character. A sequence is
framed by the annex's `sos` and `eos`, as two more strong letters: no rule has a special case for the ends. Time is
linear in the text, whatever its nesting: each expression can match in one way only.

    L R A   left to right, right to left, Arabic letter      l r ( ) p   formatting: LRE RLE LRO RLO PDF
    1 9     European and Arabic number                       < > ? !     isolates: LRI RLI FSI PDI
    + % .   separator, terminator, common separator          B t _ o     paragraph and segment separator, space, other
    m n     nonspacing mark, boundary neutral

Left out on purpose: a text is one paragraph, and a paragraph separator inside it only ends what is nested and starts
afresh at the level of the paragraph. Mirrored glyphs (L4) are the shaper's business.
"""

import re
import string
import unicodedata
from collections import deque
from functools import cache
from itertools import pairwise

import numpy as np

from render.graphemes import NONSPACING_SINCE_14

MAX_DEPTH = 125  # BD2
MAX_OPEN_BRACKETS = 63  # BD16


def needs_bidi(text: str) -> bool:
    """False means that every level of the text in a left-to-right paragraph is 0. True promises nothing."""
    return not text.isascii() and _can_raise_a_level(text) is not None


# Blocks of right-to-left scripts, with what is unassigned in them, RLM, and the formatting that opens something.
_can_raise_a_level = re.compile(
    "[\u0590-\u08ff\u200f\u202a-\u202e\u2066-\u2068\ufb1d-\ufdff\ufe70-\ufefe\U00010800-\U00010fff\U0001e800-\U0001efff]"
).search


def mostly_rtl(text: str) -> bool:
    """PIXEL's test: of the first, middle and last character that is no ASCII space, sign or digit, two are R or AL."""
    text = text.translate(_WITHOUT_ASCII_CLUTTER)
    return bool(text) and sum(_CLASSES[text[index]] in b"RA" for index in (0, len(text) // 2, -1)) >= 2


_WITHOUT_ASCII_CLUTTER = dict.fromkeys(map(ord, string.whitespace + string.punctuation + string.digits))


def levels(text: str, base: str) -> tuple[int, bytes]:
    """Level of the paragraph, 0 or 1, and the embedding level of every character, 0 to 126.

    base: direction of the paragraph: "ltr", "rtl", or "auto" = that of the first strong character, else "ltr".
    Characters that rule X9 removes (formatting other than isolates, boundary neutrals) get the level of the character
    before them, at the start that of the paragraph. Raises ValueError for another base.
    """
    if base not in ("ltr", "rtl", "auto"):
        raise ValueError(f"base = {base!r}; it must be 'ltr', 'rtl' or 'auto'")
    if base != "rtl" and not needs_bidi(text):
        return 0, bytes(len(text))
    classes = bytes(map(_CLASSES.__getitem__, text))
    level = int(base == "rtl")
    if base == "auto":
        level = int(_first_strong(classes).get(_PARAGRAPH, _L) != _L)  # P2, P3
    parts = [
        _levels_of_part(text[part.start() : part.end()], part[0], level)
        for part in re.finditer(b"[^B]+B*|B+", classes)  # P1
    ]
    return level, b"".join(parts)


def _levels_of_part(text: str, classes: bytes, level: int) -> bytes:
    """Levels of a text with paragraph separators at its end at most, in a paragraph of the given level."""
    has_brackets = _BRACKETS.search(text) is not None
    if _FORMATTING.search(classes) is None:
        resolved = bytearray(_resolve(text if has_brackets else "", classes, level, level, level))
    else:
        typed, sequences = _isolating_run_sequences(classes, level)
        resolved = bytearray(len(classes))
        for sequence in sequences:
            of_sequence = _resolve(
                "".join([text[start:end] for start, end in sequence.pieces]) if has_brackets else "",
                b"".join([typed[start:end] for start, end in sequence.pieces]),
                sequence.level,
                sequence.level_before,
                # an isolate that nothing closes faces the end of the paragraph
                level if classes[sequence.pieces[-1][1] - 1] in _OPENS_ISOLATE else sequence.level_after,
            )
            position = 0
            for start, end in sequence.pieces:
                resolved[start:end] = of_sequence[position : position + end - start]
                position += end - start
    for space in _SPACE_AT_AN_END.finditer(classes):  # L1
        resolved[space.start() : space.end()] = bytes([level]) * (space.end() - space.start())
    for removed in _REMOVED.finditer(classes):  # X9
        start, end = removed.span()
        resolved[start:end] = resolved[start - 1 : start] * (end - start) if start else bytes([level]) * end
    return bytes(resolved)


# The lookbehind lets a match begin only where white space begins, so that a long one is read once.
_SPACE_AT_AN_END = re.compile(rb"(?<![_<>?!lr()pn])[_<>?!lr()pn]*+(?:[tB]|\Z)")
_FORMATTING = re.compile(rb"[<>?!lr()pn]")
_REMOVED = re.compile(rb"[lr()pn]+")
_L, _R = b"LR"
_OPENS_ISOLATE = b"<>?"
_PARAGRAPH = -1


def _first_strong(classes: bytes) -> dict[int, int]:
    """Class of the first strong character directly inside each isolate (by the index of its opening character) and
    inside the paragraph (key _PARAGRAPH). What has none is left out."""
    found: dict[int, int] = {}
    inside = [_PARAGRAPH]
    for token in re.finditer(rb"[<>?!B]|[LRA][^<>?!B]*+", classes):
        kind = classes[token.start()]
        if kind in _OPENS_ISOLATE:
            inside.append(token.start())
        elif kind in b"LRA":
            found.setdefault(inside[-1], kind)
        elif kind == ord("B"):
            break
        elif len(inside) > 1:
            inside.pop()
    return found


class _Sequence:
    """An isolating run sequence (BD13): stretches of one level, joined over the isolates between them."""

    def __init__(self, level: int, level_before: int, level_after: int):
        self.level = level
        self.level_before = level_before  # of the character before the first
        self.level_after = level_after  # of the character after the last
        self.pieces: list[tuple[int, int]] = []  # (start, end) in the text


def _isolating_run_sequences(classes: bytes, level: int) -> tuple[bytes, list[_Sequence]]:
    """Rules X1 to X10: classes with overrides applied, and the sequences, which cover all that X9 keeps."""
    typed = bytearray(classes)
    strong = _first_strong(classes) if b"?" in classes else {}
    sequences: list[_Sequence] = []
    current: _Sequence | None = None
    # What is open: level, class that it forces or 0, for an isolate the sequence to return to.
    stack: list[tuple[int, int, _Sequence | None]] = [(level, 0, None)]
    num_isolates = overflow_isolates = overflow_embeddings = 0

    for token in re.finditer(rb"[<>?!lr()pn]|[^<>?!lr()pnB]+|B+", classes):  # X1
        start, end = token.span()
        kind = classes[start]
        if kind == ord("n"):
            continue
        if kind in b"lr()":  # X2-X5
            inner = _next_level(stack[-1][0], kind in b"r)")
            if inner <= MAX_DEPTH and not overflow_isolates and not overflow_embeddings:
                stack.append((inner, {ord("("): _L, ord(")"): _R}.get(kind, 0), None))
            elif not overflow_isolates:
                overflow_embeddings += 1
            continue
        if kind == ord("p"):  # X7
            if overflow_isolates:
                pass
            elif overflow_embeddings:
                overflow_embeddings -= 1
            elif len(stack) > 1 and stack[-1][2] is None:
                stack.pop()
            continue

        returned: _Sequence | None = None
        if kind == ord("!"):  # X6a
            if overflow_isolates:
                overflow_isolates -= 1
            elif num_isolates:
                overflow_embeddings = 0
                num_isolates -= 1
                while returned is None:
                    returned = stack.pop()[2]
        elif kind == ord("B"):  # X8
            del stack[1:]
            num_isolates = overflow_isolates = overflow_embeddings = 0

        here, forced, _ = stack[-1]  # X6
        if returned is not None:
            following = returned
            following.level_after = level
        elif current is not None and current.level == here:
            following = current
        else:
            following = _Sequence(here, current.level if current else level, level)
            sequences.append(following)
        if current is not None and following is not current:
            current.level_after = here
        current = following
        current.pieces.append((start, end))
        if forced:
            typed[start:end] = bytes([forced]) * (end - start)

        if kind in _OPENS_ISOLATE:  # X5a-X5c
            rtl = kind == ord(">") or (kind == ord("?") and strong.get(start, _L) != _L)
            inner = _next_level(here, rtl)
            if inner <= MAX_DEPTH and not overflow_isolates and not overflow_embeddings:
                num_isolates += 1
                stack.append((inner, 0, current))
            else:
                overflow_isolates += 1
    return bytes(typed), sequences


def _next_level(level: int, rtl: bool) -> int:
    """The least level above one that has the parity of a direction."""
    return level + 1 + (level % 2 == rtl)


def _resolve(text: str, classes: bytes, level: int, level_before: int, level_after: int) -> bytes:
    """Rules W1 to I2: levels of one isolating run sequence. text may be empty if it has no bracket."""
    sos, eos = (b"LR"[max(level, neighbour) % 2] for neighbour in (level_before, level_after))
    framed = bytes([sos]) + classes + bytes([eos])
    types = _weak(framed)
    if text:
        types = _brackets(text, types, framed, level)
    # N1, N2: neutrals go with the sequence, except where both neighbours go the other way. Numbers count as R.
    types = types.translate(_NEUTRAL)
    types = _NEUTRAL_WITHIN[level % 2].sub(lambda run: b"RL"[level % 2 : level % 2 + 1] * len(run[0]), types)
    types = types.replace(b"o", b"LR"[level % 2 : level % 2 + 1])
    return types[1:-1].translate(_implicit(level))


_NEUTRAL = bytes.maketrans(b"Bt_<>?!", b"ooooooo")
_NEUTRAL_WITHIN = re.compile(b"(?<=[R19])o++(?=[R19])"), re.compile(b"(?<=L)o++(?=L)")


@cache  # one entry for each of the 126 levels
def _implicit(level: int) -> bytes:
    """Rules I1 and I2, as a table from a class to a level."""
    above = (0, 1, 2, 2) if level % 2 == 0 else (1, 0, 1, 1)
    return bytes.maketrans(b"LR19", bytes(level + step for step in above))


def _weak(types: bytes) -> bytes:
    """Rules W1 to W7 on a framed sequence. What is left: L, R, 1, 9 and neutrals."""
    if b"m" in types:  # W1
        types = re.sub(b"([^m])(m+)", lambda run: run[1] + (b"o" if run[1] in b"<>?!" else run[1]) * len(run[2]), types)
    if b"A" in types:
        if b"1" in types:  # W2: up to the next strong character
            types = re.sub(b"A[^LRA]+", lambda run: run[0].replace(b"1", b"9"), types)
        types = types.replace(b"A", b"R")  # W3
    types = re.sub(b"(?<=1)[+.](?=1)", b"1", types)  # W4
    types = re.sub(rb"(?<=9)\.(?=9)", b"9", types)
    if b"%" in types:  # W5: in a run of numbers and terminators, every terminator leans on a number, or none
        types = re.sub(b"[1%]+", lambda run: b"1" * len(run[0]) if b"1" in run[0] else run[0], types)
    types = types.translate(_SEPARATORS_TO_NEUTRAL)  # W6
    if b"1" in types:  # W7
        types = re.sub(b"L[^LR]+", lambda run: run[0].replace(b"1", b"L"), types)
    return types


_SEPARATORS_TO_NEUTRAL = bytes.maketrans(b"+%.", b"ooo")


def _brackets(text: str, types: bytes, framed: bytes, level: int) -> bytes:
    """Rule N0: a pair of brackets goes with the sequence if anything inside does, else with what is inside and before.

    framed: the classes before the weak rules, which tell what was a nonspacing mark.
    """
    along, against = b"LR"[level % 2], b"RL"[level % 2]
    strong = bytearray(types.translate(_NUMBERS_TO_R))
    settled = bytearray(types)
    for opening, closing in _bracket_pairs(text, types):
        if strong.find(along, opening + 1, closing) >= 0:
            direction = along
        elif strong.find(against, opening + 1, closing) >= 0:
            # This scan ends at the latest at the last pair that came here, which is strong now: all scans together
            # read the text once.
            before = opening - 1
            while strong[before] not in b"LR":
                before -= 1
            direction = strong[before]
        else:
            continue
        for bracket in (opening, closing):
            end = bracket + 1
            while framed[end] == ord("m"):
                end += 1
            strong[bracket:end] = settled[bracket:end] = bytes([direction]) * (end - bracket)
    return bytes(settled)


_NUMBERS_TO_R = bytes.maketrans(b"19", b"RR")


def _bracket_pairs(text: str, types: bytes) -> list[tuple[int, int]]:
    """BD16: positions in types (one more than in text) of the brackets that belong together, by the first of them."""
    pairs: list[tuple[int, int]] = []
    opened: list[tuple[str, int]] = []  # what would close it, its position
    for bracket in _BRACKETS.finditer(text):
        position = bracket.start() + 1
        if types[position] != ord("o"):  # an override made it a letter
            continue
        character = _CANONICAL.get(bracket[0], bracket[0])
        if character in _CLOSED_BY:
            if len(opened) == MAX_OPEN_BRACKETS:
                return []
            opened.append((_CLOSED_BY[character], position))
            continue
        for depth in range(len(opened) - 1, -1, -1):
            if opened[depth][0] == character:
                pairs.append((opened[depth][1], position))
                del opened[depth:]
                break
    return sorted(pairs)


# Bidi_Paired_Bracket of the Unicode Character Database: each opening bracket and what closes it.
PAIRED_BRACKETS = (
    "()[]{}\u0f3a\u0f3b\u0f3c\u0f3d\u169b\u169c\u2045\u2046\u207d\u207e\u208d\u208e\u2308\u2309\u230a\u230b\u2329\u232a"
    "\u2768\u2769\u276a\u276b\u276c\u276d\u276e\u276f\u2770\u2771\u2772\u2773\u2774\u2775\u27c5\u27c6\u27e6\u27e7\u27e8"
    "\u27e9\u27ea\u27eb\u27ec\u27ed\u27ee\u27ef\u2983\u2984\u2985\u2986\u2987\u2988\u2989\u298a\u298b\u298c\u298d\u2990"
    "\u298f\u298e\u2991\u2992\u2993\u2994\u2995\u2996\u2997\u2998\u29d8\u29d9\u29da\u29db\u29fc\u29fd\u2e22\u2e23\u2e24"
    "\u2e25\u2e26\u2e27\u2e28\u2e29\u2e55\u2e56\u2e57\u2e58\u2e59\u2e5a\u2e5b\u2e5c\u3008\u3009\u300a\u300b\u300c\u300d"
    "\u300e\u300f\u3010\u3011\u3014\u3015\u3016\u3017\u3018\u3019\u301a\u301b\ufe59\ufe5a\ufe5b\ufe5c\ufe5d\ufe5e\uff08"
    "\uff09\uff3b\uff3d\uff5b\uff5d\uff5f\uff60\uff62\uff63"
)
_CANONICAL = {"\u2329": "\u3008", "\u232a": "\u3009"}
_CLOSED_BY = dict(zip(PAIRED_BRACKETS[::2], PAIRED_BRACKETS[1::2]))
_BRACKETS = re.compile(f"[{re.escape(PAIRED_BRACKETS)}]")


def visual_runs(levels: bytes) -> list[tuple[int, int, int]]:
    """(start, end, level) of every maximal run of one level, in the order they are drawn from left to right (L2).

    Runs of an odd level are drawn right to left inside.
    """
    if not levels:
        return []
    changes = np.flatnonzero(np.diff(np.frombuffer(levels, np.uint8))) + 1
    edges = [0, *changes.tolist(), len(levels)]
    # Blocks of runs that are next to each other, already in their order on paper; the levels of the blocks rise. A
    # block of a higher level is one item of the level around it: after what is there if that runs left to right, before
    # it if not.
    blocks: list[tuple[int, deque[tuple[int, int, int]]]] = []
    for start, end in pairwise(edges):
        level = levels[start]
        while blocks and blocks[-1][0] > level:
            _, inner = blocks.pop()
            if blocks and blocks[-1][0] >= level:
                blocks[-1] = (blocks[-1][0], _beside(*blocks[-1], inner))
            else:
                blocks.append((level, inner))
        run = deque([(start, end, level)])
        if blocks and blocks[-1][0] == level:
            blocks[-1] = (level, _beside(*blocks[-1], run))
        else:
            blocks.append((level, run))
    while len(blocks) > 1:
        _, inner = blocks.pop()
        blocks[-1] = (blocks[-1][0], _beside(*blocks[-1], inner))
    return list(blocks[0][1])


def _beside(level: int, first: deque, second: deque) -> deque:
    """Two neighbours of one level, put in their order on paper. Moves the shorter one."""
    left, right = (first, second) if level % 2 == 0 else (second, first)
    if len(left) < len(right):
        right.extendleft(reversed(left))
        return right
    left.extend(right)
    return left


class _Classes(dict[str, int]):
    """Letter of the class of every character met so far."""

    def __missing__(self, character: str) -> int:
        if len(self) > _MOST_CLASSES:
            self.clear()
        letter = self[character] = ord(_LETTERS[unicodedata.bidirectional(character) or _unassigned(character)])
        return letter


_MOST_CLASSES = 1 << 16  # bounds the memory of a process that reads every code point there is
_CLASSES = _Classes()
_LETTERS = {
    "L": "L", "R": "R", "AL": "A", "EN": "1", "AN": "9", "ES": "+", "ET": "%", "CS": ".", "NSM": "m", "BN": "n",
    "LRE": "l", "RLE": "r", "LRO": "(", "RLO": ")", "PDF": "p", "LRI": "<", "RLI": ">", "FSI": "?", "PDI": "!",
    "B": "B", "S": "t", "WS": "_", "ON": "o",
}  # fmt: skip


def _unassigned(character: str) -> str:
    """Class of a code point that this Python does not know: the defaults of the annex, and two kinds of newcomers."""
    if NONSPACING_SINCE_14.match(character):
        return "NSM"
    if "\U0001f300" <= character <= "\U0001faff":  # later pictures, neutral like those before them
        return "ON"
    code = ord(character)
    for name, ranges in _DEFAULTS.items():
        if any(first <= code <= last for first, last in ranges):
            return name
    return "L"


# In this order: the first that holds. Section 3.2 of the annex and DerivedBidiClass of the database.
_DEFAULTS = {
    "BN": (
        *((plane << 16 | 0xFFFE, plane << 16 | 0xFFFF) for plane in range(17)),  # noncharacters
        (0xFDD0, 0xFDEF),
        (0x2065, 0x2065),  # default ignorable
        (0xFFF0, 0xFFF8),
        (0xE0000, 0xE0FFF),
    ),
    "AL": (
        (0x0600, 0x07BF), (0x0860, 0x08FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF), (0x10D00, 0x10D3F), (0x10EC0, 0x10EFF),
        (0x10F30, 0x10F6F), (0x1EC70, 0x1ECBF), (0x1ED00, 0x1ED4F), (0x1EE00, 0x1EEFF),
    ),
    "R": ((0x0590, 0x085F), (0xFB1D, 0xFB4F), (0x10800, 0x10FFF), (0x1E800, 0x1EFFF)),
    "ET": ((0x20A0, 0x20CF),),
}  # fmt: skip
