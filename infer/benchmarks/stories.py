"""Stories that are told to ask where somebody is: a generator for what bAbI calls task 1, single supporting fact.

A story is two statements and a question, five times over. A statement moves one of four persons to one of six places;
a question asks where a person is, and the answer is the place of that person's last move. The distribution is that of
the published stories, as far as 400 of them tell (2,000 questions):

- Who moves, and which of five verbs says so, is uniform and independent of everything before.
- Where to is uniform among the places where that person is not: of 2,483 moves of somebody who had been somewhere, none
  led to where he was. Somebody who was nowhere yet may go anywhere.
- Who is asked about is the person of one of the last five statements, drawn uniformly. No answer of the 2,000 lies
  further back, and of the rules that allow that this one is by far the likeliest. So who moved lately, or often, is
  asked about more.

What follows without reading a story: a random place is right once in six times, and the last place that was mentioned
nearly every second time. The order of draws is fixed, so a story is decided by its `random.Random`.

Source: Weston et al., arXiv:1502.05698; specs/pixar.md, section 5.3.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

NAMES = ("Daniel", "John", "Mary", "Sandra")
VERBS = ("journeyed", "moved", "travelled", "went", "went back")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
STATEMENTS = 2  # before each question
REACH = 5  # a question is about the person of one of so many last statements


@dataclass(frozen=True)
class Turn:
    """A statement, or a question with its answer. last_place: the place that was mentioned last before the answer."""

    text: str
    answer: str | None
    last_place: str


def story(random: random.Random, questions: int = 5) -> list[Turn]:
    """One story: two statements and a question, `questions` times."""
    turns: list[Turn] = []
    places: dict[str, str] = {}
    moved: list[str] = []
    last_place = ""
    for _ in range(questions):
        for _ in range(STATEMENTS):
            name, verb = random.choice(NAMES), random.choice(VERBS)
            last_place = places[name] = random.choice(where_to(places.get(name)))
            moved.append(name)
            turns.append(Turn(statement(name, verb, last_place), None, last_place))
        asked = random.choice(moved[-REACH:])
        turns.append(Turn(question(asked), places[asked], last_place))
    return turns


def where_to(place: str | None) -> tuple[str, ...]:
    """The places to which somebody may move who is at `place`, or nowhere yet."""
    return tuple(each for each in PLACES if each != place)


def who_is_asked(moved: Sequence[str]) -> dict[str, float]:
    """How likely a question is about whom. moved: the persons of the statements before it, in order."""
    counts = Counter(moved[-REACH:])
    return {name: count / counts.total() for name, count in counts.items()}


def statement(name: str, verb: str, place: str) -> str:
    """The sentence that somebody moves."""
    return f"{name} {verb} to the {place}."


def question(name: str) -> str:
    """The sentence that asks where somebody is."""
    return f"Where is {name}?"
