"""Models of strips come with the renderer that drew what they were trained on, or do not come at all."""

import dataclasses
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from infer import load, load_pixels
from infer.pixels import draw
from pixelcore.config import DecoderConfig
from pixelcore.convert.exported import write_export
from pixelcore.convert.pixel import write_pixel
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Decoder
from pixelcore.models.heads import ViTTask
from pixelcore.models.vit_mae import ViTMAE
from pixelcore.stored import Stored
from render import RenderConfig, Renderer
from tests.infer.tiny_pixels import CONFIG, RENDER, TEXT, classifier, mae, stored, write_run
from tests.render.tiny_fonts import LETTERS, font_of, saved

PUBLISHED = {
    "background_color": "white",
    "dpi": 120,
    "font_color": "black",
    "font_file": "Tiny.ttf",
    "font_size": 8,
    "max_seq_length": 36,
    "pad_size": 3,
    "pixels_per_patch": 16,
    "text_renderer_type": "TextRenderer",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "strips", stored(mae()))


@pytest.fixture
def published(tmp_path):
    """Write a folder as PIXEL models are published; gives its path."""

    def write(name: str, font: bool = True, **changes: object) -> Path:
        folder = tmp_path / name
        write_pixel(folder, stored(mae(), None))
        (folder / "text_renderer_config.json").write_text(json.dumps(PUBLISHED | changes))
        if font:
            saved(font_of(LETTERS), folder / "Tiny.ttf")
        return folder

    return write


# ------------------------------------------------------------------ a model of ours


def test_a_run_comes_with_the_renderer_that_stands_in_it(run):
    loaded = load_pixels(run)
    assert isinstance(loaded.model, ViTMAE)
    assert loaded.renderer.config == RENDER
    assert loaded.stored.step == 7


def test_an_export_comes_with_its_renderer(tmp_path):
    write_export(tmp_path / "out", stored(mae()))
    assert load_pixels(tmp_path / "out").renderer.config == RENDER


def test_another_renderer_is_refused_unless_accepted(run, caplog):
    with pytest.raises(UserError, match=r"render.size: 13.3.* against 16.*render.accept_changed=true"):
        load_pixels(run, render={"size": 16})
    loaded = load_pixels(run, render={"size": 16}, accept_changed=True)
    assert loaded.renderer.config.size == 16
    assert "strips are drawn otherwise" in caplog.text


def test_another_font_is_refused(run, tmp_path):
    font = saved(font_of(LETTERS), tmp_path / "Other.ttf")
    with pytest.raises(UserError, match="another renderer .*Other.ttf"):
        load_pixels(run, fonts=[font])


def test_the_same_font_elsewhere_is_the_same_renderer(tmp_path):
    config = RENDER.replace(fonts=(str(saved(font_of(LETTERS), tmp_path / "Tiny.ttf")),))
    run = write_run(tmp_path / "run", stored(mae(), config))
    (tmp_path / "fonts").mkdir()
    moved = (tmp_path / "Tiny.ttf").rename(tmp_path / "fonts" / "Tiny.ttf")
    with pytest.raises(UserError, match=r"Tiny.ttf.*--font FILE"):
        load_pixels(run)
    assert load_pixels(run, fonts=[moved]).renderer.config.fonts == (str(moved),)


def test_how_long_a_strip_may_be_is_no_other_renderer(run):
    assert load_pixels(run, render={"max_patches": 12}).renderer.config.max_patches == 12


def test_without_a_renderer_the_default_one_is_used_and_said(tmp_path, caplog):
    run = write_run(tmp_path / "run", stored(mae(), None))
    assert load_pixels(run).renderer.config == RenderConfig()
    assert "does not say how its strips were drawn" in caplog.text


def test_an_unknown_field_is_named_with_its_neighbour(run):
    with pytest.raises(UserError, match="unknown key 'layuot'; did you mean 'layout'"):
        load_pixels(run, render={"layuot": "words"})


def test_patches_of_another_size_are_refused(run):
    with pytest.raises(UserError, match=r"strips of 24 rows .* patches of 16 x 16.*render.height=16"):
        load_pixels(run, render={"height": 24, "size": 18}, accept_changed=True)


def test_coloured_strips_are_refused_by_a_grey_model(tmp_path):
    run = write_run(tmp_path / "run", stored(mae(num_channels=1)))
    with pytest.raises(UserError, match=r"reads grey ones: --set render.color=grey"):
        load_pixels(run, render={"color": "rgb"}, accept_changed=True)


# ------------------------------------------------------------------ a published model


def test_a_published_folder_is_drawn_as_its_file_says(published, caplog):
    caplog.set_level(logging.INFO)
    folder = published("pixel-base", font_size=9, rgb=True)
    config = load_pixels(folder).renderer.config
    expected = RenderConfig.named(
        "pixel", fonts=[str(folder / "Tiny.ttf")], size=9 * 120 / 72, max_patches=36, color="rgb"
    )
    assert config == expected
    assert "layout continuous, by the model's name: --set render.layout=bigrams" in caplog.text


@pytest.mark.parametrize("name", ["pixel-m4", "pixel-base-bigrams"])
def test_models_of_letter_pairs_are_known_by_their_names(published, name):
    config = load_pixels(published(name)).renderer.config
    assert (config.layout, config.unit, config.word_gap, config.pad) == ("bigrams", "code-point", "none", 0)


@pytest.mark.parametrize(
    ("name", "layout", "pad"), [("mine", "bigrams", 0), ("m4", "continuous", 2), ("mine", "adaptive", 0)]
)
def test_the_layout_may_be_said(published, name, layout, pad):
    config = load_pixels(published(name), render={"layout": layout}).renderer.config
    assert (config.layout, config.pad) == (layout, pad)


def test_a_published_font_that_is_missing_is_replaced_and_said(published, caplog):
    assert load_pixels(published("pixel-base", font=False)).renderer.config.fonts == ()
    assert "Tiny.ttf, is not there: drawing with the built-in one" in caplog.text


@pytest.mark.parametrize(("key", "value"), [("dpi", "120"), ("font_size", 0), ("pixels_per_patch", 16.5)])
def test_a_damaged_renderer_file_names_the_key(published, key, value):
    with pytest.raises(UserError, match=rf"text_renderer_config.json: {key} = "):
        load_pixels(published("pixel-base", **{key: value}))


def test_a_published_model_of_ours_keeps_its_own_renderer(tmp_path):
    write_pixel(tmp_path / "out", stored(mae()))
    assert load_pixels(tmp_path / "out").renderer.config == RENDER


def test_a_published_classifier_needs_no_word_on_its_pooling(tmp_path):
    write_pixel(tmp_path / "sst2", stored(classifier(), None))
    loaded = load_pixels(tmp_path / "sst2")
    assert isinstance(loaded.model, ViTTask)
    with pytest.raises(UserError, match="a vit_task model paints nothing"):
        assert loaded.mae


# ------------------------------------------------------------------ the right kind


def _decoder() -> Stored:
    config = DecoderConfig(
        vocab_size=300,
        context_length=8,
        num_layers=1,
        hidden_size=8,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=8,
    )
    model = Decoder(config)
    initialise(model, 0)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return Stored(path=Path("."), origin="checkpoint", name="words", step=1, config=model.config, weights=weights)


def test_a_decoder_where_strips_are_read_and_the_other_way_round_is_one_line(run, tmp_path):
    words = write_run(tmp_path / "words", _decoder())
    with pytest.raises(UserError, match="a decoder model; it reads and writes tokens: use generate"):
        load_pixels(words)
    with pytest.raises(UserError, match="a vit_mae model; it reads strips: use reconstruct"):
        load(run)


def test_the_newest_run_is_that_of_the_right_kind(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    records = {"words": _decoder(), "old": stored(mae()), "young": stored(mae()), "task": stored(classifier())}
    for age, (name, record) in enumerate(records.items()):
        run = write_run(tmp_path / "runs" / name, record)
        (manifest,) = run.glob("checkpoints/*/manifest.json")
        os.utime(manifest, (1000 + age, 1000 + age))
    assert load_pixels().stored.config.kind == "vit_task"
    assert load_pixels(kinds=["vit_mae"]).stored.path.parent.parent.name == "young"
    assert "newest run, runs/young" in caplog.text
    with pytest.raises(UserError, match="comes without a tokenizer"):
        load()


def test_no_run_of_the_kind_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "words", _decoder())
    with pytest.raises(UserError, match="no run with a checkpoint under runs/ of a vit_mae or vit_task model"):
        load_pixels()


# ------------------------------------------------------------------ texts


def test_a_text_that_just_fits_is_drawn_whole_and_one_patch_more_is_refused():
    renderer = Renderer(RENDER)
    needed = renderer(TEXT).num_patches
    exact = dataclasses.replace(CONFIG, num_patches=needed)
    np.testing.assert_array_equal(draw(renderer, exact, TEXT).pixels, renderer(TEXT).pixels)
    with pytest.raises(UserError, match=rf"needs {needed} patches, more than the {needed - 1} patches"):
        draw(renderer, dataclasses.replace(CONFIG, num_patches=needed - 1), TEXT)


@pytest.mark.parametrize("layout", ["continuous", "words", "bigrams", "adaptive"])
@pytest.mark.parametrize("overflow", ["clip", "cluster"])
def test_no_layout_cuts_a_long_text_silently(layout, overflow):
    renderer = Renderer(RenderConfig(layout=layout, overflow=overflow, max_patches=36))
    long: str = TEXT * 3
    texts: list[str | list[str]] = [long, [*long.split()]]
    for text in texts:
        with pytest.raises(UserError, match="more than the 36 patches"):
            draw(renderer, CONFIG, text)


def test_a_text_of_a_million_characters_is_not_drawn_to_be_refused():
    with pytest.raises(UserError, match="has 1000000 characters, more than the 36 patches"):
        draw(Renderer(RENDER), CONFIG, "a" * 1_000_000)


def test_a_table_that_stretches_takes_what_the_renderer_takes():
    stretching = dataclasses.replace(CONFIG, num_patches=9, interpolate_positions=True)
    assert draw(Renderer(RENDER), stretching, TEXT).num_patches > 9


@pytest.mark.parametrize("text", ["", "  \n", "\u200b", [], ["a", ""]])
def test_a_text_without_ink_is_refused(text):
    with pytest.raises(UserError, match="empty|has no ink"):
        draw(Renderer(RENDER), CONFIG, text)


def test_characters_that_no_font_has_are_said(caplog):
    config = RENDER.replace(missing="notdef", fonts=())
    draw(Renderer(config), CONFIG, "a\U0001f600")
    assert "no font has U+1F600" in caplog.text
