"""Prompts: text moved so that what a model writes next begins where the next letter would stand."""

import numpy as np
import pytest

from render import RenderConfig, Renderer, RenderError
from render.prompt import align_prompt

TEXTS = ["", "a", "Once upon a time", "ends in a space ", "fi", "W.", "the cat sat on the mat, j"]


def ink(pixels: np.ndarray) -> np.ndarray:
    """Columns from the first with ink to the last."""
    inked = np.flatnonzero((pixels < 255).any(0))
    return pixels[:, inked[0] : inked[-1] + 1]


@pytest.mark.parametrize("cells", [1, 2, 3, 5])
@pytest.mark.parametrize("text", TEXTS)
def test_three_white_columns_are_left_before_the_patch_edge(text: str, cells: int):
    strip = Renderer(RenderConfig.named("pixar", patch_width=8 * cells))(text)
    aligned = align_prompt(strip)
    body = strip.pixels[:, : -8 * cells]
    assert aligned.shape == body.shape
    assert aligned.dtype == np.uint8
    if not text:
        assert (aligned == 255).all()
        return
    assert (aligned[:, -3:] == 255).all()
    assert (aligned[:, -4] == 0).any()
    assert np.array_equal(ink(aligned), ink(body)), "the text itself changed"


def test_what_has_to_go_left_is_cut_there():
    pixels = np.full((8, 16), 255, np.uint8)
    pixels[:, 0], pixels[:, 5], pixels[:, 15] = 0, 0, 0
    before = pixels.copy()
    aligned = align_prompt(pixels)
    assert np.flatnonzero((aligned == 0).any(0)).tolist() == [2, 12]
    assert np.array_equal(pixels, before), "the input was written to"


def test_any_number_of_columns_can_be_left():
    strip = Renderer(RenderConfig.named("pixar"))("some text")
    for trailing in range(16):
        columns = np.flatnonzero((align_prompt(strip, trailing) == 0).any(0))
        assert columns[-1] == 16 * (strip.num_patches - 1) - 1 - trailing


def test_colour_and_grey_are_aligned_alike():
    grey = align_prompt(Renderer(RenderConfig(layout="continuous"))("text"))
    color = align_prompt(Renderer(RenderConfig(layout="continuous", color="rgb"))("text"))
    assert np.array_equal(color, np.repeat(grey[..., None], 3, 2))


def test_white_alone_stays_as_it_is():
    assert (align_prompt(np.full((8, 32), 255, np.uint8)) == 255).all()
    assert align_prompt(Renderer(RenderConfig())("")).shape == (16, 0)


def test_a_pair_is_no_prompt():
    with pytest.raises(RenderError, match="pair"):
        align_prompt(Renderer(RenderConfig.named("pixar"))(("one", "two")))


@pytest.mark.parametrize("trailing", [-1, 16])
def test_columns_that_no_patch_has_are_refused(trailing: int):
    with pytest.raises(RenderError, match=f"trailing = {trailing}"):
        align_prompt(Renderer(RenderConfig.named("pixar"))("a"), trailing)
