"""Sums of rows, for the gradients of what was added to many rows: of a table's rows, and of a vector of its own.

    by place         out[l] = sum of x[n] over the rows with places[n] = l      the gradient of a table
    without place    out    = sum of x[n] over the rows with places[n] = -1     of the CLS vector, of the mask token

Adding each row where it belongs with atomics would be one pass, in another order each time, so that no two runs were
equal. By place, the rows' numbers are therefore sorted (8 bytes a row, beside its D values) and a program adds up the
rows of one place in their order. Only fine-tuning asks for this, where the table of positions is trained.

    places   2 0 -1 2 1 0      order   2 | 1 5 | 4 | 0 3      program l: rows order[first[l]] to order[first[l + 1] - 1]

Without place, all rows go to one sum: each of a fixed number of programs adds up a share, and `column_sums` the shares.
Only rows that count are loaded, so a caller that has streamed the others reads nothing twice.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.column_sums import column_sums
from kernels.launch import Launch, cdiv, choose, launch, num_processors
from kernels.register import register
from kernels.workshop.cases import wide

DEFAULT = Launch({"ROWS": 16, "COLUMNS": 128}, num_warps=4)
DEFAULT_WITHOUT = Launch({"ROWS": 32, "COLUMNS": 256}, num_warps=8)
INTERPRETED = Launch({"ROWS": 16, "COLUMNS": 256})
INTERPRETED_WITHOUT = Launch({"ROWS": 64, "COLUMNS": 256})

_PER_PROCESSOR = 4  # programs of a sum without place


@triton.jit
def _by_place_kernel(
    x_ptr,
    order_ptr,
    first_ptr,
    out_ptr,
    stride,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    last = tl.load(first_ptr + place + 1)
    total = tl.zeros((ROWS, COLUMNS), WIDE)
    for first in range(tl.load(first_ptr + place), last, ROWS):
        index = first + tl.arange(0, ROWS)
        row = tl.load(order_ptr + index, mask=index < last, other=0)
        inside = (index < last)[:, None] & (column < D)[None]
        total += tl.load(x_ptr + row[:, None] * stride + column[None], mask=inside, other=0).to(WIDE)
    tl.store(out_ptr + place * D + column, tl.sum(total, axis=0), mask=column < D)


@triton.jit
def _without_place_kernel(
    x_ptr,
    places_ptr,
    partials_ptr,
    num_rows,
    stride,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    part, num_parts = tl.program_id(1), tl.num_programs(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), WIDE)
    for first in range(part * ROWS, num_rows, num_parts * ROWS):
        row = first + tl.arange(0, ROWS).to(tl.int64)
        place = tl.load(places_ptr + row, mask=row < num_rows, other=0)
        inside = (place < 0)[:, None] & (column < D)[None]
        total += tl.load(x_ptr + row[:, None] * stride + column[None], mask=inside, other=0).to(WIDE)
    tl.store(partials_ptr + part * D + column, tl.sum(total, axis=0), mask=column < D)


def _run_by_place(x_ND: Tensor, places_N: Tensor, num_places: int, dtype: torch.dtype) -> Tensor:
    out_LD = _fake_by_place(x_ND, places_N, num_places, dtype)
    width = x_ND.shape[1]
    sorted_N, order_N = places_N.sort(stable=True)
    first_L = torch.searchsorted(sorted_N, torch.arange(num_places + 1, device=x_ND.device))
    how = choose("row_sums_by_place", x_ND, DEFAULT, INTERPRETED, columns=width)
    grid = (num_places, cdiv(width, how.tiles["COLUMNS"]))
    launch(_by_place_kernel, grid, how, x_ND, order_N, first_L, out_LD, x_ND.stride(0), D=width, WIDE=wide(x_ND))
    return out_LD


def _fake_by_place(x_ND: Tensor, places_N: Tensor, num_places: int, dtype: torch.dtype) -> Tensor:
    return x_ND.new_empty(num_places, x_ND.shape[1], dtype=dtype)


def _run_without_place(x_ND: Tensor, places_N: Tensor, dtype: torch.dtype) -> Tensor:
    num_rows, width = x_ND.shape
    how = choose("row_sums_without_place", x_ND, DEFAULT_WITHOUT, INTERPRETED_WITHOUT, columns=width)
    blocks = cdiv(width, how.tiles["COLUMNS"])
    num_parts = cdiv(_PER_PROCESSOR * num_processors(x_ND.device), blocks)
    num_parts = min(num_parts, cdiv(num_rows, how.tiles["ROWS"]))
    partials_1VD = x_ND.new_empty(1, num_parts, width, dtype=torch.promote_types(x_ND.dtype, torch.float32))
    tensors, sizes = (x_ND, places_N, partials_1VD), (num_rows, x_ND.stride(0))
    launch(_without_place_kernel, (blocks, num_parts), how, *tensors, *sizes, D=width, WIDE=wide(x_ND))
    return column_sums(partials_1VD, dtype)[0]


def _fake_without_place(x_ND: Tensor, places_N: Tensor, dtype: torch.dtype) -> Tensor:
    return x_ND.new_empty(x_ND.shape[1], dtype=dtype)


_by_place: Any = register(
    __name__,
    "by_place",
    "(Tensor x, Tensor places, int num_places, ScalarType dtype) -> Tensor",
    _run_by_place,
    _fake_by_place,
)
_without_place: Any = register(
    __name__,
    "without_place",
    "(Tensor x, Tensor places, ScalarType dtype) -> Tensor",
    _run_without_place,
    _fake_without_place,
)


def sum_by_place(x_ND: Tensor, places_N: Tensor, num_places: int, dtype: torch.dtype) -> Tensor:
    """[num_places, D]: of each place the sum of its rows, in `dtype`; zero where it has none, and rows of place -1 are
    left out. x: rows as `kernels.arguments.rows` gives them."""
    return _by_place(x_ND, places_N, num_places, dtype)


def sum_without_place(x_ND: Tensor, places_N: Tensor, dtype: torch.dtype) -> Tensor:
    """[D]: the sum of the rows of place -1, in `dtype`. x: rows as `kernels.arguments.rows` gives them."""
    return _without_place(x_ND, places_N, dtype)
