"""A run on strips that stops and goes on is the run that never stopped, bit for bit: rows, masks, dropout, pictures."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import Server, lines, marks, newest
from tests.train.tiny_pixels import LOOKING, assert_same_pixel_run, resume, run, tiny_pixels

VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "with pictures and reading, after an evaluation": (3, LOOKING | {"eval__every": 3}),
    "recomputing, between reports": (4, {"run__recompute": True, "run__log_every": 3}),
    "in bf16, without dropout, masks of PIXEL-M4 as the paper counts": (
        2,
        {
            "run__precision": "bf16",
            "model__hidden_dropout": 0.0,
            "model__attention_dropout": 0.0,
            "objective__rule": "span-m4",
            "objective__counts": "paper",
        },
    ),
    "bigrams in three colours": (1, {"render__layout": "bigrams", "render__color": "rgb"}),
}


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of 10 steps that nothing disturbed, dropout included. Read it, never write to it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert run(text, path, "--steps", "10") == 0
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_run_equals_the_uninterrupted_one(variant: str, text: Path, tmp_path: Path):
    stop, changes = VARIANTS[variant]
    assert run(text, tmp_path / "a", "--steps", "5", **changes) == 0
    assert run(text, tmp_path / "b", "--steps", "5", "--stop-at", str(stop), **changes) == 0
    assert marks(tmp_path / "b")["finished"] is False
    assert resume(tmp_path / "b") == 0
    assert_same_pixel_run(tmp_path / "a", tmp_path / "b")


def test_resumed_in_the_midst_of_an_epoch_that_is_not_the_first(text: Path, tmp_path: Path):
    few = tmp_path / "few.txt"
    few.write_text("\n\n".join(text.read_text().split("\n\n")[:6]))
    changes = {"eval__max_rows": 2, "data__rows_per_step": 13}
    assert run(few, tmp_path / "a", "--steps", "4", **changes) == 0
    assert run(few, tmp_path / "b", "--steps", "4", "--stop-at", "2", **changes) == 0
    assert resume(tmp_path / "b") == 0
    assert_same_pixel_run(tmp_path / "a", tmp_path / "b")


def test_processes_that_draw_ahead_change_nothing(text: Path, finished: Path, tmp_path: Path):
    assert run(text, tmp_path / "b", "--steps", "10", "--stop-at", "6", data__workers=1) == 0
    assert resume(tmp_path / "b") == 0
    assert_same_pixel_run(tmp_path / "b", finished)


def test_killed_run_goes_on_in_a_new_process(server: Server, text: Path, finished: Path, tmp_path: Path):
    out = tmp_path / "b"
    argv = [*tiny_pixels(text), "--device", "cpu", "--steps", "10", "--out", str(out)]
    assert server.run(argv, ("train.loop", "learning_rate_factor", 9, signal.SIGKILL)) == -signal.SIGKILL
    assert newest(out).name == "step_00000006"
    assert lines(out)[-1]["step"] == 8, "reports of steps that will be made again"
    assert server.run(["--resume", str(out), "--device", "cpu"]) == 0
    assert_same_pixel_run(out, finished)


def test_signal_within_a_step_saves_and_the_run_can_go_on(server: Server, text: Path, finished: Path, tmp_path: Path):
    out = tmp_path / "b"
    argv = [*tiny_pixels(text), "--device", "cpu", "--steps", "10", "--out", str(out)]
    # 3 micro-batches a step: the 14th is the second of step 5
    place = ("train.objectives.masked_patches", "loss", 14, signal.SIGTERM)
    assert server.run(argv, place) == 143
    assert newest(out).name == "step_00000004"
    assert resume(out) == 0
    assert_same_pixel_run(out, finished)


def test_changed_text_is_refused(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = tmp_path / "own.txt"
    data.write_bytes(text.read_bytes())
    assert run(data, tmp_path / "b", "--steps", "4", "--stop-at", "2") == 0
    data.write_bytes(text.read_bytes().replace(b"ferryman", b"fisherman"))
    assert resume(tmp_path / "b") == 2
    assert "text has changed since the run began" in capsys.readouterr().err


def test_changed_renderer_is_refused(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(text, tmp_path / "b", "--steps", "4", "--stop-at", "2") == 0
    config = tmp_path / "b" / "config.toml"
    config.write_text(config.read_text().replace("lift = 2", "lift = 1"))
    assert resume(tmp_path / "b") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the model has seen strips of another renderer (render.lift" in line
