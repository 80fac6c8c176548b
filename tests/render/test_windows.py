"""Windows over a long text: nothing is left out, what overlaps overlaps enough, and spans count from the beginning."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from render import RenderConfig, Renderer, RenderError, Strip
from render.graphemes import boundaries

LAYOUTS: dict[str, dict[str, Any]] = {
    "continuous": {"layout": "continuous", "pad": 2},
    "words": {"layout": "words"},
    "pairs": {"layout": "bigrams"},
    "original": {"layout": "bigrams", "unit": "code-point", "word_gap": "none"},
    "clipping": {"layout": "bigrams", "unit": "code-point", "word_gap": "none", "overflow": "clip"},
    "adaptive": {"layout": "adaptive"},
}
RENDERERS = {
    name: Renderer(RenderConfig.from_dict({"height": 8, "patch_width": 8, **changes}))
    for name, changes in LAYOUTS.items()
}
ENGLISH = "The quick brown fox jumps over the lazy dog, and then some more words follow. "
HEBREW = "\u05d3\u05d2 \u05e1\u05e7\u05e8\u05df \u05e9\u05d8 \u05d1\u05d9\u05dd "
TEXTS = {"English": ENGLISH * 2, "Hebrew": HEBREW * 3, "Han": "\u6211\u559c\u6b22\u5728\u65e9\u4e0a" * 6}


def span_of(strip: Strip, which: int) -> tuple[int, int]:
    """First character and end of what a window holds of a text."""
    spans = strip.char_spans[strip.char_spans[:, 0] == which, 1:]
    return int(spans[:, 0].min()), int(spans[:, 1].max())


@pytest.mark.parametrize("stride", [0, 1, 4])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_windows_cover_the_text_and_each_is_a_render_of_its_part(name: str, text: str, stride: int):
    render, long = RENDERERS[name], TEXTS[text]
    windows = render.windows(long, stride, 16)
    assert len(windows) > 2
    covered = 0
    for number, window in enumerate(windows):
        first, end = span_of(window, 0)
        assert first <= covered or long[covered:first].isspace(), f"window {number} leaves characters out"
        assert window.num_patches <= 16
        start = first if number else 0
        part = render(long[start : start + window.drawn[0]], 1 << 12)
        assert window.pixels.tobytes() == part.pixels.tobytes()
        assert np.array_equal(window.clusters()[:, 1:3], part.clusters()[:, 1:3] + start)
        covered = max(covered, end)
    assert covered == len(long) or long[covered:].isspace()


@pytest.mark.parametrize("stride", [1, 2, 5, 9])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_last_patches_of_a_window_are_shown_again(name: str, text: str, stride: int):
    long = TEXTS[text]
    for before, after in pairwise(RENDERERS[name].windows(long, stride, 16)):
        begins = sorted(before.char_spans[before.char_spans[:, 0] == 0, 1].tolist())
        first = span_of(after, 0)[0]
        assert first <= begins[-stride] or long[begins[-stride] : first].isspace()


def test_without_a_stride_nothing_is_shown_twice():
    windows = RENDERERS["continuous"].windows(TEXTS["English"], 0, 16)
    assert [span_of(after, 0)[0] for after in windows[1:]] == [span_of(before, 0)[1] for before in windows[:-1]]


@pytest.mark.parametrize("text", ["", "ab", ("ab", ""), ("ab", "cd")], ids=repr)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_text_that_fits_is_one_window(name: str, text: Any):
    (window,) = RENDERERS[name].windows(text, 2)
    strip = RENDERERS[name](text)
    assert window.pixels.tobytes() == strip.pixels.tobytes()
    assert np.array_equal(window.char_spans, strip.char_spans)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_window_of_a_pair_repeats_the_first_text(name: str, text: str):
    long = TEXTS[text]
    windows = RENDERERS[name].windows(("ab?", long), 2, 24)
    assert len(windows) > 1
    first = windows[0].pixels[:, : 8 * windows[0].separators[0]]
    covered = 0
    for window in windows:
        assert np.array_equal(window.pixels[:, : first.shape[1]], first)
        assert window.drawn[0] == 3 and span_of(window, 0) == (0, 3)
        start, end = span_of(window, 1)
        assert start <= covered or long[covered:start].isspace()
        covered = max(covered, end)
    assert covered == len(long) or long[covered:].isspace()


def test_missing_characters_count_from_the_beginning_of_the_text():
    long = "ab \u6211 " * 20
    windows = RENDERERS["adaptive"].windows(long, 0, 16)
    found = [missing.index for window in windows for missing in window.missing]
    assert found == [i for i, character in enumerate(long) if character == "\u6211"]


@settings(max_examples=100)
@given(
    text=st.text("ab \u05d0\u6211\u0301\u0633\u200d\n", max_size=60),
    stride=st.integers(0, 20),
    max_patches=st.integers(4, 12),
    name=st.sampled_from(sorted(LAYOUTS)),
)
def test_windows_move_on_by_whole_clusters_or_refuse(text: str, stride: int, max_patches: int, name: str):
    try:
        windows = RENDERERS[name].windows(text, stride, max_patches)
    except RenderError:  # a stride as long as the window, or a character as wide
        return
    places = [0, *boundaries(text)]
    assert sum(window.drawn[0] for window in windows) >= len(text)
    assert all(set(window.clusters()[:, 1]) <= set(range(len(text) + 1)) for window in windows)
    assert len(windows) <= max(1, len(places))


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_windows_of_words_are_not_defined():
    with pytest.raises(TypeError, match="windows of a list of words are not defined; give a string or a pair"):
        RENDERERS["words"].windows(["ab"], 1)


def test_a_first_text_that_leaves_no_room_is_an_error():
    with pytest.raises(RenderError, match="window at character 0: nothing of the text fits beside the first"):
        RENDERERS["adaptive"].windows(("ab" * 20, "\u6211" * 20), 1, 8)


def test_a_window_has_at_least_two_patches():
    with pytest.raises(RenderError, match="max_patches = 1; a strip has at least 2"):
        RENDERERS["adaptive"].windows("ab", 1, 1)


@pytest.mark.parametrize("stride", [-1, 1.5, None])
def test_a_stride_is_a_number_of_patches(stride: Any):
    with pytest.raises(RenderError, match="stride = "):
        RENDERERS["adaptive"].windows("ab", stride)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_stride_as_long_as_the_window_is_an_error(name: str):
    with pytest.raises(RenderError, match="stride = 16"):
        RENDERERS[name].windows(TEXTS["English"], 16, 16)
