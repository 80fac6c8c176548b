"""Cross-entropy of a language model, with its gradient in the same pass.

    forward   lse = log(sum over v of exp(x_v))     loss = scale (lse - x_target + z lse^2)
    gradient  dx_v = scale ((1 + 2 z lse) exp(x_v - lse) - [v = target])

A row's gradient needs the whole row's sum, so step by step the logits pass many times: upcast, log-softmax, its
backward, the cast back. But `scale` is known beforehand (kernels/finished.py), so a program that keeps its row in
registers reads each logit once and writes its gradient once: 2 N V values, the floor. A vocabulary of 16 000 in bf16 is
32 KB a row, of which 16 warps hold 32 values a lane. Longer rows do not fit into registers; they are read twice, first
for the sum and then for the gradient, and few other rows come between, so most of the second reading is from a cache.
Evaluation asks for no gradient and has a kernel of its own, which reads once and writes one number a row.

    held      row n      [ x x x x x x x x x x x x x x x x ]  one program: load, max, sum, store
    streamed  row n      [ x x x x | x x x x | x x x x | x ]  one program, blocks in turn: sum ... then gradient ...

The streamed sum is that of the online softmax (Milakov and Gimelshein, arXiv:1805.02867): when a block raises the
maximum, what was summed is scaled down to it. That one kernel may write the loss's gradient in its forward pass is
known from Liger-Kernel. A row without a target is not read: its loss and gradient are 0 whatever stands there. A target
that is not a column has the loss NaN and a row of NaN: asking first would make the host wait for the device.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check, check_together, rows
from kernels.finished import check_scale, finished, partial_sums, total_of
from kernels.launch import Launch, cdiv, choose, launch
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops

reference = ops.cross_entropy

_IGNORED = tl.constexpr(ops.IGNORED)
_LOG2_E = tl.constexpr(1.4426950408889634)  # exp2 spares the instructions of exp for results below 1e-38
_MOST_HELD = 16_384  # columns of a row in registers: 16 warps of 32 lanes of 32 values; 64 of them spill
STREAMED = Launch({"ROWS": 1, "BLOCK": 8192}, num_warps=8)
ALONE = Launch({"ROWS": 1, "BLOCK": 4096}, num_warps=4)
INTERPRETED = Launch({"ROWS": 4, "BLOCK": 8192})


@triton.jit
def _held_kernel(
    logits_ptr,
    targets_ptr,
    scale_ptr,
    losses_ptr,
    dlogits_ptr,
    num_rows,
    stride,
    targets_stride,
    V: tl.constexpr,
    Z_LOSS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    row_ptr = logits_ptr + row * stride
    target, counts, scale, picked = _targets(  # pyright: ignore[reportGeneralTypeIssues]
        targets_ptr, scale_ptr, row_ptr, row, num_rows, targets_stride, V, WIDE
    )
    column = tl.arange(0, BLOCK)[None]
    x = _logits(row_ptr, column, counts, V, WIDE)
    highest = tl.max(x, axis=1, keep_dims=True)
    share = tl.exp2((x - highest) * _LOG2_E)
    total = tl.sum(share, axis=1, keep_dims=True)
    loss, factor = _loss(highest, total, picked, scale, Z_LOSS)
    tl.store(losses_ptr + row, loss, mask=row < num_rows)
    dx = share * factor - tl.where(column == target, scale, 0.0)
    tl.store(dlogits_ptr + row * V + column, dx, mask=(row < num_rows) & (column < V))


@triton.jit
def _targets(targets_ptr, scale_ptr, row_ptr, row, num_rows, targets_stride, V: tl.constexpr, WIDE: tl.constexpr):
    """Of each row the target's column, whether it counts, the factor of its loss, and the target's logit.

    The logit is read by its address: to look for it in the tile would keep the tile in registers once more.
    """
    target = tl.load(targets_ptr + row * targets_stride, mask=row < num_rows, other=_IGNORED)
    counts, is_column = target != _IGNORED, (target >= 0) & (target < V)
    scale = tl.where(counts, tl.where(is_column, tl.load(scale_ptr).to(WIDE), float("nan")), 0.0)
    picked = tl.load(row_ptr + target, mask=is_column, other=0).to(WIDE)
    return target.to(tl.int32), counts, scale, picked


@triton.jit
def _logits(row_ptr, column, counts, V: tl.constexpr, WIDE: tl.constexpr):
    """Logits of rows; -inf behind their end; zeros in place of a row that does not count, whatever stands there."""
    x = tl.load(row_ptr + column, mask=counts & (column < V), other=0).to(WIDE)
    return tl.where(column < V, x, float("-inf"))


@triton.jit
def _loss(highest, total, picked, scale, Z_LOSS: tl.constexpr):
    """The loss of a row, and the factor of exp(x - highest) in its gradient."""
    log_total = tl.log(total)
    log_sum = highest + log_total
    loss = scale * ((highest - picked) + log_total + Z_LOSS * log_sum * log_sum)
    return loss, scale * (1 + 2 * Z_LOSS * log_sum) / total


@triton.jit
def _streamed_kernel(
    logits_ptr,
    targets_ptr,
    scale_ptr,
    losses_ptr,
    dlogits_ptr,
    num_rows,
    stride,
    targets_stride,
    V: tl.constexpr,
    Z_LOSS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    row_ptr = logits_ptr + row * stride
    target, counts, scale, picked = _targets(  # pyright: ignore[reportGeneralTypeIssues]
        targets_ptr, scale_ptr, row_ptr, row, num_rows, targets_stride, V, WIDE
    )
    highest, total = _stream(row_ptr, counts, V, WIDE, ROWS, BLOCK)
    loss, factor = _loss(highest, total, picked, scale, Z_LOSS)
    tl.store(losses_ptr + row, loss, mask=row < num_rows)
    for first in range(0, V, BLOCK):
        column = first + tl.arange(0, BLOCK)[None]
        share = tl.exp2((_logits(row_ptr, column, counts, V, WIDE) - highest) * _LOG2_E)
        dx = share * factor - tl.where(column == target, scale, 0.0)
        tl.store(dlogits_ptr + row * V + column, dx, mask=(row < num_rows) & (column < V))


@triton.jit
def _stream(row_ptr, counts, V: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Of each row the highest value x and the sum of exp(x - highest), block by block."""
    highest = tl.full((ROWS, 1), float("-inf"), WIDE)
    total = tl.zeros((ROWS, 1), WIDE)
    for first in range(0, V, BLOCK):
        x = _logits(row_ptr, first + tl.arange(0, BLOCK)[None], counts, V, WIDE)
        higher = tl.maximum(highest, tl.max(x, axis=1, keep_dims=True))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # nothing but -inf so far: -inf - -inf is NaN
        block_total = tl.sum(tl.exp2((x - finite) * _LOG2_E), axis=1, keep_dims=True)
        total = total * tl.exp2((highest - finite) * _LOG2_E) + block_total
        highest = higher
    return highest, total


@triton.jit
def _alone_kernel(
    logits_ptr,
    targets_ptr,
    scale_ptr,
    losses_ptr,
    num_rows,
    stride,
    targets_stride,
    V: tl.constexpr,
    Z_LOSS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    row_ptr = logits_ptr + row * stride
    _, counts, scale, picked = _targets(  # pyright: ignore[reportGeneralTypeIssues]
        targets_ptr, scale_ptr, row_ptr, row, num_rows, targets_stride, V, WIDE
    )
    highest, total = _stream(row_ptr, counts, V, WIDE, ROWS, BLOCK)
    loss, _ = _loss(highest, total, picked, scale, Z_LOSS)
    tl.store(losses_ptr + row, loss, mask=row < num_rows)


def _run(logits_NV: Tensor, targets_N: Tensor, scale: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    dlogits_NV = logits_NV.new_empty(logits_NV.shape)
    num_columns = logits_NV.shape[1]
    if num_columns <= _MOST_HELD:
        return _start(_held_kernel, _whole_rows(logits_NV), logits_NV, targets_N, scale, z_loss, dlogits_NV), dlogits_NV
    how = choose("cross_entropy_streamed", logits_NV, STREAMED, INTERPRETED, columns=num_columns)
    return _start(_streamed_kernel, how, logits_NV, targets_N, scale, z_loss, dlogits_NV), dlogits_NV


def _whole_rows(logits_NV: Tensor) -> Launch:
    """A tile of whole rows with 32 values a lane, of at least one warp."""
    block = int(triton.next_power_of_2(logits_NV.shape[1]))
    whole = Launch({"ROWS": max(1, 1024 // block), "BLOCK": block}, num_warps=max(1, block // 1024))
    interpreted = Launch({"ROWS": 64, "BLOCK": block})
    return choose("cross_entropy_held", logits_NV, whole, interpreted, columns=logits_NV.shape[1])


def _start(
    kernel: Any, how: Launch, logits_NV: Tensor, targets_N: Tensor, scale: Tensor, z_loss: float, *gradient: Tensor
) -> Tensor:
    num_rows, num_columns = logits_NV.shape
    losses_N = partial_sums(logits_NV, num_rows)
    tensors = (logits_NV, targets_N, scale, losses_N, *gradient)
    sizes = (num_rows, logits_NV.stride(0), targets_N.stride(0))
    grid = (cdiv(num_rows, how.tiles["ROWS"]),)
    launch(kernel, grid, how, *tensors, *sizes, V=num_columns, Z_LOSS=z_loss, WIDE=wide(logits_NV))
    return total_of(losses_N)


def _fake(logits_NV: Tensor, targets_N: Tensor, scale: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    return _fake_alone(logits_NV, targets_N, scale, z_loss), logits_NV.new_empty(logits_NV.shape)


def _run_alone(logits_NV: Tensor, targets_N: Tensor, scale: Tensor, z_loss: float) -> Tensor:
    how = choose("cross_entropy_alone", logits_NV, ALONE, INTERPRETED, columns=logits_NV.shape[1])
    return _start(_alone_kernel, how, logits_NV, targets_N, scale, z_loss)


def _fake_alone(logits_NV: Tensor, targets_N: Tensor, scale: Tensor, z_loss: float) -> Tensor:
    return total_of(partial_sums(logits_NV, 1))


_SIGNATURE = "(Tensor logits, Tensor targets, Tensor scale, float z_loss) -> "
_with_gradient = register(__name__, "with_gradient", _SIGNATURE + "(Tensor, Tensor)", _run, _fake)
_alone = register(__name__, "alone", _SIGNATURE + "Tensor", _run_alone, _fake_alone)


def fused(
    logits_NV: Tensor, targets_N: Tensor, scale: Tensor, z_loss: float = 0.0, *, factor_follows: bool = False
) -> tuple[Tensor, Tensor]:
    """As `reference`, in one pass: the gradient is finished with the loss, and a factor behind it is refused unless
    factor_follows says that there is one. Raises ValueError for wrong shapes, dtypes or devices."""
    check("logits", logits_NV, "N V")
    check("targets", targets_N, "N", (torch.int64,), N=logits_NV.shape[0])
    check_scale(scale, logits_NV)
    check_together(logits=logits_NV, targets=targets_N, scale=scale)
    others = (targets_N, scale, float(z_loss))
    total = finished(_with_gradient, _alone, (rows(logits_NV),), others, factor_follows)
    return total, (targets_N != ops.IGNORED).sum()


# ------------------------------------------------------------------ what the workshop asks


CASES = (
    *(Case(f"{num_rows} rows", {"N": num_rows, "V": 33}) for num_rows in (1, 16, 127, 128, 129)),
    Case("z-loss", {"N": 3, "V": 1000, "z_loss": 0.01}),
    Case("blocks, the last one ragged", {"N": 3, "V": 16_400, "z_loss": 0.01}),
    Case("no gradient", {"N": 3, "V": 9000, "z_loss": 0.01, "gradient": False}),
    Case("no rows", {"N": 0, "V": 5}),
)
TIMED = (
    Case("100m, 32 x 1024", {"N": 32_768, "V": 16_000}),
    Case("a large vocabulary", {"N": 4096, "V": 128_000}),
    Case("100m, evaluation", {"N": 32_768, "V": 16_000, "gradient": False}),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    num_rows, num_columns = case["N"], case["V"]
    targets_N = draw.integers(0, num_columns, num_rows)
    targets_N[1::5] = ops.IGNORED
    return {
        "logits_NV": draw.normal(num_rows, num_columns, scale=3.0, grad=case.get("gradient", True)),
        "targets_N": targets_N,
        "scale": torch.full((), 1 / max(1, num_rows), device=draw.device),
        "z_loss": case.get("z_loss", 0.0),
    }


def poison(given: dict[str, Any]) -> dict[str, Any]:
    """NaN in the rows without a target."""
    logits_NV = given["logits_NV"]
    hidden_N1 = (given["targets_N"] == ops.IGNORED)[:, None]
    poisoned_NV = logits_NV.detach().masked_fill(hidden_N1, float("nan")).requires_grad_(logits_NV.requires_grad)
    return {**given, "logits_NV": poisoned_NV}


def cost(case: Case, size: int) -> Cost:
    """Logits in and their gradient out, which the backward pass hands on."""
    passes = 2 if case.get("gradient", True) else 1
    return Cost(forward_bytes=passes * case["N"] * case["V"] * size + 8 * case["N"], backward_bytes=0)
