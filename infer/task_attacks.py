"""Attacks on the words of examples: typing errors, letters in disorder, signs in between, and letters that look alike.

    full-swap       the letters of a word in another order
    inner-swap      the same without the first and the last letter
    disemvowel      no a, e, i, o, u, of words of three letters or more
    truncate        no last letter, of words of four letters or more
    keyboard-typo   one letter becomes one beside it on a QWERTY keyboard
    intrude         in each gap between two letters a sign of punctuation, the same for a word
    segmentation    spaces disappear, so that words stand together: of texts alone
    confusables     letters become others that look like them (infer/confusables.py); with -unchanged, -drawn or
                    -missing behind it only by those that are drawn with the same pixels, otherwise, or not at all

Severity is a share. Of intrude, segmentation and confusables it is the chance of each gap, space or letter. Of the
others it is, in sentences of labelled words, the chance of each word, and in running text the share of the words that
are changed, drawn without replacement from all, where those that an attack cannot change make room for others. Labels
and trees stay: no attack on words changes their number. Of a question and its context only the question is attacked,
because the answer has to stand in the context as it is.

Everything an attack draws for an example comes from the seed and the number of the example alone, so the result is the
same whatever is attacked beside it, in whichever order and by however many processes. A word that a severity changes is
changed in the same way by a higher one.

The list is that of PIXEL's evaluation (specs/pixel.md, section 6.4; Eger and Benz, arXiv:2010.05648), less two of it:
natural-typo needs a table of spelling mistakes that people made, phonetic one of pronunciations, and none with a
licence that lets it travel with this project is at hand. Words of running text are what stands between spaces and
punctuation, not what a tokenizer finds.
"""

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from infer.arguments import nearest
from infer.confusables import STRATA, Strata, built_in, confuse, read_confusables
from pixelcore.errors import UserError
from pixelcore.tasks.answer_spans import words_of
from pixelcore.tasks.examples import QuestionExample, TextExample, TreeExample, WordsExample
from render import RenderConfig, Renderer

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # of a keyboard; each begins about half a key to the right of the last
_MARKS = string.punctuation.replace('"', "")  # tables put fields into these
_VOWELS = frozenset("aeiouAEIOU")
_LEFT_OUT = {
    "natural-typo": "a table of people's spelling mistakes",
    "phonetic": "a table of pronunciations",
}


@dataclass(frozen=True, kw_only=True)
class TaskAttack:
    """name, severity: what it is called in tables. seed: of all that it draws. stratum: of look-alikes, these alone."""

    name: str
    severity: float
    seed: int
    strata: Strata

    @property
    def stratum(self) -> str | None:
        """The look-alikes that are taken; None for all of them."""
        return self.name.removeprefix(LOOK_ALIKES).removeprefix("-") or None

    def __str__(self) -> str:
        return f"{self.name} {self.severity:g}"

    def on_words(self, words: Sequence[str], number: int) -> tuple[str, ...]:
        """The words of the sentence of a number, each attacked by itself."""
        if self.name == "segmentation":
            raise UserError("--attack segmentation: joins words, and each word has a label of its own: texts alone")
        return tuple(self._word(word, number, 0, place, self._chance()) for place, word in enumerate(words))

    def on_text(self, text: str, number: int, part: int = 0) -> str:
        """The text of the example of a number. part: 1 for the second of a pair."""
        if self.name == "segmentation":
            draw = self._draw(number, part)
            return "".join(sign for sign in text if sign != " " or draw.random() >= self.severity)
        spans = words_of(text)
        if self.name in _EVERYWHERE:
            chosen = set(range(len(spans)))
        else:
            chosen = self._chosen(text, spans, number, part)
        pieces, end = [], 0
        for place, (first, last) in enumerate(spans):
            pieces.append(text[end:first])
            word = text[first:last]
            pieces.append(self._word(word, number, part, place, 1.0) if place in chosen else word)
            end = last
        return "".join(pieces) + text[end:]

    def _chance(self) -> float:
        return 1.0 if self.name in _EVERYWHERE else self.severity

    def _chosen(self, text: str, spans: Sequence[tuple[int, int]], number: int, part: int) -> set[int]:
        """Words to change, as many as the severity asks for, of those that can be changed."""
        order = list(range(len(spans)))
        self._draw(number, part).shuffle(order)
        wanted = round(self.severity * len(spans))
        chosen: set[int] = set()
        for place in order:
            if len(chosen) == wanted:
                break
            word = text[slice(*spans[place])]
            if self._word(word, number, part, place, 1.0) != word:
                chosen.add(place)
        return chosen

    def _word(self, word: str, number: int, part: int, place: int, chance: float) -> str:
        """A word, changed with a chance."""
        draw = self._draw(number, part, place)
        if draw.random() >= chance:
            return word
        if self.name.startswith(LOOK_ALIKES):
            return confuse(word, self.severity, draw, self.strata, self.stratum).text
        return _ON_A_WORD[self.name](word, draw, self.severity)

    def _draw(self, *of: int) -> random.Random:
        return random.Random(f"{self.seed} {self.name} {' '.join(map(str, of))}")


def attack_of(given: str, seed: int, confusables: str | None = None, renderer: Renderer | None = None) -> TaskAttack:
    """The attack that NAME:SEVERITY names. confusables: a file with a table in place of ours. renderer: by which it is
    told how look-alikes are drawn; else the default one. Raises UserError for what is no attack."""
    name, colon, severity = given.partition(":")
    if name in _LEFT_OUT:
        raise UserError(f"--attack {name}: left out, it needs {_LEFT_OUT[name]}; choose {', '.join(ATTACKS)}")
    if name not in ATTACKS:
        raise UserError(f"--attack {given}: unknown{nearest(name, ATTACKS)}; choose {', '.join(ATTACKS)}")
    try:
        share = float(severity)
    except ValueError:
        share = -1.0
    if not colon or not 0 <= share <= 1:
        raise UserError(f"--attack {given}: is not of the form NAME:SEVERITY with a severity from 0 to 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be a whole number from 0 on")
    table = built_in() if confusables is None else read_confusables(confusables)
    return TaskAttack(name=name, severity=share, seed=seed, strata=Strata(renderer or Renderer(RenderConfig()), table))


def attacked(attack: TaskAttack, example: Any, number: int) -> Any:
    """The example of a number as a model gets to read it; labels, heads and answers stay."""
    if isinstance(example, WordsExample | TreeExample):
        return replace(example, words=attack.on_words(example.words, number))
    if isinstance(example, QuestionExample):
        return replace(example, question=attack.on_text(example.question, number))
    assert isinstance(example, TextExample)
    second = None if example.second is None else attack.on_text(example.second, number, 1)
    return replace(example, text=attack.on_text(example.text, number), second=second)


# ------------------------------------------------------------------ on a word


def _full_swap(word: str, draw: random.Random, severity: float) -> str:
    return _swapped(word, [place for place, sign in enumerate(word) if sign.isalpha()], draw)


def _inner_swap(word: str, draw: random.Random, severity: float) -> str:
    return _swapped(word, [place for place, sign in enumerate(word) if sign.isalpha()][1:-1], draw)


def _swapped(word: str, places: list[int], draw: random.Random) -> str:
    """The letters at these places in another order, where there is one."""
    letters = [word[place] for place in places]
    if len(set(letters)) < 2:
        return word
    mixed = letters
    while mixed == letters:
        mixed = draw.sample(letters, len(letters))
    by_place = dict(zip(places, mixed))
    return "".join(by_place.get(place, sign) for place, sign in enumerate(word))


def _disemvowel(word: str, draw: random.Random, severity: float) -> str:
    left = "".join(sign for sign in word if sign not in _VOWELS)
    return left if _num_letters(word) >= 3 and left else word


def _truncate(word: str, draw: random.Random, severity: float) -> str:
    last = max((place for place, sign in enumerate(word) if sign.isalpha()), default=0)
    return word[:last] + word[last + 1 :] if _num_letters(word) > 3 else word


def _keyboard_typo(word: str, draw: random.Random, severity: float) -> str:
    places = [place for place, sign in enumerate(word) if sign.lower() in _NEIGHBOURS]
    if not places:
        return word
    place = draw.choice(places)
    other = draw.choice(_NEIGHBOURS[word[place].lower()])
    return word[:place] + (other.upper() if word[place].isupper() else other) + word[place + 1 :]


def _neighbours() -> dict[str, str]:
    """Beside each letter: those to its left and right, and those that touch it in the row above and the row below."""
    found: dict[str, str] = {}
    for above, row, below in zip(("", *ROWS), ROWS, (*ROWS[1:], "")):
        for place, letter in enumerate(row):
            beside = row[max(0, place - 1) : place] + row[place + 1 : place + 2]
            found[letter] = beside + above[place : place + 2] + below[max(0, place - 1) : place + 1]
    return found


_NEIGHBOURS = _neighbours()


def _intrude(word: str, draw: random.Random, severity: float) -> str:
    mark = draw.choice(_MARKS)
    pieces = [word[:1]]
    for before, sign in pairwise(word):
        chance = draw.random()  # of every gap, so that none depends on another
        if before.isalpha() and sign.isalpha() and chance < severity:
            pieces.append(mark)
        pieces.append(sign)
    return "".join(pieces)


def _num_letters(word: str) -> int:
    return sum(map(str.isalpha, word))


_ON_A_WORD: dict[str, Callable[[str, random.Random, float], str]] = {
    "full-swap": _full_swap,
    "inner-swap": _inner_swap,
    "disemvowel": _disemvowel,
    "truncate": _truncate,
    "keyboard-typo": _keyboard_typo,
    "intrude": _intrude,
}
LOOK_ALIKES = "confusables"
_OF_LETTERS = (LOOK_ALIKES, *(f"{LOOK_ALIKES}-{stratum}" for stratum in STRATA))
_EVERYWHERE = ("intrude", *_OF_LETTERS)  # on every word: their severity is the chance of gaps and letters
ATTACKS = (*_ON_A_WORD, "segmentation", *_OF_LETTERS)

KINDS = f"""attacks on words, NAME:SEVERITY, from 0 to 1 (left out for want of their tables: {", ".join(_LEFT_OUT)}):
  full-swap, inner-swap   letters in another order; inner: the first and the last one stay
  disemvowel, truncate    without vowels; without the last letter
  keyboard-typo           one letter becomes one beside it on the keyboard
  intrude                 a sign of punctuation in gaps between letters
  segmentation            spaces disappear (texts alone)
  confusables             letters become others that look like them; of these alone that the model's font draws with
                          the same pixels, draws otherwise, or lacks: {", ".join(_OF_LETTERS[1:])}
"""
