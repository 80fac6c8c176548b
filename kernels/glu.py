"""Gated linear unit of a packed projection: y = silu(g) u, where [g, u] is a row of it (SwiGLU, arXiv:2002.05202).

    forward   y  = g s u                       s = sigmoid(g)
    backward  du = dy g s
              dg = dy u s (1 + g (1 - s))

There is nothing to reuse between elements, so the floor is the memory's: 3 F values a row forward (read g and u, write
y), 5 F backward (read dy, g and u, write dg and du). Both are one pass. What the backward pass needs it computes again
from g and u, so y is kept by nobody but the product that reads it. The gradient is written packed, as the product that
follows wants it.

A program takes a tile of ROWS rows and COLUMNS of the F columns; halves begin F apart, so both loads are of neighbours.

    gate_up  [ g g g g | g g g g | u u u u | u u u u ]      y  [ . . . . | . . . . ]
    program      0, 0      0, 1      0, 0      0, 1                0, 0      0, 1
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check, rows
from kernels.launch import Launch, cdiv, choose, launch
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops

reference = ops.glu

DEFAULT = Launch({"ROWS": 2, "COLUMNS": 1024}, num_warps=4)
INTERPRETED = Launch({"ROWS": 64, "COLUMNS": 1024})


@triton.jit
def _forward_kernel(
    gate_up_ptr,
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
    gate = tl.load(gate_up_ptr + row * stride + column, mask=inside, other=0).to(WIDE)
    up = tl.load(gate_up_ptr + row * stride + F + column, mask=inside, other=0).to(WIDE)
    tl.store(y_ptr + row * F + column, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def _backward_kernel(
    dy_ptr,
    gate_up_ptr,
    dgate_up_ptr,
    num_rows,
    dy_stride,
    stride,
    F: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None]
    inside = (row < num_rows) & (column < F)
    dy = tl.load(dy_ptr + row * dy_stride + column, mask=inside, other=0).to(WIDE)
    gate = tl.load(gate_up_ptr + row * stride + column, mask=inside, other=0).to(WIDE)
    up = tl.load(gate_up_ptr + row * stride + F + column, mask=inside, other=0).to(WIDE)
    chance = tl.sigmoid(gate)
    out_ptr = dgate_up_ptr + row * (2 * F) + column
    tl.store(out_ptr, dy * up * chance * (1 + gate * (1 - chance)), mask=inside)
    tl.store(out_ptr + F, dy * gate * chance, mask=inside)


def _run_forward(gate_up_NF: Tensor) -> Tensor:
    y_NF = _fake_forward(gate_up_NF)
    num_rows, half = y_NF.shape
    how = choose("glu_forward", gate_up_NF, DEFAULT, INTERPRETED, columns=half)
    sizes = (num_rows, gate_up_NF.stride(0))
    launch(_forward_kernel, _grid(num_rows, half, how), how, gate_up_NF, y_NF, *sizes, F=half, WIDE=wide(gate_up_NF))
    return y_NF


def _fake_forward(gate_up_NF: Tensor) -> Tensor:
    return gate_up_NF.new_empty(gate_up_NF.shape[0], gate_up_NF.shape[1] // 2)


def _run_backward(dy_NF: Tensor, gate_up_NF: Tensor) -> Tensor:
    dgate_up_NF = _fake_backward(dy_NF, gate_up_NF)
    num_rows, half = dy_NF.shape
    how = choose("glu_backward", gate_up_NF, DEFAULT, INTERPRETED, columns=half)
    tensors, sizes = (dy_NF, gate_up_NF, dgate_up_NF), (num_rows, dy_NF.stride(0), gate_up_NF.stride(0))
    launch(_backward_kernel, _grid(num_rows, half, how), how, *tensors, *sizes, F=half, WIDE=wide(gate_up_NF))
    return dgate_up_NF


def _fake_backward(dy_NF: Tensor, gate_up_NF: Tensor) -> Tensor:
    return gate_up_NF.new_empty(gate_up_NF.shape)


def _grid(num_rows: int, columns: int, how: Launch) -> tuple[int, int]:
    return cdiv(num_rows, how.tiles["ROWS"]), cdiv(columns, how.tiles["COLUMNS"])


_forward = register(__name__, "forward", "(Tensor gate_up) -> Tensor", _run_forward, _fake_forward)
_backward = register(__name__, "backward", "(Tensor dy, Tensor gate_up) -> Tensor", _run_backward, _fake_backward)


class _GLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_NF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_NF)
        return _forward(gate_up_NF)

    @staticmethod
    def backward(ctx: Any, dy_NF: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _backward(rows(dy_NF), *ctx.saved_tensors)


def fused(gate_up_NF: Tensor, kind: str) -> Tensor:
    """As `reference`, in one pass each way. gate_up: [N, 2 F]. Raises ValueError for another kind than "silu", an odd
    width, or a device on which no kernel runs."""
    if kind != "silu":
        raise ValueError(f"kind = {kind!r}: this kernel knows 'silu'")
    check("gate_up", gate_up_NF, "N F")
    if gate_up_NF.shape[1] % 2:
        raise ValueError(f"gate_up has {gate_up_NF.shape[1]} columns: gate and up are halves, so it must be even")
    return _GLU.apply(rows(gate_up_NF))  # pyright: ignore[reportReturnType]


# ------------------------------------------------------------------ what the workshop asks


CASES = (
    *(Case(f"{num_rows} rows", {"N": num_rows, "F": 96}) for num_rows in (1, 16, 127, 128, 129)),
    Case("two pieces, the last one ragged", {"N": 3, "F": 1157}),
    Case("no rows", {"N": 0, "F": 16}),
)
TIMED = (
    Case("pixar-85m, 384 x 360", {"N": 138_240, "F": 2048}),
    Case("pixar-113m, 384 x 360", {"N": 138_240, "F": 3072}),
    Case("100m, 32 x 1024", {"N": 32_768, "F": 2048}),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    return {"gate_up_NF": draw.normal(case["N"], 2 * case["F"], grad=True), "kind": "silu"}


def cost(case: Case, size: int) -> Cost:
    values = case["N"] * case["F"] * size
    return Cost(forward_bytes=3 * values, backward_bytes=5 * values)
