"""The second half of a column sum: the gradient of a bias or a scale, added up without atomics.

A kernel that streams rows sums the columns of the rows it sees for nothing: each program keeps a row of partial sums in
registers and writes it once, at its end. What is left is small, [programs, columns], and is added here in a fixed
order, so that two equal runs end in equal bits, which atomics do not promise.

    partials  program 0  [ . . . . | . . . . ]      a program here takes COLUMNS columns of one vector,
              program 1  [ . . . . | . . . . ]      ROWS partial sums at a time
              ...             |         |
    sums                 [ . . . . | . . . . ]
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import Launch, cdiv, choose, launch

DEFAULT = Launch({"ROWS": 64, "COLUMNS": 16}, num_warps=4)
INTERPRETED = Launch({"ROWS": 64, "COLUMNS": 1024})


@triton.jit
def _sum_kernel(
    partials_ptr,
    sums_ptr,
    num_partials,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    vector = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None]
    total = tl.zeros((ROWS, COLUMNS), partials_ptr.dtype.element_ty)
    for first in range(0, num_partials, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < num_partials) & (column < D)
        total += tl.load(partials_ptr + (vector * num_partials + row) * D + column, mask=inside, other=0)
    tl.store(sums_ptr + vector * D + column, tl.sum(total, axis=0)[None], mask=column < D)


def column_sums(partials_VPD: Tensor, dtype: torch.dtype) -> Tensor:
    """[vectors, D] of [vectors, programs, D], contiguous; zeros where there was no program."""
    num_vectors, num_partials, width = partials_VPD.shape
    sums_VD = partials_VPD.new_empty(num_vectors, width, dtype=dtype)
    how = choose("column_sums", partials_VPD, DEFAULT, INTERPRETED, columns=width)
    grid = (num_vectors, cdiv(width, how.tiles["COLUMNS"]))
    launch(_sum_kernel, grid, how, partials_VPD, sums_VD, num_partials, D=width)
    return sums_VD
