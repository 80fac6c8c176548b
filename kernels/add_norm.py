"""Add a branch to the residual stream and normalise the sum: RMSNorm (arXiv:1910.07467) or LayerNorm
(arXiv:1607.06450), with the branch's bias and dropout on the way.

    forward   r = x + mask / (1 - p) * (delta + delta_bias)             rounded to the dtype of the stream
              h = (r - m) s          m = mean(r), of LayerNorm alone;   s = 1 / sqrt(mean((r - m)^2) + eps)
              y = h w + b            b of LayerNorm alone

    backward  g = dy w
              dx = dr + s (g - h mean(g h) - mean(g))                   the last mean of LayerNorm alone
              ddelta = mask / (1 - p) * dx                              without dropout it is dx, and not written again
              dw = sum of dy h,  db = sum of dy,  ddelta_bias = sum of ddelta, over the rows

Each way moves four values an element and computes little, so the floor is the memory's: read x and delta, write r and
y; read r, dr and dy, write dx. A row is read once and stays in registers between its statistics and their use. Of the
forward pass only m and s are kept, and r, which is the stream itself: h and the mask are computed again.

A program takes ROWS whole rows in CHUNKS pieces of COLUMNS, all held in registers at once. With the widths of PIXEL a
piece is 256 columns: 8 values a thread, one load of 16 bytes of bf16, and a warp owns a row, so that a mean is a few
shuffles and no warp waits for another. 768 is three pieces; as one padded piece of 1024 a quarter of the lanes would
be idle, and every mean would go through shared memory. The backward pass is in `add_norm_backward.py`.

                 |<-- COLUMNS -->|
    program 0    [ . . . . . . . | . . . . . . . | . . . . . . . ]  warp 0   -> s, m of a row
                 [ . . . . . . . | . . . . . . . | . . . . . . . ]  warp 1
    program 1    [ . . . . . . . | . . . . . . . | . . . . . . . ]  warp 0
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.add_norm_backward import LIMIT, backward, load_vector, piece
from kernels.arguments import check, check_limit, check_together, rows
from kernels.launch import Launch, cdiv, choose, launch
from kernels.philox import keep_features, parts, threshold
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops
from pixelcore.dropout_bits import Drop

reference = ops.add_norm


def default(width: int) -> Launch:
    """A piece of 1024 elements: four rows of 256 columns, or fewer rows of more columns."""
    columns = piece(width)
    return Launch({"ROWS": max(1024 // columns, 1), "COLUMNS": columns}, num_warps=max(columns // 256, 4))


def interpreted(width: int) -> Launch:
    return Launch({"ROWS": 64, "COLUMNS": piece(width)})


@triton.jit(do_not_specialize=["num_rows", "site"])
def _forward_kernel(
    x_ptr,
    delta_ptr,
    delta_bias_ptr,
    weight_ptr,
    bias_ptr,
    seed_ptr,
    document_ptr,
    position_ptr,
    residual_ptr,
    normed_ptr,
    statistics_ptr,
    num_rows,
    x_stride,
    delta_stride,
    site,
    D: tl.constexpr,
    CHUNKS: tl.constexpr,
    EPS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    x = ()
    total = tl.zeros((ROWS, COLUMNS), WIDE)
    for chunk in tl.static_range(CHUNKS):
        column = chunk * COLUMNS + tl.arange(0, COLUMNS)[None]
        inside = (row < num_rows) & (column < D)
        stream = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0).to(WIDE)
        if delta_ptr is not None:
            delta = tl.load(delta_ptr + row * delta_stride + column, mask=inside, other=0).to(WIDE)
            if delta_bias_ptr is not None:
                delta += load_vector(delta_bias_ptr, chunk, D, WIDE, ROWS, COLUMNS)
            if seed_ptr is not None:
                document = tl.load(document_ptr + row, mask=row < num_rows, other=0)
                position = tl.load(position_ptr + row, mask=row < num_rows, other=0)
                keep = keep_features(seed_ptr, document, position, site, chunk * COLUMNS, COLUMNS, THRESHOLD)
                delta = tl.where(keep, delta * SCALE, 0)
            # the statistics are those of the stream as it is kept: the backward pass sees no other
            rounded = (stream + delta).to(residual_ptr.dtype.element_ty)
            tl.store(residual_ptr + row * D + column, rounded, mask=inside)
            stream = tl.where(column < D, rounded.to(WIDE), 0)
        x = x + (stream,)
        total += stream
    if bias_ptr is not None:
        mean = tl.sum(total, axis=1, keep_dims=True) / D
        tl.store(statistics_ptr + num_rows + row, mean, mask=row < num_rows)
    else:
        mean = tl.zeros((ROWS, 1), WIDE)
    squares = tl.zeros((ROWS, COLUMNS), WIDE)
    for chunk in tl.static_range(CHUNKS):
        centred = tl.where(chunk * COLUMNS + tl.arange(0, COLUMNS)[None] < D, x[chunk] - mean, 0)
        squares += centred * centred
    rstd = tl.rsqrt(tl.sum(squares, axis=1, keep_dims=True) / D + EPS)
    tl.store(statistics_ptr + row, rstd, mask=row < num_rows)
    for chunk in tl.static_range(CHUNKS):
        column = chunk * COLUMNS + tl.arange(0, COLUMNS)[None]
        normed = (x[chunk] - mean) * rstd * load_vector(weight_ptr, chunk, D, WIDE, ROWS, COLUMNS)
        if bias_ptr is not None:
            normed += load_vector(bias_ptr, chunk, D, WIDE, ROWS, COLUMNS)
        tl.store(normed_ptr + row * D + column, normed, mask=(row < num_rows) & (column < D))


def _run_forward(
    x_ND: Tensor,
    delta_ND: Tensor | None,
    delta_bias_D: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    *drop: Any,
) -> list[Tensor]:
    results = _fake_forward(x_ND, delta_ND, delta_bias_D, weight_D, bias_D, eps, *drop)
    seed, documents_N, positions_N, site, p = drop
    num_rows, width = x_ND.shape
    how = choose("add_norm_forward", x_ND, default(width), interpreted(width), columns=width)
    tensors = (x_ND, delta_ND, delta_bias_D, weight_D, bias_D, seed, documents_N, positions_N)
    launch(
        _forward_kernel,
        (cdiv(num_rows, how.tiles["ROWS"]),),
        how,
        *tensors,
        None if delta_ND is None else results[-3],
        *results[-2:],
        num_rows,
        x_ND.stride(0),
        0 if delta_ND is None else delta_ND.stride(0),
        site,
        D=width,
        CHUNKS=cdiv(width, how.tiles["COLUMNS"]),
        EPS=eps,
        THRESHOLD=threshold(p),
        SCALE=1 / (1 - p),
        WIDE=wide(x_ND),
    )
    return results


def _fake_forward(
    x_ND: Tensor,
    delta_ND: Tensor | None,
    delta_bias_D: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    *drop: Any,
) -> list[Tensor]:
    """The stream if it changes, the norm of it, and statistics [1, N] or [2, N]: s, and m of LayerNorm."""
    streams = [x_ND.new_empty(x_ND.shape) for _ in range(1 if delta_ND is None else 2)]
    kept = torch.float64 if x_ND.dtype == torch.float64 else torch.float32
    return [*streams, x_ND.new_empty(1 if bias_D is None else 2, x_ND.shape[0], dtype=kept)]


_forward = register(
    __name__,
    "forward",
    "(Tensor x, Tensor? delta, Tensor? delta_bias, Tensor weight, Tensor? bias, float eps, Tensor? seed, "
    "Tensor? documents, Tensor? positions, int site, float p) -> Tensor[]",
    _run_forward,
    _fake_forward,
)


class _AddNorm(torch.autograd.Function):
    """Without a branch the stream passes unchanged, yet through here: its gradient is then added in the same pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        delta_ND: Tensor | None,
        delta_bias_D: Tensor | None,
        weight_D: Tensor,
        bias_D: Tensor | None,
        eps: float,
        *drop: Any,
    ) -> tuple[Tensor, Tensor]:
        *stream, normed_ND, statistics = _forward(x_ND, delta_ND, delta_bias_D, weight_D, bias_D, eps, *drop)
        residual_ND = stream[0] if stream else x_ND
        seed, documents_N, positions_N, ctx.site, ctx.p = drop
        ctx.save_for_backward(residual_ND, statistics, weight_D, seed, documents_N, positions_N)
        ctx.has = (delta_ND is not None, delta_bias_D is not None, bias_D is not None)
        ctx.set_materialize_grads(False)  # nobody reads the stream behind the last norm
        return residual_ND, normed_ND

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        d_residual_ND, d_normed_ND = (None if x is None else rows(x) for x in upstream)
        residual_ND, statistics, weight_D, *drop = ctx.saved_tensors
        has_delta, has_delta_bias, has_bias = ctx.has
        if d_normed_ND is None:
            d_normed_ND = torch.zeros_like(residual_ND)
        flags = (*drop, ctx.site, ctx.p, has_bias, has_delta_bias)
        *streams, sums_VD = backward(d_residual_ND, d_normed_ND, residual_ND, statistics, weight_D, *flags)
        sums = iter(sums_VD)
        dweight_D = next(sums)
        dbias_D = next(sums) if has_bias else None
        ddelta_bias_D = next(sums) if has_delta_bias else None
        ddelta_ND = streams[-1] if has_delta else None
        return streams[0], ddelta_ND, ddelta_bias_D, dweight_D, dbias_D, *[None] * 6


def fused(
    x_ND: Tensor,
    delta_ND: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    drop: Drop | None = None,
    delta_bias_D: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference`, in one pass each way; D up to 8192. Raises ValueError for a device on which no kernel runs,
    shapes or dtypes that differ, or a bias or dropout of a branch that is not there."""
    check("x", x_ND, "N D")
    num_rows, width = x_ND.shape
    check_limit("the width of x", width, LIMIT)
    check("weight", weight_D, "D", D=width)
    for name, vector in (("bias", bias_D), ("delta_bias", delta_bias_D)):
        if vector is not None:
            check(name, vector, "D", (weight_D.dtype,), D=width)
    if delta_ND is not None:
        check("delta", delta_ND, "N D", (x_ND.dtype,), N=num_rows, D=width)
    elif delta_bias_D is not None:
        raise ValueError("delta_bias is given and delta is None: there is no branch that it belongs to")
    used = parts(None if delta_ND is None else drop, num_rows)
    check_together(x=x_ND, delta=delta_ND, weight=weight_D, bias=bias_D, delta_bias=delta_bias_D, seed=used[0])
    branch = [None if x is None else rows(x) for x in (delta_ND, delta_bias_D)]
    bias_D = None if bias_D is None else rows(bias_D)
    return _AddNorm.apply(rows(x_ND), *branch, rows(weight_D), bias_D, eps, *used)  # pyright: ignore[reportReturnType]


# ------------------------------------------------------------------ what the workshop asks


_ALL = {"delta": True, "bias": True, "delta_bias": True, "p": 0.1}
CASES = (
    Case("RMSNorm, one row", {"N": 1, "D": 48}),
    Case("LayerNorm, 16 rows", {"N": 16, "D": 64, "bias": True}),
    Case("RMSNorm of a sum, 127 rows", {"N": 127, "D": 80, "delta": True}),
    Case("RMSNorm, dropped, 128 rows", {"N": 128, "D": 30, "delta": True, "p": 0.3}),
    Case("LayerNorm, biased branch, 129 rows", {"N": 129, "D": 96, **_ALL, "p": 0.0}),
    Case("LayerNorm with all of it, several tiles a program", {"N": 400, "D": 22, **_ALL}),
    Case("a wide row in three pieces", {"N": 3, "D": 1030, **_ALL}),
    Case("no rows", {"N": 0, "D": 16, **_ALL, "p": 0.0}),
)
TIMED = (
    Case("pixel-base encoder, 256 strips, dropout", {"N": 101_632, "D": 768, **_ALL}),
    Case("pixel-base encoder, 256 strips", {"N": 101_632, "D": 768, **_ALL, "p": 0.0}),
    Case("pixel-base decoder, 256 strips", {"N": 135_680, "D": 512, **_ALL, "p": 0.0}),
    Case("pixar-85m, 384 x 360", {"N": 138_240, "D": 768, "delta": True}),
    Case("100m, 32 x 1024", {"N": 32_768, "D": 768, "delta": True}),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    num_rows, width = case["N"], case["D"]
    p = case.get("p", 0.0)
    return {
        "x_ND": draw.normal(num_rows, width, grad=True),
        "delta_ND": draw.normal(num_rows, width, grad=True) if case.get("delta") else None,
        "weight_D": draw.parameter(width, scale=0.1, shift=1.0),
        "bias_D": draw.parameter(width) if case.get("bias") else None,
        "eps": 1e-5,
        "drop": draw.drop(_lengths(num_rows), p) if p else None,
        "delta_bias_D": draw.parameter(width) if case.get("delta_bias") else None,
    }


def _lengths(num_rows: int) -> list[int]:
    """Two documents of different lengths."""
    return [num_rows // 3, num_rows - num_rows // 3]


def cost(case: Case, size: int) -> Cost:
    """Each way four values an element, forward without a branch two; ddelta is a fifth where it differs from dx."""
    values = case["N"] * case["D"] * size
    streams = 4 if case.get("delta") else 2
    return Cost(forward_bytes=streams * values, backward_bytes=(5 if case.get("p") else 4) * values)
