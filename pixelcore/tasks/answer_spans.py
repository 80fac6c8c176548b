"""From an answer's characters to units, patches or tokens, and from units back to characters.

A patch knows which characters have ink on it, and no more: "e 30" of "the 308 points" may be one. So two patches say
only roughly where an answer begins and ends, and a rule has to say which text they mean. Ours is: answers are made of
whole words, and two units mean the words whose own units they are, so that reading back inverts what training was told.
Where several runs of words have these units, the one with the fewest spaces in it is meant, since a short word beside
an answer is seldom part of it; of these the longest. A letter on the edge of two patches belongs to both, and an answer
takes the fewer patches then. In a line from right to left the first unit holds the end of the answer.

Source of the fewest patches: specs/pixel.md, section 3.5, whose own rules for the text are not taken over.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]  # first character and end

# Letters between which answers begin and end without a space: Thai, Lao, Tibetan, Myanmar, Hangul (answers leave out
# particles), Khmer, kana, Han and what is written with it.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u318f\u31a0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_PIECES = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_SIGNS = "%‰％"  # punctuation in Unicode, but part of a number


@lru_cache(maxsize=512)
def words_of(text: str) -> tuple[Span, ...]:
    """Where the words of a text are: what stands between spaces and punctuation, in order. Of scripts that do not part
    words each character is one, with the marks on it."""
    found: list[Span] = []
    for match in _PIECES.finditer(text):
        begin = match.start()
        for place in range(begin, match.end() + 1):
            if place < match.end() and not is_punctuation(text[place]):
                continue
            if begin < place:
                is_mark = unicodedata.category(text[begin])[0] == "M"
                if is_mark and found and found[-1][1] == begin:
                    begin = found.pop()[0]
                found.append((begin, place))
            begin = place + 1
    return tuple(found)


def is_punctuation(character: str) -> bool:
    """Whether a character parts words or stands at their edges."""
    return unicodedata.category(character)[0] == "P" and character not in _SIGNS


def trimmed(text: str, span: Span) -> Span:
    """A span without spaces and punctuation at its ends; as it was, if there is nothing else."""
    begin, end = span
    while begin < end and (text[begin].isspace() or is_punctuation(text[begin])):
        begin += 1
    while begin < end and (text[end - 1].isspace() or is_punctuation(text[end - 1])):
        end -= 1
    return (begin, end) if begin < end else span


class Places:
    """Where the characters of a text stand in a row. char_spans_L3: of `Layout`; which: of the row's texts."""

    def __init__(self, char_spans_L3: NDArray[np.int32], which: int) -> None:
        units = np.flatnonzero((char_spans_L3[:, 0] == which) & (char_spans_L3[:, 2] > char_spans_L3[:, 1]))
        self.spans: dict[int, Span] = {
            unit: (begin, end)
            for unit, (begin, end) in zip(units.tolist(), char_spans_L3[units, 1:].tolist(), strict=True)
        }
        self.begin = min((begin for begin, _ in self.spans.values()), default=0)
        self.end = max((end for _, end in self.spans.values()), default=0)
        # of each character the first and the last unit it stands on
        self._first_T = np.full(self.end - self.begin, -1)
        self._last_T = np.full(self.end - self.begin, -1)
        for unit, (begin, end) in self.spans.items():
            self._last_T[begin - self.begin : end - self.begin] = unit
        for unit, (begin, end) in reversed(self.spans.items()):
            self._first_T[begin - self.begin : end - self.begin] = unit

    def units_of(self, span: Span) -> tuple[int, int] | None:
        """The first and the last unit of some characters, the fewest that touch both ends. None where they do not stand
        in this row from end to end."""
        begin, end = span
        if not self.begin <= begin < end <= self.end:
            return None
        (first_of_begin, last_of_begin), (first_of_end, last_of_end) = self._of(begin), self._of(end - 1)
        if min(first_of_begin, first_of_end) < 0:  # a character that takes no room
            return None
        if last_of_begin <= first_of_end:
            return last_of_begin, first_of_end
        if last_of_end <= first_of_begin:  # from right to left
            return last_of_end, first_of_begin
        both = max(first_of_begin, first_of_end)
        return both, both

    def text_of(self, units: tuple[int, int], text: str) -> Span | None:
        """The characters that are meant by two units of `text`, the whole text of which the row shows a part. None
        where no word stands on them."""
        words = words_of(text)
        one, other = sorted(self.spans[unit] for unit in units)  # in the order of the text
        runs = [
            (begin, end)
            for begin, _ in _touching(words, one)
            for _, end in _touching(words, other)
            if begin < end and self.units_of((begin, end)) == units
        ]
        if runs:
            return min(runs, key=lambda run: (len(text[run[0] : run[1]].split()), run[0] - run[1]))
        rest = _touching(words, (one[0], max(one[1], other[1])))
        return (rest[0][0], rest[-1][1]) if rest else None

    def _of(self, character: int) -> tuple[int, int]:
        return int(self._first_T[character - self.begin]), int(self._last_T[character - self.begin])


def _touching(words: Sequence[Span], span: Span) -> Sequence[Span]:
    """The words that have a character in a span."""
    begin, end = span
    first = bisect_right(words, begin, key=lambda word: word[1])
    return words[first : bisect_left(words, end, key=lambda word: word[0])]
