"""Few rows times a weight: what the kernels of a step of generation share.

One token of each of B sequences, B from 1 to 64, is multiplied with a whole weight [O, D]. That is 2 B D O operations
and 2 D O bytes in bf16: the bytes take longer for any B up to some hundred, so all that counts is that the memory is
busy from the first moment to the last. A program owns COLUMNS rows of the weight, few enough that a layer of width 768
gives 48 to 144 programs, reads them once, and has several pieces of DEPTH values on their way at any time.

                   D                           DEPTH
    x  [ . . . . . . . . . . ]      weight  [ ....|....|.... ]  COLUMNS rows of program 0       y  [ 0 0 | 1 1 | 2 2 ]
       [ . . . . . . . . . . ]              [ ....|....|.... ]  of program 1                       [ 0 0 | 1 1 | 2 2 ]
        ROWS = 16, 32 or 64, B of them real [ ....|....|.... ]  of program 2

The rows are read by every program, from the L2 cache, and there is no time to normalise them first: a kernel of its own
would take longer than the product. The division by the root mean square is the same for a whole row, so it can wait
until the end (FlashNorm, Graef and others, arXiv:2407.09577), and the squares are summed while the product runs:

    y = W (n x / r)  =  W (n x) / r              r = sqrt(mean(x^2) + eps), n: the norm's weight

So a program asks for its weights before it waits for anything. n x is rounded to the dtype of the weight, as the
normalised row would be; in fp16 it must stay below 65504, as the rows themselves must.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check, check_limit, check_together
from kernels.launch import Launch
from pixelcore.step_ops import MOST_ROWS

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def product(
    x_ptr,
    norm_ptr,
    weight_ptr,
    feature,
    exists,
    num_rows,
    x_stride,
    weight_stride,
    D: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Rows of x, normalised where there is a norm, times rows `feature` of the weight: fp32 [ROWS, features].

    exists: which of the features there are; the others give zeros, as do rows beyond num_rows, and their norms nothing
    that may be used.
    """
    row = tl.arange(0, ROWS)[:, None]
    x_ptr += row.to(tl.int64) * x_stride
    weight_ptr += feature.to(tl.int64)[:, None] * weight_stride
    y = tl.zeros((ROWS, feature.shape[0]), tl.float32)
    squares = tl.zeros((ROWS, DEPTH), tl.float32)
    for first in range(0, D, DEPTH):
        column = first + tl.arange(0, DEPTH)[None]
        weight = tl.load(weight_ptr + column, mask=exists[:, None] & (column < D), other=0)
        x = tl.load(x_ptr + column, mask=(row < num_rows) & (column < D), other=0)
        if norm_ptr is not None:
            wide = x.to(tl.float32)
            squares += wide * wide
            x = (wide * tl.load(norm_ptr + column, mask=column < D, other=0).to(tl.float32)).to(x.dtype)
        y = tl.dot(x, tl.trans(weight), y, input_precision="ieee")
    if norm_ptr is not None:
        y *= tl.rsqrt(tl.sum(squares, axis=1) / D + EPS)[:, None]
    return y


def padded(num_rows: int) -> int:
    """ROWS: as many as a product on tensor cores needs."""
    return max(16, int(triton.next_power_of_2(num_rows)))


def default(x: Tensor, columns: str, tile: int, deepest: int = 128) -> Launch:
    """What a kernel runs with where nothing was measured: `tile` of what it calls its columns, and pieces as deep as
    leaves room for four of them, of 64 rows at most `deepest`. fp32, which uses no tensor core, in smaller ones."""
    exact = x.dtype == torch.float32
    depth = 32 if exact else {16: 256, 32: 128, 64: deepest}[padded(len(x))]
    return Launch({columns: tile, "DEPTH": depth}, num_warps=4, num_stages=2 if exact else 4)


def check_rows(name: str, x: Tensor, letters: str, **sizes: int) -> None:
    """Raise ValueError unless x is the rows of a step."""
    check(name, x, letters, FLOATS, **sizes)
    check_limit(f"rows of {name}", len(x), MOST_ROWS)


def check_weight(name: str, weight: Tensor, letters: str, x: Tensor, **sizes: int) -> None:
    """Raise ValueError unless the weight fits the rows x: in size, dtype and device."""
    check(name, weight, letters, FLOATS, **sizes)
    check_same(name, weight, x)


def check_same(name: str, other: Tensor, x: Tensor) -> None:
    """Raise ValueError unless both have one dtype and stand on one device."""
    if other.dtype != x.dtype:
        raise ValueError(f"{name} is {_name(other.dtype)} and the rows are {_name(x.dtype)}: they must be of one dtype")
    check_together(**{"the rows": x, name: other})


def check_norm(norm_D: Tensor, x_BD: Tensor) -> None:
    """Raise ValueError unless the norm's weight, of any dtype, fits the rows."""
    check("norm", norm_D, "D", D=x_BD.shape[1])
    check_together(residual=x_BD, norm=norm_D)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def constants(x: Tensor, eps: float = 0.0) -> dict[str, Any]:
    """What `product` has to know of the rows when it is compiled."""
    return {"D": x.shape[1], "EPS": eps, "ROWS": padded(len(x))}
