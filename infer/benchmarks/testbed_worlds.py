"""Worlds: texts made of sentences, of which it is known exactly how likely each sentence is to come next.

A text of a world has a fixed number of sentences. Before each of them the world says which may follow and how likely
each is, given all that was said; texts are drawn from nothing else, so what a perfect reader would answer is known. A
sentence is fixed (the same in every text), open (several may follow), or an answer: one sentence that follows from what
was said before, and from nothing that is near by.

    stories   persons move between places, and questions ask where they are: bAbI task 1 (stories.py)
    names     one of sixteen names, each as likely, behind a fixed beginning; later the same name again
    numbers   two numbers are open, their sum is not
    scripts   the first sentence decides between Latin and Cyrillic for the rest; names are open, who came first is not

A `summary` is what of a past decides the future: two pasts of one summary have the same continuations. Where there are
few of them, averages over all texts are sums over summaries and exact.
"""

import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from infer.benchmarks import stories
from pixelcore.errors import UserError

Chances = Mapping[str, float]  # by sentence; they sum to 1
FIXED, OPEN, ANSWER = "fixed", "open", "answer"


@dataclass(frozen=True)
class World:
    """A distribution of texts.

    kinds: of each sentence of a text, FIXED, OPEN or ANSWER. next: chances of the sentence after these. summary: see
    the head of this file. sentences: all that may occur. probed: open sentences, by their number, of which it is looked
    at how many different ones a model writes; features: what of them is counted, by name.
    guesses: trivial ways to answer, by name: from the sentences before an answer to the sentence that is guessed.
    """

    name: str
    kinds: tuple[str, ...]
    next: Callable[[Sequence[str]], Chances]
    summary: Callable[[Sequence[str]], Hashable]
    sentences: tuple[str, ...]
    probed: tuple[int, ...]
    features: Mapping[str, Callable[[str], str]]
    guesses: Mapping[str, Callable[[Sequence[str]], str]] = field(default_factory=dict)

    def draw(self, random: random.Random) -> list[str]:
        """One text, as its sentences."""
        said: list[str] = []
        while len(said) < len(self.kinds):
            chances = self.next(said)
            said += random.choices(list(chances), list(chances.values()))
        return said

    def draw_many(self, count: int, seed: int) -> list[list[str]]:
        """The first `count` texts of a seed; every seed and world has its own."""
        source = random.Random(f"{self.name} {seed}")
        return [self.draw(source) for _ in range(count)]


def world_of(name: str) -> World:
    """A world by its name. Raises UserError for an unknown one."""
    if name not in WORLDS:
        raise UserError(f"--world {name}: unknown; choose {', '.join(WORLDS)}")
    return WORLDS[name]


def _evenly(sentences: Iterable[str]) -> Chances:
    found = list(sentences)
    return dict.fromkeys(found, 1 / len(found))


def _place(sentence: str) -> str:
    return sentence.removesuffix(".").split()[-1]


# ------------------------------------------------------------------ stories

_QUESTIONS = 5
_TURN = stories.STATEMENTS + 2  # sentences from one question to the next: statements, question, answer


def _statements(said: Sequence[str]) -> list[str]:
    return [sentence for i, sentence in enumerate(said) if i % _TURN < stories.STATEMENTS]


def _who_is_where(said: Sequence[str]) -> dict[str, str]:
    return {sentence.split()[0]: _place(sentence) for sentence in _statements(said)}


def _next_of_story(said: Sequence[str]) -> Chances:
    place_in_turn = len(said) % _TURN
    if place_in_turn < stories.STATEMENTS:
        places = _who_is_where(said)
        each = 1 / len(stories.NAMES) / len(stories.VERBS)
        return {
            stories.statement(name, verb, place): each / len(options)
            for name in stories.NAMES
            for options in [stories.where_to(places.get(name))]
            for verb in stories.VERBS
            for place in options
        }
    if place_in_turn == stories.STATEMENTS:
        moved = [sentence.split()[0] for sentence in _statements(said)]
        return {stories.question(name): chance for name, chance in stories.who_is_asked(moved).items()}
    return {_answer(_who_is_where(said)[_asked(said)]): 1.0}


def _asked(said: Sequence[str]) -> str:
    return said[-1].split()[-1].removesuffix("?")


def _answer(place: str) -> str:
    return f"{place}."


def _summary_of_story(said: Sequence[str]) -> Hashable:
    moved = tuple(sentence.split()[0] for sentence in _statements(said))
    asked = _asked(said) if len(said) % _TURN == _TURN - 1 else ""
    return tuple(sorted(_who_is_where(said).items())), moved[-stories.REACH :], asked


def _stories() -> World:
    every = [stories.statement(n, v, p) for n in stories.NAMES for v in stories.VERBS for p in stories.PLACES]
    every += [stories.question(name) for name in stories.NAMES] + [_answer(place) for place in stories.PLACES]
    return World(
        name="stories",
        kinds=((OPEN,) * (stories.STATEMENTS + 1) + (ANSWER,)) * _QUESTIONS,
        next=_next_of_story,
        summary=_summary_of_story,
        sentences=tuple(every),
        probed=tuple(i for i in range(_QUESTIONS * _TURN) if i % _TURN < stories.STATEMENTS),
        features={"name": lambda sentence: sentence.split()[0], "place": _place},
        guesses={
            "the first place in the list": lambda said: _answer(stories.PLACES[0]),
            "the last place mentioned": lambda said: _answer(_place(_statements(said)[-1])),
        },
    )


# ------------------------------------------------------------------ names

_NAMES = (
    *("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Grace", "Henry"),
    *("Irene", "Jonas", "Karen", "Lucas", "Maria", "Oscar", "Paula", "Simon"),
)
_NAMING = ("Who is it?", "It is {}.", "What is the name?", "{}.")  # sentences of a round
_ROUNDS = 4


def _next_of_names(said: Sequence[str]) -> Chances:
    place = len(said) % len(_NAMING)
    if place == 1:
        return _evenly(_NAMING[1].format(name) for name in _NAMES)
    return {_NAMING[place].format(_place(said[-2])) if place == 3 else _NAMING[place]: 1.0}


def _names() -> World:
    return World(
        name="names",
        kinds=(FIXED, OPEN, FIXED, ANSWER) * _ROUNDS,
        next=_next_of_names,
        summary=lambda said: said[-1] if len(said) % 4 == 2 else said[-2] if len(said) % 4 == 3 else "",
        sentences=(_NAMING[0], _NAMING[2], *(form.format(name) for form in _NAMING[1::2] for name in _NAMES)),
        probed=tuple(range(1, _ROUNDS * len(_NAMING), len(_NAMING))),
        features={"name": _place},
        guesses={"always the same name": lambda said: _NAMING[3].format(_NAMES[0])},
    )


# ------------------------------------------------------------------ numbers

_LARGEST = 20  # of the numbers that are added
_SUMS = 6


def _next_of_numbers(said: Sequence[str]) -> Chances:
    if len(said) % 2 == 0:
        return _evenly(f"{a} + {b}." for a in range(_LARGEST + 1) for b in range(_LARGEST + 1))
    a, _, b = said[-1].removesuffix(".").split()
    return {f"{int(a) + int(b)}.": 1.0}


def _numbers() -> World:
    return World(
        name="numbers",
        kinds=(OPEN, ANSWER) * _SUMS,
        next=_next_of_numbers,
        summary=lambda said: next(iter(_next_of_numbers(said))) if len(said) % 2 else "",
        sentences=(*_next_of_numbers([]), *(f"{total}." for total in range(2 * _LARGEST + 1))),
        probed=tuple(range(0, 2 * _SUMS, 2)),
        features={"first number": lambda sentence: sentence.split()[0]},
        guesses={
            "the likeliest sum": lambda said: f"{_LARGEST}.",
            "the last number": lambda said: said[-1].split()[-1],
        },
    )


# ------------------------------------------------------------------ scripts

_LANGUAGES = {
    "Hello.": ("{} came.", "Who was first?", ("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Grace", "Henry")),
    "Привіт.": ("Йде {}.", "Хто перший?", ("Богдан", "Галина", "Дарина", "Зоряна", "Леся", "Назар", "Роман", "Юрій")),
}
_COMING = 5


def _named(sentence: str) -> str:
    """The name in a sentence of a language: what is left without the rest."""
    words = sentence.removesuffix(".").split()
    return next(word for word in words if any(word in names for _, _, names in _LANGUAGES.values()))


def _next_of_scripts(said: Sequence[str]) -> Chances:
    if not said:
        return _evenly(_LANGUAGES)
    form, question, names = _LANGUAGES[said[0]]
    if len(said) <= _COMING:
        return _evenly(form.format(name) for name in names)
    return {question if len(said) == _COMING + 1 else f"{_named(said[1])}.": 1.0}


def _scripts() -> World:
    sentences: list[str] = []
    for greeting, (form, question, names) in _LANGUAGES.items():
        sentences += [greeting, question, *(form.format(name) for name in names), *(f"{name}." for name in names)]
    return World(
        name="scripts",
        kinds=(OPEN, *(OPEN,) * _COMING, FIXED, ANSWER),
        next=_next_of_scripts,
        summary=lambda said: (len(said), *said[:2]),
        sentences=tuple(sentences),
        probed=tuple(range(1, _COMING + 1)),
        features={"sentence": lambda sentence: sentence},
        guesses={"the last name": lambda said: f"{_named(said[_COMING])}."},
    )


WORLDS: Mapping[str, World] = {world.name: world for world in (_stories(), _names(), _numbers(), _scripts())}
