"""What is taken out of a text before it is drawn.

A character that is drawn as an empty box teaches a model nothing but boxes. Two kinds are replaced by a space, as
PIXEL-M4 did: code points that stand for no character, and characters that no font of the renderer has. White space of
any kind and length becomes one space. What is replaced is counted, and the counts are kept with the rows: a corpus in
a script that the fonts do not have shows at once. Source: specs/pixel.md, section 4.4.

What PIXEL-M4 read from a list of "unrenderable characters" is asked of the renderer here, in place: whether a mark can
be drawn depends on the letter under it.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence

from render import Strip

Draw = Callable[[str], Strip]
Rule = Callable[[str, Draw], tuple[str, int]]

NO_CHARACTER = ("Cn", "Cs", "Co")  # unassigned, surrogate, private use


def unassigned(text: str, draw: Draw) -> tuple[str, int]:
    """Code points that Unicode gives no character: unassigned, surrogates, private use. Python's tables decide."""
    count = 0
    if not text.isascii():
        for character in {c for c in set(text) if unicodedata.category(c) in NO_CHARACTER}:
            count += text.count(character)
            text = text.replace(character, " ")
    return text, count


def unrenderable(text: str, draw: Draw) -> tuple[str, int]:
    """Characters for which no font of the renderer has a glyph, where they stand."""
    count = 0
    while text:
        places = {missing.index for missing in draw(text).missing}
        if not places:
            break
        count += len(places)
        # what is left may join anew, so it is looked at again
        text = collapsed("".join(" " if place in places else c for place, c in enumerate(text)))
    return text, count


CLEAN_RULES: Mapping[str, Rule] = {"unassigned": unassigned, "unrenderable": unrenderable}


def collapsed(text: str) -> str:
    """Single spaces between words, none around them."""
    return " ".join(text.split())


def clean(text: str, rules: Sequence[str], draw: Draw) -> tuple[str, dict[str, int]]:
    """The text under the named rules, in the order of CLEAN_RULES, and how many characters each has replaced.

    draw: draws a text of any length. White space is collapsed whatever the rules.
    """
    text = collapsed(text)
    counts = {}
    for name, rule in CLEAN_RULES.items():
        if name in rules:
            text, counts[name] = rule(text, draw)
            if counts[name]:
                text = collapsed(text)
    return text, counts
