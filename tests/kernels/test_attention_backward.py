"""The backward pass of attention beyond the shared check: its other form, other tiles, where gradients stand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import attention, attention_backward, split_rope
from kernels.attention_rules import RULES
from kernels.launch import Launch
from kernels.workshop.check import findings
from pixelcore.dropout_bits import Drop
from pixelcore.ops import HeadLayout
from pixelcore.packed import Packed


@pytest.fixture
def one_pass(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The one-pass form takes the place of the split one; what it was asked for."""
    asked: list[str] = []

    def measured(op: str, x: Tensor, **sizes: int) -> Launch:
        asked.append(op)
        return Launch({"ROWS": 32, "KEYS": 32, "PROGRAMS": 1})

    monkeypatch.setattr(attention_backward, "measured_or_none", measured)
    return asked


def test_the_one_pass_form_stays_within_the_budgets_of_every_rule(one_pass: list[str]):
    chosen = [case for case in attention.CASES if case["H"] <= 2 and sum(case["lengths"]) > 21]
    assert {case["rule"] for case in chosen} == set(RULES)
    red = [
        str(finding)
        for case in chosen
        for finding in findings(attention, case, torch.float32, torch.device("cpu"), variants=False)
        if not finding.passed
    ]
    assert not red, "\n".join(red)
    assert set(one_pass) == {"attention_one_pass"}


def gradients(function: Any) -> list[Tensor]:
    """Of a document with hidden rows, dropout and two query heads for each key."""
    packed = Packed.from_lengths([45], visible=[40])
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(45, heads, 16, generator=generator, requires_grad=True) for heads in (2, 1, 1)]
    out, lse = function(*inputs, packed, "causal", 0.25, Drop(torch.tensor([1, 2]), packed, 0, 0.5))
    return list(torch.autograd.grad((out * out).sum() + lse.sin().sum(), inputs))


def test_tiles_of_any_size_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch):
    wanted = gradients(attention.reference)
    wide, tall = (Launch({"ROWS": rows, "KEYS": 80 - rows, "PROGRAMS": 1}) for rows in (16, 64))
    for split, one_pass in ((wide, None), (tall, None), (None, wide), (None, tall)):
        monkeypatch.setattr(attention_backward, "INTERPRETED", split)
        monkeypatch.setattr(attention_backward, "measured_or_none", lambda *_, form=one_pass, **__: form)
        for ours, theirs in zip(gradients(attention.fused), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_packed_projection_is_what_the_kernels_wrote(monkeypatch: pytest.MonkeyPatch):
    copies: list[Any] = []
    monkeypatch.setattr(split_rope.torch, "cat", lambda *given, **_: copies.append(given))
    packed, layout = Packed.from_lengths([3, 2]), HeadLayout(4, 2, 16, "none")
    qkv_NO = torch.randn(5, 128, requires_grad=True)
    q_NHK, k_NGK, v_NGK = split_rope.fused(qkv_NO, packed.positions, None, layout)
    out_NHK, _ = attention.fused(q_NHK, k_NGK, v_NGK, packed, "full", 0.25)
    parts = torch.autograd.grad(out_NHK, (q_NHK, k_NGK, v_NGK), torch.ones_like(out_NHK), retain_graph=True)
    (whole_NO,) = torch.autograd.grad(out_NHK, qkv_NO, torch.ones_like(out_NHK))
    assert not copies
    assert whole_NO.is_contiguous()
    heads = [head for x in parts for head in x.unbind(1)]
    assert torch.equal(whole_NO, torch.stack(heads, dim=1).flatten(1))
