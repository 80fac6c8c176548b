"""Plans of what was published can be run, and the comparison says what it says."""

import pytest

import presets
from benchmarks.verify import compare, read_plan, table
from pixelcore.config import ViTTaskConfig
from pixelcore.tasks import TASKS
from pixelcore.tasks.bootstrap import Sums
from pixelcore.tasks.parse import ParseOptions
from tests.conftest import ROOT
from train.config import TaskSettings
from train.job import read_settings
from train.sweep import read_seeds


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("verify_*.toml")), ids=lambda path: path.stem)
def test_a_plan_names_a_preset_seeds_and_figures_that_exist(path):
    plan = read_plan(path)
    settings = read_settings(presets.load(plan["preset"]), (), path.name)
    assert isinstance(settings, TaskSettings)
    task, options = TASKS[settings.objective.kind], settings.objective
    figures = task.figures(Sums(task.counts([], [], options)), options)
    assert set(plan["published"]) <= {"test_loss", *(f"test_{name}" for name in figures)}
    assert len(read_seeds(plan["seeds"])) == 8
    assert {"title", "weights", "data", "source", "hardware"} <= set(plan)


def test_the_recipe_is_the_published_one():
    settings = read_settings(presets.load("pixel-m4-ud"), (), "pixel-m4-ud")
    assert isinstance(settings, TaskSettings) and isinstance(settings.model, ViTTaskConfig)
    optimizer, schedule = settings.optimizer, settings.schedule
    assert (optimizer.learning_rate, optimizer.betas, optimizer.eps) == (1e-5, (0.9, 0.999), 1e-8)
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.0, 1.0)
    assert (schedule.shape, schedule.warmup_steps, schedule.final_ratio) == ("linear", 100, 0.0)
    assert (settings.data.max_patches, settings.data.rows_per_step, settings.run.steps) == (256, 64, 15_000)
    assert settings.data.cut_positions  # the published loss has as many heads as strips have patches
    assert (settings.eval.every, settings.eval.patience, settings.eval.select) == (500, 5, "")
    assert (settings.model.hidden_dropout, settings.model.attention_dropout) == (0.1, 0.1)
    assert settings.objective == ParseOptions(decode="greedy") and not settings.model.mask_heads


def test_a_published_figure_lies_within_ours_or_outside():
    compared = compare({"test_las": 0.9}, {"seed-0": {"test_las": 0.91}, "seed-1": {"test_las": 0.89}})
    assert compared["test_las"]["within"] and compared["test_las"]["mean"] == pytest.approx(0.9)
    assert not compare({"test_las": 0.9}, {"seed-0": {"test_las": 0.91}})["test_las"]["within"]
    assert "published 0.9000, ours 0.9000 (0.9100 0.8900): within" in table("x", compared)
