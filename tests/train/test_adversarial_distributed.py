"""Two ranks play the duel that one does: the same figures, and weights that differ by rounding."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import Server, newest
from tests.train.tiny_adversarial import (
    PATCH,
    assert_close_duel,
    assert_same_duel,
    begun,
    run,
    tiny_adversarial,
)
from tests.train.tiny_pixels import resume

__all__ = ["begun"]

STEPS = ("--steps", "4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"objective__lag": 1, "objective__draw": "batch", "objective__hot_layers": 1}, PATCH],
    ids=["gentle", "published, cold layers", "without context"],
)
def test_two_ranks_play_what_one_does(changes: Any, server: Server, text: Path, begun: Path, tmp_path: Path):
    assert run(text, begun, tmp_path / "one", *STEPS, **changes) == 0
    argv = [*tiny_adversarial(text, begun, **changes), "--device", "cpu", "--out", str(tmp_path / "two"), *STEPS]
    server.run_ranks(2, argv)
    assert_close_duel(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_more_ranks_than_micro_batches_and_from_them_to_one(server: Server, text: Path, begun: Path, tmp_path: Path):
    assert run(text, begun, tmp_path / "one", *STEPS, run__log_every=3) == 0
    argv = [*tiny_adversarial(text, begun, run__log_every=3), "--device", "cpu", "--out", str(tmp_path / "four")]
    server.run_ranks(4, [*argv, *STEPS, "--stop-at", "2"])
    assert resume(tmp_path / "four") == 0
    assert_close_duel(tmp_path / "four", tmp_path / "one")


@pytest.mark.slow
def test_signal_within_a_step_saves_and_the_duel_can_go_on(server: Server, text: Path, begun: Path, tmp_path: Path):
    assert run(text, begun, tmp_path / "a", *STEPS, "--stop-at", "3") == 0
    argv = [*tiny_adversarial(text, begun), "--device", "cpu", "--out", str(tmp_path / "b"), *STEPS]
    # 3 micro-batches a step: the 8th is the second of step 3
    assert server.run(argv, ("train.objectives.adversarial", "loss", 8, signal.SIGTERM)) == 143
    assert newest(tmp_path / "b").name == "step_00000002"
    assert resume(tmp_path / "b", "--stop-at", "3") == 0
    assert_same_duel(tmp_path / "a", tmp_path / "b")
