"""Rows of the encoder back among those that were hidden from it: the input of a masked autoencoder's decoder.

    forward   y_r = x_n + t_l      n = restore[r], l = places[r]
              y_r = m + t_l        where restore[r] is -1, m the mask token
    backward  dx_n = dy_r          n = restore[r]
              dm   = sum of dy_r   over the rows of -1
              dt_l = sum of dy_r   over the rows of place l, where the table is trained

Nothing is computed: the floor is that of reading what was kept and writing all rows, of 530 rows 397 and 530. As often
written it repeats the mask token, concatenates, gathers, concatenates the CLS rows and adds the positions, each a pass
over all rows. Each row that was kept is restored once, so the gradient too is a move, from rows in order to rows in
order, and needs no sum; backward reads each row of dy once, those of -1 for the sum alone.

A program takes ROWS rows and COLUMNS columns.

    restore     0 -1  1  2 -1         y   [ x0 | m | x1 | x2 | m ]
    places      0  1  2  3  4             + [ t0 | t1 | t2 | t3 | t4 ]

Source: He et al., arXiv:2111.06377.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check, check_together, rows
from kernels.launch import Launch, cdiv, choose, launch
from kernels.register import register
from kernels.row_sums import sum_by_place, sum_without_place
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops

reference = ops.unshuffle

DEFAULT = Launch({"ROWS": 4, "COLUMNS": 512}, num_warps=4)
INTERPRETED = Launch({"ROWS": 64, "COLUMNS": 256})


@triton.jit
def _forward_kernel(
    kept_ptr,
    token_ptr,
    restore_ptr,
    table_ptr,
    places_ptr,
    y_ptr,
    num_rows,
    kept_stride,
    table_stride,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None]
    inside = (row < num_rows) & (column < D)
    source = tl.load(restore_ptr + row, mask=row < num_rows, other=-1)
    place = tl.load(places_ptr + row, mask=row < num_rows, other=0)
    kept = tl.load(kept_ptr + source * kept_stride + column, mask=(source >= 0) & (column < D), other=0)
    token = tl.load(token_ptr + column, mask=column < D, other=0)
    position = tl.load(table_ptr + place * table_stride + column, mask=inside, other=0)
    y = tl.where(source < 0, token.to(WIDE), kept.to(WIDE)) + position.to(WIDE)
    tl.store(y_ptr + row * D + column, y, mask=inside)


@triton.jit
def _backward_kernel(
    dy_ptr,
    restore_ptr,
    dkept_ptr,
    num_rows,
    dy_stride,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None]
    source = tl.load(restore_ptr + row, mask=row < num_rows, other=-1)
    restored = (source >= 0) & (column < D)
    dy = tl.load(dy_ptr + row * dy_stride + column, mask=restored, other=0)
    tl.store(dkept_ptr + source * D + column, dy, mask=restored)


def _run_forward(
    kept_ND: Tensor, mask_token_D: Tensor, restore_R: Tensor, table_LD: Tensor, places_R: Tensor
) -> Tensor:
    y_RD = _fake_forward(kept_ND, mask_token_D, restore_R, table_LD, places_R)
    num_rows, width = y_RD.shape
    how = choose("unshuffle_forward", kept_ND, DEFAULT, INTERPRETED, columns=width)
    tensors = (kept_ND, mask_token_D, restore_R, table_LD, places_R, y_RD)
    sizes = (num_rows, kept_ND.stride(0), table_LD.stride(0))
    launch(_forward_kernel, _grid(num_rows, width, how), how, *tensors, *sizes, D=width, WIDE=wide(kept_ND))
    return y_RD


def _fake_forward(
    kept_ND: Tensor, mask_token_D: Tensor, restore_R: Tensor, table_LD: Tensor, places_R: Tensor
) -> Tensor:
    return kept_ND.new_empty(len(restore_R), kept_ND.shape[1])


def _run_backward(dy_RD: Tensor, restore_R: Tensor, num_kept: int) -> Tensor:
    dkept_ND = _fake_backward(dy_RD, restore_R, num_kept)
    num_rows, width = dy_RD.shape
    how = choose("unshuffle_backward", dy_RD, DEFAULT, INTERPRETED, columns=width)
    tensors, sizes = (dy_RD, restore_R, dkept_ND), (num_rows, dy_RD.stride(0))
    launch(_backward_kernel, _grid(num_rows, width, how), how, *tensors, *sizes, D=width)
    return dkept_ND


def _fake_backward(dy_RD: Tensor, restore_R: Tensor, num_kept: int) -> Tensor:
    return dy_RD.new_empty(num_kept, dy_RD.shape[1])


def _grid(num_rows: int, columns: int, how: Launch) -> tuple[int, int]:
    return cdiv(num_rows, how.tiles["ROWS"]), cdiv(columns, how.tiles["COLUMNS"])


_forward = register(
    __name__,
    "forward",
    "(Tensor kept, Tensor mask_token, Tensor restore, Tensor table, Tensor places) -> Tensor",
    _run_forward,
    _fake_forward,
)
_backward = register(
    __name__, "backward", "(Tensor dy, Tensor restore, int num_kept) -> Tensor", _run_backward, _fake_backward
)


class _Unshuffle(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kept_ND: Tensor, mask_token_D: Tensor, restore_R: Tensor, table_LD: Tensor, places_R: Tensor
    ) -> Tensor:
        ctx.save_for_backward(restore_R, places_R)
        ctx.num_kept, ctx.num_places = len(kept_ND), len(table_LD)
        ctx.token_dtype, ctx.table_dtype = mask_token_D.dtype, table_LD.dtype
        return _forward(kept_ND, mask_token_D, restore_R, table_LD, places_R)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy_RD: Tensor
    ) -> tuple[Tensor | None, ...]:
        restore_R, places_R = ctx.saved_tensors
        for_kept, for_token, _, for_table, _ = ctx.needs_input_grad
        dy_RD = rows(dy_RD)
        return (
            _backward(dy_RD, restore_R, ctx.num_kept) if for_kept else None,
            sum_without_place(dy_RD, restore_R, ctx.token_dtype) if for_token else None,
            None,
            sum_by_place(dy_RD, places_R, ctx.num_places, ctx.table_dtype) if for_table else None,
            None,
        )


def fused(kept_ND: Tensor, mask_token_D: Tensor, restore_R: Tensor, table_LD: Tensor, places_R: Tensor) -> Tensor:
    """As `reference`, rounded once, at the end. Numbers of rows, -1 and each of 0 to N - 1 once, and of places, 0 to
    L - 1, are not checked: the host does not know them. Raises ValueError for shapes or dtypes that do not fit, or a
    device on which no kernel runs."""
    check("kept", kept_ND, "N D")
    width = kept_ND.shape[1]
    check("mask_token", mask_token_D, "D", D=width)
    check("restore", restore_R, "R", (torch.int64,))
    check("table", table_LD, "L D", D=width)
    check("places", places_R, "R", (torch.int64,), R=len(restore_R))
    check_together(kept=kept_ND, mask_token=mask_token_D, restore=restore_R, table=table_LD, places=places_R)
    return _Unshuffle.apply(  # pyright: ignore[reportReturnType]
        rows(kept_ND), mask_token_D.contiguous(), restore_R.contiguous(), rows(table_LD), places_R.contiguous()
    )


# ------------------------------------------------------------------ what the workshop asks


SMALL = Case("two pieces, ragged, positions that learn", {"R": 70, "N": 50, "D": 300, "L": 3, "learns": True})
CASES = (
    *(
        Case(f"{num_rows} rows", {"R": num_rows, "N": num_kept, "D": 96, "L": 9})
        for num_rows, num_kept in ((1, 1), (16, 1), (127, 90), (128, 128), (129, 96))
    ),
    SMALL,
    Case("no rows", {"R": 0, "N": 0, "D": 16, "L": 2}),
)
TIMED = (Case("pixel-base decoder, 256 x 530", {"R": 135_680, "N": 101_632, "D": 512, "L": 530}),)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    """learns: the table has a gradient."""
    num_rows, num_kept, width = (case[letter] for letter in "RND")
    shuffled_R = torch.randperm(num_rows, generator=draw.generator)
    restore_R = torch.full((num_rows,), -1)
    restore_R[shuffled_R[:num_kept].sort().values] = torch.arange(min(num_kept, num_rows))
    return {
        "kept_ND": draw.normal(num_kept, width, grad=True),
        "mask_token_D": draw.parameter(width),
        "restore_R": restore_R.to(draw.device),
        "table_LD": draw.parameter(case["L"], width).requires_grad_(case.get("learns", False)),
        "places_R": draw.integers(0, case["L"] - 1, num_rows),
    }


def poison(given: dict[str, Any]) -> dict[str, Any]:
    """NaN in the table's rows that nobody adds."""
    table_LD = given["table_LD"]
    unread_L1 = ~torch.isin(torch.arange(len(table_LD), device=table_LD.device), given["places_R"])[:, None]
    poisoned_LD = table_LD.detach().masked_fill(unread_L1, torch.nan)
    return given | {"table_LD": poisoned_LD.requires_grad_(table_LD.requires_grad)}


def cost(case: Case, size: int) -> Cost:
    """Kept rows and all rows, and two numbers for each of these; of the table nothing."""
    moved = (case["N"] + case["R"]) * case["D"] * size
    return Cost(forward_bytes=moved + 16 * case["R"], backward_bytes=moved + 8 * case["R"])
