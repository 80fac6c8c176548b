"""What the loop promises: exact accumulation, skipped steps, kept checkpoints, reports, and ways to begin."""

import importlib.util
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train.report
from pixelcore.checkpoint import load_model, read_manifest, read_stored
from pixelcore.config import DecoderConfig, LoRAConfig
from pixelcore.tokenizer import Tokenizer
from tests.train.conftest import assert_same_run, lines, losses, marks, newest, small_text, tiny, weights
from train.cli import main
from train.loop import learning_rate_factor
from train.objective import Loss
from train.objectives import next_token

draw_curve = train.report.draw_curve  # as it is outside these tests


def run(data: Path, out: Path, *flags: str, **changes: Any) -> int:
    return main([*tiny(data, "--init" in flags, **changes), "--out", str(out), *flags])


# ------------------------------------------------------------------ accumulation


@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_any_micro_batch_computes_the_same_step(blocks: int, text: Path, tmp_path: Path):
    # 7 blocks: 3 + 3 + 1 and two fillers, or all and one filler
    changes: dict[str, Any] = {"data__tokens_per_step": 224, "model__dropout": 0.1, "model__attention_dropout": 0.1}
    assert run(text, tmp_path / "whole", "--steps", "3", **changes, run__micro_batch_blocks=7) == 0
    assert run(text, tmp_path / "parts", "--steps", "3", **changes, run__micro_batch_blocks=blocks) == 0
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    mine, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=2e-5)


def test_loss_of_a_step_is_the_mean_over_its_targets(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # an epoch is one step here, and the last block is not full: its targets weigh no more than others
    seen = []
    original = next_token.loss

    def watched(model: torch.nn.Module, batch: Any, scale: torch.Tensor, seed: torch.Tensor | None) -> Any:
        one = torch.ones(())
        with torch.no_grad():
            out = model(batch.ids, batch.packed, targets=batch.targets, scale=one)
        seen.append((out.cross_entropy.item(), int(out.count)))
        return original(model, batch, scale, seed)

    monkeypatch.setattr(next_token, "loss", watched)
    data = tmp_path / "short.txt"
    data.write_text(small_text(20))
    changes: dict[str, Any] = {"data__tokens_per_step": 32 * 90, "run__micro_batch_blocks": 7, "eval__max_tokens": 50}
    assert run(data, tmp_path / "a", "--steps", "1", **changes) == 0
    assert len({count for _, count in seen}) > 1, "the micro-batches hold different numbers of targets"
    total, count = (sum(column) for column in zip(*seen))
    assert losses(tmp_path / "a")[0] == pytest.approx(total / count, rel=1e-6)


def test_reported_loss_is_the_mean_of_the_steps_since_the_last_report(finished: Path, text: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "12", run__log_every=5) == 0
    every = losses(finished)
    means = [sum(every[0:5]) / 5, sum(every[5:10]) / 5, sum(every[10:12]) / 2]
    assert losses(tmp_path / "a") == pytest.approx(means, rel=1e-12)
    assert [line["step"] for line in lines(tmp_path / "a") if "loss" in line] == [5, 10, 12]


def test_loss_falls(finished: Path):
    values = losses(finished)
    assert math.log(300) * 0.95 < values[0] < math.log(300) * 1.05, "before the first update every piece is as likely"
    assert values[-1] < values[0] - 0.1


def test_learning_rate_of_a_line_is_that_of_its_step(finished: Path):
    rates = [line["learning_rate"] for line in lines(finished) if "loss" in line]
    assert rates[:4] == pytest.approx([0.0005, 0.001, 0.0015, 0.002])
    assert rates[-1] == min(rates[4:])


# ------------------------------------------------------------------ steps without a finite gradient


def poison(monkeypatch: pytest.MonkeyPatch, *bad_steps: int, value: float = math.nan) -> None:
    """The gradients of these steps, counted from 1, are not finite."""
    step = 0
    original = next_token.loss

    def rate(*arguments: Any) -> float:
        nonlocal step
        step += 1
        return learning_rate_factor(*arguments)

    def loss(*arguments: Any) -> Loss:
        found = original(*arguments)
        if step + 1 in bad_steps:
            found = Loss(found.total * value, found.reported, found.balance)
        return found

    monkeypatch.setattr("train.loop.learning_rate_factor", rate)
    monkeypatch.setattr(next_token, "loss", loss)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_step_without_a_finite_gradient_changes_nothing(
    value: float, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    poison(monkeypatch, 3, value=value)
    assert run(text, tmp_path / "a", "--steps", "4", run__save_every=1, run__keep_last=9) == 0
    before, after = (tmp_path / "a" / "checkpoints" / f"step_0000000{step}" for step in (2, 3))
    for name in ("model.safetensors", "optimizer.safetensors"):
        old, new = load_file(before / name), load_file(after / name)
        assert all(torch.equal(old[key], new[key]) for key in old), name
    assert [read_manifest(path)["optimizer_step"] for path in (before, after)] == [2, 2]
    assert [line["skipped"] for line in lines(tmp_path / "a") if "loss" in line] == [0, 0, 1, 1]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "a").values())
    assert read_manifest(newest(tmp_path / "a"))["optimizer_step"] == 3


def test_too_many_skipped_steps_in_a_row_stop_the_run(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    poison(monkeypatch, 2, 4, 5, 6)
    assert run(text, tmp_path / "a", "--steps", "9", run__max_skipped=3, run__save_every=2) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: stopped at step 6: 3 steps in a row had no finite gradient")
    assert marks(tmp_path / "a")["newest"] == "step_00000004"
    assert marks(tmp_path / "a")["finished"] is False


def test_count_of_skipped_steps_survives_a_resume(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poison(monkeypatch, 2, 3, 4)
    out = tmp_path / "a"
    assert run(text, out, "--steps", "9", "--stop-at", "3", run__max_skipped=3) == 0
    assert main(["--resume", str(out)]) == 1
    assert lines(out)[-1]["step"] == 4


# ------------------------------------------------------------------ checkpoints that stay


def test_last_checkpoints_and_the_best_stay(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = iter([5.0, 3.0, 4.0, 4.0, 6.0, math.nan])

    def evaluate(*arguments: object) -> dict[str, float]:
        value = next(found)
        return {"loss": value, "perplexity": 1.0, "bits_per_byte": 1.0}

    monkeypatch.setattr(next_token, "evaluate", evaluate)
    out = tmp_path / "a"
    changes: dict[str, Any] = {"eval__every": 1, "eval__select": "loss", "run__save_every": 1, "run__keep_last": 2}
    assert run(text, out, "--steps", "6", **changes) == 0
    assert marks(out) == {"newest": "step_00000006", "best": "step_00000002", "best_value": 3.0, "finished": True}
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert kept == ["step_00000002", "step_00000005", "step_00000006"]
    assert read_stored(out).step == 2


def test_without_a_selection_there_is_no_best(finished: Path):
    assert marks(finished) == {"newest": "step_00000012", "best": None, "best_value": None, "finished": True}
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["step_00000006", "step_00000012"]


def test_better_checkpoint_is_saved_when_it_is_found(text: Path, tmp_path: Path):
    out = tmp_path / "a"
    changes: dict[str, Any] = {"eval__every": 2, "eval__select": "loss", "run__save_every": 100, "run__keep_last": 1}
    assert run(text, out, "--steps", "5", **changes) == 0
    held_out = {line["step"]: line["valid_loss"] for line in lines(out) if "valid_loss" in line}
    assert sorted(held_out) == [2, 4, 5]
    best = min(held_out, key=lambda step: held_out[step])
    assert marks(out)["best"] == f"step_{best:08d}" and marks(out)["best_value"] == held_out[best]


# ------------------------------------------------------------------ reports


def test_samples_are_written_after_each_evaluation(text: Path, tmp_path: Path):
    out = tmp_path / "a"
    changes: dict[str, Any] = {"eval__prompts": ["The ", "An old"], "eval__sample_tokens": 3, "eval__every": 2}
    assert run(text, out, "--steps", "3", **changes) == 0
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["step_00000002.txt", "step_00000003.txt"]
    assert (out / "samples" / "step_00000003.txt").read_text().startswith("[The ]")


def test_sampling_does_not_change_the_run(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "12", eval__prompts=["The "], eval__sample_tokens=3) == 0
    assert lines(tmp_path / "a") == lines(finished)


def test_curve_is_drawn(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    monkeypatch.setattr("train.report.draw_curve", draw_curve)
    assert run(text, tmp_path / "a", "--steps", "2") == 0
    assert (tmp_path / "a" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_curve_without_a_report_or_without_matplotlib_is_left_out(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not draw_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png", "loss")
    monkeypatch.setattr("train.report.importlib.util.find_spec", lambda name: None)
    assert not draw_curve(finished / "metrics.jsonl", tmp_path / "loss.png", "loss")
    assert list(tmp_path.iterdir()) == []


def test_profile_writes_a_trace(text: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "6", run__profile=True) == 0
    trace = json.loads((tmp_path / "a" / "trace.json").read_text())
    assert any("adamw" in event.get("name", "") for event in trace["traceEvents"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_gets_every_number(text: Path, tmp_path: Path):
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    assert run(text, tmp_path / "a", "--steps", "2", run__report=["tensorboard"]) == 0
    written = [path.stat().st_size for path in (tmp_path / "a" / "tensorboard").iterdir()]
    assert written and min(written) > 100


def test_summary_is_json_on_standard_output(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(text, tmp_path / "a", "--steps", "2", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["run"] == str(tmp_path / "a")
    assert (summary["step"], summary["finished"], summary["tokens"]) == (2, True, 256)
    assert summary["loss"] == losses(tmp_path / "a")[-1]
    assert {"valid_loss", "valid_perplexity", "valid_bits_per_byte", "parameters", "overlap"} <= summary.keys()


def test_held_out_units_agree(finished: Path):
    line = lines(finished)[-1]
    assert line["valid_perplexity"] == pytest.approx(math.exp(line["valid_loss"]))
    assert 0 < line["valid_bits_per_byte"] < line["valid_loss"] / math.log(2)


def test_resolved_configuration_repeats_the_run(finished: Path, text: Path, tmp_path: Path):
    tables = tomllib.loads((finished / "config.toml").read_text())
    flags = [
        word
        for table, fields in tables.items()
        for key, value in fields.items()
        if key != "kind"
        for word in ("--set", f"{table}.{key}={json.dumps(value)}")
    ]
    assert main(["--preset", "demo", *flags, "--out", str(tmp_path / "again")]) == 0
    assert_same_run(tmp_path / "again", finished)


# ------------------------------------------------------------------ precision and other models


def test_bf16_trains_fp32_parameters(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "12", run__precision="bf16") == 0
    assert {tensor.dtype for tensor in weights(tmp_path / "a").values()} == {torch.float32}
    assert losses(tmp_path / "a") != losses(finished)
    assert losses(tmp_path / "a") == pytest.approx(losses(finished), rel=5e-3)


def test_recomputing_activations_changes_nothing(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "12", run__recompute=True) == 0
    assert lines(tmp_path / "a") == lines(finished)


def test_experts_report_their_balance(text: Path, tmp_path: Path):
    moe = {"num_experts": 3, "top_k": 2, "expert_interval": 2}
    assert run(text, tmp_path / "a", "--steps", "2", model__moe=moe) == 0
    balances = [line["balance"] for line in lines(tmp_path / "a") if "loss" in line]
    assert all(0.9 < balance < 1.5 for balance in balances)


# ------------------------------------------------------------------ beginning with a model


def test_adapters_train_on_a_base_that_stays(text: Path, finished: Path, tmp_path: Path):
    flags = ["--init", str(finished), "--steps", "4"]
    lora = {"rank": 2, "dropout": 0.1}
    assert run(text, tmp_path / "a", *flags, model__lora=lora) == 0
    adapters = weights(tmp_path / "a")
    assert adapters and all(".adapters." in name for name in adapters)
    assert any(tensor.abs().sum() > 0 for name, tensor in adapters.items() if name.endswith("up"))
    model = load_model(tmp_path / "a")
    assert isinstance(model.config, DecoderConfig) and model.config.lora == LoRAConfig(rank=2, dropout=0.1)
    base = weights(finished)
    assert all(torch.equal(dict(model.named_parameters())[name], tensor) for name, tensor in base.items())
    moments = load_file(newest(tmp_path / "a") / "optimizer.safetensors")
    assert {key.split(".", 1)[1] for key in moments} == adapters.keys()

    assert run(text, tmp_path / "b", *flags, "--stop-at", "2", model__lora=lora) == 0
    assert main(["--resume", str(tmp_path / "b")]) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_adapters_may_begin_with_adapters(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--init", str(finished), "--steps", "2", model__lora={"rank": 2}) == 0
    assert run(text, tmp_path / "b", "--init", str(tmp_path / "a"), "--steps", "2") == 0
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert lines(tmp_path / "b")[0]["loss"] < lines(tmp_path / "a")[0]["loss"]


def test_run_from_a_model_begins_where_the_model_was(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--init", str(finished), "--steps", "1") == 0
    assert read_stored(tmp_path / "a").config == read_stored(finished).config, "the model's architecture holds"
    assert losses(tmp_path / "a")[0] == pytest.approx(losses(finished)[-1], abs=0.1)


def test_original_bundle_can_be_trained_on(shared: Path, text: Path, tmp_path: Path):
    bundle = shared / "golden" / "decoder_tiny_bundle"
    changes: dict[str, Any] = {"data__block_size": 256, "data__tokens_per_step": 512}
    assert run(text, tmp_path / "a", "--init", str(bundle), "--steps", "2", **changes) == 0
    assert "block_size = 128" in (tmp_path / "a" / "config.toml").read_text(), "its context is 128 tokens"
    mine, theirs = read_stored(tmp_path / "a"), read_stored(bundle)
    assert mine.config == theirs.config and mine.tokenizer == theirs.tokenizer
    assert any(not torch.equal(mine.weights[name], theirs.weights[name]) for name in mine.weights)


# ------------------------------------------------------------------ the other commands


def test_tokenizer_command_writes_a_model_and_its_vocabulary(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "folder" / "mine.model"
    assert main(["tokenizer", *tiny(text), "--out", str(out), "--json"]) == 0
    tokenizer = Tokenizer.load(out)
    assert json.loads(capsys.readouterr().out) == {
        "tokenizer": str(out),
        "vocab_size": 300,
        "sha256": tokenizer.sha256,
    }
    assert len(out.with_suffix(".vocab").read_text().splitlines()) == 300
    assert run(text, tmp_path / "a", "--steps", "1", tokenizer__path=str(out)) == 0
    assert (newest(tmp_path / "a") / "tokenizer.model").read_bytes() == out.read_bytes()


def test_prepare_command_fills_the_cache(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIXELCORE_CACHE", str(tmp_path / "cache"))
    assert main(["prepare", *tiny(text), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["training_tokens"] > 1000 and summary["held_out_tokens"] > 100
    stores = [Path(store) for store in summary["stores"]]
    before = {path: path.stat().st_mtime_ns for store in stores for path in store.rglob("*.bin")}
    assert before and all(store.is_relative_to(tmp_path / "cache") for store in stores)
    assert main(["prepare", *tiny(text)]) == 0
    assert run(text, tmp_path / "a", "--steps", "1") == 0
    assert {path: path.stat().st_mtime_ns for store in stores for path in store.rglob("*.bin")} == before


# ------------------------------------------------------------------ without --data, and on a CPU


class Reached(Exception):
    """The setup is done, the training would begin."""


@pytest.fixture
def until_training(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Ends `main` where the first step would be; the list then holds the job."""
    jobs = []

    def begin(job: Any, stop_at: int | None) -> None:
        jobs.append(job)
        raise Reached

    monkeypatch.setattr("train.cli.train", begin)
    return jobs


@pytest.fixture
def no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the standard library's documentation, which takes seconds to collect."""
    path = tmp_path / "library" / "corpus.txt"
    path.parent.mkdir()
    path.write_text(small_text(60))
    monkeypatch.setattr("train.data.corpus.standard_library_corpus", lambda cache: path)
    return path


def test_default_corpus_is_named_and_kept_with_the_run(
    no_library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "a"
    flags = [flag for flag in tiny(no_library, eval__max_tokens=100) if flag not in ("--data", str(no_library))]
    assert main([*flags, "--steps", "4", "--stop-at", "2", "--out", str(out)]) == 0
    log = capsys.readouterr().err
    assert f"no --data: training on the documentation of Python's standard library ({no_library})" in log
    assert (out / "corpus.txt").read_bytes() == no_library.read_bytes()
    no_library.write_text("another Python has another documentation")
    assert main(["--resume", str(out)]) == 0


def test_large_preset_says_what_a_step_costs_here(
    no_library: Path, until_training: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # the architecture of 100m; only its vocabulary and what is read from it are smaller
    flags = ["--preset", "100m", "--device", "cpu", "--set", "model.vocab_size=300", "--set", "data.valid_share=0.1"]
    with pytest.raises(Reached):
        main([*flags, "--out", str(tmp_path / "a")])
    log = capsys.readouterr().err
    assert "a step is 262,144 tokens and" in log and "on this CPU" in log
    assert "the preset sized for a CPU is demo: --preset demo" in log
    blocks = until_training[0].settings.run.micro_batch_blocks
    assert 1 <= blocks < 256, "a part of the step, by the memory and what a CPU can use"
    assert f"micro-batches of {blocks} x 1024 tokens" in log
    assert f"micro_batch_blocks = {blocks}\n" in (tmp_path / "a" / "config.toml").read_text()


def test_run_folder_has_the_name_of_the_preset_and_the_time(
    text: Path, until_training: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Reached):
        main(tiny(text))
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("smoke-20") and folder.name.endswith("Z")


def test_paths_in_any_script_reach_the_configuration(until_training: list[Any], tmp_path: Path):
    data = tmp_path / 'текст "𝄞".txt'
    data.write_text(small_text(40))
    with pytest.raises(Reached):
        main([*tiny(data), "--out", str(tmp_path / "a")])
    assert until_training[0].settings.data.paths == (str(data),)
