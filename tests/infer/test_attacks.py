"""Attacks on prompts: each does what it is called, to the prompt's pixels alone, and the same each time."""

import numpy as np
import pytest

from infer import attacks
from infer.attacks import Attack, attacked_prompt, drawn_prompt
from infer.confusables import MISSING, Strata, built_in
from infer.pixar import prompt_patches, strip_of
from pixelcore.errors import UserError
from render import RenderConfig, Renderer
from tests.infer.tiny_pixar import CONFIG, RENDER, TEXT

RENDERER = Renderer(RENDER)
CLEAN = Attack(name="clean", strength="")


def page(height: int = 60, width: int = 200) -> np.ndarray:
    """Ink and paper at random."""
    return np.where(np.random.default_rng(5).random((height, width)) < 0.4, 0, 255).astype(np.uint8)


def hit(attack: Attack, pixels: np.ndarray, index: int = 0) -> np.ndarray:
    assert attack.on_pixels is not None
    before = pixels.copy()
    found = attack.on_pixels(pixels, index)
    assert np.array_equal(pixels, before) and found.shape == pixels.shape and found.dtype == np.uint8
    return found


# ------------------------------------------------------------------ pixels


@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.6])
def test_flips_turn_the_share_of_pixels_that_was_asked_for(ratio):
    pixels = page()
    changed = hit(attacks.flips(ratio, 3), pixels) != pixels
    assert abs(changed.sum() - ratio * pixels.size) < 4.5 * (pixels.size * ratio * (1 - ratio)) ** 0.5
    assert np.array_equal(hit(attacks.flips(1, 3), pixels), 255 - pixels)
    assert np.array_equal(hit(attacks.flips(0, 3), pixels), pixels)


@pytest.mark.parametrize("make, axis", [(attacks.rows, 0), (attacks.columns, 1)])
def test_dropped_lines_become_paper_and_the_others_stay(make, axis):
    pixels = np.zeros((400, 400), np.uint8)
    lines = hit(make(0.3, 3), pixels).swapaxes(0, axis)
    dropped = (lines == 255).all(1)
    assert ((lines == 0).all(1) | dropped).all()
    assert abs(dropped.sum() - 120) < 4.5 * (400 * 0.3 * 0.7) ** 0.5
    assert (hit(make(1, 3), pixels) == 255).all() and (hit(make(0, 3), pixels) == 0).all()


@pytest.mark.parametrize("make", [attacks.flips, attacks.rows, attacks.columns])
def test_damage_is_the_same_each_time_other_for_other_items_and_grows_with_the_ratio(make):
    pixels = np.zeros((40, 40), np.uint8)
    some, more = hit(make(0.2, 3), pixels), hit(make(0.5, 3), pixels)
    assert np.array_equal(some, hit(make(0.2, 3), pixels))
    assert not np.array_equal(some, hit(make(0.2, 3), pixels, 1))
    assert not np.array_equal(some, hit(make(0.2, 4), pixels))
    assert (some <= more).all() and (some < more).any()


def test_a_shift_moves_the_picture_and_lets_paper_in():
    pixels = page(8, 32)
    moved = hit(attacks.shift(3, -2), pixels)
    assert np.array_equal(moved[:6, 3:], pixels[2:, :29])
    assert (moved[6:] == 255).all() and (moved[:, :3] == 255).all()
    assert (hit(attacks.shift(40, 0), pixels) == 255).all() and (hit(attacks.shift(0, -9), pixels) == 255).all()


def test_blur_of_black_and_white_keeps_what_is_more_than_half_ink():
    pixels = np.full((9, 12), 255, np.uint8)
    pixels[:, 2] = 0  # a stroke of one pixel
    pixels[:, 6:10] = 0  # and one of four
    box = hit(attacks.blur("box", 1, RENDER), pixels)
    assert (box[:, 2] == 255).all() and (box[1:-1, 7:9] == 0).all()
    assert np.array_equal(box[4] == 0, [0] * 6 + [1] * 4 + [0] * 2)
    assert (hit(attacks.blur("gaussian", 0.5, RENDER), pixels)[1:-1] == pixels[1:-1]).all()
    assert (hit(attacks.blur("gaussian", 1, RENDER), pixels)[:, 2] == 255).all()


def test_blur_of_grey_is_the_mean_around_a_pixel():
    grey = RenderConfig.named("pixel", max_patches=40)
    pixels = np.full((7, 7), 255, np.uint8)
    pixels[3, 3] = 0
    found = hit(attacks.blur("box", 1, grey), pixels)
    assert (found[2:5, 2:5] == round(255 * 8 / 9)).all() and (np.delete(found, [2, 3, 4], 0) == 255).all()


def test_the_channels_of_a_pixel_are_hit_together():
    pixels = np.repeat(page()[..., None], 3, 2)
    for attack in (attacks.flips(0.3, 1), attacks.columns(0.3, 1), attacks.shift(1, 1), attacks.blur("box", 1, RENDER)):
        found = hit(attack, pixels)
        assert (found == found[..., :1]).all() and not np.array_equal(found, pixels)


# ------------------------------------------------------------------ prompts


def test_without_an_attack_the_prompt_is_that_of_the_model():
    drawn = prompt_patches(RENDERER, TEXT, CONFIG)
    assert np.array_equal(attacked_prompt(CLEAN, RENDERER, TEXT, 0, 1, 39).patches, drawn)
    assert np.array_equal(drawn_prompt(RENDERER, TEXT, 1), drawn)


def test_pixels_are_hit_after_the_prompt_was_aligned():
    found = attacked_prompt(attacks.shift(1, 0), RENDERER, TEXT, 0, 1, 39)
    drawn = strip_of(prompt_patches(RENDERER, TEXT, CONFIG), RENDER)
    assert np.array_equal(strip_of(found.patches, RENDER)[:, 1:], drawn[:, :-1])
    assert (attacked_prompt(attacks.blank(), RENDERER, TEXT, 0, 1, 39).patches == 255).all()


def test_a_prompt_in_another_size_is_aligned_like_any_other(shared):
    file = str(shared / "fonts" / "pixeloid" / "PixeloidSans-mLxMm.ttf")
    renderer = Renderer(RENDER.replace(fonts=(file,), size=9))
    found = attacked_prompt(attacks.size(7, renderer), renderer, TEXT, 0, 1, 39)
    strip = strip_of(found.patches, RENDER)
    assert strip.shape[0] == RENDER.height
    inked = np.flatnonzero((strip == 0).any(0))
    assert strip.shape[1] - inked[-1] == 4
    assert inked[-1] - inked[0] < 0.9 * len(strip_of(prompt_patches(renderer, TEXT, CONFIG), RENDER)[0])


def test_a_prompt_in_another_font_is_drawn_by_it(shared):
    file = str(shared / "fonts" / "pixeloid" / "PixeloidSans-mLxMm.ttf")
    attack = attacks.font(file, RENDERER)
    other = Renderer(RENDER.replace(fonts=(file,)))
    assert str(attack) == "font PixeloidSans-mLxMm.ttf"
    found = attacked_prompt(attack, RENDERER, TEXT, 0, 1, 39)
    assert np.array_equal(found.patches, prompt_patches(other, TEXT, CONFIG))


def test_a_prompt_that_no_font_has_is_drawn_and_cut_on_its_left():
    attack = attacks.confusables(Strata(RENDERER, built_in()), 1, 0, MISSING)
    whole = attacked_prompt(attack, RENDERER, "Mary", 0, 1, 39)
    assert whole.confused is not None and {one.stratum for one in whole.confused.replacements} == {MISSING}
    assert (whole.patches == 0).any() and not whole.was_cut
    cut = attacked_prompt(attack, RENDERER, "Mary", 0, 1, 2)
    assert cut.was_cut and np.array_equal(cut.patches, whole.patches[-2:])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: attacks.flips(1.5, 0), "--ratio 1.5: must be a share"),
        (lambda: attacks.columns(float("nan"), 0), "--ratio nan: must be a share"),
        (lambda: attacks.blur("motion", 1, RENDER), "unknown kind of blur"),
        (lambda: attacks.blur("box", 0.5, RENDER), "a whole number of pixels"),
        (lambda: attacks.blur("gaussian", 0, RENDER), "give a number of pixels"),
        (lambda: attacks.blur("gaussian", float("inf"), RENDER), "give a number of pixels"),
        (lambda: attacks.font("absent.ttf", RENDERER), "--attack-font: prompts cannot be drawn so"),
        (lambda: attacks.size(1, RENDERER), "--attack-size: prompts cannot be drawn so"),
        (lambda: attacks.size(8, RENDERER), "render.size = 8 draws texts as they are drawn anyway"),
        (lambda: attacks.font("builtin", RENDERER), "draws texts as they are drawn anyway"),
    ],
)
def test_an_attack_that_cannot_be_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
