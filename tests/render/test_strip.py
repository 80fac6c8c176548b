"""A strip: its views agree, a text is cut by whole clusters, and what is not drawn is counted."""

import pickle
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from render import RenderConfig, Renderer, Strip
from render.graphemes import boundaries
from render.strip import Missing

LAYOUTS: dict[str, dict[str, Any]] = {
    "continuous": {"layout": "continuous", "pad": 2},
    "words": {"layout": "words"},
    "pairs": {"layout": "bigrams"},
    "pairs without gap": {"layout": "bigrams", "word_gap": "none"},
    "code points": {"layout": "bigrams", "unit": "code-point"},
    "original": {"layout": "bigrams", "unit": "code-point", "word_gap": "none"},
    "adaptive": {"layout": "adaptive"},
}
RENDERERS = {
    name: Renderer(RenderConfig.from_dict({"height": 8, "patch_width": 8, **changes}))
    for name, changes in LAYOUTS.items()
}
MIXED = (
    "Ab \u05d0\u05d1 \u6211\u559c e\u0301\u0302 \u0633\u0644\u0627\u0645 12 \U0001f469\u200d\U0001f467 "
    "\u0928\u092e\u0938\u094d\u0924\u0947\n\tend"
)

# letters, marks, joiners, both directions, scripts without spaces, conjuncts, emoji, controls, halves of pairs
CHARACTERS = st.sampled_from(
    "abfij.,-  \n\t\u0301\u0302\u200d\u200b\u00ad\ufe0f\u05d0\u05d1\u0633\u0644\u0660\u6211\u304b\ud55c\u1100\u1161"
    "\u0915\u094d\u0937\u093f\U0001f1fa\U0001f1e6\U0001f469\U0001f3fd\0\x07\ud800\u202e\u2067\u2069\U0010ffff"
)
TEXTS = st.text(CHARACTERS, max_size=40)


def laid_out(name: str) -> Renderer:
    return RENDERERS[name]


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color, channels", [("grey", ()), ("binary", ()), ("rgb", (3,))])
@pytest.mark.parametrize("name", LAYOUTS)
def test_columns_pixels_and_patches_are_one_picture(name: str, color: str, channels: tuple[int, ...]):
    config = RenderConfig.from_dict({"height": 8, "patch_width": 6, "color": color, **LAYOUTS[name]})
    strip = Renderer(config)(MIXED)
    count = strip.num_patches
    assert strip.columns.shape == (6 * count, 8, *channels)
    assert strip.pixels.shape == (8, 6 * count, *channels)
    assert strip.patches.shape == (count, 8, 6, *channels)
    assert strip.columns.dtype == strip.pixels.dtype == strip.patches.dtype == np.uint8
    assert np.array_equal(strip.pixels, strip.columns.swapaxes(0, 1))
    for number, patch in enumerate(strip.patches):
        assert np.array_equal(patch, strip.pixels[:, 6 * number : 6 * number + 6])


def test_pixels_and_patches_are_views_of_the_columns():
    strip = laid_out("adaptive")(MIXED)
    assert np.shares_memory(strip.pixels, strip.columns) and np.shares_memory(strip.patches, strip.columns)


@pytest.mark.parametrize("patch_width", [1, 2, 3, 5, 16, 40])
def test_a_patch_may_have_any_width(patch_width: int):
    config = RenderConfig(layout="continuous", height=8, patch_width=patch_width, pad=2)
    strip = Renderer(config)("abc")  # 15 columns and two pads
    assert strip.num_patches == -(-19 // patch_width) + 1
    text = Renderer(config.replace(patch_width=1))("abc").pixels[:, :19]
    assert np.array_equal(strip.pixels[:, :19], text)


@pytest.mark.parametrize("height, scale", [(8, 1), (16, 2), (24, 3), (30, 3)])
def test_the_font_of_this_project_is_scaled_to_the_strip(height: int, scale: int):
    config = RenderConfig(layout="continuous", patch_width=1, height=8)
    small, large = Renderer(config)("abc"), Renderer(config.replace(height=height))("abc")
    assert large.num_patches == scale * (small.num_patches - 1) + 1
    if height == 8 * scale:
        text = small.pixels[:, :-1].repeat(scale, 0).repeat(scale, 1)
        assert np.array_equal(large.pixels[:, :-1], text)


# ---- clusters and spans ----------------------------------------------------------------------------------------------


@given(text=TEXTS, name=st.sampled_from(sorted(LAYOUTS)))
@example(text=MIXED, name="continuous")
def test_clusters_lie_side_by_side_and_hold_each_character_once(text: str, name: str):
    strip = laid_out(name)(text, 1 << 12)
    clusters = strip.clusters()
    firsts, ends, left, right = clusters[:, 1:].T
    assert (left <= right).all() and (right[:-1] <= left[1:]).all()
    held = [i for first, end in zip(firsts, ends) for i in range(first, end)]
    assert len(held) == len(set(held))
    spaces = {i for i, character in enumerate(text) if character.isspace()}
    assert set(range(len(text))) - spaces <= set(held) <= set(range(len(text)))


@given(text=TEXTS, name=st.sampled_from(sorted(LAYOUTS)))
def test_spans_of_patches_are_those_of_the_clusters_that_reach_them(text: str, name: str):
    strip = laid_out(name)(text, 1 << 12)
    for number, span in enumerate(strip.char_spans.tolist()):
        here = [
            (first, end)
            for _, first, end, left, right in strip.clusters().tolist()
            if left // 8 <= number <= max(left, right - 1) // 8
        ]
        if number in strip.separators:
            assert span == [-1, -1, -1]
        elif here:
            assert span == [0, min(first for first, _ in here), max(end for _, end in here)]
        else:
            assert span[1] == span[2]


def test_spans_have_one_row_a_patch_and_say_which_text():
    strip = laid_out("adaptive")(("one", "two"))
    assert (strip.char_spans.shape, strip.char_spans.dtype) == ((strip.num_patches, 3), np.int32)
    assert strip.clusters().dtype == np.int32
    assert [text for text, _ in groupby(strip.char_spans[:, 0].tolist())] == [0, -1, 1, -1]


@pytest.mark.parametrize("name", ["words", "pairs", "pairs without gap", "original", "adaptive"])
def test_word_starts_are_the_patches_of_the_words(name: str):
    text = "one  two three"
    strip = laid_out(name)(text)
    assert strip.word_starts is not None and strip.word_starts.dtype == np.int32
    begins = [strip.char_spans[patch, 1] for patch in strip.word_starts[:-1]]
    assert begins == [0, 5, 9]
    assert strip.word_starts[-1] == strip.separators[-1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_word_starts_are_of_words_given_one_by_one(name: str):
    strip = laid_out(name)(["one", "two", "three"])
    assert strip.word_starts is not None and len(strip.word_starts) == 4
    assert laid_out(name)(("one", "two")).word_starts is None


def test_running_text_has_no_word_starts():
    assert laid_out("continuous")("one two").word_starts is None


# ---- what no font has ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_characters_are_listed_in_the_order_of_the_text(name: str):
    strip = laid_out(name)("a \u05d0\u05d1 \u6211 b\u05d0")
    assert strip.missing == (
        Missing(0, 2, "\u05d0"),
        Missing(0, 3, "\u05d1"),
        Missing(0, 5, "\u6211"),
        Missing(0, 8, "\u05d0"),
    )
    assert strip.missing_glyphs == {"\u05d0": 2, "\u05d1": 1, "\u6211": 1}


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_characters_of_a_pair_say_which_text(name: str):
    strip = laid_out(name)(("a\u6211", "\u559cb\u6211"))
    assert strip.missing == (Missing(0, 1, "\u6211"), Missing(1, 0, "\u559c"), Missing(1, 2, "\u6211"))


def test_a_text_that_the_fonts_have_misses_nothing():
    assert laid_out("adaptive")("Zwölf Boxkämpfer, чай").missing == ()


# ---- what fits -------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(text=TEXTS, max_patches=st.integers(2, 12), name=st.sampled_from(sorted(LAYOUTS)))
@example(text="e\u0301" * 20, max_patches=2, name="continuous")
@example(text="\U0001f469\u200d\U0001f467" * 9, max_patches=3, name="adaptive")
def test_a_text_that_does_not_fit_is_cut_by_whole_clusters(text: str, max_patches: int, name: str):
    render = laid_out(name)
    strip = render(text, max_patches)
    (kept,) = strip.drawn
    assert 1 <= strip.num_patches <= max_patches
    assert kept in [0, *boundaries(text)]
    assert strip.pixels.tobytes() == render(text[:kept], 1 << 12).pixels.tobytes(), "the beginning, drawn by itself"
    assert strip.clusters()[:, 2].max(initial=0) <= kept
    assert all(missing.index < kept for missing in strip.missing)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("max_patches", range(2, 40))
def test_as_much_is_kept_as_fits(name: str, max_patches: int):
    text = "the quick brown fox jumps over the lazy dog. " * 2
    render = laid_out(name)
    (kept,) = render(text, max_patches).drawn
    whole = [render(text[:length], 1 << 12).num_patches for length in range(kept, min(len(text), kept + 4) + 1)]
    assert whole[0] <= max_patches
    if kept < len(text):
        assert whole[1] > max_patches, "one character more would not fit"


@given(texts=st.tuples(TEXTS, TEXTS), max_patches=st.integers(3, 12), name=st.sampled_from(sorted(LAYOUTS)))
def test_a_pair_that_does_not_fit_keeps_its_first_text_longest(texts: tuple[str, str], max_patches: int, name: str):
    strip = laid_out(name)(texts, max_patches)
    assert strip.num_patches <= max_patches
    assert all(kept in [0, *boundaries(text)] for kept, text in zip(strip.drawn, texts))
    if strip.drawn[0] < len(texts[0]):
        first = laid_out(name)((texts[0], ""), max_patches)
        assert first.drawn[0] >= strip.drawn[0] >= 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_words_that_do_not_fit_are_left_out_whole(name: str):
    words = ["one", "two", "three", "four", "five"]
    render = laid_out(name)
    for max_patches in range(2, 24):
        strip = render(words, max_patches)
        (kept,) = strip.drawn
        assert strip.num_patches <= max_patches
        assert strip.word_starts is not None and len(strip.word_starts) == kept + 1
        assert strip.pixels.tobytes() == render(words[:kept], 1 << 12).pixels.tobytes()


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_patches_are_enough_for_any_text(name: str):
    for text in ("", "W" * 100, "\u6211" * 10, "\U0001f469\u200d\U0001f467" * 4, "\u05d0" * 40):
        strip = laid_out(name)(text, 2)
        assert strip.num_patches <= 2 and (strip.patches[-1] == 0).all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_million_characters_are_cut_in_no_time(name: str):
    strip = laid_out(name)("word " * 200_000, 20)
    assert strip.num_patches == 20 and strip.drawn[0] < 100


# ---- pickling --------------------------------------------------------------------------------------------------------


def facts(strip: Strip) -> tuple:
    starts = None if strip.word_starts is None else strip.word_starts.tolist()
    spans, clusters = strip.char_spans.tolist(), strip.clusters().tolist()
    return strip.columns.tobytes(), spans, clusters, starts, strip.missing, strip.separators, strip.drawn


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("text", [MIXED, ("one \u6211", "two"), ["one", "\u05d0\u05d1"], ""], ids=repr)
def test_a_pickled_strip_is_the_same(name: str, text: Any):
    strip = laid_out(name)(text)
    assert facts(pickle.loads(pickle.dumps(strip))) == facts(strip)
    assert facts(pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(strip))))) == facts(strip)


def test_a_strip_does_not_carry_its_renderer_along():
    assert len(pickle.dumps(laid_out("adaptive")("one"))) < 3000
