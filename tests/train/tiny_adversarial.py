"""Tiny runs of stage 2, which begin with a tiny run of stage 1: what its tests share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train import tiny_patches
from tests.train.conftest import lines, newest, overrides
from train.cli import main

FILES = ("model", "optimizer", "state", "discriminator", "discriminator_optimizer")
# 5 rows a step in micro-batches of 2: the last is not full, and the second of two ranks gets a filler
TINY = {name: value for name, value in tiny_patches.TINY.items() if not name.startswith("model.")} | {
    "data.workers": 0,
    "eval.words": 0,
    "eval.every": 99,
    "objective.fakes_per_strip": 4,
    "objective.strength_warmup_steps": 4,
    "discriminator.learning_rate": 0.01,
    "discriminator.warmup_steps": 2,
    "optimizer.learning_rate": 0.01,
    "schedule.warmup_steps": 4,
}
PATCH = {"discriminator": {"kind": "patch", "width": 16, "num_blocks": 1}}


def tiny_adversarial(data: Path, init: Path, **changes: Any) -> list[str]:
    """Flags of a tiny run of stage 2; changes: fields, with `__` for the dot."""
    fields = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return ["--preset", "pixar-adversarial", "--init", str(init), "--data", str(data), *overrides(fields)]


def run(data: Path, init: Path, out: Path, *flags: str, **changes: Any) -> int:
    return main([*tiny_adversarial(data, init, **changes), "--device", "cpu", "--out", str(out), *flags])


def stage_one(data: Path, out: Path, **changes: Any) -> Path:
    """A run of stage 1 of two layers."""
    flags = ("--steps", "2")
    assert tiny_patches.run(data, out, *flags, model__num_layers=2, optimizer__learning_rate=0.01, **changes) == 0
    return out


@pytest.fixture(scope="session")
def begun(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 2 begins with. Read it, never write to it."""
    return stage_one(text, tmp_path_factory.mktemp("begun") / "run")


def tensors(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(newest(run) / f"{name}.safetensors")


def assert_same_duel(one: Path, other: Path) -> None:
    """Bit for bit: metrics, and every tensor of the newest checkpoint."""
    assert lines(one) == lines(other)
    for name in FILES:
        mine, theirs = tensors(one, name), tensors(other, name)
        assert mine.keys() == theirs.keys()
        different = [key for key in mine if not torch.equal(mine[key], theirs[key])]
        assert not different, f"{name}.safetensors: {different}"


def assert_close_duel(one: Path, other: Path) -> None:
    """The same but for rounding."""
    for mine, theirs in zip(lines(one), lines(other), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert mine[key] == pytest.approx(value, rel=2e-4, abs=1e-5), key
    for name in ("model", "discriminator"):
        mine, theirs = tensors(one, name), tensors(other, name)
        for key, value in theirs.items():
            torch.testing.assert_close(
                mine[key], value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )
