"""Stories: what is told and asked follows the rules of bAbI task 1, which the published stories follow too."""

import random
import re
from collections import Counter
from pathlib import Path

from infer.benchmarks import stories
from infer.benchmarks.stories import story
from infer.benchmarks.testbed_worlds import WORLDS


def moved_by(text: str) -> tuple[str, str, str]:
    """Name, verb and place of a statement."""
    found = re.fullmatch(r"(\w+) (.+) to the (\w+)\.", text)
    assert found, text
    return found[1], found[2], found[3]


def test_a_seed_decides_a_story():
    assert story(random.Random(3)) == story(random.Random(3)) != story(random.Random(4))
    assert [turn.answer is None for turn in story(random.Random(0), questions=2)] == [True, True, False] * 2


def test_answers_are_where_somebody_moved_last_and_nobody_moves_to_where_he_is():
    for seed in range(200):
        places: dict[str, str] = {}
        moved: list[str] = []
        for turn in story(random.Random(seed)):
            if turn.answer is None:
                name, verb, place = moved_by(turn.text)
                assert name in stories.NAMES
                assert verb in stories.VERBS
                assert place != places.get(name)
                places[name] = place
                moved.append(name)
            else:
                asked = turn.text.removeprefix("Where is ").removesuffix("?")
                assert turn.answer == places[asked]
                assert asked in moved[-stories.REACH :]
            assert turn.last_place == places[moved[-1]]


def test_the_last_place_mentioned_answers_nearly_every_second_last_question():
    source = random.Random(0)
    found = [story(source)[-1] for _ in range(2500)]
    assert 0.48 < sum(turn.answer == turn.last_place for turn in found) / len(found) < 0.53
    counts = Counter(turn.answer for turn in found)
    assert set(counts) == set(stories.PLACES)
    assert max(counts.values()) < 0.2 * len(found)


def test_every_turn_of_a_story_is_possible_in_the_world_of_stories():
    world = WORLDS["stories"]
    for seed in range(50):
        said: list[str] = []
        for turn in story(random.Random(seed)):
            for sentence in [turn.text] + ([f"{turn.answer}."] if turn.answer else []):
                chances = world.next(said)
                assert chances.get(sentence, 0) > 0, (said, sentence)
                said.append(sentence)


def test_published_stories_follow_the_same_rules(shared: Path):
    (file,) = (shared / "data" / "babi" / "en").glob("qa1_*_train.txt")
    places: dict[str, str] = {}
    moved: list[str] = []
    last_place, right, asked_at_all = "", 0, 0
    for line in file.read_text().splitlines():
        number, text = line.split(" ", 1)
        if number == "1":
            places, moved = {}, []
        if "\t" in text:
            question, answer, _ = text.split("\t")
            name = question.strip().removeprefix("Where is ").removesuffix("?")
            assert (name in stories.who_is_asked(moved), answer) == (True, places[name])
            right += answer == last_place
            asked_at_all += 1
            continue
        name, verb, last_place = moved_by(text)
        assert name in stories.NAMES
        assert verb in stories.VERBS
        assert last_place in stories.where_to(places.get(name))
        assert text == stories.statement(name, verb, last_place)
        places[name] = last_place
        moved.append(name)
    assert 0.5 < right / asked_at_all < 0.6  # 0.546 of ours
