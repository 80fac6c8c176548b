"""Training on strips: what a step computes, what is measured on held-out rows, how a run begins, and prepared rows."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train.objectives.masked_patches as masked_patches
from infer.cli import main as infer
from pixelcore.checkpoint import read_manifest, read_stored
from pixelcore.config import ViTMAEConfig
from pixelcore.models import MODELS
from pixelcore.ops import REFERENCE
from pixelcore.patches import arrange
from tests.train.conftest import lines, losses, newest, weights
from tests.train.tiny_pixels import LOOKING, run, tiny_pixels
from train.cli import main
from train.config import OptimizerConfig
from train.objective import Loss
from train.optimizer import AdamW


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of 12 steps that looks at held-out rows twice. Read it, never write to it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert run(text, path, "--steps", "12", **LOOKING) == 0
    return path


def held_out(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run) if "valid_loss" in line]


# ------------------------------------------------------------------ a step


def test_loss_falls(finished: Path):
    values = losses(finished)
    assert 0.9 < values[0] < 1.1, "normalised patches have variance 1, and nothing is predicted at first"
    assert values[-1] < values[0] - 0.1
    assert held_out(finished)[1]["valid_loss"] < held_out(finished)[0]["valid_loss"]


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_any_micro_batch_computes_the_same_step(rows: int, text: Path, tmp_path: Path):
    assert run(text, tmp_path / "whole", "--steps", "3", run__micro_batch_blocks=5) == 0
    assert run(text, tmp_path / "parts", "--steps", "3", run__micro_batch_blocks=rows) == 0
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    mine, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=2e-5)


def test_loss_of_a_step_is_the_mean_over_its_hidden_patches(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # rows of many lengths: their patches weigh the same, not their rows or micro-batches
    seen = []
    original = masked_patches.loss

    def watched(model: torch.nn.Module, batch: Any, scale: torch.Tensor, seed: torch.Tensor | None) -> Loss:
        with torch.no_grad():
            out = model(batch.patches, scale=torch.ones(()), dropout_seed=seed)
        seen.append((out.loss.item(), int(out.count), batch.count))
        return original(model, batch, scale, seed)

    monkeypatch.setattr(masked_patches, "loss", watched)
    assert run(text, tmp_path / "a", "--steps", "1", data__rows_per_step=13) == 0
    totals, counts, said = zip(*seen, strict=True)
    assert counts == said and len(set(counts)) > 1, "the micro-batches hide different numbers of patches"
    assert losses(tmp_path / "a")[0] == pytest.approx(sum(totals) / sum(counts), rel=1e-6)


def test_step_without_a_finite_gradient_changes_nothing(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = 0
    original = masked_patches.loss

    def poisoned(*arguments: Any) -> Loss:
        nonlocal calls
        calls += 1
        found = original(*arguments)
        return Loss(found.total * math.nan, found.reported, found.balance) if calls == 8 else found

    monkeypatch.setattr(masked_patches, "loss", poisoned)  # 3 micro-batches a step: the 8th is of the third
    assert run(text, tmp_path / "a", "--steps", "4", run__save_every=1, run__keep_last=9) == 0
    before, after = (tmp_path / "a" / "checkpoints" / f"step_0000000{step}" for step in (2, 3))
    for name in ("model.safetensors", "optimizer.safetensors"):
        old, new = load_file(before / name), load_file(after / name)
        assert all(torch.equal(old[key], new[key]) for key in old), name
    assert [line["skipped"] for line in lines(tmp_path / "a") if "loss" in line] == [0, 0, 1, 1]
    assert read_manifest(newest(tmp_path / "a"))["optimizer_step"] == 3


def test_bf16_trains_fp32_parameters(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "12", "--stop-at", "6", run__precision="bf16") == 0
    assert {tensor.dtype for tensor in weights(tmp_path / "a").values()} == {torch.float32}
    assert losses(tmp_path / "a") != losses(finished)[:6]
    assert losses(tmp_path / "a") == pytest.approx(losses(finished)[:6], rel=1e-2)


def test_recomputing_activations_changes_nothing(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "12", "--stop-at", "4", run__recompute=True) == 0
    assert losses(tmp_path / "a") == losses(finished)[:4]


def test_micro_batch_is_sized_where_it_is_left_open(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(text, tmp_path / "a", "--steps", "1", run__micro_batch_blocks=0) == 0
    assert "micro-batches of 4 x 24 patches" in capsys.readouterr().err, "the largest power of two"
    assert "micro_batch_blocks = 4\n" in (tmp_path / "a" / "config.toml").read_text()


def test_progress_counts_each_row_once(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[int] = []
    monkeypatch.setattr("train.report.Reporter.advance", lambda reporter, units: told.append(units))
    assert run(text, tmp_path / "a", "--steps", "2") == 0
    assert told == [2, 2, 1] * 2


def test_tables_of_positions_stay_as_they_were(finished: Path):
    first, last = (load_file(finished / "checkpoints" / f"step_{step:08d}" / "model.safetensors") for step in (6, 12))
    for name in first:
        assert torch.equal(first[name], last[name]) == name.endswith(".positions"), name


# ------------------------------------------------------------------ the optimizer


def test_biases_and_norms_do_not_decay_and_all_else_does():
    """HF Trainer's rule, which the originals trained with (specs/pixel.md, section 4.1)."""
    config = ViTMAEConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=8,
        decoder_num_layers=1,
        decoder_hidden_size=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
    )
    model = MODELS["vit_mae"](config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    AdamW(model, OptimizerConfig(weight_decay=0.5), REFERENCE).step(0.1)
    decayed = {name for name, parameter in model.named_parameters() if parameter.max() < 1}
    norms = {name for name, _ in model.named_parameters() if ".norm" in name}
    biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert decayed == dict(model.named_parameters()).keys() - norms - biases
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.patch.weight"} <= decayed
    assert norms and biases


# ------------------------------------------------------------------ held-out rows


def test_every_evaluation_meets_the_same_rows_and_masks(
    text: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[list[bytes]] = []
    original = masked_patches.raw_pixel_error

    def watched(predictions: torch.Tensor, patches: Any, normalised: bool) -> torch.Tensor:
        seen[-1].append(patches.pixels.numpy().tobytes() + patches.scored.numpy().tobytes())
        return original(predictions, patches, normalised)

    def evaluate(*arguments: Any) -> dict[str, float]:
        seen.append([])
        return measure(*arguments)

    measure = masked_patches.evaluate
    monkeypatch.setattr(masked_patches, "raw_pixel_error", watched)
    monkeypatch.setattr(masked_patches, "evaluate", evaluate)
    for seed in ("0", "7"):  # of the run; held-out masks are the same in all runs
        assert run(text, tmp_path / seed, "--steps", "4", "--seed", seed, eval__every=2) == 0
    assert len(seen) == 4 and len(seen[0]) == 3, "6 held-out rows, 2 at a time"
    assert seen[0] == seen[1] == seen[2] == seen[3]


def test_figures_of_an_evaluation_are_in_the_metrics(finished: Path, capsys: pytest.CaptureFixture[str]):
    for line in held_out(finished):
        assert 0 < line["valid_pixel_loss"] < 1
        assert 0 <= line["valid_characters_low"] <= line["valid_characters"] <= line["valid_characters_high"] <= 1
        assert line["valid_characters_count"] > 10
        for baseline in ("ceiling", "nearest", "ngram", "most_frequent"):
            assert 0 <= line[f"valid_characters_{baseline}"] <= 1
    assert [line["step"] for line in held_out(finished)] == [6, 12]
    assert held_out(finished)[0]["valid_characters_ceiling"] > 0.9, "the true pixels are read"
    # what depends on the rows alone is the same every time
    first, second = held_out(finished)
    fixed = ("count", "nearest", "ngram", "most_frequent")
    assert [first[f"valid_characters_{name}"] for name in fixed] == [
        second[f"valid_characters_{name}"] for name in fixed
    ]


def test_pictures_of_held_out_rows_open(finished: Path):
    pictures = sorted((finished / "samples").iterdir())
    assert [path.name for path in pictures] == ["step_00000006.png", "step_00000012.png"]
    for path in pictures:
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 10, "there is ink in it"


def test_looking_at_held_out_rows_does_not_change_the_run_and_can_be_turned_off(
    text: Path, finished: Path, tmp_path: Path
):
    assert run(text, tmp_path / "a", "--steps", "12", eval__every=5) == 0
    assert losses(tmp_path / "a") == losses(finished)
    assert weights(tmp_path / "a").keys() == weights(finished).keys()
    assert all(torch.equal(tensor, weights(finished)[name]) for name, tensor in weights(tmp_path / "a").items())
    assert held_out(tmp_path / "a")[-1].keys() == {"step", "valid_loss", "valid_pixel_loss"}
    assert not list((tmp_path / "a" / "samples").iterdir())


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
@pytest.mark.parametrize("normalised", [False, True], ids=["raw", "normalised"])
def test_error_of_raw_pixels_is_that_of_a_slow_formula(normalised: bool, channels: int):
    generator = np.random.default_rng(0)
    pixels_PA = generator.integers(0, 256, (7, 4 * channels), dtype=np.uint8)
    pixels_PA[2] = 255  # blank paper has no contrast to bring back
    hidden = [1, 2, 5]
    mask = torch.zeros(7, dtype=torch.bool)
    mask[hidden] = True
    patches = arrange(torch.from_numpy(pixels_PA), [4, 3], mask)
    predictions_MO = generator.normal(size=(3, 12)).astype(np.float32)
    perfect_MO, expected = np.empty((3, 12)), 0.0
    for place, patch in enumerate(hidden):
        target = np.repeat(pixels_PA[patch] / 255, 3 // channels)  # grey counts three times
        deviation = math.sqrt(target.var(ddof=1) + 1e-6)
        painted = predictions_MO[place] * deviation + target.mean() if normalised else predictions_MO[place]
        expected += ((painted - target) ** 2).mean()
        perfect_MO[place] = (target - target.mean()) / deviation if normalised else target
    found = masked_patches.raw_pixel_error(torch.from_numpy(predictions_MO), patches, normalised)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    truth = masked_patches.raw_pixel_error(torch.from_numpy(perfect_MO).float(), patches, normalised)
    assert float(truth) == pytest.approx(0, abs=1e-10)


# ------------------------------------------------------------------ beginning with a model


def test_run_from_a_model_begins_with_all_of_its_weights(text: Path, finished: Path, tmp_path: Path):
    flags = ["--init", str(finished), "--steps", "1", "--seed", "5"]
    assert run(text, tmp_path / "a", *flags, model__hidden_dropout=0.0) == 0
    begun = load_file(tmp_path / "a" / "checkpoints" / "step_00000000" / "model.safetensors")
    assert begun.keys() == weights(finished).keys()
    assert all(torch.equal(tensor, begun[name]) for name, tensor in weights(finished).items())
    assert {"encoder.cls_token", "encoder.patch.weight", "encoder.patch.bias", "decoder.mask_token"} <= begun.keys()
    stored = read_stored(finished).config
    assert isinstance(stored, ViTMAEConfig)
    assert read_stored(tmp_path / "a").config == replace(stored, hidden_dropout=0.0), "all but dropout is the model's"


def test_run_from_a_model_draws_as_the_model_has_seen(text: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "1", render__lift=1, render__layout="bigrams") == 0
    # no word of how to draw, and the preset would draw otherwise
    assert run(text, tmp_path / "b", "--init", str(tmp_path / "a"), "--steps", "1", data__row_patches=20) == 0
    config = (tmp_path / "b" / "config.toml").read_text()
    assert "lift = 1\n" in config and 'layout = "bigrams"' in config and "max_patches = 20" in config
    mine, theirs = read_stored(tmp_path / "b").renderer, read_stored(tmp_path / "a").renderer
    assert mine is not None and theirs is not None
    assert mine["config"] | {"max_patches": 24} == theirs["config"]


def test_another_renderer_has_to_be_asked_for(
    text: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--init", str(finished), "--steps", "1"]
    assert run(text, tmp_path / "a", *flags, render__lift=1) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "render.lift=1" in line and "render.lift = 2" in line and "render.accept_changed=true" in line
    assert not (tmp_path / "a").exists()
    assert run(text, tmp_path / "a", *flags, render__lift=1, render__accept_changed=True) == 0
    assert "drawn otherwise than those that the model has seen: render.lift: 2 against 1" in capsys.readouterr().err
    assert main(["--resume", str(tmp_path / "a"), "--steps", "2"]) == 0, "it has been asked for"


def test_renderer_that_is_no_longer_what_it_was_is_refused(
    text: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    identity = masked_patches.Renderer.identity

    def other_versions(renderer: Any) -> dict[str, Any]:
        found = identity(renderer)
        return found | {"probes": dict.fromkeys(found["probes"], "0" * 64)}

    monkeypatch.setattr(masked_patches.Renderer, "identity", other_versions)
    assert run(text, tmp_path / "a", "--init", str(finished), "--steps", "1") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the model has seen strips of another renderer (pixels of" in line and "accept_changed" in line


def test_published_folder_can_be_trained_on(
    shared: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = shared / "golden" / "pixel_mae"
    assert run(text, tmp_path / "a", "--init", str(folder), "--steps", "1", data__row_patches=16) == 0
    assert "does not say how its strips were drawn" in capsys.readouterr().err
    begun = load_file(tmp_path / "a" / "checkpoints" / "step_00000000" / "model.safetensors")
    published = read_stored(folder)
    assert begun.keys() == published.weights.keys()
    assert all(torch.equal(tensor, begun[name]) for name, tensor in published.weights.items())
    assert read_stored(tmp_path / "a").renderer is not None


def test_what_is_trained_can_be_exported_in_the_published_form(finished: Path, tmp_path: Path):
    assert infer(["export", "--model", str(finished), "--to", "pixel", "--out", str(tmp_path / "a")]) == 0
    back = read_stored(tmp_path / "a")
    assert all(torch.equal(tensor, back.weights[name]) for name, tensor in weights(finished).items())


# ------------------------------------------------------------------ prepared rows


@pytest.fixture
def prepared(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of the training rows, in a cache of its own."""
    monkeypatch.setenv("PIXELCORE_CACHE", str(tmp_path / "cache"))
    assert main(["prepare", *tiny_pixels(text), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["training_rows"] == 503 and summary["held_out_rows"] == 6
    assert summary["counts"][0]["short_rows"] == 20
    (store,) = summary["stores"]
    return Path(store)


def test_prepared_rows_are_found_by_the_run(prepared: Path, text: Path, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*.bin")}
    assert before and prepared.is_relative_to(tmp_path / "cache")
    assert run(text, tmp_path / "a", "--steps", "1") == 0
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*.bin")} == before


def test_verify_draws_every_row_again(prepared: Path, text: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", *tiny_pixels(text), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"verified_rows": 509}


@pytest.mark.parametrize("name", ["texts.bin", "num_patches.bin", "hashes.bin"])
def test_verify_refuses_a_damaged_store(name: str, prepared: Path, text: Path, capsys: pytest.CaptureFixture[str]):
    content = bytearray((prepared / name).read_bytes())
    content[len(content) // 2 & ~3] ^= 1
    (prepared / name).write_bytes(content)
    assert main(["verify", *tiny_pixels(text)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{prepared}: row " in error and "the store is damaged: delete the folder" in error


def test_damaged_description_of_a_store_is_named(prepared: Path, text: Path, capsys: pytest.CaptureFixture[str]):
    (prepared / "store.json").write_text('{"key": ')
    assert main(["verify", *tiny_pixels(text)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{prepared}/store.json: damaged" in error and "delete the folder" in error


def test_row_that_is_no_longer_drawn_as_it_was_stops_the_run(
    prepared: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content = np.fromfile(prepared / "num_patches.bin", np.int32)
    (content - 1).tofile(prepared / "num_patches.bin")
    assert run(text, tmp_path / "a", "--steps", "1") == 2
    assert "patches, not" in capsys.readouterr().err.strip().splitlines()[-1]
