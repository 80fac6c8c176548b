"""Many ranks compute what one computes: the same losses, whatever the engine, and they go on from each other's runs.

Ranks are processes of this machine that meet over gloo. One test starts them as users do, with torchrun.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.train.conftest import Server, free_port, lines, losses, marks, newest, tiny, weights
from train.cli import main

# 5 micro-batches of one block: the second of two ranks gets a filler
RANDOM = {
    "data__tokens_per_step": 160,
    "run__micro_batch_blocks": 1,
    "model__dropout": 0.1,
    "model__attention_dropout": 0.1,
    "model__moe": {"num_experts": 3, "top_k": 2, "expert_interval": 2},
}
ENGINES = ["ddp", "fsdp"]


def argv(text: Path, out: Path, *flags: str, **changes: Any) -> list[str]:
    return [*tiny(text, **changes), "--out", str(out), "--device", "cpu", *flags]


def assert_close(run: Path, reference: Path, relative: float = 1e-5) -> None:
    """Same lines, and values that differ by rounding; what a gradient adds up to rounds more than a loss."""
    mine, theirs = lines(run), lines(reference)
    assert [line.keys() for line in mine] == [line.keys() for line in theirs]
    for one, other in zip(mine, theirs):
        for key in one:
            assert one[key] == pytest.approx(other[key], rel=relative * (100 if key == "grad_norm" else 1)), (one, key)


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, six steps."""
    path = tmp_path_factory.mktemp("alone") / "run"
    assert main(argv(text, path, "--steps", "6", **RANDOM)) == 0
    return path


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_compute_the_losses_of_one(engine: str, server: Server, alone: Path, text: Path, tmp_path: Path):
    server.run_ranks(2, argv(text, tmp_path / "a", "--steps", "6", **RANDOM, run__parallel=engine))
    assert_close(tmp_path / "a", alone)
    mine, theirs = weights(tmp_path / "a"), weights(alone)
    assert mine.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("engine", [pytest.param("ddp", marks=pytest.mark.slow), pytest.param("fsdp")])
def test_run_moves_from_two_ranks_to_one_and_back(engine: str, server: Server, alone: Path, text: Path, tmp_path: Path):
    out = tmp_path / "a"
    # stops between two reports: what was summed up on two ranks is reported by one
    changes = RANDOM | {"run__log_every": 4, "run__parallel": engine}
    assert main(argv(text, tmp_path / "whole", "--steps", "6", **changes)) == 0
    server.run_ranks(2, argv(text, out, "--steps", "6", "--stop-at", "2", **changes))
    assert marks(out)["newest"] == "step_00000002"
    assert main(["--resume", str(out), "--stop-at", "3", "--device", "cpu"]) == 0
    server.run_ranks(2, ["--resume", str(out), "--device", "cpu"])
    assert_close(out, tmp_path / "whole")
    assert [line["step"] for line in lines(out) if "loss" in line] == [4, 6]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_more_ranks_than_micro_batches(engine: str, server: Server, text: Path, tmp_path: Path):
    changes = {"data__tokens_per_step": 64, "run__micro_batch_blocks": 1, "eval__max_tokens": 40}
    assert main(argv(text, tmp_path / "one", "--steps", "3", **changes)) == 0
    server.run_ranks(3, argv(text, tmp_path / "three", "--steps", "3", **changes, run__parallel=engine))
    assert_close(tmp_path / "three", tmp_path / "one")


def test_signal_to_one_rank_saves_and_stops_all(server: Server, alone: Path, text: Path, tmp_path: Path):
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    flags = argv(text, tmp_path / "a", "--steps", "6", **RANDOM)
    stop = [("train.loop", "learning_rate_factor", 3, 15)]
    ranks = [server.start(flags, stop if rank else [], shared | {"RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait() for rank in ranks] == [143, 143]
    assert marks(tmp_path / "a")["newest"] == "step_00000003"
    assert main(["--resume", str(tmp_path / "a"), "--device", "cpu"]) == 0
    assert_close(tmp_path / "a", alone)


@pytest.mark.slow
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
@pytest.mark.parametrize("preset", ["3b", "7b"])
def test_shrunken_copy_of_a_large_preset_takes_a_sharded_step(
    preset: str, moe: bool, server: Server, text: Path, tmp_path: Path
):
    heads = {"3b": 24, "7b": 32}[preset]
    fields = {
        "model.num_layers": 2,
        "model.hidden_size": 8 * heads,
        "model.intermediate_size": 64,
        "model.vocab_size": 300,
        "data.block_size": 32,
        "data.tokens_per_step": 96,
        "data.valid_share": 0.1,
        "eval.max_tokens": 200,
        "run.micro_batch_blocks": 1,
        "run.log_every": 1,
    }
    if moe:
        fields |= {"model.moe.num_experts": 4, "model.moe.expert_interval": 2}
    sets = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    flags = ["--preset", preset, "--data", str(text), "--stop-at", "1", "--device", "cpu", *sets]
    server.run_ranks(2, [*flags, "--out", str(tmp_path / "two")])
    config = (tmp_path / "two" / "config.toml").read_text()
    assert 'parallel = "fsdp"' in config and "recompute = true" in config
    assert main([*flags, "--out", str(tmp_path / "one")]) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_adapters_train_on_two_ranks(engine: str, server: Server, finished: Path, text: Path, tmp_path: Path):
    changes: dict[str, Any] = {"model__lora": {"rank": 2, "dropout": 0.1}, "run__micro_batch_blocks": 1}
    flags = ["--steps", "3", "--init", str(finished)]
    assert main(argv(text, tmp_path / "one", *flags, **changes)) == 0
    server.run_ranks(2, argv(text, tmp_path / "two", *flags, **changes, run__parallel=engine))
    assert_close(tmp_path / "two", tmp_path / "one")
    assert weights(tmp_path / "two").keys() == weights(tmp_path / "one").keys()


@pytest.mark.parametrize("engine", [pytest.param("ddp"), pytest.param("fsdp", marks=pytest.mark.slow)])
def test_torchrun_starts_the_ranks(engine: str, alone: Path, text: Path, tmp_path: Path):
    flags = argv(text, tmp_path / "a", "--steps", "6", "--stop-at", "2", "--json", **RANDOM, run__parallel=engine)
    # standalone: a port of its own, so that runs side by side do not meet
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert newest(tmp_path / "a").name == "step_00000002"
    assert losses(tmp_path / "a") == pytest.approx(losses(alone)[:2], rel=1e-5)
    assert done.stdout.count('"step": 2') == 1, "only the first rank reports"
