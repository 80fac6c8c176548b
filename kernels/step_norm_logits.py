"""A step's last product: logits = W x / r in fp32, x the rows times the norm's weight, r their root mean square.

The floor is that of reading the head, V D values: 24.6 MB in bf16 of a vocabulary of 16,000 and D 768, 5.7 us at
4.3 TB/s, as much as two layers. Of PIXAR it is 128 rows a component, and what the kernel costs is its beginning. Logits
leave as fp32: what is drawn from them compares numbers that bf16 cannot tell apart.

A program owns COLUMNS of the V logits of all rows. Nothing else of the step knows how many logits there are, so the
scores of a mixture's components may stand behind its pixels, as further rows of one head:

    head  [ pixels of component 0 | pixels of component 1 | .. | scores ]        logits_BV of `norm_logits`

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

reference = step_ops.norm_logits

COLUMNS, FEW_COLUMNS = 32, 16  # of a vocabulary; of a head that gives every processor less than one program
INTERPRETED = Launch({"COLUMNS": 32, "DEPTH": 64})


@triton.jit
def _kernel(
    residual_ptr,
    norm_ptr,
    weight_ptr,
    logits_ptr,
    num_rows,
    residual_stride,
    weight_stride,
    V: tl.constexpr,
    D: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    y = product(
        *(residual_ptr, norm_ptr, weight_ptr, column, column < V),
        *(num_rows, residual_stride, weight_stride, D, EPS, ROWS, DEPTH),
    )
    tl.store(logits_ptr + row.to(tl.int64) * V + column[None], y, mask=(row < num_rows) & (column < V)[None])


def _run(residual_BD: Tensor, norm_D: Tensor, eps: float, head_VD: Tensor) -> Tensor:
    logits_BV = _fake(residual_BD, norm_D, eps, head_VD)
    num_rows, num_logits = logits_BV.shape
    tile = COLUMNS if num_logits > 4096 else FEW_COLUMNS
    chosen_by = {"rows": num_rows, "columns": num_logits, "depth": residual_BD.shape[1]}
    how = choose("step_norm_logits", residual_BD, default(residual_BD, "COLUMNS", tile), INTERPRETED, **chosen_by)
    launch(
        _kernel,
        (cdiv(num_logits, how.tiles["COLUMNS"]),),
        how,
        *(residual_BD, norm_D, head_VD, logits_BV),
        *(num_rows, residual_BD.stride(0), head_VD.stride(0)),
        V=num_logits,
        **constants(residual_BD, eps),
    )
    return logits_BV


def _fake(residual_BD: Tensor, norm_D: Tensor, eps: float, head_VD: Tensor) -> Tensor:
    return residual_BD.new_empty(len(residual_BD), len(head_VD), dtype=torch.float32)


_step = register(__name__, "step", "(Tensor residual, Tensor norm, float eps, Tensor head) -> Tensor", _run, _fake)


def fused(residual_BD: Tensor, norm_D: Tensor, eps: float, head_VD: Tensor) -> Tensor:
    """As `reference`, in one kernel; no logit is ever rounded to bf16. Raises ValueError for more than 64 rows, sizes
    and dtypes that do not fit each other, or a device on which no kernel runs."""
    check_rows("residual", residual_BD, "B D")
    check_norm(norm_D, residual_BD)
    check_weight("head", head_VD, "V D", residual_BD, D=residual_BD.shape[1])
    return _step(rows(residual_BD), norm_D.contiguous(), eps, rows(head_VD))


# ------------------------------------------------------------------ what the workshop asks


CASES = (
    Case("1 row", {"B": 1, "D": 72, "V": 40}),
    Case("17 rows, ragged", {"B": 17, "D": 65, "V": 33}),
    Case("64 rows", {"B": 64, "D": 16, "V": 16}),
)
TIMED = (
    *(
        Case(f"100m, {num_rows} row{'s' * (num_rows > 1)}", {"B": num_rows, "D": 768, "V": 16_000})
        for num_rows in (1, 16, 64)
    ),
    Case("pixar-85m, 16 rows", {"B": 16, "D": 768, "V": 128}),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    return {
        "residual_BD": draw.normal(case["B"], case["D"], scale=2),
        "norm_D": draw.normal(case["D"], shift=1, scale=0.2, dtype=torch.float32),
        "eps": 0.01,
        "head_VD": draw.normal(case["V"], case["D"], scale=case["D"] ** -0.5),
    }


def cost(case: Case, size: int) -> Cost:
    num_rows, width, num_logits = case["B"], case["D"], case["V"]
    num_bytes = (num_logits + num_rows) * width * size + 4 * num_rows * num_logits
    return Cost(forward_bytes=num_bytes, backward_bytes=0, forward_flops=2 * num_rows * num_logits * width)
