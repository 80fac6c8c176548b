"""Attention over all lengths, and its errors beside another library's, with the formula in the place of everyone."""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels.workshop import attention_errors, attention_peers, bench, book, command_bench, contest, sweep, timing
from kernels.workshop.attention_composites import RopeAttention
from kernels.workshop.cases import Case
from kernels.workshop.contest import Setting, Subject
from kernels.workshop.peers import Peer
from pixelcore import ops
from pixelcore.errors import UserError

CPU = torch.device("cpu")
FORMULA: Any = SimpleNamespace(
    __name__="attention",
    reference=ops.softmax_attention,
    fused=ops.softmax_attention,
    CASES=(),
    arguments=sweep.Sweep.arguments,
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A book of two lengths of two series, and of one that was not measured."""
    for name in ("_FEWEST", "_MOST", "_WARM_UP"):
        monkeypatch.setattr(timing, name, 1)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)  # it would import the compiler
    peer = Peer("SDPA math, padded", attention_peers.padded(attention_peers.SDPBackend.MATH))
    subject = Subject(sweep.NAME, sweep.Sweep(FORMULA), (peer,), {"attention": FORMULA})
    setting = Setting(torch.float32, CPU, timing.HostClock(), {}, seconds=0.0)
    cases = [
        Case(f"{rule}, tiny, {length}", {"M": 8 // length, "L": length, "H": 2, "G": 1, "K": 8, "rule": rule})
        for rule in ("causal", "full")
        for length in (4, 2)
    ]
    a_book = book.Book(None, book.identity(torch.float32, CPU))
    assert bench.run_plan([(subject, case) for case in cases], setting, a_book, None, lambda line: None)
    return a_book.record


def test_every_series_walks_along_all_lengths_with_the_same_rows_and_width():
    assert len(sweep.CASES) == len(sweep.SERIES) * len(sweep.LENGTHS) == len({case.name for case in sweep.CASES})
    for case in sweep.CASES:
        assert case["M"] * case["L"] == sweep.ROWS
        assert case["H"] * case["K"] == sweep.WIDTH
        assert case["H"] % case["G"] == 0
    peers = [peer.name for peer in sweep.subject(FORMULA).peers]
    assert peers == list(sweep._PEERS)


def test_useful_work_counts_the_pairs_that_the_rule_shows():
    full, causal = (
        sweep.Sweep.cost(Case("", {"M": 3, "L": 4, "H": 2, "G": 1, "K": 8, "rule": rule}), 2)
        for rule in ("full", "causal")
    )
    assert full.forward_flops == 4 * 8 * 2 * 3 * 16
    assert causal.forward_flops == 4 * 8 * 2 * 3 * 10
    assert causal.backward_flops == causal.forward_flops * 5 // 2
    assert full.forward_bytes == 12 * (2 * 2 + 2 * 1) * 8 * 2 + 12 * 2 * 4


def test_everyone_is_measured_at_every_length_and_stands_in_the_table_and_the_picture(measured, tmp_path):
    for entry in measured["cases"]:
        contestants = {x["name"]: x for x in entry["contestants"]}
        assert list(contestants["ours"]["errors"]) == [
            "output 0",
            *(f"gradient of {name}" for name in ("q_NHK", "k_NGK", "v_NGK")),
        ]
        for name in ("ours", "SDPA math, padded"):
            assert contestants[name]["status"] == "timed", contestants[name]
            assert all(contestants[name][direction]["tflop_s"] for direction in contest.DIRECTIONS)
    lines = sweep.report(measured).splitlines()
    assert lines[0].split() == ["causal,", "tiny", "2", "4"]
    assert [line.split()[0] for line in lines[1:3]] == ["ours", "SDPA"]
    sweep.plot(measured, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_length_at_which_anyone_falls_behind_is_named(measured):
    for entry in measured["cases"]:
        for x in entry["contestants"]:
            x["forward"]["tflop_s"] = x["backward"]["tflop_s"] = 10.0
    assert sweep.cliffs(measured) == []
    assert sweep.report(measured).endswith("no cliff")
    slow = next(entry for entry in measured["cases"] if entry["case"] == "full, tiny, 4")
    slow["contestants"][1]["backward"]["tflop_s"] = 7.0
    assert sweep.cliffs(measured) == ["full, tiny: ours, backward, TFLOP/s: 10 at 2, 7 at 4"]


def test_errors_of_ours_and_of_another_stand_side_by_side():
    case = Case("tiny", {"M": 2, "L": 3, "H": 2, "G": 1, "K": 8, "rule": "full"})
    dropped = Case("dropped", {"p": 0.1})
    title, line, *rest = attention_errors.lines(FORMULA, torch.float32, CPU, [case, dropped], attention_peers.library)
    assert title == "attention, float32, error against fp64, ours / FlashAttention-2"
    assert [cell.split()[0] for cell in line[34:].split(", ")] == ["out", "dq", "dk", "dv"]
    assert rest == []
    _, line = attention_errors.lines(FORMULA, torch.float32, CPU, [case])
    assert "/ -" in line
    assert line.endswith(")")


def test_rope_and_attention_count_their_own_work():
    cost = RopeAttention.cost(Case("", {"M": 2, "L": 4, "H": 4, "G": 2, "K": 8}), 2)
    assert cost.forward_bytes == 8 * (8 + 4) * 8 * 2
    assert cost.forward_flops == 2 * 2 * 16 * 32


def test_the_sweep_is_of_attention_alone():
    options: dict[str, Any] = {"dtype": "bfloat16", "budget": None, "first": False, "plot": None, "sweep": True}
    command_bench._check(argparse.Namespace(names=["attention"], **options))
    for names in ([], ["glu"], ["attention", "glu"]):
        with pytest.raises(UserError, match="--sweep is of attention alone"):
            command_bench._check(argparse.Namespace(names=names, **options))
