"""Many ranks train on next patches as one does: the same losses, whatever the engine, and weights that differ by
rounding."""

from pathlib import Path

import pytest

from tests.train.conftest import Server
from tests.train.test_distributed import assert_close
from tests.train.test_pixel_distributed import assert_same_weights
from tests.train.tiny_patches import run, tiny_patches

STEPS = ("--steps", "6")


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, six steps of 3 micro-batches: of two ranks, the second gets a filler."""
    path = tmp_path_factory.mktemp("alone") / "run"
    assert run(text, path, *STEPS) == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize("world, engine", [(2, "ddp"), (2, "fsdp"), (4, "ddp")])
def test_ranks_compute_what_one_does(world: int, engine: str, server: Server, alone: Path, text: Path, tmp_path: Path):
    out = tmp_path / "a"
    flags = [*tiny_patches(text, run__parallel=engine), "--device", "cpu", "--out", str(out), *STEPS]
    server.run_ranks(world, flags)
    assert_close(out, alone)
    assert_same_weights(out, alone)
