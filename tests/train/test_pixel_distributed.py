"""Many ranks train on strips as one does: the same losses, whatever the engine, and weights that differ by rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import Server, newest, weights
from tests.train.test_distributed import assert_close
from tests.train.tiny_pixels import resume, run, tiny_pixels

STEPS = ("--steps", "6")


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, six steps of 3 micro-batches: of two ranks, the second gets a filler."""
    path = tmp_path_factory.mktemp("alone") / "run"
    assert run(text, path, *STEPS) == 0
    return path


def ranks(server: Server, world: int, text: Path, out: Path, *flags: str, **changes: Any) -> None:
    server.run_ranks(world, [*tiny_pixels(text, **changes), "--device", "cpu", "--out", str(out), *flags])


def assert_same_weights(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_ranks_compute_what_one_does(engine: str, server: Server, alone: Path, text: Path, tmp_path: Path):
    ranks(server, 2, text, tmp_path / "a", *STEPS, run__parallel=engine)
    assert_close(tmp_path / "a", alone)
    assert_same_weights(tmp_path / "a", alone)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_more_ranks_than_micro_batches(engine: str, server: Server, alone: Path, text: Path, tmp_path: Path):
    ranks(server, 4, text, tmp_path / "a", *STEPS, run__parallel=engine)
    assert_close(tmp_path / "a", alone)
    assert_same_weights(tmp_path / "a", alone)


@pytest.mark.slow
def test_run_moves_from_two_ranks_to_one(server: Server, alone: Path, text: Path, tmp_path: Path):
    ranks(server, 2, text, tmp_path / "a", *STEPS, "--stop-at", "2", run__parallel="fsdp", data__workers=1)
    assert newest(tmp_path / "a").name == "step_00000002"
    assert resume(tmp_path / "a") == 0
    assert_close(tmp_path / "a", alone)
    assert_same_weights(tmp_path / "a", alone)
