"""A step's way into the feed-forward layer: inner = silu(g) u, [g, u] = W x / r, r the root mean square of a row.

    g = W_gate (n x) / r      u = W_up (n x) / r      inner = g sigmoid(g) u          n: the norm's weight

The floor is that of reading W, 2 F D values: 6.3 MB in bf16 at D 768 and F 2048, 1.5 us at 4.3 TB/s. As separate
operations (norm, product, gate) it is three kernels, each of which takes that long to begin and to end.

A program owns COLUMNS values of inner, for which it needs as many rows of W_gate and of W_up. It takes them in turns,
g0 u0 g1 u1 .., so that they are one product, and the g and the u of a value end in the same thread of a tensor core's
result:

    W  [ gate 0 ]  rows of program 0: gate 0, up 0, gate 1, up 1        COLUMNS = 2
       [ gate 1 ]  rows of program 1: gate 2, up 2, ..
       [  ...   ]
       [ up 0   ]     y [ g0 u0 g1 u1 ]  ->  inner [ 0 0 | 1 1 | ..
       [ up 1   ]
       [  ...   ]

The product is that of `step_rows.py`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import rows
from kernels.launch import Launch, cdiv, choose, launch
from kernels.register import register
from kernels.step_rows import check_norm, check_rows, check_weight, constants, default, product
from kernels.workshop.cases import Case, Cost, Draw
from pixelcore import step_ops

reference = step_ops.norm_glu

COLUMNS = 16
INTERPRETED = Launch({"COLUMNS": 32, "DEPTH": 64})


@triton.jit
def _kernel(
    residual_ptr,
    norm_ptr,
    weight_ptr,
    inner_ptr,
    num_rows,
    residual_stride,
    weight_stride,
    D: tl.constexpr,
    F: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    turn = tl.arange(0, 2 * COLUMNS)
    column = tl.program_id(0) * COLUMNS + turn // 2
    feature = column + turn % 2 * F
    y = product(
        *(residual_ptr, norm_ptr, weight_ptr, feature, column < F),
        *(num_rows, residual_stride, weight_stride, D, EPS, ROWS, DEPTH),
    )
    gate, up = tl.split(tl.reshape(y, (ROWS, COLUMNS, 2)))
    row = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None]
    inside = (row < num_rows) & (column < F)
    tl.store(inner_ptr + row * F + column, gate * tl.sigmoid(gate) * up, mask=inside)


def _run(residual_BD: Tensor, norm_D: Tensor, eps: float, gate_up_FD: Tensor) -> Tensor:
    inner_BF = _fake(residual_BD, norm_D, eps, gate_up_FD)
    num_rows, hidden = inner_BF.shape
    chosen_by = {"rows": num_rows, "columns": hidden, "depth": residual_BD.shape[1]}
    how = choose("step_norm_glu", residual_BD, default(residual_BD, "COLUMNS", COLUMNS), INTERPRETED, **chosen_by)
    launch(
        _kernel,
        (cdiv(hidden, how.tiles["COLUMNS"]),),
        how,
        *(residual_BD, norm_D, gate_up_FD, inner_BF),
        *(num_rows, residual_BD.stride(0), gate_up_FD.stride(0)),
        F=hidden,
        **constants(residual_BD, eps),
    )
    return inner_BF


def _fake(residual_BD: Tensor, norm_D: Tensor, eps: float, gate_up_FD: Tensor) -> Tensor:
    return residual_BD.new_empty(len(residual_BD), len(gate_up_FD) // 2)


_step = register(__name__, "step", "(Tensor residual, Tensor norm, float eps, Tensor gate_up) -> Tensor", _run, _fake)


def fused(residual_BD: Tensor, norm_D: Tensor, eps: float, gate_up_FD: Tensor) -> Tensor:
    """As `reference`, in one kernel. Raises ValueError for more than 64 rows, sizes and dtypes that do not fit each
    other, an odd number of rows of the weight, or a device on which no kernel runs."""
    check_rows("residual", residual_BD, "B D")
    check_norm(norm_D, residual_BD)
    check_weight("gate_up", gate_up_FD, "F D", residual_BD, D=residual_BD.shape[1])
    if len(gate_up_FD) % 2:
        raise ValueError(f"gate_up has {len(gate_up_FD)} rows: as many of gate as of up make an even number")
    return _step(rows(residual_BD), norm_D.contiguous(), eps, rows(gate_up_FD))


# ------------------------------------------------------------------ what the workshop asks


CASES = (
    Case("1 row", {"B": 1, "D": 72, "F": 40}),
    Case("3 rows", {"B": 3, "D": 16, "F": 24}),
    Case("64 rows, ragged", {"B": 64, "D": 65, "F": 33}),
)
TIMED = tuple(
    Case(f"100m and pixar-85m, {num_rows} row{'s' * (num_rows > 1)}", {"B": num_rows, "D": 768, "F": 2048})
    for num_rows in (1, 16, 64)
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    return {
        "residual_BD": draw.normal(case["B"], case["D"], scale=2),
        "norm_D": draw.normal(case["D"], shift=1, scale=0.2, dtype=torch.float32),
        "eps": 0.01,
        "gate_up_FD": draw.normal(2 * case["F"], case["D"], scale=case["D"] ** -0.5),
    }


def cost(case: Case, size: int) -> Cost:
    num_rows, width, hidden = case["B"], case["D"], case["F"]
    values = 2 * hidden * width + num_rows * (width + hidden)
    return Cost(forward_bytes=values * size, backward_bytes=0, forward_flops=4 * num_rows * hidden * width)
