"""Squared distance to the pixels of hidden patches, with its gradient in the same pass (specs/pixel.md, section 2.6).

    target     t, or normalised by its own patch: (t - mean) / sqrt(var + 1e-6), the variance unbiased over O values
    forward    loss = scale / O * sum of (p - target)^2
    gradient   dp = 2 scale / O (p - target)

`scale` is known beforehand (kernels/finished.py), so the gradient is written while the prediction is in registers: 2 M
O values. A target costs an eighth of that or less: patches stay where they are, as the bytes of A grey values, and are
read by their index; each value stands for O / A channels side by side. The reference gathers patches, widens them to
fp32, repeats them thrice and normalises them before it looks at the prediction.

    prediction m  [ p p p p p p p p p . . . ]        a program: ROWS whole predictions, each with the mean and the
    grey patch    [ t     t     t     . . . ]        variance of its patch in registers

Addresses of a grey patch repeat within a lane, which therefore loads single bytes, from a cache; the prediction and its
gradient move in pieces of 16 bytes. A patch that does not exist is not read: the loss is NaN, and so is the row of the
gradient.
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

reference = ops.pixel_mse

_LEAST_VARIANCE = tl.constexpr(ops._LEAST_VARIANCE)
_MOST_VALUES = 4096  # of a prediction
_TILE = 1024  # values of a warp, 32 a lane: a row that stays in its warp is summed without a barrier
_INTERPRETED_ROWS = 64


@triton.jit
def _finished_kernel(
    prediction_ptr,
    pixels_ptr,
    scored_ptr,
    scale_ptr,
    losses_ptr,
    gradient_ptr,
    num_rows,
    num_patches,
    stride,
    pixels_stride,
    scored_stride,
    VALUES: tl.constexpr,
    CHANNELS: tl.constexpr,
    WHITE: tl.constexpr,
    TARGET: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None]
    patch = tl.load(scored_ptr + row * scored_stride, mask=row < num_rows, other=0)
    scale = _scales(scale_ptr, patch, num_patches, VALUES, WIDE)
    given = (prediction_ptr + row * stride, pixels_ptr + patch * pixels_stride)
    is_row, is_patch = row < num_rows, (patch >= 0) & (patch < num_patches)
    distance = _distance(given, is_row, is_row & is_patch, column, VALUES, CHANNELS, WHITE, TARGET, WIDE)
    loss = scale * tl.sum(distance * distance, axis=1, keep_dims=True)
    tl.store(losses_ptr + tl.program_id(0), tl.sum(tl.sum(loss, axis=1), axis=0))
    tl.store(gradient_ptr + row * VALUES + column, 2 * scale * distance, mask=is_row & (column < VALUES))


@triton.jit
def _scales(scale_ptr, patch, num_patches, VALUES: tl.constexpr, WIDE: tl.constexpr):
    """The factor of a row's squares: NaN where its patch does not exist."""
    return tl.where((patch >= 0) & (patch < num_patches), tl.load(scale_ptr).to(WIDE) / VALUES, float("nan"))


@triton.jit
def _distance(
    given,
    is_row,
    is_read,
    column,
    VALUES: tl.constexpr,
    CHANNELS: tl.constexpr,
    WHITE: tl.constexpr,
    TARGET: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Prediction less target, 0 behind the last value and the last row."""
    prediction_ptr, patch_ptr = given
    prediction = tl.load(prediction_ptr + column, mask=is_row & (column < VALUES), other=0).to(WIDE)
    # narrow: a grey value serves three channels, and three fill no piece of eight; the cache answers two of the three
    value = tl.load(patch_ptr + column // CHANNELS, mask=is_read & (column < VALUES), other=0).to(WIDE) * (1 / WHITE)
    return tl.where(is_row & (column < VALUES), prediction - TARGET(value, column, VALUES), 0.0)


# What is predicted of a patch: its values, or how far they are from its mean.


@triton.jit
def _plain(value, column, VALUES: tl.constexpr):
    return value


@triton.jit
def _normalised(value, column, VALUES: tl.constexpr):
    centred = tl.where(column < VALUES, value - tl.sum(value, axis=1, keep_dims=True) / VALUES, 0.0)
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / (VALUES - 1)
    return centred * (1 / tl.sqrt(variance + _LEAST_VARIANCE))


@triton.jit
def _alone_kernel(
    prediction_ptr,
    pixels_ptr,
    scored_ptr,
    scale_ptr,
    losses_ptr,
    num_rows,
    num_patches,
    stride,
    pixels_stride,
    scored_stride,
    VALUES: tl.constexpr,
    CHANNELS: tl.constexpr,
    WHITE: tl.constexpr,
    TARGET: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None]
    patch = tl.load(scored_ptr + row * scored_stride, mask=row < num_rows, other=0)
    scale = _scales(scale_ptr, patch, num_patches, VALUES, WIDE)
    given = (prediction_ptr + row * stride, pixels_ptr + patch * pixels_stride)
    is_row, is_patch = row < num_rows, (patch >= 0) & (patch < num_patches)
    distance = _distance(given, is_row, is_row & is_patch, column, VALUES, CHANNELS, WHITE, TARGET, WIDE)
    loss = scale * tl.sum(distance * distance, axis=1, keep_dims=True)
    tl.store(losses_ptr + tl.program_id(0), tl.sum(tl.sum(loss, axis=1), axis=0))


def _run(
    prediction_MO: Tensor, pixels_PA: Tensor, scored_M: Tensor, normalise: bool, scale: Tensor
) -> tuple[Tensor, Tensor]:
    gradient_MO = prediction_MO.new_empty(prediction_MO.shape)
    return _start(_finished_kernel, prediction_MO, pixels_PA, scored_M, normalise, scale, gradient_MO), gradient_MO


def _start(
    kernel: Any,
    prediction_MO: Tensor,
    pixels_PA: Tensor,
    scored_M: Tensor,
    normalise: bool,
    scale: Tensor,
    *gradient: Tensor,
) -> Tensor:
    num_rows, num_outputs = prediction_MO.shape
    block = int(triton.next_power_of_2(num_outputs))
    default = Launch({"ROWS": max(1, _TILE // block), "COLUMNS": block}, num_warps=max(1, block // _TILE))
    interpreted = Launch({"ROWS": _INTERPRETED_ROWS, "COLUMNS": block})
    how = choose("pixel_mse", prediction_MO, default, interpreted, columns=num_outputs)
    num_programs = cdiv(num_rows, how.tiles["ROWS"])
    losses = partial_sums(prediction_MO, num_programs)
    tensors = (prediction_MO, pixels_PA, scored_M, scale, losses, *gradient)
    sizes = (num_rows, len(pixels_PA), prediction_MO.stride(0), pixels_PA.stride(0), scored_M.stride(0))
    constants = {
        "VALUES": num_outputs,
        "CHANNELS": num_outputs // pixels_PA.shape[1],
        "WHITE": 255 if pixels_PA.dtype == torch.uint8 else 1,
        "TARGET": _normalised if normalise else _plain,
        "WIDE": wide(prediction_MO),
    }
    launch(kernel, (num_programs,), how, *tensors, *sizes, **constants)
    return total_of(losses)


def _fake(
    prediction_MO: Tensor, pixels_PA: Tensor, scored_M: Tensor, normalise: bool, scale: Tensor
) -> tuple[Tensor, Tensor]:
    return total_of(partial_sums(prediction_MO, 1)), prediction_MO.new_empty(prediction_MO.shape)


def _run_alone(prediction_MO: Tensor, pixels_PA: Tensor, scored_M: Tensor, normalise: bool, scale: Tensor) -> Tensor:
    return _start(_alone_kernel, prediction_MO, pixels_PA, scored_M, normalise, scale)


def _fake_alone(prediction_MO: Tensor, pixels_PA: Tensor, scored_M: Tensor, normalise: bool, scale: Tensor) -> Tensor:
    return total_of(partial_sums(prediction_MO, 1))


_SIGNATURE = "(Tensor prediction, Tensor pixels, Tensor scored, bool normalise, Tensor scale) -> "
_finished = register(__name__, "finished", _SIGNATURE + "(Tensor, Tensor)", _run, _fake)
_alone = register(__name__, "alone", _SIGNATURE + "Tensor", _run_alone, _fake_alone)


def fused(
    prediction_MO: Tensor,
    pixels_PA: Tensor,
    scored_M: Tensor,
    normalise: bool,
    scale: Tensor,
    *,
    factor_follows: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `reference`, in one pass: the gradient is finished with the loss, and a factor behind it is refused unless
    factor_follows says that there is one. Raises ValueError for wrong shapes, dtypes or devices."""
    check("prediction", prediction_MO, "M O")
    check("pixels", pixels_PA, "P A", (torch.uint8, *FLOATS))
    num_rows, num_outputs = prediction_MO.shape
    if num_outputs % max(1, pixels_PA.shape[1]):
        raise ValueError(
            f"prediction has {num_outputs} values and pixels {pixels_PA.shape[1]} a patch: it must be a multiple"
        )
    check_limit("values of a prediction", num_outputs, _MOST_VALUES)
    check("scored", scored_M, "M", (torch.int64,), M=num_rows)
    check_scale(scale, prediction_MO)
    check_together(prediction=prediction_MO, pixels=pixels_PA, scored=scored_M, scale=scale)
    others = (rows(pixels_PA), scored_M, bool(normalise), scale)
    total = finished(_finished, _alone, (rows(prediction_MO),), others, factor_follows)
    return total, torch.full((), len(scored_M), device=scored_M.device)


# ------------------------------------------------------------------ what the workshop asks


CASES = (
    *(Case(f"{count} rows", {"M": count, "O": 48, "A": 16}) for count in (1, 16, 127, 128, 129)),
    Case("colour, ragged", {"M": 5, "O": 75, "A": 75}),
    Case("pixels as they are, in floats", {"M": 5, "O": 48, "A": 48, "normalise": False, "floats": True}),
    Case("no gradient", {"M": 129, "O": 48, "A": 16, "gradient": False}),
    Case("no rows", {"M": 0, "O": 48, "A": 16}),
)
TIMED = (
    Case("pixel-base, 256 x 133 grey", {"M": 34_048, "O": 768, "A": 256}),
    Case("pixel-base, 256 x 133 colour", {"M": 34_048, "O": 768, "A": 768}),
    Case("pixel-base, evaluation", {"M": 34_048, "O": 768, "A": 256, "gradient": False}),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    num_rows, num_patches = case["M"], 3 * case["M"] // 2 + 1
    floats = torch.rand(num_patches, case["A"], generator=draw.generator).to(draw.device, draw.dtype)
    return {
        "prediction_MO": draw.normal(num_rows, case["O"], grad=case.get("gradient", True)),
        "pixels_PA": floats if case.get("floats") else draw.bytes(num_patches, case["A"]),
        "scored_M": draw.integers(0, num_patches, num_rows),
        "normalise": case.get("normalise", True),
        "scale": torch.full((), 1 / max(1, num_rows), device=draw.device),
    }


def cost(case: Case, size: int) -> Cost:
    """Predictions in, their gradient out, which the backward pass hands on; patches, which are read in any order."""
    passes = 2 if case.get("gradient", True) else 1
    patch_bytes = case["A"] * (size if case.get("floats") else 1)
    return Cost(forward_bytes=case["M"] * (passes * case["O"] * size + patch_bytes + 8), backward_bytes=0)
