"""Likelihood of independent black and white pixels, with its gradient in the same pass (specs/pixar.md, section 2.4).

    forward   of a pixel   max(x, 0) - x t + log(1 + e)        e = exp(-|x|), t the target
              of a patch   loss = scale / A * the sum over its pixels
    gradient               dx = scale / A (sigmoid(x) - t)     sigmoid(x) = 1 / (1 + e), and e / (1 + e) for x < 0

`scale` is known beforehand (kernels/finished.py), so the gradient is written while the logits are in registers: 2 M A
values and, of packed patches, A / 8 bytes a prediction, which are the floor. Evaluation writes no gradient and moves
half.

At that speed an H200 has about 28 instructions for a pixel, and a logarithm alone takes twenty. So it is taken of eight
pixels at once: the sum of log(1 + e) is the log of a product, and eight factors between 1 and 2 cannot overflow. A lane
holds eight neighbours; in bf16 that is also a load of 16 bytes, and of a packed patch one byte, so nothing crosses
lanes until a row is summed.

    logits   prediction m   [ x x x x x x x x | x x x x x x x x | ... ]   a program: ROWS whole predictions,
    pixels   patch          [      byte       |      byte       | ... ]   each with its patch, targets[m]

A target that is not a patch is not read: the loss is NaN, and so is the row of the gradient.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import FLOATS, check, check_limit, check_together, rows
from kernels.finished import check_scale, finished, partial_sums, total_of
from kernels.launch import Launch, cdiv, choose, launch
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops

reference = ops.pixel_bce

_LOG2_E = tl.constexpr(1.4426950408889634)
_MOST_VALUES = 2048  # of a patch
_TILE = 2048  # values of a program, 16 a lane
_INTERPRETED_ROWS = 64


@triton.jit
def _finished_kernel(
    logits_ptr,
    pixels_ptr,
    targets_ptr,
    scale_ptr,
    losses_ptr,
    dlogits_ptr,
    num_rows,
    num_patches,
    stride,
    pixels_stride,
    targets_stride,
    scale_stride,
    A: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    EIGHTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None, None]
    patch, is_patch = targets(  # pyright: ignore[reportGeneralTypeIssues]
        targets_ptr, row, num_rows, num_patches, targets_stride
    )
    scale = scales(scale_ptr, row, num_rows, is_patch, scale_stride, A, WIDE)
    patch_ptr = pixels_ptr + patch * pixels_stride
    nats, slope = compare(logits_ptr + row * stride, patch_ptr, is_patch, A, PIXELS, WIDE, ROWS, EIGHTS)
    tl.store(losses_ptr + tl.program_id(0), tl.sum(nats * tl.reshape(scale, (ROWS,)), axis=0))
    column = columns(EIGHTS)
    tl.store(dlogits_ptr + row * A + column, slope * scale, mask=(row < num_rows) & (column < A))


@triton.jit
def targets(targets_ptr, row, num_rows, num_patches, targets_stride):
    """Which patch belongs to a row, and whether there is such a row and such a patch."""
    patch = tl.load(targets_ptr + row * targets_stride, mask=row < num_rows, other=-1)
    return patch, (patch >= 0) & (patch < num_patches)


@triton.jit
def scales(scale_ptr, row, num_rows, is_patch, scale_stride, A: tl.constexpr, WIDE: tl.constexpr):
    """The factor of a row's nats: NaN where its patch does not exist, 0 behind the last row."""
    scale = tl.load(scale_ptr + row * scale_stride, mask=row < num_rows, other=0).to(WIDE) / A
    return tl.where(is_patch | (row >= num_rows), scale, float("nan"))


@triton.jit
def columns(EIGHTS: tl.constexpr):
    """The pixels of a patch, by eights."""
    return tl.arange(0, EIGHTS)[None, :, None] * 8 + tl.arange(0, 8)[None, None]


@triton.jit
def compare(
    row_ptr,
    patch_ptr,
    is_read,
    A: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    EIGHTS: tl.constexpr,
):
    """-log p of the patches by rows of logits, [ROWS], and its derivative, [ROWS, EIGHTS, 8].

    row_ptr, patch_ptr, is_read: [ROWS, 1, 1]; what is not read counts as zeros.
    """
    column = columns(EIGHTS)
    x = tl.load(row_ptr + column, mask=is_read & (column < A), other=0).to(WIDE)
    target = PIXELS(patch_ptr, is_read, A, WIDE, EIGHTS)
    small = exponential(-tl.abs(x))
    chance = tl.where(x >= 0, 1.0, small) / (1 + small)
    linear = tl.sum(tl.maximum(x, 0.0) - x * target, axis=2)
    factors = tl.where(column < A, 1 + small, 1.0)
    return tl.sum(linear + tl.log(_product_of_eight(factors, ROWS, EIGHTS)), axis=1), chance - target


@triton.jit
def exponential(x):
    """tl.exp without the instructions that it adds for results below 1e-38, which are 0 here."""
    return tl.exp2(x * _LOG2_E)


@triton.jit
def _product_of_eight(x, ROWS: tl.constexpr, EIGHTS: tl.constexpr):
    """[ROWS, EIGHTS] of [ROWS, EIGHTS, 8]; the eight stand in one lane, which multiplies neighbours thrice."""
    left, right = tl.split(tl.reshape(x, (ROWS, EIGHTS, 4, 2)))
    left, right = tl.split(tl.reshape(left * right, (ROWS, EIGHTS, 2, 2)))
    left, right = tl.split(left * right)
    return left * right


# How patches are stored: a rule gives their pixels in [0, 1], [ROWS, EIGHTS, 8].


@triton.jit
def bits(patch_ptr, is_read, A: tl.constexpr, WIDE: tl.constexpr, EIGHTS: tl.constexpr):
    # A load of neighbouring bytes would want lanes in another order than the logits, and move those through shared
    # memory; that the addresses are said to have no neighbours keeps a byte in the lane of its eight logits.
    eight = tl.max_contiguous(tl.arange(0, EIGHTS)[None, :, None], [1, 1, 1])
    byte = tl.load(patch_ptr + eight, mask=is_read & (eight < A // 8), other=0).to(tl.int32)
    return tl.where((byte & (128 >> tl.arange(0, 8)[None, None])) != 0, 1.0, 0.0).to(WIDE)


@triton.jit
def grey(patch_ptr, is_read, A: tl.constexpr, WIDE: tl.constexpr, EIGHTS: tl.constexpr):
    return numbers(patch_ptr, is_read, A, WIDE, EIGHTS) * (1 / 255)


@triton.jit
def numbers(patch_ptr, is_read, A: tl.constexpr, WIDE: tl.constexpr, EIGHTS: tl.constexpr):
    column = columns(EIGHTS)
    return tl.load(patch_ptr + column, mask=is_read & (column < A), other=0).to(WIDE)


@triton.jit
def _alone_kernel(
    logits_ptr,
    pixels_ptr,
    targets_ptr,
    scale_ptr,
    losses_ptr,
    num_rows,
    num_patches,
    stride,
    pixels_stride,
    targets_stride,
    scale_stride,
    A: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    EIGHTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None, None]
    patch, is_patch = targets(  # pyright: ignore[reportGeneralTypeIssues]
        targets_ptr, row, num_rows, num_patches, targets_stride
    )
    scale = scales(scale_ptr, row, num_rows, is_patch, scale_stride, A, WIDE)
    patch_ptr = pixels_ptr + patch * pixels_stride
    nats, _ = compare(logits_ptr + row * stride, patch_ptr, is_patch, A, PIXELS, WIDE, ROWS, EIGHTS)
    tl.store(losses_ptr + tl.program_id(0), tl.sum(nats * tl.reshape(scale, (ROWS,)), axis=0))


def _run(logits_MA: Tensor, pixels_PB: Tensor, targets_M: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    dlogits_MA = logits_MA.new_empty(logits_MA.shape)
    return _start(_finished_kernel, logits_MA, pixels_PB, targets_M, scale, dlogits_MA), dlogits_MA


def _start(
    kernel: Any, logits_MA: Tensor, pixels_PB: Tensor, targets_M: Tensor, scale: Tensor, *gradient: Tensor
) -> Tensor:
    num_rows, num_values = logits_MA.shape
    eights = int(triton.next_power_of_2(cdiv(num_values, 8)))
    default = Launch({"ROWS": max(1, _TILE // (8 * eights)), "EIGHTS": eights})
    interpreted = Launch({"ROWS": _INTERPRETED_ROWS, "EIGHTS": eights})
    how = choose("pixel_bce", logits_MA, default, interpreted, columns=num_values)
    num_programs = cdiv(num_rows, how.tiles["ROWS"])
    losses = partial_sums(logits_MA, num_programs)
    tensors = (logits_MA, pixels_PB, targets_M, scale, losses, *gradient)
    constants = {"A": num_values, "PIXELS": stored_as(pixels_PB, num_values), "WIDE": wide(logits_MA)}
    launch(kernel, (num_programs,), how, *tensors, *extents(logits_MA, pixels_PB, targets_M, scale), **constants)
    return total_of(losses)


def extents(logits: Tensor, pixels_PB: Tensor, targets_M: Tensor, scale: Tensor) -> tuple[int, ...]:
    """Numbers of predictions and patches, and how far apart the rows of each tensor are; one scale serves all rows."""
    strides = (logits.stride(0), pixels_PB.stride(0), targets_M.stride(0), scale.stride(0) if scale.dim() else 0)
    return len(logits), len(pixels_PB), *strides


def stored_as(pixels_PB: Tensor, num_values: int) -> Any:
    """The rule that reads patches of num_values pixels."""
    if pixels_PB.dtype != torch.uint8:
        return numbers
    return bits if 8 * pixels_PB.shape[1] == num_values else grey


def _fake(logits_MA: Tensor, pixels_PB: Tensor, targets_M: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return total_of(partial_sums(logits_MA, 1)), logits_MA.new_empty(logits_MA.shape)


def _run_alone(logits_MA: Tensor, pixels_PB: Tensor, targets_M: Tensor, scale: Tensor) -> Tensor:
    return _start(_alone_kernel, logits_MA, pixels_PB, targets_M, scale)


def _fake_alone(logits_MA: Tensor, pixels_PB: Tensor, targets_M: Tensor, scale: Tensor) -> Tensor:
    return total_of(partial_sums(logits_MA, 1))


_SIGNATURE = "(Tensor logits, Tensor pixels, Tensor targets, Tensor scale) -> "
_finished = register(__name__, "finished", _SIGNATURE + "(Tensor, Tensor)", _run, _fake)
_alone = register(__name__, "alone", _SIGNATURE + "Tensor", _run_alone, _fake_alone)


def fused(
    logits_MA: Tensor, pixels_PA: Tensor, targets_M: Tensor, scale: Tensor, *, factor_follows: bool = False
) -> tuple[Tensor, Tensor]:
    """As `reference`, in one pass: the gradient is finished with the loss, and a factor behind it is refused unless
    factor_follows says that there is one. Raises ValueError for wrong shapes, dtypes or devices."""
    check("logits", logits_MA, "M A")
    check_patches(pixels_PA, logits_MA.shape[1], targets_M, len(logits_MA))
    check_scale(scale, logits_MA, len(logits_MA))
    check_together(logits=logits_MA, pixels=pixels_PA, targets=targets_M, scale=scale)
    others = (rows(pixels_PA), targets_M, scale)
    total = finished(_finished, _alone, (rows(logits_MA),), others, factor_follows)
    return total, torch.full((), len(targets_M), device=targets_M.device)


def check_patches(pixels_PB: Tensor, num_values: int, targets_M: Tensor, num_rows: int) -> None:
    """Raise ValueError unless patches of num_values pixels can be read, one for each row."""
    check("pixels", pixels_PB, "P A", (torch.uint8, *FLOATS))
    packed = pixels_PB.dtype == torch.uint8 and 8 * pixels_PB.shape[1] == num_values
    if pixels_PB.shape[1] != num_values and not packed:
        raise ValueError(
            f"pixels has {pixels_PB.shape[1]} values a patch: for {num_values} logits it must have {num_values}, or "
            "an eighth of them in uint8, which are bits"
        )
    check_limit("pixels of a patch", num_values, _MOST_VALUES)
    check("targets", targets_M, "M", (torch.int64,), M=num_rows)


# ------------------------------------------------------------------ what the workshop asks


CASES = (
    *(Case(f"{num_rows} rows", {"M": num_rows, "A": 16, "bits": True}) for num_rows in (1, 16, 127, 128, 129)),
    Case("grey", {"M": 5, "A": 320}),
    Case("a ragged patch", {"M": 5, "A": 27}),
    Case("a scale for each", {"M": 5, "A": 24, "each": True, "bits": True}),
    Case("no gradient", {"M": 129, "A": 24, "bits": True, "gradient": False}),
    Case("no rows", {"M": 0, "A": 16}),
)
TIMED = (
    Case("pixar, 384 x 360, bits", {"M": 138_240, "A": 128, "bits": True}),
    Case("pixar, 384 x 360, grey", {"M": 138_240, "A": 128}),
    Case("pixar, evaluation", {"M": 138_240, "A": 128, "bits": True, "gradient": False}),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    shape = (case["M"], case["A"])
    return {"logits_MA": draw.normal(*shape, scale=3.0, grad=case.get("gradient", True)), **drawn_patches(case, draw)}


def drawn_patches(case: Case, draw: Draw) -> dict[str, Any]:
    """Patches, which of them belong to the predictions, and their scale."""
    num_rows, num_values = case["M"], case["A"]
    num_patches = max(1, num_rows // 2)
    one_each = draw.normal(num_rows, dtype=torch.float32).abs()
    return {
        "pixels_PA": draw.bytes(num_patches, num_values // 8 if case.get("bits") else num_values),
        "targets_M": draw.integers(0, num_patches, num_rows),
        "scale": one_each if case.get("each") else torch.full((), 0.3, device=draw.device),
    }


def cost(case: Case, size: int) -> Cost:
    """Logits in, their gradient out, which the backward pass hands on; patches, which are read in any order."""
    num_rows, num_values = case["M"], case["A"]
    passes = 2 if case.get("gradient", True) else 1
    patch_bytes = num_values // 8 if case.get("bits") else num_values
    return Cost(forward_bytes=num_rows * (passes * num_values * size + patch_bytes + 8), backward_bytes=0)
