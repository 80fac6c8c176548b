"""Models of strips and of tokens that are compared: the same trunk, rows that fit every patch, equal arithmetic, and
runs that are not made twice."""

import argparse
import json
import math
from pathlib import Path

import pytest

from benchmarks import patch_length
from benchmarks.patch_length import command_of, over_seeds, run_of
from benchmarks.patch_length_models import PATCH_LENGTHS, arm_of, patches_of, pixar_of, plan, rows_of
from benchmarks.token_partners import density, partner, row_flops, vocabulary_for
from pixelcore.accounting import num_parameters
from pixelcore.accounting_pixar import flops_per_patch
from pixelcore.config import DecoderConfig, PixarConfig
from pixelcore.errors import UserError
from tests.train.conftest import small_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "training.txt").write_text(small_text(400))
    (folder / "other.txt").write_text(small_text(40)[::-1])
    return folder


def options_of(folder: Path, **changes) -> argparse.Namespace:
    settings = {
        "data": [str(folder)],
        "held_out": [str(folder / "other.txt")],
        "runs": folder / "runs",
        "sizes": ["smoke"],
        "flops": 2e9,
        "steps": None,
        "minutes": None,
        "components": 3,
        "width": 480,
        "rows_per_step": 12,
        "rate": None,
        "device": "cpu",
        "seeds": 2,
        "parallel": 1,
        "models": ["pixels-2", "bpe-2"],
        "held_out_rows": 6,
    }
    return argparse.Namespace(**settings | changes)


@pytest.fixture(scope="module")
def options(folder: Path) -> argparse.Namespace:
    options = options_of(folder)
    plan(options)
    return options


def test_a_partner_has_the_trunk_of_the_model_and_a_vocabulary_in_place_of_its_maps(options):
    pixels = pixar_of(2, "tiny", options)
    tokens = partner(pixels, 1000, 256)
    width = pixels.hidden_size
    maps = 2 * width * pixels.patch_values + width  # of patches, and the start vector
    assert num_parameters(pixels) - maps == num_parameters(tokens) - 1000 * width
    # without what goes in and out, a step of the sequence costs the same
    alike = PixarConfig(**{**vars(pixels), "patch_height": 1, "patch_length": 1})
    ends = 2 * 5 * width  # of patches of one value: out of the head three times, into the trunk twice
    assert row_flops(tokens, [9]) - 9 * 6 * 1000 * width == pytest.approx(9 * (flops_per_patch(alike, 9) - ends))


def test_flops_of_a_row_are_the_mean_over_rows_of_all_lengths(options):
    config = pixar_of(2, "tiny", options)
    expected = (2 * 10 * flops_per_patch(config, 10) + 40 * flops_per_patch(config, 40)) / 3
    assert row_flops(config, [10, 40, 10]) == pytest.approx(expected)


def test_a_vocabulary_is_found_for_the_characters_that_a_token_is_to_hold(options):
    rows = rows_of(options, "training")
    found = vocabulary_for(rows, 2.5, tolerance=0.03)
    assert found.characters_per_token == pytest.approx(2.5, rel=0.03)
    assert density(found.tokenizer, rows) == pytest.approx(2.5, rel=0.05)
    with pytest.raises(ValueError, match="no vocabulary has 40.00 characters a token"):
        vocabulary_for(rows, 40)


def test_rows_fit_patches_of_every_length_and_held_out_files_are_not_trained_on(options):
    rows = rows_of(options, "training")
    for length in PATCH_LENGTHS:
        most = pixar_of(length, "smoke", options).max_patches
        assert max(patches_of(length, rows)) <= most <= options.width / 8 / length + 1
    backwards = rows_of(options, "held-out")
    assert backwards and not set(backwards) & set(rows)
    assert " ".join(rows).split() == (Path(options.data[0]) / "training.txt").read_text().split()


@pytest.mark.parametrize("name", ["pixels-1", "pixels-5", "mixture-2", "bpe-2", "bytes"])
def test_every_model_trains_for_the_same_arithmetic(options, name):
    rows = rows_of(options, "training")
    flops = 5e11
    arm = arm_of(name, "smoke", rows, flops, options)
    spent = arm.steps * arm.rows_per_step * row_flops(arm.config, arm.lengths)
    assert spent == pytest.approx(flops, rel=0.5 / arm.steps + 1e-9)
    assert arm.steps > 20
    if isinstance(arm.config, DecoderConfig):
        tokens = arm.changes["data.tokens_per_step"]
        assert tokens % arm.changes["data.block_size"] == 0
        assert arm.rows_per_step == pytest.approx(tokens / (sum(arm.lengths) / len(rows)))
        assert max(arm.lengths) <= arm.config.context_length
    else:
        assert (arm.config.num_components == 3) == (name == "mixture-2")


def test_a_vocabulary_that_cannot_be_is_refused_by_name(folder):
    options = options_of(folder, runs=folder / "long")
    plan(options)
    with pytest.raises(UserError, match="--models bpe-5: no vocabulary has .* leave it out"):
        arm_of("bpe-5", "smoke", ["abc def ghi jkl " * 20] * 9, 1e9, options)


def test_a_folder_of_runs_keeps_its_settings(options, folder):
    assert plan(options) == plan(options)
    with pytest.raises(UserError, match="made with width = 480, not 960"):
        plan(options_of(folder, width=960))
    with pytest.raises(UserError, match="budget"):
        plan(options_of(folder, flops=None, steps=3))


def test_the_budget_in_steps_is_that_of_pixels_2(folder):
    options = options_of(folder, runs=folder / "steps", flops=None, steps=7)
    flops = plan(options)["flops"]["smoke"]
    assert arm_of("pixels-2", "smoke", rows_of(options, "training"), flops, options).steps == 7


def test_a_finished_run_is_not_made_again_and_another_goes_on(options):
    arm = arm_of("pixels-2", "smoke", rows_of(options, "training"), 2e9, options)
    run = run_of("smoke", arm, 0, options)
    command = command_of(run, arm, "smoke", 0, options)
    assert "--preset" in command and f"model.patch_length={2}" in command
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"finished": false}')
    assert command_of(run, arm, "smoke", 0, options)[-2:] == ["--resume", str(run)]
    (run / "run.json").write_text('{"finished": true}')
    assert command_of(run, arm, "smoke", 0, options) == []
    (run / "run.json").unlink()
    run.rmdir()


def test_the_interval_over_seeds_is_students():
    low, high = over_seeds([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))


@pytest.mark.slow
def test_a_comparison_from_text_to_table(folder, capfd, monkeypatch):
    result = folder / "result.json"
    flags = ["--data", folder, "--held-out", folder / "other.txt", "--runs", folder / "whole", "--steps", 2]
    flags += ["--sizes", "smoke", "--models", "pixels-2", "mixture-2", "bpe-2", "bytes", "--rows-per-step", 8]
    flags += ["--width", 480, "--held-out-rows", 5, "--device", "cpu", "--out", result, "--components", 2]
    monkeypatch.setattr("sys.argv", ["patch_length", *map(str, flags)])
    patch_length.main()
    first = json.loads(result.read_text())
    models = first["sizes"]["smoke"]["models"]
    assert list(models) == ["pixels-2", "mixture-2", "bpe-2", "bytes"]
    assert len({model["seeds"][0]["num_characters"] for model in models.values()}) == 1
    assert models["bpe-2"]["characters_per_unit"] == pytest.approx(models["pixels-2"]["characters_per_unit"], rel=0.05)
    assert models["bytes"]["bits_per_character"] < 8.2
    assert "bits/character" in capfd.readouterr().out
    again = []
    monkeypatch.setattr(patch_length, "command_of", lambda *given: again.append(command_of(*given)))
    patch_length.main()
    assert again == [[]] * 4  # nothing is trained again
    assert json.loads(result.read_text())["sizes"] == first["sizes"]
