"""Likelihood of patches under a mixture, with its gradients in the same pass (specs/pixar.md, section 2.4).

    forward    l_z = -sum over the pixels of max(x, 0) - x t + log(1 + exp(-|x|))        (kernels/pixel_bce.py)
               loss = scale / A * (lse over z of s_z  -  lse over z of (s_z + l_z))
    gradients  w_z = softmax(s + l)_z, how far component z answers for this patch
               dx_za = scale / A * w_z (sigmoid(x_za) - t_a)       ds_z = scale / A * (softmax(s)_z - w_z)

What the components' gradients are multiplied by, w, is known only when all of them have been compared with the patch.
So a program holds all components of its predictions in registers, and writes their gradient without reading the logits
again: 2 M Z A values, the floor; a pixel is one bit beside Z logits.

    logits  prediction m   z = 0  [ x x x x ... ]  ->  l_0  )           a program: ROWS whole predictions,
                           z = 1  [ x x x x ... ]  ->  l_1  ) ->  w     a row of its tile: one component of one
                           ...                              )
    pixels  its patch             [ t t t t ... ]  the same for all components

A large mixture, such as 64 components of 384 pixels, does not fit into registers. Its kernel takes COMPONENTS at a time
and goes over them twice: the first time for the two sums, online as in kernels/cross_entropy.py, the second time for
the gradients; the second reading comes from a cache. Evaluation needs the first time only, for mixtures of any size.

A target that is not a patch is not read: the loss is NaN, and so are its rows of the gradients.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check, check_together, rows
from kernels.finished import check_scale, finished, partial_sums, total_of
from kernels.launch import Launch, cdiv, choose, launch
from kernels.pixel_bce import (
    check_patches,
    columns,
    compare,
    drawn_patches,
    exponential,
    extents,
    scales,
    stored_as,
    targets,
)
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops

reference = ops.mixture_bce

_TILE = 1024  # values of a warp, 32 a lane
_MOST_HELD = 16_384  # the same of sixteen warps
_INTERPRETED = 4096


@triton.jit
def _held_kernel(
    logits_ptr,
    scores_ptr,
    pixels_ptr,
    targets_ptr,
    scale_ptr,
    losses_ptr,
    dlogits_ptr,
    dscores_ptr,
    num_rows,
    num_patches,
    stride,
    pixels_stride,
    targets_stride,
    scale_stride,
    scores_stride,
    Z: tl.constexpr,
    A: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    EIGHTS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    given = (logits_ptr, scores_ptr, pixels_ptr, targets_ptr)
    sizes = (num_rows, num_patches, stride, scores_stride, pixels_stride, targets_stride)
    score, nats, slope = _compare(  # pyright: ignore[reportGeneralTypeIssues]
        given, sizes, first, 0, Z, A, PIXELS, WIDE, ROWS, COMPONENTS, EIGHTS
    )
    before, after = _exponential_sum(score), _exponential_sum(score - nats)
    scale = _scales(targets_ptr, scale_ptr, first, sizes, scale_stride, A, WIDE, ROWS)
    tl.store(losses_ptr + tl.program_id(0), tl.sum(tl.sum(scale * _nats(before, after), axis=1), axis=0))
    gradients = (dlogits_ptr, dscores_ptr)
    _write(gradients, num_rows, first, 0, scale, before, after, score, nats, slope, Z, A, ROWS, COMPONENTS, EIGHTS)


@triton.jit
def _compare(
    given,
    sizes,
    first,
    first_z,
    Z: tl.constexpr,
    A: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    EIGHTS: tl.constexpr,
):
    """A tile of components, from first_z on: their scores, -inf behind the last, and nats, both [ROWS, COMPONENTS], and
    the derivative of the nats, [ROWS * COMPONENTS, EIGHTS, 8]."""
    logits_ptr, scores_ptr, pixels_ptr, targets_ptr = given
    num_rows, num_patches, stride, scores_stride, pixels_stride, targets_stride = sizes
    LINES: tl.constexpr = ROWS * COMPONENTS
    row, z = _lines(  # pyright: ignore[reportGeneralTypeIssues]
        first, first_z, LINES, COMPONENTS
    )
    patch, is_patch = targets(targets_ptr, row, num_rows, num_patches, targets_stride)
    line_ptr, patch_ptr = logits_ptr + row * stride + z * A, pixels_ptr + patch * pixels_stride
    nats, slope = compare(line_ptr, patch_ptr, is_patch & (z < Z), A, PIXELS, WIDE, LINES, EIGHTS)
    row, z = _cells(first, first_z, ROWS, COMPONENTS)
    score = tl.load(scores_ptr + row * scores_stride + z, mask=(row < num_rows) & (z < Z), other=0).to(WIDE)
    return tl.where(z < Z, score, float("-inf")), tl.reshape(nats, (ROWS, COMPONENTS)), slope


@triton.jit
def _lines(first, first_z, LINES: tl.constexpr, COMPONENTS: tl.constexpr):
    """Prediction and component of each row of a tile, [LINES, 1, 1]."""
    line = tl.arange(0, LINES)[:, None, None]
    return first + line // COMPONENTS, first_z + line % COMPONENTS


@triton.jit
def _cells(first, first_z, ROWS: tl.constexpr, COMPONENTS: tl.constexpr):
    """The same as a column of predictions and a row of components."""
    return first + tl.arange(0, ROWS)[:, None], first_z + tl.arange(0, COMPONENTS)[None]


@triton.jit
def _exponential_sum(x):
    """Of each row the highest value and the sum of exp(x - highest); a log of it would round the large and the small
    together."""
    highest = tl.max(x, axis=1, keep_dims=True)
    return highest, tl.sum(exponential(x - highest), axis=1, keep_dims=True)


@triton.jit
def _nats(before, after):
    """-log p: the sum of the scores' exponentials, over what is left of it after the patch was seen."""
    return before[0] - after[0] + tl.log(before[1] / after[1])


@triton.jit
def _scales(
    targets_ptr, scale_ptr, first, sizes, scale_stride, A: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr
):
    num_rows, num_patches, _, _, _, targets_stride = sizes
    row = first + tl.arange(0, ROWS)[:, None]
    _, is_patch = targets(  # pyright: ignore[reportGeneralTypeIssues]
        targets_ptr, row, num_rows, num_patches, targets_stride
    )
    return scales(scale_ptr, row, num_rows, is_patch, scale_stride, A, WIDE)


@triton.jit
def _write(
    gradients,
    num_rows,
    first,
    first_z,
    scale,
    before,
    after,
    score,
    nats,
    slope,
    Z: tl.constexpr,
    A: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    EIGHTS: tl.constexpr,
):
    """The gradients of a tile. before, after: `_exponential_sum` of all scores, and of the scores less the nats."""
    dlogits_ptr, dscores_ptr = gradients
    row, z = _cells(  # pyright: ignore[reportGeneralTypeIssues]
        first, first_z, ROWS, COMPONENTS
    )
    share = exponential(score - nats - after[0]) / after[1]
    dscore = scale * (exponential(score - before[0]) / before[1] - share)
    tl.store(dscores_ptr + row * Z + z, dscore, mask=(row < num_rows) & (z < Z))
    LINES: tl.constexpr = ROWS * COMPONENTS
    row, z = _lines(first, first_z, LINES, COMPONENTS)
    column = columns(EIGHTS)
    inside = (row < num_rows) & (z < Z) & (column < A)
    tl.store(dlogits_ptr + (row * Z + z) * A + column, tl.reshape(scale * share, (LINES, 1, 1)) * slope, mask=inside)


@triton.jit
def _streamed_kernel(
    logits_ptr,
    scores_ptr,
    pixels_ptr,
    targets_ptr,
    scale_ptr,
    losses_ptr,
    dlogits_ptr,
    dscores_ptr,
    num_rows,
    num_patches,
    stride,
    pixels_stride,
    targets_stride,
    scale_stride,
    scores_stride,
    Z: tl.constexpr,
    A: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    EIGHTS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    given = (logits_ptr, scores_ptr, pixels_ptr, targets_ptr)
    sizes = (num_rows, num_patches, stride, scores_stride, pixels_stride, targets_stride)
    before, after = _stream(  # pyright: ignore[reportGeneralTypeIssues]
        given, sizes, first, Z, A, PIXELS, WIDE, ROWS, COMPONENTS, EIGHTS
    )
    scale = _scales(targets_ptr, scale_ptr, first, sizes, scale_stride, A, WIDE, ROWS)
    tl.store(losses_ptr + tl.program_id(0), tl.sum(tl.sum(scale * _nats(before, after), axis=1), axis=0))
    gradients = (dlogits_ptr, dscores_ptr)
    for first_z in range(0, Z, COMPONENTS):
        score, nats, slope = _compare(given, sizes, first, first_z, Z, A, PIXELS, WIDE, ROWS, COMPONENTS, EIGHTS)
        how_far = (scale, before, after, score, nats, slope)
        _write(gradients, num_rows, first, first_z, *how_far, Z, A, ROWS, COMPONENTS, EIGHTS)


@triton.jit
def _stream(
    given,
    sizes,
    first,
    Z: tl.constexpr,
    A: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    EIGHTS: tl.constexpr,
):
    """`_exponential_sum` of the scores, and of the scores less the nats, of all components, tile by tile."""
    before = tl.full((ROWS, 1), float("-inf"), WIDE), tl.zeros((ROWS, 1), WIDE)
    after = tl.full((ROWS, 1), float("-inf"), WIDE), tl.zeros((ROWS, 1), WIDE)
    for first_z in range(0, Z, COMPONENTS):
        score, nats, _ = _compare(given, sizes, first, first_z, Z, A, PIXELS, WIDE, ROWS, COMPONENTS, EIGHTS)
        before, after = _joined(before, _exponential_sum(score)), _joined(after, _exponential_sum(score - nats))
    return before, after


@triton.jit
def _joined(one, other):
    """The sum of two of them, of which the first may be empty, of the highest value -inf."""
    highest = tl.maximum(one[0], other[0])
    return highest, one[1] * exponential(one[0] - highest) + other[1] * exponential(other[0] - highest)


@triton.jit
def _alone_kernel(
    logits_ptr,
    scores_ptr,
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
    scores_stride,
    Z: tl.constexpr,
    A: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    EIGHTS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    given = (logits_ptr, scores_ptr, pixels_ptr, targets_ptr)
    sizes = (num_rows, num_patches, stride, scores_stride, pixels_stride, targets_stride)
    before, after = _stream(  # pyright: ignore[reportGeneralTypeIssues]
        given, sizes, first, Z, A, PIXELS, WIDE, ROWS, COMPONENTS, EIGHTS
    )
    scale = _scales(targets_ptr, scale_ptr, first, sizes, scale_stride, A, WIDE, ROWS)
    tl.store(losses_ptr + tl.program_id(0), tl.sum(tl.sum(scale * _nats(before, after), axis=1), axis=0))


def _run(
    logits_MZA: Tensor, scores_MZ: Tensor, pixels_PB: Tensor, targets_M: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dlogits_MZA, dscores_MZ = logits_MZA.new_empty(logits_MZA.shape), scores_MZ.new_empty(scores_MZ.shape)
    given = (logits_MZA, scores_MZ, pixels_PB, targets_M, scale, dlogits_MZA, dscores_MZ)
    components, eights = _tile(logits_MZA)
    if components * eights * 8 <= _MOST_HELD:
        total = _start(_held_kernel, "mixture_bce_held", components, *given)
    else:
        total = _start(_streamed_kernel, "mixture_bce_streamed", max(1, _TILE // (8 * eights)), *given)
    return total, dlogits_MZA, dscores_MZ


def _tile(logits_MZA: Tensor) -> tuple[int, int]:
    """Components and eights of pixels, as powers of two."""
    _, num_components, num_values = logits_MZA.shape
    return int(triton.next_power_of_2(num_components)), int(triton.next_power_of_2(cdiv(num_values, 8)))


def _start(
    kernel: Any,
    op: str,
    components: int,
    logits_MZA: Tensor,
    scores_MZ: Tensor,
    pixels_PB: Tensor,
    targets_M: Tensor,
    scale: Tensor,
    *gradients: Tensor,
) -> Tensor:
    num_rows, num_components, num_values = logits_MZA.shape
    how = _launch_of(op, components, logits_MZA)
    num_programs = cdiv(num_rows, how.tiles["ROWS"])
    losses = partial_sums(logits_MZA, num_programs)
    tensors = (logits_MZA, scores_MZ, pixels_PB, targets_M, scale, losses, *gradients)
    sizes = (*extents(logits_MZA, pixels_PB, targets_M, scale), scores_MZ.stride(0))
    rule = stored_as(pixels_PB, num_values)
    constants = {"Z": num_components, "A": num_values, "PIXELS": rule, "WIDE": wide(logits_MZA)}
    launch(kernel, (num_programs,), how, *tensors, *sizes, **constants)
    return total_of(losses)


def _launch_of(op: str, components: int, logits_MZA: Tensor) -> Launch:
    """Several predictions in a tile, or one."""
    _, num_components, num_values = logits_MZA.shape
    most, eights = _tile(logits_MZA)
    num_rows, num_warps = max(1, _TILE // (components * 8 * eights)), max(1, components * eights // 128)
    default = Launch({"ROWS": num_rows, "COMPONENTS": components, "EIGHTS": eights}, num_warps)
    few = {"ROWS": max(4, _INTERPRETED // (components * 8 * eights)), "COMPONENTS": min(most, 8 * components)}
    interpreted = Launch({**default.tiles, **few})
    return choose(op, logits_MZA, default, interpreted, components=num_components, columns=num_values)


def _fake(
    logits_MZA: Tensor, scores_MZ: Tensor, pixels_PB: Tensor, targets_M: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    total = _fake_alone(logits_MZA, scores_MZ, pixels_PB, targets_M, scale)
    return total, logits_MZA.new_empty(logits_MZA.shape), scores_MZ.new_empty(scores_MZ.shape)


def _run_alone(logits_MZA: Tensor, scores_MZ: Tensor, pixels_PB: Tensor, targets_M: Tensor, scale: Tensor) -> Tensor:
    components, eights = _tile(logits_MZA)
    components = max(1, min(components, _TILE // (8 * eights)))
    return _start(_alone_kernel, "mixture_bce_alone", components, logits_MZA, scores_MZ, pixels_PB, targets_M, scale)


def _fake_alone(logits_MZA: Tensor, scores_MZ: Tensor, pixels_PB: Tensor, targets_M: Tensor, scale: Tensor) -> Tensor:
    return total_of(partial_sums(logits_MZA, 1))


_SIGNATURE = "(Tensor logits, Tensor scores, Tensor pixels, Tensor targets, Tensor scale) -> "
_finished = register(__name__, "finished", _SIGNATURE + "(Tensor, Tensor, Tensor)", _run, _fake)
_alone = register(__name__, "alone", _SIGNATURE + "Tensor", _run_alone, _fake_alone)


def fused(
    logits_MZA: Tensor,
    scores_MZ: Tensor,
    pixels_PA: Tensor,
    targets_M: Tensor,
    scale: Tensor,
    *,
    factor_follows: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `reference`, in one pass: the gradients are finished with the loss, and a factor behind it is refused unless
    factor_follows says that there is one. Raises ValueError for wrong shapes, dtypes or devices."""
    check("logits", logits_MZA, "M Z A")
    num_rows, num_components, num_values = logits_MZA.shape
    check("scores", scores_MZ, "M Z", (logits_MZA.dtype,), M=num_rows, Z=num_components)
    check_patches(pixels_PA, num_values, targets_M, num_rows)
    check_scale(scale, logits_MZA, num_rows)
    check_together(logits=logits_MZA, scores=scores_MZ, pixels=pixels_PA, targets=targets_M, scale=scale)
    inputs = (_components(logits_MZA), rows(scores_MZ))
    total = finished(_finished, _alone, inputs, (rows(pixels_PA), targets_M, scale), factor_follows)
    return total, torch.full((), len(targets_M), device=targets_M.device)


def _components(logits_MZA: Tensor) -> Tensor:
    """Logits with the components of a prediction end to end, copied where they are not."""
    return logits_MZA if logits_MZA.stride()[1:] == (logits_MZA.shape[2], 1) else logits_MZA.contiguous()


# ------------------------------------------------------------------ what the workshop asks


CASES = (
    *(Case(f"{count} rows", {"M": count, "Z": 3, "A": 16, "bits": True}) for count in (1, 16, 127, 128, 129)),
    Case("one component, a ragged grey patch", {"M": 5, "Z": 1, "A": 27}),
    Case("a scale for each", {"M": 5, "Z": 4, "A": 24, "each": True, "bits": True}),
    Case("components in turn, the last ones fewer", {"M": 3, "Z": 36, "A": 320, "bits": True}),
    Case("no gradient", {"M": 5, "Z": 20, "A": 320, "bits": True, "gradient": False}),
    Case("no rows", {"M": 0, "Z": 2, "A": 16}),
)
TIMED = (
    Case("pixar, 384 x 360, 8 components", {"M": 138_240, "Z": 8, "A": 128, "bits": True}),
    Case("pixar, 384 x 360, 32 components", {"M": 138_240, "Z": 32, "A": 128, "bits": True}),
    Case("64 components of 16 x 24 pixels", {"M": 16_384, "Z": 64, "A": 384, "bits": True}),
    Case("pixar, evaluation, 32 components", {"M": 138_240, "Z": 32, "A": 128, "bits": True, "gradient": False}),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    shape, grad = (case["M"], case["Z"], case["A"]), case.get("gradient", True)
    return {
        "logits_MZA": draw.normal(*shape, grad=grad),
        "scores_MZ": draw.normal(*shape[:2], grad=grad),
        **drawn_patches(case, draw),
    }


def cost(case: Case, size: int) -> Cost:
    """Logits and scores in, their gradients out, which the backward pass hands on; patches, read in any order."""
    num_values = case["Z"] * (case["A"] + 1)
    passes = 2 if case.get("gradient", True) else 1
    patch_bytes = case["A"] // 8 if case.get("bits") else case["A"]
    return Cost(forward_bytes=case["M"] * (passes * num_values * size + patch_bytes + 8), backward_bytes=0)
