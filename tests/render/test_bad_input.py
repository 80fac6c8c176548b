"""Whatever is written can be drawn: texts that no one would send, held against what is promised of every strip.

The promises are listed in `benchmarks/fuzz_render.problems_of`, which a run of minutes shares. Here hypothesis writes
the texts: 500 of them in `make test`, over all layouts and configurations, 5,000 in `make test-slow`.
"""

import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_render import KINDS, problems_of
from benchmarks.gallery import FONTS
from render import RenderConfig, Renderer
from tests.conftest import shared_folder

# one of each kind of trouble; hypothesis puts them together
AWKWARD = [
    *"aAgW1 .,()[]éßİ",
    *"אבנصلا١हिक्षத்திগ্রืำกक़",
    *"漢字かガ글각",
    *"\u0301\u0323\u0489\u20dd\u064e\u0e49\u1ab0\u1ae0",  # marks
    *"\u200b\u200c\u200d\u2060\u00ad\u034f\ufe0f\u3164\ufeff",  # invisible
    *"\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",  # directions
    *"\0\x07\x1b\x7f\x85\t\n\r\x0b\x1c\u2028\u2029\xa0\u3000",  # controls and spaces
    *"\ud800\udbff\udc00\udfff\ufffe\uffff\ue000\u0378\U0001fffe\U000e0001\U0010ffff",  # no characters
    *"👩\U0001f3fd❤🇩🇪",
    "fi",
    "👩\u200d❤\ufe0f\u200d👩",
    "क्ष\u200d",
    "a" + "\u0301" * 40,
    "x" * 70,
    "\u0644\u0627",
]
texts = st.one_of(
    st.lists(st.sampled_from(AWKWARD), max_size=40).map("".join),
    st.text(st.characters(exclude_categories=()), max_size=40),
    st.builds(lambda part, count: part * count, st.sampled_from(AWKWARD), st.integers(1, 400)),
)
inputs = st.one_of(texts, texts, st.tuples(texts, texts), st.lists(texts, max_size=8))


@cache
def renderer_of(kind: str, outside_fonts: bool) -> Renderer:
    base, changes = KINDS[kind]
    fonts = [str(shared_folder() / "fonts" / font) for font in FONTS] if outside_fonts else []
    return Renderer(RenderConfig.named(base, fonts=fonts, **changes))


def examples(number: int):
    # caches make the first drawing slow, and a failing text is shrunk however long that takes
    return settings(max_examples=number, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(kind: str, outside_fonts: bool, text: str | tuple[str, str] | list[str]) -> None:
    problems = problems_of(renderer_of(kind, outside_fonts), text)
    assert not problems, problems[:3]


@pytest.mark.parametrize("kind", KINDS)
@example(text="")
@example(text=("", ""))
@example(text=[])
@example(text=[""])
@example(text="\0")
@examples(20)
@given(text=inputs)
def test_any_text_is_drawn_by_the_built_in_font(kind: str, text):
    check(kind, False, text)


@pytest.mark.parametrize("kind", KINDS)
@examples(14)
@given(text=inputs)
def test_any_text_is_drawn_by_font_files(kind: str, shared: Path, text):
    check(kind, True, text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@examples(200)
@given(text=inputs)
def test_many_texts_are_drawn_by_the_built_in_font(kind: str, text):
    check(kind, False, text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@examples(140)
@given(text=inputs)
def test_many_texts_are_drawn_by_font_files(kind: str, shared: Path, text):
    check(kind, True, text)


# ---- rules for what is easy to get wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "patches"), [("default", 1), ("pixel", 2), ("pixel-m4", 1), ("pixar", 2)])
def test_an_empty_text_is_an_end_patch_and_in_pixel_a_blank_one(kind: str, patches: int):
    strip = renderer_of(kind, False)("")
    assert strip.num_patches == patches
    assert strip.separators == (patches - 1,)


@pytest.mark.parametrize("outside_fonts", [False, True])
@pytest.mark.parametrize("kind", ["default", "pixel", "pixel-m4", "pixar", "continuous", "words", "sentences"])
def test_no_visible_character_gets_lost(kind: str, outside_fonts: bool, request: pytest.FixtureRequest):
    """Every letter of a line in two directions has ink somewhere: it stands in the span of a patch."""
    if outside_fonts:
        request.getfixturevalue("shared")
    text = "one שתים three أربعة 5 \u200f(six)\u202e seven \ud800 \0 क्षत्रिय 漢"
    strip = renderer_of(kind, outside_fonts)(text, max_patches=200)
    seen = {i for which, start, end in strip.char_spans.tolist() if which == 0 for i in range(start, end)}
    lost = [text[i] for i in range(len(text)) if i not in seen and not text[i].isspace()]
    assert not lost


@pytest.mark.parametrize(
    "kind", ["default", "continuous", "words", "sentences", "bigrams", "pixel", "pixel-m4", "pixar"]
)
def test_ten_thousand_marks_on_one_letter_are_drawn(kind: str):
    check(kind, False, "a" + "\u0301" * 10_000 + " b")


@pytest.mark.parametrize(
    "kind", ["default", "continuous", "words", "sentences", "bigrams", "pixel", "pixel-m4", "pixar"]
)
def test_a_megabyte_without_a_space_takes_seconds(kind: str):
    start = time.process_time()
    strip = renderer_of(kind, False)("x" * 1_000_000)
    assert len(strip.char_spans) == strip.num_patches == renderer_of(kind, False).config.max_patches
    # 3 to 5 on an idle machine, twice that where both cores are busy; work that grew with the square would take hours
    assert time.process_time() - start < 40


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["default", "continuous", "words", "sentences", "pixel", "pixel-m4"])
@pytest.mark.parametrize(
    "unit", ["\u0627", "漢", "क्", "aא1 ", "a ", " ", "\u202e", "\u200d", "👩\u200d", "\u0301", "\0", "\ud800", "🇩"]
)
def test_a_megabyte_of_anything_comes_to_an_end(kind: str, unit: str):
    text = unit * (1_000_000 // len(unit.encode("utf-8", "surrogatepass")))
    start = time.process_time()
    strip = renderer_of(kind, False)(text)
    assert len(strip.char_spans) == strip.num_patches
    assert time.process_time() - start < 60  # what has width takes seconds; marks without end are all drawn
