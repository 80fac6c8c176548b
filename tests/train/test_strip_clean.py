"""What is taken out of a text before it is drawn, and that it is counted."""

from collections.abc import Callable

import pytest

from render import RenderConfig, Renderer, Strip
from train.config import StripDataConfig
from train.data.strips.clean import CLEAN_RULES, clean


@pytest.fixture(scope="module")
def draw() -> Callable[[str], Strip]:
    renderer = Renderer(RenderConfig(fonts=()))
    return lambda text: renderer(text, 1 << 20)


def missing_letter(draw: Callable[[str], Strip]) -> str:
    """A letter that the font of this project does not have."""
    return next(letter for letter in "ꙮ丂ᚠ𐌰" if draw(letter).missing)


def test_white_space_of_any_kind_becomes_single_spaces(draw):
    assert clean("  a\t\tb\u00a0\u3000c \r", (), draw) == ("a b c", {})


def test_code_points_without_a_character_become_spaces_and_are_counted(draw):
    text = "one\ue000two \u0378three\U0010ffff"
    assert clean(text, ("unassigned",), draw) == ("one two three", {"unassigned": 3})
    assert clean("plain", ("unassigned",), draw) == ("plain", {"unassigned": 0})


@pytest.mark.parametrize("name", ["default", "pixel", "pixel-m4"])
def test_characters_without_a_glyph_become_spaces_where_they_stand(name: str, draw):
    renderer = Renderer(RenderConfig.named(name, fonts=()))
    letter = missing_letter(draw)
    text, counts = clean(
        f"be{letter}fore {letter}{letter} after\x07", ("unrenderable",), lambda text: renderer(text, 999)
    )
    assert (text, counts) == ("be fore after", {"unrenderable": 4})
    assert not renderer(text).missing


def test_a_text_may_be_cleaned_to_nothing(draw):
    letter = missing_letter(draw)
    assert clean(letter * 5, ("unrenderable",), draw) == ("", {"unrenderable": 5})
    assert clean(" \t", ("unassigned", "unrenderable"), draw) == ("", {"unassigned": 0, "unrenderable": 0})


def test_a_rule_that_is_not_named_does_nothing(draw):
    letter = missing_letter(draw)
    assert clean(f"a{letter}\ue000", (), draw)[0] == f"a{letter}\ue000"


def test_the_rules_of_a_preset_are_the_rules_there_are():
    assert StripDataConfig().clean == tuple(CLEAN_RULES)
