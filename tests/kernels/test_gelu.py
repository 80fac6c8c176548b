"""GELU beyond what every kernel is asked: its own polynomial against the normal distribution, and special values."""

import math

import pytest
import torch
from torch import Tensor

from kernels.gelu import fused


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(3), r"bias has the shape \[3\]: it must be \[F\], F = 4"),
        (torch.zeros(4), torch.zeros(4), r"x has the shape \[4\]"),
        (torch.zeros(2, 4, dtype=torch.uint8), torch.zeros(4), "x is uint8"),
    ],
)
def test_bad_input_is_named(x: Tensor, bias: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        fused(x, bias)


def test_polynomial_is_the_normal_distribution_in_its_tail_too():
    z = torch.linspace(-9, 9, 4000)
    y, dy_dz = _with_gradient(z)
    wide = z.double()
    chance = torch.special.ndtr(wide)
    slope = chance + wide * torch.exp(-wide.square() / 2) / math.sqrt(2 * math.pi)
    rounding = torch.finfo(torch.float32).eps
    assert ((y - wide * chance).abs() <= rounding * (wide.abs() / 2 + 0.5)).all()
    assert ((dy_dz - slope).abs() <= 2 * rounding).all()
    tail = (wide > -5) & (wide < 0)
    assert ((y / (wide * chance) - 1).abs()[tail] < 1e-3).all()
    assert (y.diff()[z[1:] > 0] > 0).all()


def test_infinite_values_go_to_their_limits_and_nan_stays_nan():
    z = torch.tensor([-math.inf, -1e30, 0.0, 1e30, math.inf, math.nan])
    y, dy_dz = _with_gradient(z)
    assert torch.equal(y.nan_to_num(nan=7, posinf=8), torch.tensor([0, 0, 0, 1e30, 8, 7]))
    assert torch.equal(dy_dz.nan_to_num(nan=7), torch.tensor([0, 0, 0.5, 1, 1, 7]))


def test_the_sum_for_the_bias_is_not_rounded_on_its_way():
    x = torch.full((80, 8), 30.0, dtype=torch.float16, requires_grad=True)
    bias = torch.zeros(8, requires_grad=True)
    (sum_F,) = torch.autograd.grad(fused(x, bias), bias, torch.full_like(x, 1001.0))
    assert torch.equal(sum_F, torch.full((8,), 80_080.0))  # beyond what fp16 holds


def _with_gradient(z: Tensor) -> tuple[Tensor, Tensor]:
    x = z.view(-1, 100 if len(z) > 100 else len(z)).requires_grad_()  # a program takes rows of one block of columns
    y = fused(x, torch.zeros(x.shape[1]))
    return y.detach().flatten(), torch.autograd.grad(y, x, torch.ones_like(y))[0].flatten()
