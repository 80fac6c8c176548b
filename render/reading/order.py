"""From what is read left to right to the text as it is stored: the way back through the bidirectional algorithm.

The way there (render/bidi.py) loses information: "abc 12" between Arabic words may have been stored either way round.
So this file only proposes texts, likeliest first, and whoever asks renders them and keeps the one that looks right.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

_MIRRORED = {a: b for pair in ("()", "[]", "{}", "<>", "«»", "‹›", "≤≥") for a, b in (pair, pair[::-1])}
_LEFT_IN_RIGHT = re.compile("L[^R]*[LN]|L|N(?:[NSo]*N)?|N")
_NUMBER = re.compile("[T]*N(?:[NST]*N)?[T]*")
_LETTERS = re.compile("L(?:[^R]*[LN])?")
_RIGHT_IN_LEFT = re.compile("R(?:[^L]*[RN])?|R")


def logical_orders(clusters: Sequence[tuple[str, bool]], direction: str) -> Iterator[list[int]]:
    """Orders of clusters, given from left to right, in which they may have been stored; the likeliest first.

    clusters: text, and whether it was drawn as part of a run to the left. direction: of the configuration.
    """
    if not any(rtl for _, rtl in clusters):
        yield list(range(len(clusters)))
        return
    kinds = "".join(_kind(text, rtl) for text, rtl in clusters)
    strong = [kind for kind in kinds if kind in "LR"]
    to_left = direction == "rtl" or (direction == "auto" and strong.count("R") >= strong.count("L"))
    tried: list[list[int]] = []
    for rtl in (to_left, not to_left):
        order = _from_right(kinds) if rtl else _from_left(kinds)
        if order not in tried:
            tried.append(order)
            yield order


def text_in_order(texts: Sequence[str], rtl: Sequence[bool], order: Sequence[int]) -> str:
    """The texts in an order; where it runs to the left, brackets are turned round, as they were for drawing."""
    out = []
    for place, at in enumerate(order):
        text = texts[at]
        if text in _MIRRORED:
            neighbours = [order[i] for i in (place - 1, place + 1) if 0 <= i < len(order)]
            if rtl[at] or any(abs(near - at) == 1 and _steps_left(order, place, near) for near in neighbours):
                text = _MIRRORED[text]
        out.append(text)
    return "".join(out)


def _steps_left(order: Sequence[int], place: int, near: int) -> bool:
    return (place > 0 and order[place - 1] == near == order[place] + 1) or (
        place + 1 < len(order) and order[place + 1] == near == order[place] - 1
    )


def _kind(text: str, rtl: bool) -> str:
    """R or L = strong, N = number, S = separator, T = sign beside a number, o = other."""
    kind = unicodedata.bidirectional(text[0])
    if kind in ("R", "AL"):
        return "R"
    if kind == "L":
        return "L"
    return {"EN": "N", "AN": "N", "ES": "S", "CS": "S", "ET": "T"}.get(kind, "o")


def _from_right(kinds: str) -> list[int]:
    order: list[int] = []
    at = 0
    pieces: list[list[int]] = []
    while at < len(kinds):
        match = _LETTERS.match(kinds, at) or _NUMBER.match(kinds, at)
        end = match.end() if match else at + 1
        pieces.append(list(range(at, end)))
        at = end
    for piece in reversed(pieces):
        order += piece
    return order


def _from_left(kinds: str) -> list[int]:
    order: list[int] = []
    at = 0
    while at < len(kinds):
        match = _RIGHT_IN_LEFT.match(kinds, at)
        if match is None:
            order.append(at)
            at += 1
            continue
        order += [at + i for i in _from_right(kinds[at : match.end()])]
        at = match.end()
    return order
