"""Models that write strips come with their renderer, and prompts become the patches that they go on from."""

import logging

import numpy as np
import pytest

from infer.pixar import as_strip, load_pixar, prompt_patches, read_written, strip_of
from pixelcore.convert.exported import write_export
from pixelcore.convert.pixar import write_pixar
from pixelcore.errors import UserError
from render import Reader, RenderConfig, Renderer
from render.prompt import align_prompt
from tests.infer.tiny_pixar import CONFIG, RENDER, TEXT, bernoulli, pixar, stored
from tests.infer.tiny_pixels import mae, write_run
from tests.infer.tiny_pixels import stored as stored_mae

RENDERER = Renderer(RENDER)


# ------------------------------------------------------------------ loading


def test_runs_and_exports_come_with_the_renderer_that_stands_in_them(tmp_path):
    run = write_run(tmp_path / "strips", stored(pixar()))
    write_export(tmp_path / "out", stored(pixar()))
    for folder in (run, tmp_path / "out"):
        loaded = load_pixar(folder)
        assert loaded.renderer.config == RENDER and loaded.model.config == CONFIG


def test_a_published_folder_gets_the_renderer_of_pixar_and_a_warning(tmp_path, caplog):
    model = bernoulli(start_vector=False, patch_length=3, max_patches=30)
    write_pixar(tmp_path / "backbone", stored(model, None))
    loaded = load_pixar(tmp_path)
    assert loaded.renderer.config == RenderConfig.named("pixar", patch_width=24, max_patches=30)
    assert "in the built-in font, which the model may never have seen; --font FILE" in caplog.text
    caplog.clear()
    load_pixar(tmp_path, fonts=["builtin"])
    assert "never have seen" not in caplog.text


def test_colour_is_drawn_where_the_model_reads_it(tmp_path):
    model = pixar(head="regression", num_components=1, values="published", num_channels=3, start_vector=False)
    write_pixar(tmp_path / "backbone", stored(model, None))
    assert load_pixar(tmp_path).renderer.config.color == "rgb"


def test_patches_of_another_length_are_refused(tmp_path):
    run = write_run(tmp_path / "strips", stored(pixar()))
    with pytest.raises(
        UserError, match=r"patches 24 wide, and the model reads patches of 8 x 16: --set render.height=8"
    ):
        load_pixar(run, render={"patch_width": 24})


def test_models_of_another_kind_are_refused_both_ways(tmp_path):
    painter = write_run(tmp_path / "painter", stored_mae(mae()))
    with pytest.raises(UserError, match="a vit_mae model; it reads strips: use reconstruct"):
        load_pixar(painter)


# ------------------------------------------------------------------ prompts


def test_running_text_ends_three_columns_before_the_edge():
    patches = prompt_patches(RENDERER, TEXT, CONFIG)
    pixels = strip_of(patches, RENDER)
    assert np.array_equal(pixels, align_prompt(RENDERER(TEXT)))
    assert (pixels[:, -3:] == 255).all() and (pixels[:, -4] == 0).any()


def test_words_stay_where_they_were_drawn():
    renderer = Renderer(RENDER.replace(layout="words"))
    strip = renderer(TEXT)
    assert np.array_equal(strip_of(prompt_patches(renderer, TEXT, CONFIG), RENDER), strip.pixels[:, :-16])


def test_patches_are_in_the_order_row_column_channel():
    grey = prompt_patches(RENDERER, TEXT, CONFIG)
    colour = prompt_patches(RENDERER, TEXT, pixar(head="regression", num_components=1, num_channels=3).config)
    assert np.array_equal(grey[1].reshape(8, 16), strip_of(grey, RENDER)[:, 16:32])
    assert np.array_equal(colour, np.repeat(grey, 3, axis=1))
    assert strip_of(colour, RENDER).shape == (8, 16 * len(grey), 3)


def test_an_empty_prompt_needs_a_start_vector():
    assert prompt_patches(RENDERER, "", CONFIG).shape == (0, 128)
    with pytest.raises(UserError, match="is empty, and the model has no start vector to write from"):
        prompt_patches(RENDERER, "", bernoulli(start_vector=False).config)
    with pytest.raises(UserError, match="prompt 3 is empty: give at least one character that is not a space"):
        prompt_patches(RENDERER, "  ", CONFIG, "prompt 3")


def test_a_patch_of_the_context_stays_free():
    longest = max(n for n in range(60, 100) if RENDERER("W" * n, 99).num_patches <= 40)
    assert len(prompt_patches(RENDERER, "W" * longest, CONFIG)) == 39
    with pytest.raises(UserError, match="needs 41 patches, more than the 40 patches"):
        prompt_patches(RENDERER, "W" * (longest + 1), CONFIG)


def test_a_script_that_no_font_has_is_refused_and_a_single_character_named(caplog):
    with pytest.raises(UserError, match=r"no font of the model has any of its characters \(U\+4F60, U\+597D\)"):
        prompt_patches(RENDERER, "你好 你", CONFIG)
    with caplog.at_level(logging.WARNING):
        assert len(prompt_patches(RENDERER, "a 你", CONFIG))
    assert "no font has U+4F60" in caplog.text


# ------------------------------------------------------------------ and back


@pytest.mark.parametrize("layout", ["continuous", "words"])
@pytest.mark.parametrize("text", [TEXT, ""])
def test_what_was_written_is_read_and_the_prompt_is_not(layout, text):
    renderer = Renderer(RENDER.replace(layout=layout))
    reader = Reader(renderer.config, scripts=["Latn"])
    before = prompt_patches(renderer, text, CONFIG)
    whole = renderer(f"{text} garden now".strip()).pixels[:, :-16]
    if text and layout == "continuous":  # written as running text would go on, from the place that the prompt has now
        move = (
            strip_of(before, RENDER).shape[1]
            - 4
            - int(np.flatnonzero((renderer(text).pixels[:, :-16] < 255).any(0))[-1])
        )
        whole = np.concatenate([np.full((8, move), 255, np.uint8), whole, np.full((8, -move % 16), 255, np.uint8)], 1)
    cells = whole.reshape(8, -1, 16).swapaxes(0, 1).reshape(-1, 128)
    assert np.array_equal(cells[: len(before)], before)
    assert read_written(reader, renderer, text, before, cells[len(before) :]) == "garden now"
    assert read_written(reader, renderer, text, before, np.full((2, 128), 255, np.uint8)) == ""


def test_patches_are_shown_as_a_strip():
    patches = np.concatenate([prompt_patches(RENDERER, TEXT, CONFIG), np.zeros((1, 128), np.uint8)])
    strip = as_strip(patches, RENDER)
    assert np.array_equal(strip.pixels, strip_of(patches, RENDER))
    assert (strip.num_patches, strip.separators) == (len(patches), (len(patches) - 1,))
