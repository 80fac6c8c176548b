"""y = z Phi(z) of z = x + bias, Phi the normal distribution itself and not its tanh shape (arXiv:1606.08415).

    forward   y = z Phi(z)                              phi the density, exp(-z^2 / 2) / sqrt(2 pi)
    backward  dx = dy (Phi(z) + z phi(z))               dbias = sum of dx over the rows

There is nothing to reuse between elements, so the floor is the memory's: read x and write y, 2 F values a row forward;
read dy and x and write dx, 3 F backward. z is computed again in the backward pass, and the sum over the rows is taken
where dx is at hand: as an operation of its own it would read dx once more.

In that time a processor of an H200 issues 28 instructions for an element of bf16 forward, 41 backward; with the
library's erf the compiler makes 39 and 53, so arithmetic would be the limit. By symmetry the lower tail Phi(-|z|) is
enough, and it decides both results:

    tail = Phi(-|z|)        y = max(z, 0) - |z| tail
    w = tail - |z| phi(z)   dy/dz = w where z < 0, else 1 - w

`_tail` has its binary logarithm as a polynomial: it bends so little that eight multiplications and one power of two
give it to fp32's last digits: 18 and 32 instructions, and right in the tail too, where 1 + erf(z / sqrt(2)) cancels.

A program of the forward pass takes a tile of ROWS rows and COLUMNS columns. One of the backward pass keeps to its
columns and goes down the rows, every num_parts-th tile, with the sum of each column in registers. The parts' sums are
added by a second kernel, in a fixed order: no atomics, so a run repeats bit for bit.

    dx  [ 0, 0 | 1, 0 ]  rows 0 ..
        [ 0, 1 | 1, 1 ]            program (column block, part) of num_parts = 2
        [ 0, 0 | 1, 0 ]            partials_1PF, P = 2  [ 0, 0 | 1, 0 ]
        [ 0, 1 | 1, 1 ]                                 [ 0, 1 | 1, 1 ]   -> dbias  [ . . | . . ]
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check, check_together, rows
from kernels.column_sums import column_sums
from kernels.launch import Launch, cdiv, choose, launch, num_processors
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops

reference = ops.gelu

DEFAULT = Launch({"ROWS": 4, "COLUMNS": 1024}, num_warps=4)
DEFAULT_BACKWARD = Launch({"ROWS": 2, "COLUMNS": 1024}, num_warps=4)
INTERPRETED = Launch({"ROWS": 64, "COLUMNS": 128})
INTERPRETED_BACKWARD = Launch({"ROWS": 16, "COLUMNS": 128})
_PER_PROCESSOR = 8  # programs of the backward pass that a processor holds at a time
_LEAST_TILES = 4  # of a part: a sum of fewer would weigh as much as what it adds up


@triton.jit
def _forward_kernel(
    x_ptr,
    bias_ptr,
    y_ptr,
    num_rows,
    stride,
    F: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None]
    inside = (row < num_rows) & (column < F)
    bias = tl.load(bias_ptr + column, mask=column < F, other=0).to(WIDE)
    z = tl.load(x_ptr + row * stride + column, mask=inside, other=0).to(WIDE) + bias
    size = _size(z)
    tl.store(y_ptr + row * F + column, tl.maximum(z, 0.0) - size * _tail(size), mask=inside)


@triton.jit
def _backward_kernel(
    dy_ptr,
    x_ptr,
    bias_ptr,
    dx_ptr,
    partials_ptr,
    num_rows,
    dy_stride,
    stride,
    F: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    part, num_parts = tl.program_id(1), tl.num_programs(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None]
    bias = tl.load(bias_ptr + column, mask=column < F, other=0).to(WIDE)
    total = tl.zeros((ROWS, COLUMNS), WIDE)
    for first in range(part * ROWS, num_rows, num_parts * ROWS):
        row = first + tl.arange(0, ROWS)[:, None].to(tl.int64)
        inside = (row < num_rows) & (column < F)
        dy = tl.load(dy_ptr + row * dy_stride + column, mask=inside, other=0).to(WIDE)
        z = tl.load(x_ptr + row * stride + column, mask=inside, other=0).to(WIDE) + bias
        size = _size(z)
        w = _tail(size) - size * _density(size)
        dx = dy * tl.where(z < 0, w, 1 - w)
        total += dx
        tl.store(dx_ptr + row * F + column, dx, mask=inside)
    tl.store(partials_ptr + part * F + column, tl.sum(total, axis=0)[None], mask=column < F)


@triton.jit
def _size(z):
    """|z|, at most 16, where the tail is zero in fp32 and infinity times it is too. NaN stays NaN."""
    return tl.minimum(tl.abs(z), 16.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _tail(size):
    """Phi(-size) for size >= 0. The polynomial is the minimax fit of its binary logarithm on [0, 6], each deviation
    weighted with what it does to y, -1 at zero; beyond, it falls on and the tail is below 1e-9. fp64 asks for more."""
    if size.dtype == tl.float64:
        return 0.5 - 0.5 * tl.erf(size * 0.7071067811865476)
    power = 2.32078164e-05 + size * -1.47052162e-06
    power = -0.000110257308 + size * power
    power = -0.000317753234 + size * power
    power = 0.00729528675 + size * power
    power = -0.05265221 + size * power
    power = -0.459159315 + size * power
    power = -1.15111029 + size * power
    return tl.exp2(-1 + size * power)


@triton.jit
def _density(size):
    """exp(-size^2 / 2) / sqrt(2 pi)."""
    return 0.3989422804014327 * tl.exp2(size * size * -0.7213475204444817)  # log2(e) / 2


def _run_forward(x_NF: Tensor, bias_F: Tensor) -> Tensor:
    y_NF = _fake_forward(x_NF, bias_F)
    num_rows, width = x_NF.shape
    how = choose("gelu_forward", x_NF, DEFAULT, INTERPRETED, columns=width)
    grid = (cdiv(num_rows, how.tiles["ROWS"]), cdiv(width, how.tiles["COLUMNS"]))
    launch(_forward_kernel, grid, how, x_NF, bias_F, y_NF, num_rows, x_NF.stride(0), F=width, WIDE=wide(x_NF))
    return y_NF


def _fake_forward(x_NF: Tensor, bias_F: Tensor) -> Tensor:
    return x_NF.new_empty(x_NF.shape)


def _run_backward(dy_NF: Tensor, x_NF: Tensor, bias_F: Tensor) -> tuple[Tensor, Tensor]:
    num_rows, width = x_NF.shape
    how = choose("gelu_backward", x_NF, DEFAULT_BACKWARD, INTERPRETED_BACKWARD, columns=width)
    blocks = cdiv(width, how.tiles["COLUMNS"])
    most_parts = cdiv(num_rows, how.tiles["ROWS"] * _LEAST_TILES)
    num_parts = min(most_parts, cdiv(_PER_PROCESSOR * num_processors(x_NF.device), blocks))
    dx_NF = x_NF.new_empty(x_NF.shape)
    sums_dtype = torch.promote_types(x_NF.dtype, torch.float32)
    partials_1PF = x_NF.new_empty(1, num_parts, width, dtype=sums_dtype)
    tensors, sizes = (dy_NF, x_NF, bias_F, dx_NF, partials_1PF), (num_rows, dy_NF.stride(0), x_NF.stride(0))
    launch(_backward_kernel, (blocks, num_parts), how, *tensors, *sizes, F=width, WIDE=wide(x_NF))
    return dx_NF, column_sums(partials_1PF, bias_F.dtype)[0]


def _fake_backward(dy_NF: Tensor, x_NF: Tensor, bias_F: Tensor) -> tuple[Tensor, Tensor]:
    return x_NF.new_empty(x_NF.shape), bias_F.new_empty(bias_F.shape)


_forward = register(__name__, "forward", "(Tensor x, Tensor bias) -> Tensor", _run_forward, _fake_forward)
_backward = register(
    __name__, "backward", "(Tensor dy, Tensor x, Tensor bias) -> (Tensor, Tensor)", _run_backward, _fake_backward
)


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, bias_F: Tensor) -> Tensor:
        ctx.save_for_backward(x_NF, bias_F)
        return _forward(x_NF, bias_F)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy_NF: Tensor
    ) -> tuple[Tensor, Tensor]:
        return _backward(rows(dy_NF), *ctx.saved_tensors)


def fused(x_NF: Tensor, bias_F: Tensor) -> Tensor:
    """As `reference`, in one pass each way, and rounded once: the bias and its sum stay in fp32. Raises ValueError for
    a bias of another width, or a device on which no kernel runs."""
    check("x", x_NF, "N F")
    check("bias", bias_F, "F", F=x_NF.shape[1])
    check_together(x=x_NF, bias=bias_F)
    return _GELU.apply(rows(x_NF), bias_F.contiguous())  # pyright: ignore[reportReturnType]


# ------------------------------------------------------------------ what the workshop asks


CASES = (
    *(Case(f"{num_rows} rows", {"N": num_rows, "F": 96}) for num_rows in (1, 16, 127, 128, 129)),
    Case("several parts, two pieces, the last ones ragged", {"N": 330, "F": 157}),
    Case("no rows", {"N": 0, "F": 16}),
)
TIMED = (
    Case("pixel-base encoder, 256 x 397", {"N": 101_632, "F": 3072}),
    Case("pixel-base decoder, 256 x 530", {"N": 135_680, "F": 2048}),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    return {"x_NF": draw.normal(case["N"], case["F"], grad=True), "bias_F": draw.parameter(case["F"])}


def cost(case: Case, size: int) -> Cost:
    values = case["N"] * case["F"] * size
    return Cost(forward_bytes=2 * values, backward_bytes=3 * values)
