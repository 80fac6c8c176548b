"""The presets for strips: the sizes of the published models, their renderers, and the recipe they were trained with."""

from pathlib import Path

import pytest

import presets
from pixelcore.accounting_vit import published_parameters
from pixelcore.config import ViTMAEConfig, ViTTaskConfig
from render.config import RenderConfig
from tests.train.conftest import losses
from train.cli import main
from train.config import StripSettings
from train.job import read_settings

ORIGINALS = ("pixel-base", "pixel-m4", "pixel-small", "pixel-tiny")

# python -m train --preset pixel-smoke --data <small_text> --steps 10; torch 2.13.0, fp32 on a CPU. The text is that of
# test_golden_losses: rows, masks, pixels, dropout, model, backward pass and optimizer all meet here.
GOLDEN = [1.004533, 0.976235, 0.972134, 0.951638, 0.906548, 0.886743, 0.862789, 0.825476, 0.832424, 0.825905]


def settings_of(name: str) -> StripSettings:
    settings = read_settings(presets.load(name), (), f"preset {name}")
    assert isinstance(settings, StripSettings)
    return settings


def encoder_of(config: ViTMAEConfig) -> int:
    """Values of the encoder with its table: as a task model has them, less the head."""
    shared = {name: getattr(config, name) for name in ("num_layers", "hidden_size", "num_attention_heads")}
    task = ViTTaskConfig(**shared, intermediate_size=config.intermediate_size, task="token", num_labels=1)
    return published_parameters(task) - (config.hidden_size + 1)


@pytest.mark.parametrize("name", ["pixel-base", "pixel-m4"])
def test_base_has_the_published_number_of_values(name: str):
    config = settings_of(name).model
    assert published_parameters(config) == 112_334_080
    assert encoder_of(config) == 86_054_400


@pytest.mark.parametrize(
    "name, encoder, decoder", [("pixel-small", 21.8, 3.8), ("pixel-tiny", 5.6, 1.0)], ids=["small", "tiny"]
)
def test_smaller_ones_have_the_numbers_of_the_specification(name: str, encoder: float, decoder: float):
    config = settings_of(name).model
    assert round(encoder_of(config) / 1e6, 1) == encoder
    assert round((published_parameters(config) - encoder_of(config)) / 1e6, 1) == decoder


@pytest.mark.parametrize("name", ORIGINALS)
def test_recipe_is_the_published_one(name: str):
    settings = settings_of(name)
    optimizer, schedule, run = settings.optimizer, settings.schedule, settings.run
    assert (optimizer.learning_rate, optimizer.betas, optimizer.eps) == (1.5e-4, (0.9, 0.999), 1e-8)
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.05, 1.0)
    assert (schedule.shape, schedule.warmup_steps) == ("cosine", run.steps // 20)
    assert optimizer.learning_rate * schedule.final_ratio == pytest.approx(1e-5, rel=1e-4)
    assert (run.steps, settings.data.rows_per_step, settings.objective.ratio) == (1_000_000, 256, 0.25)
    assert (settings.model.hidden_dropout, settings.model.attention_dropout) == (0.1, 0.1)
    assert (settings.eval.every, run.save_every) == (5000, 10_000)


@pytest.mark.parametrize(
    "name, renderer, rows, shortest, rule",
    [
        ("pixel-base", "pixel", 529, 22, "span"),
        ("pixel-m4", "pixel-m4", 511, 23, "span-m4"),
        ("pixel-small", "pixel-m4", 529, 22, "span"),
        ("pixel-tiny", "pixel", 529, 22, "span"),
    ],
)
def test_renderer_and_rows_are_the_published_ones(name: str, renderer: str, rows: int, shortest: int, rule: str):
    settings = settings_of(name)
    assert settings.render.plain == RenderConfig.named(renderer)
    assert (settings.data.row_patches, settings.data.min_patches) == (rows, shortest)
    assert settings.objective.rule == rule


def test_smoke_preset_has_its_golden_losses(text: Path, tmp_path: Path):
    argv = ["--preset", "pixel-smoke", "--data", str(text), "--steps", "10", "--device", "cpu"]
    # looking at held-out rows is no part of it, and the short text has few that are long
    argv += ["--set", "eval.read_rows=0", "--set", "eval.picture_rows=0", "--out", str(tmp_path / "a")]
    assert main(argv) == 0
    assert losses(tmp_path / "a") == pytest.approx(GOLDEN, abs=1e-4)
