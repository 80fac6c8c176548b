"""A run that stops and goes on is the run that never stopped, bit for bit, however it stopped."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelcore.checkpoint import read_stored
from pixelcore.durable import TEMPORARY
from tests.killing import killed_at_every_write
from tests.train.conftest import Server, assert_same_run, lines, marks, newest, tiny, weights
from train.cli import _parser, _settings, main
from train.distributed import Ranks
from train.job import Job, new_job
from train.loop import _Meter, _save
from train.run_folder import RunFolder

MOE = {"num_experts": 3, "top_k": 2, "expert_interval": 2}
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "between reports": (7, {"run__log_every": 5}),
    "before the first report": (2, {"run__log_every": 5, "run__save_every": 1}),
    "with everything random": (
        6,
        {"model__dropout": 0.1, "model__attention_dropout": 0.1, "model__moe": MOE, "run__recompute": True},
    ),
    "untied, weighted, in bf16": (
        5,
        {"model__tie_word_embeddings": False, "run__precision": "bf16", "run__micro_batch_blocks": 3},
    ),
    "with samples, after an evaluation": (6, {"eval__prompts": ["The "], "eval__sample_tokens": 3}),
}


def run(data: Path, out: Path, *flags: str, **changes: Any) -> int:
    return main([*tiny(data, **changes), "--out", str(out), *flags])


def resume(path: Path, *flags: str) -> int:
    return main(["--resume", str(path), *flags])


def test_resumed_run_equals_the_uninterrupted_one(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "b", "--steps", "12", "--stop-at", "6") == 0
    assert marks(tmp_path / "b")["finished"] is False
    assert resume(tmp_path / "b") == 0
    assert_same_run(tmp_path / "b", finished)
    assert marks(tmp_path / "b") == marks(finished)
    assert marks(finished)["finished"] is True


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_run_equals_the_uninterrupted_one_for(variant: str, text: Path, tmp_path: Path):
    stop, changes = VARIANTS[variant]
    assert run(text, tmp_path / "a", "--steps", "10", **changes) == 0
    assert run(text, tmp_path / "b", "--steps", "10", "--stop-at", str(stop), **changes) == 0
    assert resume(tmp_path / "b") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_run_may_be_resumed_many_times(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "b", "--steps", "12", "--stop-at", "1") == 0
    for stop in (2, 5, 9):
        assert resume(tmp_path / "b", "--stop-at", str(stop)) == 0
        assert newest(tmp_path / "b").name == f"step_{stop:08d}"
    assert resume(tmp_path / "b") == 0
    assert_same_run(tmp_path / "b", finished)


# ------------------------------------------------------------------ signals

# the 12 steps have 2 micro-batches each, so the 15th is the first of step 7 and the 16th its last
_LOSS, _RATE = ("train.objectives.next_token", "loss"), ("train.loop", "learning_rate_factor")


def test_killed_run_goes_on_from_its_last_checkpoint(server: Server, text: Path, finished: Path, tmp_path: Path):
    out = tmp_path / "b"
    argv = [*tiny(text), "--steps", "12", "--out", str(out)]
    assert server.run(argv, (*_RATE, 9, signal.SIGKILL)) == -signal.SIGKILL
    assert newest(out).name == "step_00000006"
    assert lines(out)[-1]["step"] == 8, "reports of steps that will be made again"
    assert resume(out) == 0
    assert_same_run(out, finished)


@pytest.mark.parametrize(
    "number, status, place, call, saved",
    [
        (signal.SIGTERM, 143, _RATE, 5, 5),
        (signal.SIGINT, 130, _RATE, 5, 5),
        (signal.SIGTERM, 143, _LOSS, 15, 7),
        (signal.SIGINT, 130, _LOSS, 16, 8),
        (signal.SIGTERM, 143, _LOSS, 1, 0),
        (signal.SIGTERM, 143, _RATE, 6, 6),
    ],
    ids=["term", "int", "term within a step", "int at a step's end", "term in the first step", "term where one is due"],
)
def test_signal_saves_and_the_run_can_go_on(
    number: int,
    status: int,
    place: tuple[str, str],
    call: int,
    saved: int,
    server: Server,
    text: Path,
    finished: Path,
    tmp_path: Path,
):
    out = tmp_path / "b"
    argv = [*tiny(text), "--steps", "12", "--out", str(out)]
    assert server.run(argv, (*place, call, number)) == status
    assert newest(out).name == f"step_{saved:08d}"
    assert resume(out) == 0
    assert_same_run(out, finished)


def test_step_that_a_signal_cut_short_never_happened(server: Server, text: Path, finished: Path, tmp_path: Path):
    out = tmp_path / "b"
    argv = [*tiny(text, run__micro_batch_blocks=1), "--steps", "12", "--out", str(out)]
    # 4 micro-batches a step: the 14th is the second of step 4
    assert server.run(argv, (*_LOSS, 14, signal.SIGTERM)) == 143
    assert newest(out).name == "step_00000003"
    assert [line["step"] for line in lines(out)] == [1, 2, 3]
    state = json.loads((newest(out) / "manifest.json").read_text())
    assert (state["step"], state["optimizer_step"]) == (3, 3)


def test_second_signal_ends_the_run_without_saving(server: Server, text: Path, tmp_path: Path):
    out = tmp_path / "b"
    argv = [*tiny(text), "--steps", "12", "--out", str(out)]
    child = server.start(argv, [(*_RATE, 3, signal.SIGINT), ("train.loop", "write_checkpoint", 1, signal.SIGINT)])
    assert child.wait() == 130
    assert marks(out)["newest"] is None
    assert "once more to stop without" in child.err.read_text()


# ------------------------------------------------------------------ what may change


def test_resuming_a_finished_run_changes_nothing(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "b"
    assert run(text, out, "--steps", "2") == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert resume(out) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert "is finished at step 2" in capsys.readouterr().err


def test_steps_make_a_finished_run_longer(text: Path, tmp_path: Path):
    out = tmp_path / "b"
    assert run(text, out, "--steps", "2") == 0
    assert resume(out, "--steps", "5", "--stop-at", "4") == 0
    assert marks(out)["finished"] is False, "it has become longer"
    assert resume(out) == 0
    assert marks(out)["finished"] is True and newest(out).name == "step_00000005"


def test_steps_never_make_a_run_shorter(finished: Path, capsys: pytest.CaptureFixture[str]):
    before = (finished / "config.toml").read_bytes()
    assert resume(finished, "--steps", "11") == 2
    assert "it can only be made longer" in capsys.readouterr().err
    assert (finished / "config.toml").read_bytes() == before


def test_stop_before_the_checkpoint_trains_nothing(text: Path, tmp_path: Path):
    assert run(text, tmp_path / "b", "--steps", "4", "--stop-at", "3") == 0
    assert resume(tmp_path / "b", "--stop-at", "2") == 0
    assert newest(tmp_path / "b").name == "step_00000003"


def test_micro_batch_is_decided_once(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "b"
    sizes = []
    monkeypatch.setattr("train.job.micro_batch_blocks", lambda needed, device, **others: sizes.append(needed) or 3)
    assert run(text, out, "--steps", "4", "--stop-at", "2", run__micro_batch_blocks=0) == 0
    assert "micro_batch_blocks = 3" in (out / "config.toml").read_text()
    assert resume(out) == 0
    assert len(sizes) == 1
    assert "micro_batch_blocks = 3" in (out / "config.toml").read_text()


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", "1"],
        ["--set", "run.seed=1"],
        ["--preset", "smoke"],
        ["--data", "x"],
        ["--valid", "x"],
        ["--init", "x"],
        ["--out", "x"],
    ],
    ids=lambda flags: flags[0],
)
def test_resume_keeps_the_settings_of_the_run(flags: list[str], finished: Path, capsys: pytest.CaptureFixture[str]):
    before = (finished / "config.toml").read_bytes()
    assert resume(finished, *flags) == 2
    assert f"error: {flags[0]} cannot be used with --resume" in capsys.readouterr().err
    assert (finished / "config.toml").read_bytes() == before


def test_changed_training_text_is_refused(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = tmp_path / "own.txt"
    data.write_bytes(text.read_bytes())
    assert run(data, tmp_path / "b", "--steps", "4", "--stop-at", "2") == 0
    data.write_bytes(text.read_bytes().replace(b"ferryman", b"fisherman"))
    assert resume(tmp_path / "b") == 2
    assert "text has changed since the run began" in capsys.readouterr().err
    data.write_bytes(text.read_bytes())
    assert resume(tmp_path / "b") == 0


def test_run_goes_on_with_the_tokenizer_of_its_checkpoint(text: Path, tmp_path: Path):
    mine = tmp_path / "mine.model"
    assert main(["tokenizer", *tiny(text), "--out", str(mine)]) == 0
    settings = {"tokenizer__path": str(mine)}
    assert run(text, tmp_path / "a", "--steps", "4", **settings) == 0
    assert run(text, tmp_path / "b", "--steps", "4", "--stop-at", "2", **settings) == 0
    mine.unlink()
    assert resume(tmp_path / "b") == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_run_without_a_checkpoint_starts_from_its_first_step(
    server: Server, text: Path, finished: Path, tmp_path: Path
):
    out = tmp_path / "b"
    argv = [*tiny(text), "--steps", "12", "--out", str(out)]
    assert server.run(argv, (*_RATE, 4, signal.SIGKILL)) == -signal.SIGKILL
    assert marks(out)["newest"] is None
    assert resume(out) == 0
    assert_same_run(out, finished)


def test_run_from_a_model_keeps_its_beginning_when_killed_before_a_checkpoint(
    server: Server, text: Path, finished: Path, tmp_path: Path
):
    argv = [*tiny(text, model__lora={"rank": 2}), "--init", str(finished), "--steps", "4"]
    assert main([*argv, "--out", str(tmp_path / "a")]) == 0
    out = tmp_path / "b"
    assert server.run([*argv, "--out", str(out)], (*_RATE, 2, signal.SIGKILL)) == -signal.SIGKILL
    assert resume(out) == 0
    assert_same_run(tmp_path / "a", out)


def test_save_killed_at_every_write_leaves_a_run_that_goes_on(text: Path, tmp_path: Path):
    out = tmp_path / "b"
    job = _job(text, out, 4)
    with torch.no_grad():
        for step in (1, 2):
            job.step = step
            _save(job, _Meter(job))
        job.step, before = 3, weights(out)
        changed = {name: parameter.detach() + 1 for name, parameter in job.model.named_parameters()}
        job.model.load_state_dict(changed)
    tmp_path.joinpath("saved").mkdir()
    shutil.copytree(out, tmp_path / "saved" / "b")
    places = []
    for place in killed_at_every_write(lambda: _save(job, _Meter(job))):
        places.append(place)
        found = read_stored(out)
        wanted = before if found.step == 2 else changed
        assert all(torch.equal(found.weights[name], wanted[name]) for name in wanted), place
        assert found.step in (2, 3)
        RunFolder.open(out).forget_after(found.step)
        _save(job, _Meter(job))
        assert marks(out)["newest"] == "step_00000003"
        assert {entry.name for entry in (out / "checkpoints").iterdir()} == {"step_00000002", "step_00000003"}, place
        assert not [entry for entry in out.iterdir() if entry.name.startswith(TEMPORARY)], place
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "saved" / "b", out)
    assert any("before rmtree" in place and "step_00000001" in place for place in places), "it prunes, too"


def _job(text: Path, out: Path, steps: int) -> Job:
    """A run before its first step."""
    arguments = _parser().parse_args([*tiny(text, eval__max_tokens=100), "--steps", str(steps)])
    return new_job(_settings(arguments), RunFolder(out), Ranks(0, 1, torch.device("cpu")), "auto", None)


def test_half_a_line_of_a_killed_writer_is_dropped(text: Path, finished: Path, tmp_path: Path):
    out = tmp_path / "b"
    assert run(text, out, "--steps", "12", "--stop-at", "6") == 0
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert resume(out) == 0
    assert lines(out) == lines(finished)


def test_what_was_written_after_the_checkpoint_is_made_again(text: Path, finished: Path, tmp_path: Path):
    out = tmp_path / "b"
    assert run(text, out, "--steps", "12", "--stop-at", "6") == 0
    (out / "checkpoints" / "step_00000009").mkdir()
    (out / "samples" / "step_00000009.txt").write_text("from a life that did not happen")
    assert resume(out) == 0
    assert_same_run(out, finished)
    assert not (out / "checkpoints" / "step_00000009").exists()


def test_seed_decides_weights_and_order(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "c", "--steps", "1", "--seed", "1") == 0
    assert lines(tmp_path / "c")[0]["loss"] != lines(finished)[0]["loss"]
    assert weights(tmp_path / "c").keys() == weights(finished).keys()


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("run.json", b'{"newest": ', "run.json: damaged"),
        ("config.toml", b"[run\n", "config.toml: not valid TOML"),
        ("config.toml", b"\xff\xfe", "config.toml: damaged"),
    ],
)
def test_damaged_run_is_named(
    name: str, content: bytes, expected: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(text, tmp_path / "b", "--steps", "1") == 0
    (tmp_path / "b" / name).write_bytes(content)
    assert resume(tmp_path / "b") == 2
    assert expected in capsys.readouterr().err


def test_resume_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert resume(tmp_path / "nothing") == 2
    assert "no run there" in capsys.readouterr().err
