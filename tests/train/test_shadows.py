"""Training with shadows of the weights is training with casts, bit for bit, and leaves the same checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelcore import shadows
from pixelcore.ops import REFERENCE
from tests.train import tiny_patches, tiny_pixels
from tests.train.conftest import assert_same_run, tiny
from tests.train.tiny_pixels import assert_same_pixel_run
from train.cli import main

MOE = {"num_experts": 3, "top_k": 2, "expert_interval": 2}
DROPPED = {"model__dropout": 0.1, "run__recompute": True}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs keep shadows: their operations are another record than the reference, with the same functions. The list gets
    an entry for each use of a shadow."""
    monkeypatch.setattr("train.job.choose_ops", lambda device, choice: replace(REFERENCE))
    uses: list[int] = []
    original = shadows._Cast.apply

    def counted(weight: Tensor, shadow: Tensor) -> Any:
        assert torch.equal(weight.bfloat16(), shadow), "an old shadow"
        uses.append(1)
        return original(weight, shadow)

    monkeypatch.setattr(shadows._Cast, "apply", counted)
    return uses


@pytest.mark.parametrize("changes", [{}, {"model__moe": MOE, **DROPPED}], ids=["dense", "experts"])
def test_a_decoder_learns_the_same_and_resumes(
    changes: dict[str, Any], text: Path, tmp_path: Path, used: list[int], monkeypatch: pytest.MonkeyPatch
):
    flags = [*tiny(text, run__precision="bf16", **changes), "--steps", "6"]
    with monkeypatch.context() as plainly:
        plainly.setattr("train.job.choose_ops", lambda device, choice: REFERENCE)
        assert main([*flags, "--out", str(tmp_path / "plain")]) == 0
    assert not used
    assert main([*flags, "--out", str(tmp_path / "whole")]) == 0
    assert used
    assert_same_run(tmp_path / "plain", tmp_path / "whole")
    assert main([*flags, "--out", str(tmp_path / "halves"), "--stop-at", "3"]) == 0
    assert main(["--resume", str(tmp_path / "halves")]) == 0
    assert_same_run(tmp_path / "plain", tmp_path / "halves")


@pytest.mark.parametrize("family", [tiny_pixels, tiny_patches], ids=["pixels", "patches"])
def test_models_of_strips_learn_the_same(
    family: Any, text: Path, tmp_path: Path, used: list[int], monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as plainly:
        plainly.setattr("train.job.choose_ops", lambda device, choice: REFERENCE)
        assert family.run(text, tmp_path / "plain", "--steps", "4", run__precision="bf16") == 0
    assert family.run(text, tmp_path / "shadowed", "--steps", "4", run__precision="bf16") == 0
    assert used
    assert_same_pixel_run(tmp_path / "plain", tmp_path / "shadowed")


def test_fp32_has_no_shadows(text: Path, tmp_path: Path, used: list[int]):
    assert main([*tiny(text, run__precision="fp32"), "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    assert not used
