"""Training on next patches: what a step computes, what is measured on held-out rows, how runs begin and go on."""

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

import train.objectives.next_patch as next_patch
from pixelcore.checkpoint import read_stored
from pixelcore.config import PixarConfig
from pixelcore.models import MODELS
from pixelcore.next_patches import arrange_next
from render import RenderConfig, Renderer
from tests.train.conftest import lines, losses, marks, newest, weights
from tests.train.tiny_patches import run, tiny_patches
from tests.train.tiny_pixels import resume
from train.cli import main
from train.continuations import frequent_words
from train.data.strips.drawing import pixels_of
from train.data.strips.strip_corpus import StripCorpus
from train.distributed import Ranks
from train.job import resumed_job
from train.objective import Loss
from train.run_folder import RunFolder

LOOKING = {"eval__picture_rows": 2, "eval__words": 3, "data__row_patches": 64, "model__max_patches": 64}


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of 12 steps that is evaluated twice. Read it, never write to it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert run(text, path, "--steps", "12", optimizer__learning_rate=0.01) == 0
    return path


def held_out(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run) if "valid_loss" in line]


# ------------------------------------------------------------------ a step


def test_loss_falls(finished: Path):
    values = losses(finished)
    assert values[0] == pytest.approx(math.log(2), abs=0.15), "nothing is known of a pixel at first"
    assert values[-1] < values[0] - 0.05
    assert held_out(finished)[1]["valid_loss"] < held_out(finished)[0]["valid_loss"]


@pytest.mark.parametrize("rows", [1, pytest.param(16, marks=pytest.mark.slow)])
def test_any_micro_batch_computes_the_same_step(rows: int, text: Path, tmp_path: Path):
    assert run(text, tmp_path / "whole", "--steps", "2", run__micro_batch_blocks=5) == 0
    assert run(text, tmp_path / "parts", "--steps", "2", run__micro_batch_blocks=rows) == 0
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    mine, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=2e-5)


def test_loss_of_a_step_is_the_mean_over_its_patches(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # rows of many lengths: their patches weigh the same, not their rows or micro-batches
    seen = []
    original = next_patch.loss

    def watched(model: torch.nn.Module, batch: Any, scale: torch.Tensor, seed: torch.Tensor | None) -> Loss:
        with torch.no_grad():
            out = model(batch.patches, scale=torch.ones(()))
        seen.append((out.loss.item(), int(out.count), batch.count))
        return original(model, batch, scale, seed)

    monkeypatch.setattr(next_patch, "loss", watched)
    assert run(text, tmp_path / "a", "--steps", "1", "--stop-at", "1", eval__every=9, data__rows_per_step=13) == 0
    totals, counts, said = zip(*seen[:7], strict=True)  # of the step; the others are held out
    assert counts == said and len(set(counts)) > 1
    assert losses(tmp_path / "a")[0] == pytest.approx(sum(totals) / sum(counts), rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__head": "mixture", "model__num_components": 3},
        {"model__start_vector": False, "run__recompute": True, "run__precision": "bf16"},
        {"model__head": "regression", "model__num_channels": 3, "render__color": "grey", "eval__picture_rows": 1},
        {
            "model__patch_height": 16,
            "model__patch_length": 1,
            "render__height": 16,
            "render__size": 13.3,
            "render__layout": "bigrams",
            "render__pad": 0,
        },
    ],
    ids=["mixture", "without a start vector, recomputing in bf16", "grey as three channels", "16 rows, bigrams"],
)
def test_every_head_and_renderer_trains(changes: dict[str, Any], text: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "6", optimizer__learning_rate=0.01, **changes) == 0
    values = losses(tmp_path / "a")
    assert all(map(math.isfinite, values)) and values[-1] < values[0]
    measured = set(held_out(tmp_path / "a")[-1]) - {"step"}
    assert measured == {"valid_loss"} | (
        set() if changes.get("model__head") == "regression" else {"valid_bits_per_patch", "valid_bits_per_character"}
    )


def test_micro_batch_is_sized_where_it_is_left_open(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(text, tmp_path / "a", "--steps", "1", run__micro_batch_blocks=0) == 0
    assert "micro-batches of 4 x 24 patches" in capsys.readouterr().err, "the largest power of two"
    assert "micro_batch_blocks = 4\n" in (tmp_path / "a" / "config.toml").read_text()


def test_patches_are_counted_one_by_one(finished: Path):
    entries = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "loss" in entry]
    assert [entry["rows"] for entry in steps] == [5 * step for step in range(1, 13)]
    for entry in steps:
        per_row = entry["targets_per_second"] / entry["rows_per_second"]
        assert 6 <= per_row <= 24, "rows have 6 to 24 patches"


# ------------------------------------------------------------------ going on


@pytest.mark.parametrize(
    "stop, changes",
    [
        pytest.param(3, LOOKING | {"eval__every": 3}, id="looking"),
        pytest.param(2, {"data__workers": 1}, id="drawn ahead", marks=pytest.mark.slow),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(stop: int, changes: dict[str, Any], text: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "4", **changes) == 0
    assert run(text, tmp_path / "b", "--steps", "4", "--stop-at", str(stop), **changes) == 0
    assert marks(tmp_path / "b")["finished"] is False
    assert resume(tmp_path / "b") == 0
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    for name in ("model", "optimizer", "state"):
        mine, theirs = (load_file(newest(tmp_path / path) / f"{name}.safetensors") for path in "ab")
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine), name
    pictures = [{file.name: file.read_bytes() for file in (tmp_path / path / "samples").iterdir()} for path in "ab"]
    assert pictures[0] == pictures[1]


# ------------------------------------------------------------------ held-out rows


@pytest.mark.parametrize("start_vector", [pytest.param(False, marks=pytest.mark.slow), True])
def test_bits_are_those_of_a_slow_formula(start_vector: bool, text: Path, tmp_path: Path):
    out = tmp_path / "a"
    assert run(text, out, "--steps", "2", model__start_vector=start_vector) == 0
    stored = read_stored(out)
    assert isinstance(stored.config, PixarConfig) and stored.renderer is not None
    model = MODELS["pixar"](stored.config)
    model.load_state_dict(stored.weights)
    renderer = Renderer(RenderConfig.from_dict(stored.renderer["config"]))

    corpus = resumed_job(RunFolder.open(out), Ranks(0, 1, torch.device("cpu")), "reference", None).corpus
    assert isinstance(corpus, StripCorpus)
    texts = [store.text(row) for store in corpus.held_out for row in range(len(store))]
    bits, patches = 0.0, 0
    for line in texts:
        pixels = torch.from_numpy(pixels_of(renderer(line)))
        with torch.no_grad():
            logits = model(arrange_next(pixels, [len(pixels)], start_vector)).logits.double()
        paper = pixels[0 if start_vector else 1 :] > 127
        bits -= torch.nn.functional.logsigmoid(torch.where(paper, logits, -logits)).sum().item() / math.log(2)
        patches += len(paper)
    measured = held_out(out)[-1]
    assert measured["valid_bits_per_patch"] == pytest.approx(bits / patches, rel=1e-5)
    assert measured["valid_bits_per_character"] == pytest.approx(bits / sum(map(len, texts)), rel=1e-5)
    assert measured["valid_loss"] == pytest.approx(bits / patches / 128 * math.log(2), rel=1e-5)


def test_second_halves_are_painted_and_next_words_are_read(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "2", **LOOKING) == 0
    [picture] = sorted((tmp_path / "a" / "samples").iterdir())
    assert picture.name == "step_00000002.png"
    with Image.open(picture) as opened:
        assert np.asarray(opened.convert("L")).std() > 10, "there is ink in it"
    [measured] = held_out(tmp_path / "a")
    assert measured["valid_words_count"] == 3
    for name in ("right", "legible"):
        low, share, high = (measured[f"valid_words_{name}{end}"] for end in ("_low", "", "_high"))
        assert 0 <= low <= share <= high <= 1
    assert 0 < measured["valid_words_most_common"] <= 1
    assert not list((finished / "samples").iterdir()), "and neither where nobody asked"
    assert held_out(finished)[-1].keys() == {"step", "valid_loss", "valid_bits_per_patch", "valid_bits_per_character"}


@pytest.mark.slow
def test_looking_at_held_out_rows_does_not_change_the_run(text: Path, tmp_path: Path):
    for name, changes in (("a", LOOKING), ("b", LOOKING | {"eval__picture_rows": 0, "eval__words": 0})):
        assert run(text, tmp_path / name, "--steps", "3", **changes | {"eval__every": 1}) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert all(torch.equal(tensor, weights(tmp_path / "b")[name]) for name, tensor in weights(tmp_path / "a").items())


def test_words_that_occur_often_enough_are_legible():
    texts = ['The cat, the "cat" and the CAT;', "a dog a dog x1 x1 x1 a"]
    assert frequent_words(texts) == {"the", "cat", "a"}


# ------------------------------------------------------------------ beginning with a model


def test_run_from_a_model_keeps_its_architecture_and_weights(text: Path, finished: Path, tmp_path: Path):
    flags = ["--init", str(finished), "--steps", "1", "--seed", "5"]
    assert run(text, tmp_path / "a", *flags) == 0
    begun = load_file(tmp_path / "a" / "checkpoints" / "step_00000000" / "model.safetensors")
    assert begun.keys() == weights(finished).keys()
    assert all(torch.equal(tensor, begun[name]) for name, tensor in weights(finished).items())
    assert read_stored(tmp_path / "a").config == read_stored(finished).config, "and not the preset's"


def test_another_architecture_than_that_of_the_model_is_refused(
    text: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(text, tmp_path / "a", "--init", str(finished), "--steps", "1", model__hidden_size=64) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--set model.hidden_size=64: the model of --init" in line and "model.hidden_size = 16: leave it out" in line
    assert not (tmp_path / "a").exists()


def test_a_preset_of_stage_1_is_not_made_stage_2_by_a_flag(
    text: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--init", str(finished), "--set", "objective.kind=adversarial"]
    assert run(text, tmp_path / "a", *flags) == 2
    assert "asks for other tables than the preset has: take a preset" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_context_of_a_model_grows_with_its_rows(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--init", str(finished), "--steps", "1", data__row_patches=40) == 0
    stored, begun = read_stored(finished).config, read_stored(tmp_path / "a").config
    assert isinstance(stored, PixarConfig) and begun == replace(stored, max_patches=40)


def test_published_folder_can_be_trained_on(
    shared: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = shared / "golden" / "pixar_binary"
    config = read_stored(folder).config
    assert isinstance(config, PixarConfig)
    fitting = {"render__height": config.patch_height, "render__patch_width": config.patch_width}
    assert run(text, tmp_path / "a", "--init", str(folder), "--steps", "1", **fitting) == 0
    assert "does not say how its strips were drawn" in capsys.readouterr().err
    begun = load_file(tmp_path / "a" / "checkpoints" / "step_00000000" / "model.safetensors")
    assert all(torch.equal(tensor, begun[name]) for name, tensor in read_stored(folder).weights.items())


# ------------------------------------------------------------------ what is refused, and prepared rows


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"data__row_patches": 25}, "data.row_patches = 25 must not exceed model.max_patches = 24"),
        ({"render__height": 16}, "render.height = 16 and render.patch_width = 16 must be model.patch_height = 8"),
        ({"model__patch_length": 1}, "model.patch_height * model.patch_length = 8"),
        ({"render__color": "grey"}, "set render.color=binary, or model.head=regression"),
        ({"model__head": "regression", "render__color": "rgb"}, "render.color = 'rgb' needs model.num_channels = 3"),
        ({"render__max_patches": 30}, "render.max_patches = 30 is said by data.row_patches = 24 in training"),
        ({"eval__words": 4}, "eval.words = 4: no text has more than 20 words"),
        ({"eval__words": -1}, "words = -1 must not be negative"),
        ({"objective__ratio": 0.5}, "objective: unknown key 'ratio'"),
        ({"model__kind": "vit_mae"}, "model: unknown key 'max_patches'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_message_of_a_wrong_value(
    changes: dict[str, Any], expected: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(text, tmp_path / "out", "--steps", "1", **changes) == 2
    assert not (tmp_path / "out").exists(), "nothing is written"
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]


def test_rows_are_prepared_and_verified(text: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", *tiny_patches(text), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["held_out_rows"] == 6 and summary["training_rows"] > 100
    assert main(["verify", *tiny_patches(text), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"verified_rows": summary["training_rows"] + 6}
