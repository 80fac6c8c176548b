"""Dropout whose mask is a function of where it is used, see `pixelcore.dropout_bits` (dropout: arXiv:1207.0580).

    forward   y  = mask / (1 - p) * x          mask: the words of `philox.py` at or above p 2^32
    backward  dx = mask / (1 - p) * dy         the same kernel: the mask is made again and never stored

The floor is the memory's: 2 F values a row each way, read and written once; there is no mask to move, which would be
one byte or bit more an element.

A program takes a tile of ROWS rows and COLUMNS of the F columns, and makes the words of COLUMNS / 4 counters a row:

    x  [ . . . . . . . . | . . . . . . . . ]
       [ . . . . . . . . | . . . . . . . . ]
         program 0, 0       program 0, 1
         word w0 w1 w2 w3 of counter 0, of counter 1 ...
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check, check_together, rows
from kernels.launch import Launch, cdiv, choose, launch
from kernels.philox import keep_features, parts, threshold
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops
from pixelcore.dropout_bits import Drop

reference = ops.dropout

DEFAULT = Launch({"ROWS": 4, "COLUMNS": 256}, num_warps=4)
INTERPRETED = Launch({"ROWS": 64, "COLUMNS": 64})


@triton.jit(do_not_specialize=["num_rows", "site"])
def _kernel(
    x_ptr,
    seed_ptr,
    document_ptr,
    position_ptr,
    y_ptr,
    num_rows,
    stride,
    site,
    F: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    first = tl.program_id(1) * COLUMNS
    column = first + tl.arange(0, COLUMNS)[None]
    inside = (row < num_rows) & (column < F)
    x = tl.load(x_ptr + row * stride + column, mask=inside, other=0).to(WIDE)
    document = tl.load(document_ptr + row, mask=row < num_rows, other=0)
    position = tl.load(position_ptr + row, mask=row < num_rows, other=0)
    keep = keep_features(seed_ptr, document, position, site, first, COLUMNS, THRESHOLD)
    tl.store(y_ptr + row * F + column, tl.where(keep, x * SCALE, 0), mask=inside)


def _run(x_NF: Tensor, seed: Tensor, documents_N: Tensor, positions_N: Tensor, site: int, p: float) -> Tensor:
    y_NF = x_NF.new_empty(x_NF.shape)
    num_rows, width = x_NF.shape
    how = choose("dropout", x_NF, DEFAULT, INTERPRETED, columns=width)
    grid = (cdiv(num_rows, how.tiles["ROWS"]), cdiv(width, how.tiles["COLUMNS"]))
    numbers, constants = (num_rows, x_NF.stride(0), site), {"THRESHOLD": threshold(p), "SCALE": 1 / (1 - p)}
    tensors = (x_NF, seed, documents_N, positions_N, y_NF)
    launch(_kernel, grid, how, *tensors, *numbers, F=width, **constants, WIDE=wide(x_NF))
    return y_NF


def _fake(x_NF: Tensor, seed: Tensor, documents_N: Tensor, positions_N: Tensor, site: int, p: float) -> Tensor:
    return x_NF.new_empty(x_NF.shape)


_SIGNATURE = "(Tensor x, Tensor seed, Tensor documents, Tensor positions, int site, float p) -> Tensor"
_drop = register(__name__, "elements", _SIGNATURE, _run, _fake)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, seed: Tensor, documents_N: Tensor, positions_N: Tensor, *use: Any) -> Tensor:
        ctx.save_for_backward(seed, documents_N, positions_N)
        ctx.use = use
        return _drop(x_NF, seed, documents_N, positions_N, *use)

    @staticmethod
    def backward(ctx: Any, dy_NF: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _drop(rows(dy_NF), *ctx.saved_tensors, *ctx.use), *[None] * 5


def fused(x_NF: Tensor, drop: Drop) -> Tensor:
    """As `reference`, in one pass each way. Raises ValueError for a probability that is not in [0, 1), names of another
    number of rows, or a device on which no kernel runs."""
    check("x", x_NF, "N F")
    check_together(x=x_NF, seed=drop.seed)
    return _Dropout.apply(rows(x_NF), *parts(drop, x_NF.shape[0]))  # pyright: ignore[reportReturnType]


# ------------------------------------------------------------------ what the workshop asks


CASES = (
    *(Case(f"{num_rows} rows", {"N": num_rows, "F": 30, "p": 0.3}) for num_rows in (1, 16, 127, 128, 129)),
    Case("two pieces, the last one ragged", {"N": 3, "F": 101, "p": 0.1}),
    Case("nothing dropped", {"N": 2, "F": 16, "p": 0.0}),
)
TIMED = (
    Case("pixel-base fine-tuned, 64 strips", {"N": 33_920, "F": 768, "p": 0.1}),
    Case("pixel-base fine-tuned, one strip", {"N": 530, "F": 768, "p": 0.1}),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    num_rows = case["N"]
    lengths = [num_rows // 2, num_rows - num_rows // 2] if num_rows > 1 else [1]
    return {"x_NF": draw.normal(num_rows, case["F"], grad=True), "drop": draw.drop(lengths, case["p"])}


def cost(case: Case, size: int) -> Cost:
    values = case["N"] * case["F"] * size
    return Cost(forward_bytes=2 * values, backward_bytes=2 * values)
