"""Patches that follow the script: what one patch holds is what its script treats as one or two units.

- Two grapheme clusters a patch, shaped together, the space after a word among them (layouts/bigrams.py).
- One character a patch in Han, kana and Hangul, whose characters fill a patch and carry about as much as two letters.
- Whole words in scripts whose letters join (Arabic, Syriac, Mongolian and others): cutting them would change their
  shapes. A word starts a patch and takes as many as it needs.

The default where no published weights ask for another layout.
"""

import re
from collections.abc import Sequence

from render.graphemes import boundaries
from render.layouts import bigrams
from render.scripts import script_of
from render.strip import Draft
from render.tokens import ALONE
from render.typesetter import Typesetter

JOINING = frozenset(
    ["Adlm", "Arab", "Chrs", "Mand", "Mani", "Mong", "Nkoo", "Ougr", "Phag", "Phlp", "Rohg", "Sogd", "Sogo", "Syrc"]
)
HANGUL = re.compile("[\u1100-\u11ff\ua960-\ua97c\uac00-\ud7fb]")


def text(setter: Typesetter, draft: Draft, text: str) -> None:
    """One text."""
    draft.end = draft.edge(bigrams.lay_units(setter, draft, text, 0, 0))


def pair(setter: Typesetter, draft: Draft, first: str, second: str) -> None:
    """Two texts with a black patch between them."""
    start = draft.separator(draft.edge(bigrams.lay_units(setter, draft, first, 0, 0)))
    draft.end = draft.edge(bigrams.lay_units(setter, draft, second, start, 1))
    draft.word_starts = None


def words(setter: Typesetter, draft: Draft, words: Sequence[str]) -> None:
    """A list of words, from left to right in the order given."""
    bigrams.lay_words(setter, draft, words, " ")


def cut(setter: Typesetter, word: str) -> list[str]:
    """The units of a word."""
    if setter.is_simple(word):
        return bigrams.cut(setter, word)
    units: list[str] = []
    grows = ""  # what may still join the last unit: letters of a joined word, or one letter more
    start = 0
    for end in boundaries(word):
        first = word[start]
        if script_of(first) in JOINING:
            kind = "joined"
        elif ALONE.match(first) or HANGUL.match(first):
            kind = "alone"
        else:
            kind = "letter"
        if kind == grows or (grows == "joined" and first == " "):
            units[-1] += word[start:end]
            grows = "joined" if grows == kind == "joined" else ""
        else:
            units.append(word[start:end])
            grows = "" if kind == "alone" else kind
        start = end
    return units
