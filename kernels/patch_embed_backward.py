"""The gradients of the weight and of the bias of `patch_embed.py`: dW = sum of dy_n x_p^T and db = sum of dy_n over the
rows of patches. The pixels are gathered a second time from where they are stored; rows of -1 are not read.

dW is small and its sum long: the 768 x 256 of grey patches are 12 tiles of 128 x 128, and one program for each would
leave most of a GPU idle. So the rows are cut into parts. A program sums its tile over one part, in fp32; the parts are
added afterwards, in one order, so that two equal runs end in equal bits. The tile of dy that it reads gives db on the
way.

                      D                  A
    part 0   dy  [ 0 0 | 1 1 ]    x  [ v v v v ]     dW  [ 0 0 0 0 ]  program 0, 0: COLUMNS of D, VALUES of A, and the
                 [ 0 0 | 1 1 ]       [ v v v v ]         [ 0 0 0 0 ]                rows of part 0 in steps of ROWS
    part 1       [ 2 2 | 3 3 ]       [ v v v v ]         [ 1 1 1 1 ]  program 1, 0
                 [ 2 2 | 3 3 ]       [ v v v v ]         [ 1 1 1 1 ]  + the same of programs 0, 1 and 1, 1
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.column_sums import column_sums
from kernels.launch import Launch, cdiv, choose, launch, num_processors
from kernels.register import register
from kernels.stored_pixels import Stored, numbers
from kernels.workshop.cases import wide

# the numbers of the rows are a load of their own, ahead of what they lead to: five stages hold two tiles of dy
DEFAULT = Launch({"ROWS": 64, "COLUMNS": 128, "VALUES": 128}, num_warps=8, num_stages=5)
DEFAULT_EXACT = Launch({"ROWS": 32, "COLUMNS": 64, "VALUES": 64}, num_warps=8, num_stages=2)
INTERPRETED = Launch({"ROWS": 64, "COLUMNS": 64, "VALUES": 128})


@triton.jit
def _weight_kernel(
    dy_ptr,
    pixels_ptr,
    rows_ptr,
    dweight_ptr,
    dbias_ptr,
    num_rows,
    rows_per_part,
    dy_stride,
    pixels_stride,
    D: tl.constexpr,
    A: tl.constexpr,
    PACKED: tl.constexpr,
    FACTOR: tl.constexpr,
    SHIFT: tl.constexpr,
    DIVISOR: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VALUES: tl.constexpr,
):
    value_tiles: tl.constexpr = (A + VALUES - 1) // VALUES
    column = (tl.program_id(0) // value_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    first_value = (tl.program_id(0) % value_tiles) * VALUES
    value = first_value + tl.arange(0, VALUES)
    part = tl.program_id(1).to(tl.int64)
    last = tl.minimum((part + 1) * rows_per_part, num_rows)
    dweight = tl.zeros([COLUMNS, VALUES], WIDE)
    dbias = tl.zeros([ROWS, COLUMNS], WIDE)
    for first in range(part * rows_per_part, last, ROWS):
        row = first + tl.arange(0, ROWS).to(tl.int64)
        patch = tl.load(rows_ptr + row, mask=row < last, other=-1)
        inside = (patch >= 0)[:, None] & (column < D)[None]
        dy = tl.load(dy_ptr + row[:, None] * dy_stride + column[None], mask=inside, other=0)
        x = numbers(pixels_ptr, patch, pixels_stride, first_value, A, VALUES, WIDE, PACKED, FACTOR, SHIFT)
        dweight = tl.dot(tl.trans(dy), x.to(dy.dtype), dweight, input_precision="ieee", out_dtype=WIDE)
        if dbias_ptr is not None:
            dbias += dy.to(WIDE)
    inside = (column < D)[:, None] & (value < A)[None]
    dweight *= tl.full([], 1 / DIVISOR, WIDE)
    tl.store(dweight_ptr + (part * D + column)[:, None] * A + value[None], dweight, mask=inside)
    if dbias_ptr is not None:
        # programs of other values have the same sum and leave it to the first
        inside = (column < D) & (first_value == 0)
        tl.store(dbias_ptr + part * D + column, tl.sum(dbias, 0), mask=inside)


def _run(
    dy_ND: Tensor, pixels_PB: Tensor, rows_N: Tensor, num_values: int, signed: bool, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    num_rows, width = dy_ND.shape
    default = DEFAULT if dy_ND.itemsize == 2 else DEFAULT_EXACT
    how = choose("patch_embed_backward", dy_ND, default, INTERPRETED, columns=width, values=num_values)
    tiles = cdiv(width, how.tiles["COLUMNS"]) * cdiv(num_values, how.tiles["VALUES"])
    steps = cdiv(num_rows, how.tiles["ROWS"])
    num_parts = min(steps, max(1, num_processors(dy_ND.device) // tiles))
    sums_dtype = torch.promote_types(dy_ND.dtype, torch.float32)
    dweight_VDA = dy_ND.new_empty(num_parts, width, num_values, dtype=sums_dtype)
    dbias_1VD = None if bias_dtype is None else dy_ND.new_empty(1, num_parts, width, dtype=sums_dtype)
    launch(
        _weight_kernel,
        (tiles, num_parts),
        how,
        *(dy_ND, pixels_PB, rows_N, dweight_VDA, dbias_1VD),
        *(num_rows, cdiv(steps, max(num_parts, 1)) * how.tiles["ROWS"], dy_ND.stride(0), pixels_PB.stride(0)),
        **Stored.of(pixels_PB, num_values, signed)._asdict(),
        D=width,
        A=num_values,
        WIDE=wide(dy_ND),
    )
    # few parts of a long vector: the library's sum has the programs for it, and adds in one order
    dweight_DA = dweight_VDA.sum(0).to(dy_ND.dtype)
    if dbias_1VD is None or bias_dtype is None:
        return dweight_DA, dy_ND.new_empty(0)
    return dweight_DA, column_sums(dbias_1VD, bias_dtype)[0]


def _fake(
    dy_ND: Tensor, pixels_PB: Tensor, rows_N: Tensor, num_values: int, signed: bool, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    width = dy_ND.shape[1]
    dbias_D = dy_ND.new_empty(0) if bias_dtype is None else dy_ND.new_empty(width, dtype=bias_dtype)
    return dy_ND.new_empty(width, num_values), dbias_D


_weight: Any = register(
    __name__,
    "weight",
    "(Tensor dy, Tensor pixels, Tensor rows, int num_values, bool signed, ScalarType? bias_dtype) -> (Tensor, Tensor)",
    _run,
    _fake,
)


def weight_gradient(
    dy_ND: Tensor, pixels_PB: Tensor, rows_N: Tensor, num_values: int, signed: bool, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """dW [D, A] in the dtype of dy, and db [D] in its own, empty where that is None. dy: rows as
    `kernels.arguments.rows` gives them."""
    return _weight(dy_ND, pixels_PB, rows_N, num_values, signed, bias_dtype)
