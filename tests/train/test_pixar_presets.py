"""The presets of models that write strips: sizes, the published renderer and recipe, and text one can read in it."""

from pathlib import Path

import pytest
import torch

import presets
from pixelcore.models import MODELS
from render import Reader, Renderer
from render.config import RenderConfig
from tests.train.conftest import losses
from train.cli import main
from train.config import PatchSettings
from train.job import read_settings

PUBLISHED = {"pixar-85m": 85_150_464, "pixar-113m": 113_462_016}
OURS = {
    "pixar-smoke": 28_864,
    "pixar-tiny": 2_588_544,
    "pixar-novels": 2_588_544,
    "pixar-multilingual": 119_778_816,
    "pixar-350m": 346_343_424,
    "pixar-760m": 764_881_920,
    "pixar-1.5b": 1_497_993_216,
}

# python -m train --preset pixar-smoke --data <small_text> --steps 10; torch 2.13.0, fp32 on a CPU. The text is that of
# test_golden_losses: rows, pixels, model, backward pass and optimizer all meet here.
GOLDEN = [0.701516, 0.697098, 0.687936, 0.675835, 0.660049, 0.645507, 0.634148, 0.624422, 0.615813, 0.614576]


def settings_of(name: str) -> PatchSettings:
    settings = read_settings(presets.load(name), (), f"preset {name}")
    assert isinstance(settings, PatchSettings)
    return settings


@pytest.mark.parametrize("name", PUBLISHED | OURS)
def test_numbers_of_parameters_are_those_that_the_comments_say(name: str):
    config = settings_of(name).model
    with torch.device("meta"):
        model = MODELS["pixar"](config)
    number = (PUBLISHED | OURS)[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == number
    if name != "pixar-smoke":
        assert f"{number:,} parameters" in presets.load(name).partition("[model]")[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_is_the_published_one(name: str):
    """specs/pixar.md, sections 2.1 and 3."""
    settings = settings_of(name)
    model, optimizer, schedule, data = settings.model, settings.optimizer, settings.schedule, settings.data
    assert (model.num_layers, model.hidden_size, model.num_attention_heads) == (12, 768, 12)
    assert (model.head, model.start_vector, model.max_patches) == ("bernoulli", False, 360)
    assert (optimizer.learning_rate, optimizer.betas, optimizer.eps) == (3e-4, (0.9, 0.95), 1e-8)
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.1, 1.0)
    assert (schedule.shape, schedule.warmup_steps, schedule.final_ratio) == ("cosine", 2000, 0.1)
    assert (data.rows_per_step * data.row_patches, settings.run.steps) == (138_240, 1_000_000)


@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED | OURS if name not in ("pixar-multilingual", "pixar-novels")]
)
def test_strips_are_drawn_as_the_published_ones(name: str):
    settings = settings_of(name)
    render = settings.render.plain
    assert render == RenderConfig.named("pixar", max_patches=render.max_patches)
    assert (render.height, render.patch_width) == (settings.model.patch_height, settings.model.patch_width)


@pytest.mark.parametrize("name", ["pixar-novels", "pixar-multilingual"])
def test_text_can_be_read_off_the_strips_in_the_built_in_font(name: str):
    text = "She paid 12 crowns for the quiet house by the river, and (so he says) never left it again!"
    config = settings_of(name).render.plain
    assert Reader(config)(Renderer(config)(text).pixels).texts[0] == text


def test_smoke_preset_has_its_golden_losses(text: Path, tmp_path: Path):
    argv = ["--preset", "pixar-smoke", "--data", str(text), "--steps", "10", "--device", "cpu"]
    assert main([*argv, "--set", "eval.picture_rows=0", "--out", str(tmp_path / "a")]) == 0
    assert losses(tmp_path / "a") == pytest.approx(GOLDEN, abs=1e-4)
