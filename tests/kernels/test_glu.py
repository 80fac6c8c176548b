"""The gated linear unit beyond what every kernel is asked: its bad input, and gates at the ends of their range."""

import pytest
import torch

from kernels.glu import fused


@pytest.mark.parametrize(
    ("gate_up", "kind", "message"),
    [
        (torch.zeros(2, 4), "gelu", "kind = 'gelu'"),
        (torch.zeros(2, 5), "silu", "gate_up has 5 columns"),
        (torch.zeros(4), "silu", r"gate_up has the shape \[4\]"),
        (torch.zeros(2, 4, dtype=torch.int64), "silu", "gate_up is int64"),
    ],
)
def test_bad_input_is_named(gate_up: torch.Tensor, kind: str, message: str):
    with pytest.raises(ValueError, match=message):
        fused(gate_up, kind)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # the interpreter's: exp(-gate) is infinite, as meant
def test_a_gate_far_open_lets_through_and_one_far_closed_does_not():
    gate_up = torch.tensor([[-6e4, -200.0, 200.0, 3.0, 3.0, 3.0]], dtype=torch.float16, requires_grad=True)
    y = fused(gate_up, "silu")
    y.sum().backward()
    assert y.tolist() == [[0.0, 0.0, 600.0]]
    assert gate_up.grad is not None
    assert gate_up.grad.tolist() == [[0.0, 0.0, 3.0, 0.0, 0.0, 200.0]]
