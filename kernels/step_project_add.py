"""A step's way out of the feed-forward layer: residual + W inner, in one kernel.

The floor is that of reading W, D F values: 3.1 MB in bf16 at D 768 and F 2048, 0.7 us at 4.3 TB/s, so the beginning and
the end of a kernel weigh more than the product, and an addition in a kernel of its own would double it. The sum is
rounded once, from fp32.

A program owns COLUMNS of the D columns and begins with what it adds to, which nothing has to be waited for:

    residual_BD  [ 0 0 | 1 1 | 2 2 ]   +   inner_BF . W_DF^T, rows of W:  [ 0 0 | 1 1 | 2 2 ]

The product is that of `step_rows.py`, with no norm before it.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import rows
from kernels.launch import Launch, cdiv, choose, launch
from kernels.register import register
from kernels.step_rows import check_rows, check_same, check_weight, constants, default, product
from kernels.workshop.cases import Case, Cost, Draw
from pixelcore import step_ops

reference = step_ops.project_add

COLUMNS = 16
INTERPRETED = Launch({"COLUMNS": 32, "DEPTH": 64})


@triton.jit
def _kernel(
    inner_ptr,
    weight_ptr,
    residual_ptr,
    sum_ptr,
    num_rows,
    inner_stride,
    weight_stride,
    residual_stride,
    OUT: tl.constexpr,
    D: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < num_rows) & (column < OUT)[None]
    residual = tl.load(residual_ptr + row.to(tl.int64) * residual_stride + column[None], mask=inside, other=0)
    y = product(
        inner_ptr, None, weight_ptr, column, column < OUT, num_rows, inner_stride, weight_stride, D, EPS, ROWS, DEPTH
    )
    tl.store(sum_ptr + row * OUT + column[None], residual.to(tl.float32) + y, mask=inside)


def _run(inner_BF: Tensor, down_DF: Tensor, residual_BD: Tensor) -> Tensor:
    sum_BD = _fake(inner_BF, down_DF, residual_BD)
    num_rows, width = sum_BD.shape
    chosen_by = {"rows": num_rows, "columns": width, "depth": inner_BF.shape[1]}
    how = choose("step_project_add", inner_BF, default(inner_BF, "COLUMNS", COLUMNS), INTERPRETED, **chosen_by)
    launch(
        _kernel,
        (cdiv(width, how.tiles["COLUMNS"]),),
        how,
        *(inner_BF, down_DF, residual_BD, sum_BD),
        *(num_rows, inner_BF.stride(0), down_DF.stride(0), residual_BD.stride(0)),
        OUT=width,
        **constants(inner_BF),
    )
    return sum_BD


def _fake(inner_BF: Tensor, down_DF: Tensor, residual_BD: Tensor) -> Tensor:
    return residual_BD.new_empty(residual_BD.shape)


_step = register(__name__, "step", "(Tensor inner, Tensor down, Tensor residual) -> Tensor", _run, _fake)


def fused(inner_BF: Tensor, down_DF: Tensor, residual_BD: Tensor) -> Tensor:
    """As `reference`, in one kernel. Raises ValueError for more than 64 rows, sizes and dtypes that do not fit each
    other, or a device on which no kernel runs."""
    check_rows("inner", inner_BF, "B F")
    check_weight("down", down_DF, "D F", inner_BF, F=inner_BF.shape[1])
    check_rows("residual", residual_BD, "B D", B=len(inner_BF), D=len(down_DF))
    check_same("residual", residual_BD, inner_BF)
    return _step(rows(inner_BF), rows(down_DF), rows(residual_BD))


# ------------------------------------------------------------------ what the workshop asks


CASES = (
    Case("1 row", {"B": 1, "D": 40, "F": 72}),
    Case("3 rows", {"B": 3, "D": 24, "F": 16}),
    Case("64 rows, ragged", {"B": 64, "D": 33, "F": 65}),
)
TIMED = tuple(
    Case(f"100m and pixar-85m, {num_rows} row{'s' * (num_rows > 1)}", {"B": num_rows, "D": 768, "F": 2048})
    for num_rows in (1, 16, 64)
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    return {
        "inner_BF": draw.normal(case["B"], case["F"]),
        "down_DF": draw.normal(case["D"], case["F"], scale=case["F"] ** -0.5),
        "residual_BD": draw.normal(case["B"], case["D"], scale=2),
    }


def cost(case: Case, size: int) -> Cost:
    num_rows, width, hidden = case["B"], case["D"], case["F"]
    values = width * hidden + num_rows * (2 * width + hidden)
    return Cost(forward_bytes=values * size, backward_bytes=0, forward_flops=2 * num_rows * hidden * width)
