"""What the shared check of kernels does not ask of add_norm."""

import pytest
import torch

from kernels import add_norm
from kernels.add_norm import fused, reference
from kernels.launch import recorded


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def test_without_a_branch_the_stream_is_x_and_its_gradient_is_added_here():
    x, weight = draw(3, 32), draw(32, seed=1)
    residual, normed = fused(x, None, weight, None, 1e-5)
    assert residual.data_ptr() == x.data_ptr()
    (dx,) = torch.autograd.grad([residual, normed], [x], [torch.ones(3, 32), torch.ones(3, 32)])
    other, expected = reference(x, None, weight, None, 1e-5)
    (wanted,) = torch.autograd.grad([other, expected], [x], [torch.ones(3, 32), torch.ones(3, 32)])
    torch.testing.assert_close(dx, wanted)


def test_gradients_of_stream_and_branch_are_tensors_apart():
    """They are one result of the kernel: what accumulates into one must not reach the other."""
    x, delta, weight = draw(3, 32), draw(3, 32, seed=1), draw(32, seed=2)
    for _ in range(2):
        residual, normed = fused(x, delta, weight, None, 1e-5)
        (residual.sum() + normed.square().sum()).backward()
    assert x.grad is not None and delta.grad is not None and x.grad.data_ptr() != delta.grad.data_ptr()
    torch.testing.assert_close(x.grad, delta.grad, rtol=0, atol=0)
    residual, normed = reference(x, delta, weight, None, 1e-5)
    (once,) = torch.autograd.grad(residual.sum() + normed.square().sum(), [x])
    torch.testing.assert_close(x.grad, 2 * once)


def test_rows_whose_squares_are_beyond_half_precision():
    x = torch.full((2, 64), 300.0, dtype=torch.float16)
    assert torch.equal(fused(x, None, torch.ones(64), None, 1e-5)[1], torch.ones(2, 64, dtype=torch.float16))


def test_a_constant_row_normalises_to_the_bias():
    x, bias = torch.full((2, 48), 7.0), draw(48)
    torch.testing.assert_close(fused(x, None, torch.ones(48), bias, 1e-12)[1], bias.expand(2, 48))


def test_the_backward_pass_of_the_last_norm_reads_no_gradient_of_the_stream():
    x, weight = draw(3, 32), draw(32, seed=1)
    with recorded() as launches:
        fused(x, None, weight, None, 1e-5)[1].sum().backward()
    assert [launch.arguments[0] is None for launch in launches] == [False, True, False]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x_ND": torch.ones(3, 8193)}, "the width of x = 8193: this kernel goes to 8192"),
        ({"delta_ND": torch.ones(4, 8)}, r"delta has the shape \[4, 8\]: it must be \[N, D\], N = 3, D = 8"),
        ({"delta_ND": torch.ones(3, 8).double()}, "delta is float64: it must be one of float32"),
        ({"bias_D": torch.ones(8).half()}, "bias is float16: it must be one of float32"),
        ({"delta_ND": None, "delta_bias_D": torch.ones(8)}, "delta_bias is given and delta is None"),
    ],
)
def test_bad_input(change, message):
    given = {"x_ND": torch.ones(3, 8), "delta_ND": torch.ones(3, 8), "weight_D": torch.ones(8), "bias_D": None}
    with pytest.raises(ValueError, match=message):
        fused(**{**given, "eps": 1e-5, **change})


def test_every_width_has_a_launch_that_holds_its_row():
    for width in (1, 16, 200, 512, 576, 768, 1024, 2048, 4096, add_norm.LIMIT):
        tiles = add_norm.default(width).tiles
        assert 4 * tiles["COLUMNS"] >= width and tiles["ROWS"] * tiles["COLUMNS"] >= 1024
