"""Text without the spaces that a tokeniser put into it.

Some data sets come as tokens with spaces between them (MRPC: `He said , " No . "`). A reader of pixels sees those
spaces, and has hardly seen any in pretraining. Two ways to take them out:

"pixel" is what PIXEL's scripts do to every text of GLUE, NLI and SIB-200: no space before , . ! ? # / ) ] and n't, none
behind ( and [, and none on either side of " and ', which glues a quoted word to both its neighbours. It changes clean
text as well. "tokenised" leaves clean text alone: it is for data sets that are known to hold tokens (the table of
`forms.py`), joins signs and clitics to the word before, and knows opening quotes from closing ones by counting.
Sources: specs/pixel.md, section 5; specs/pixar.md, section 5.1.
"""

import re

WAYS = ("none", "pixel", "tokenised")

_PIXEL = re.compile(r" (?=[,.!?#/)\]\"']|n't)|(?<=[(\[\"']) ")
_BEFORE = re.compile(r" +(?=[,.!?;:%)\]}]|n't\b|'(?:s|m|d|re|ve|ll)\b)", re.IGNORECASE)
_BEHIND = re.compile(r"(?<=[(\[{$]) +")
_QUOTED = re.compile(r"(?<!\S)\" +([^\"]*?) +\"(?!\w)")


def detokenised(text: str, way: str) -> str:
    """The text without spaces of a tokeniser. way: "pixel" or "tokenised"."""
    if way == "pixel":
        return _PIXEL.sub("", text)
    text = text.replace("``", '"').replace("''", '"')
    return _BEHIND.sub("", _BEFORE.sub("", _QUOTED.sub(r'"\1"', text)))
