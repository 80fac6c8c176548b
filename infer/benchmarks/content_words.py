"""Which words of an English passage carry its content: all but those that grammar needs in any text.

The baselines of LAMBADA ask for "the most frequent content word", and its ranking for candidates. A word is a run of
letters; content words have at least two and are none of the function words below: articles, pronouns, prepositions,
conjunctions, auxiliary verbs, the adverbs that come with them, and what apostrophes leave of contractions.
"""

import re
from collections import Counter

_FUNCTION_WORDS = """
a an the this that these those some any each every no none all both either neither such same other another one ones
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself we us our
ours ourselves they them their theirs themselves who whom whose which what whatever whoever someone somebody something
anyone anybody anything everyone everybody everything nobody nothing
of in on at by to from with without for about into onto over under above below between among through during before
after since until till against toward towards upon across along around behind beside beyond near off out up down inside
outside within despite except like as per
and or but nor so yet if unless because while though although whether than when whenever where wherever why how
am is are was were be been being do does did done doing have has had having can could may might must shall should will
would ought need dare
not never ever just only even also too very quite rather still already again then now here there once always often more
most less least much many few little enough well back away yes oh okay
s t d m ll re ve don didn doesn isn wasn aren weren couldn wouldn shouldn hadn hasn haven won ain
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_WORD = re.compile(r"[^\W\d_]+")


def words_of(text: str) -> list[str]:
    """The runs of letters of a text, in order."""
    return _WORD.findall(text)


def content_words(text: str) -> list[str]:
    """The content words of a text, in order and as often as they occur."""
    return [word for word in words_of(text) if len(word) > 1 and word.lower() not in FUNCTION_WORDS]


def most_frequent(text: str) -> str:
    """The content word that occurs most often, of several the one that came first; "" where there is none."""
    counted = Counter(content_words(text))
    return max(counted, key=counted.__getitem__, default="")


def last_name(text: str) -> str:
    """The last capitalised word that does not begin a sentence, which is mostly a name; "" where there is none."""
    found = re.findall(r"[a-z,;:] ([A-Z][^\W\d_]+)", text)
    return found[-1] if found else ""


def last_content_word(text: str) -> str:
    """The content word that came last; "" where there is none."""
    found = content_words(text)
    return found[-1] if found else ""
