"""The backward pass of `add_norm.py`, whose formulas it follows; the gradients of the parameters are its difficulty.

They are sums over all rows. One program for each tile would have to meet the others in memory for them. So a few
programs stay instead, two for each processor of the device; each takes every so many tiles and folds them into sums
that it keeps in registers, in fp32, and writes them once. `column_sums` adds those rows up. (Persistent programs and a
second small sum in place of atomics: Liger-Kernel and Fast-LLM measured several times the speed of atomics.)

    program      0       1       2       0       1       2     ...
    rows      [ . . ] [ . . ] [ . . ] [ . . ] [ . . ] [ . . ]  ...     dx, ddelta of each tile
                 +-------|-------|-------+       |       |     ...  -> partials[0]
                         +-------|---------------+       |     ...  -> partials[1]
                                 +-----------------------+     ...  -> partials[2]     dw, db, ddelta_bias of each

The loads of the next tile are under way while this one is computed: STAGES of them.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.column_sums import column_sums
from kernels.launch import Launch, cdiv, choose, launch, num_processors
from kernels.philox import keep_features, threshold
from kernels.register import register
from kernels.workshop.cases import wide

LIMIT = 8192  # columns: a row of them, and the sums, stay in registers
_PER_PROCESSOR = 2


def default(width: int) -> Launch:
    """Tiles as in the forward pass, on twice the warps: 4 values a thread of each tensor, piece and sum, or the sums of
    LayerNorm with a biased branch would leave room for 8 warps on a processor."""
    columns = piece(width)
    tiles = {"ROWS": max(1024 // columns, 1), "COLUMNS": columns, "STAGES": 2}
    return Launch(tiles, num_warps=max(columns // 128, 8))


def interpreted(width: int) -> Launch:
    return Launch({"ROWS": 64, "COLUMNS": piece(width), "STAGES": 1})


def piece(width: int) -> int:
    """Columns of a piece: a row is at most four, and no more than it needs of 256."""
    power = int(triton.next_power_of_2(width))
    return max(min(power, 256), power // 4, 16)


@triton.jit
def load_vector(
    ptr, chunk: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A piece of a row of parameters, the same for all rows. Its shape is the tile's, which gives every thread just
    what belongs to its columns; a row alone would be spread over all threads and exchanged through shared memory."""
    column = tl.broadcast_to(chunk * COLUMNS + tl.arange(0, COLUMNS)[None], (ROWS, COLUMNS))
    return tl.load(ptr + column, mask=column < D, other=0).to(WIDE)


@triton.jit
def _zeros(CHUNKS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """CHUNKS pieces of sums."""
    sums = ()
    for _ in tl.static_range(CHUNKS):  # pyright: ignore[reportGeneralTypeIssues]
        sums = sums + (tl.zeros((ROWS, COLUMNS), WIDE),)
    return sums


@triton.jit
def _store_sums(ptr, sums, D: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr):
    for chunk in tl.static_range(CHUNKS):  # pyright: ignore[reportGeneralTypeIssues]
        column = chunk * COLUMNS + tl.arange(0, COLUMNS)
        tl.store(ptr + column, tl.sum(sums[chunk], axis=0), mask=column < D)


@triton.jit(do_not_specialize=["num_rows", "site"])
def _backward_kernel(
    d_residual_ptr,
    d_normed_ptr,
    residual_ptr,
    statistics_ptr,
    weight_ptr,
    seed_ptr,
    document_ptr,
    position_ptr,
    dx_ptr,
    ddelta_ptr,
    partials_ptr,
    num_rows,
    d_residual_stride,
    d_normed_stride,
    residual_stride,
    site,
    D: tl.constexpr,
    CHUNKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_DELTA_BIAS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    weight = ()
    for chunk in tl.static_range(CHUNKS):  # pyright: ignore[reportGeneralTypeIssues]
        weight = weight + (load_vector(weight_ptr, chunk, D, WIDE, ROWS, COLUMNS),)
    dweight = _zeros(CHUNKS, WIDE, ROWS, COLUMNS)
    if HAS_BIAS:
        dbias = _zeros(CHUNKS, WIDE, ROWS, COLUMNS)
    if HAS_DELTA_BIAS:
        ddelta_bias = _zeros(CHUNKS, WIDE, ROWS, COLUMNS)
    for tile in tl.range(program, tl.cdiv(num_rows, ROWS), num_programs, num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)[:, None]
        rstd = tl.load(statistics_ptr + row, mask=row < num_rows, other=0)  # 0 beyond the rows: nothing is added there
        if HAS_BIAS:
            mean = tl.load(statistics_ptr + num_rows + row, mask=row < num_rows, other=0)
        hats, d_hats, dweights, dbiases = (), (), (), ()
        along = tl.zeros((ROWS, COLUMNS), WIDE)
        total = tl.zeros((ROWS, COLUMNS), WIDE)
        for chunk in tl.static_range(CHUNKS):
            column = chunk * COLUMNS + tl.arange(0, COLUMNS)[None]
            inside = (row < num_rows) & (column < D)
            hat = tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0).to(WIDE)
            if HAS_BIAS:
                hat -= mean
            hat *= rstd
            d_normed = tl.load(d_normed_ptr + row * d_normed_stride + column, mask=inside, other=0).to(WIDE)
            d_hat = d_normed * weight[chunk]
            along += d_hat * hat
            dweights = dweights + (dweight[chunk] + d_normed * hat,)
            hats, d_hats = hats + (hat,), d_hats + (d_hat,)
            if HAS_BIAS:
                total += d_hat
                dbiases = dbiases + (dbias[chunk] + d_normed,)
        dweight = dweights
        along = tl.sum(along, axis=1, keep_dims=True) / D
        if HAS_BIAS:
            dbias = dbiases
            total = tl.sum(total, axis=1, keep_dims=True) / D
        ddelta_biases = ()
        for chunk in tl.static_range(CHUNKS):
            column = chunk * COLUMNS + tl.arange(0, COLUMNS)[None]
            inside = (row < num_rows) & (column < D)
            dx = d_hats[chunk] - hats[chunk] * along
            if HAS_BIAS:
                dx -= total
            dx *= rstd
            if d_residual_ptr is not None:
                dx += tl.load(d_residual_ptr + row * d_residual_stride + column, mask=inside, other=0).to(WIDE)
            tl.store(dx_ptr + row * D + column, dx, mask=inside)
            if seed_ptr is not None:
                document = tl.load(document_ptr + row, mask=row < num_rows, other=0)
                position = tl.load(position_ptr + row, mask=row < num_rows, other=0)
                keep = keep_features(seed_ptr, document, position, site, chunk * COLUMNS, COLUMNS, THRESHOLD)
                dx = tl.where(keep, dx * SCALE, 0)
                tl.store(ddelta_ptr + row * D + column, dx, mask=inside)
            if HAS_DELTA_BIAS:
                ddelta_biases = ddelta_biases + (ddelta_bias[chunk] + dx,)
        if HAS_DELTA_BIAS:
            ddelta_bias = ddelta_biases
    partial_ptr = partials_ptr + program * D
    _store_sums(partial_ptr, dweight, D, CHUNKS, COLUMNS)
    if HAS_BIAS:
        partial_ptr += num_programs * D
        _store_sums(partial_ptr, dbias, D, CHUNKS, COLUMNS)
    if HAS_DELTA_BIAS:
        partial_ptr += num_programs * D
        _store_sums(partial_ptr, ddelta_bias, D, CHUNKS, COLUMNS)


def _run_backward(
    d_residual_ND: Tensor | None,
    d_normed_ND: Tensor,
    residual_ND: Tensor,
    statistics: Tensor,
    weight_D: Tensor,
    *more: Any,
) -> list[Tensor]:
    *drop, site, p, has_bias, has_delta_bias = more
    dx_ND, *other = [residual_ND.new_empty(residual_ND.shape) for _ in range(1 if drop[0] is None else 2)]
    num_rows, width = residual_ND.shape
    how = choose("add_norm_backward", residual_ND, default(width), interpreted(width), columns=width)
    num_tiles = cdiv(num_rows, how.tiles["ROWS"])
    num_programs = min(num_tiles, _PER_PROCESSOR * num_processors(residual_ND.device))
    partials_VPD = statistics.new_empty(1 + has_bias + has_delta_bias, num_programs, width)
    launch(
        _backward_kernel,
        (num_programs,),
        how,
        d_residual_ND,
        d_normed_ND,
        residual_ND,
        statistics,
        weight_D,
        *drop,
        dx_ND,
        other[0] if other else None,
        partials_VPD,
        num_rows,
        0 if d_residual_ND is None else d_residual_ND.stride(0),
        d_normed_ND.stride(0),
        residual_ND.stride(0),
        site,
        D=width,
        CHUNKS=cdiv(width, how.tiles["COLUMNS"]),
        HAS_BIAS=has_bias,
        HAS_DELTA_BIAS=has_delta_bias,
        THRESHOLD=threshold(p),
        SCALE=1 / (1 - p),
        WIDE=wide(residual_ND),
    )
    return [dx_ND, *other, column_sums(partials_VPD, weight_D.dtype)]


def _fake_backward(
    d_residual_ND: Tensor | None,
    d_normed_ND: Tensor,
    residual_ND: Tensor,
    statistics: Tensor,
    weight_D: Tensor,
    *more: Any,
) -> list[Tensor]:
    """dx, with dropout ddelta, and [vectors, D]: dw, db of LayerNorm, ddelta_bias where it is asked for."""
    seed, _, _, _, _, has_bias, has_delta_bias = more
    streams = [residual_ND.new_empty(residual_ND.shape) for _ in range(1 if seed is None else 2)]
    return [*streams, weight_D.new_empty(1 + has_bias + has_delta_bias, residual_ND.shape[1])]


backward = register(
    "add_norm",
    "backward",
    "(Tensor? d_residual, Tensor d_normed, Tensor residual, Tensor statistics, Tensor weight, Tensor? seed, "
    "Tensor? documents, Tensor? positions, int site, float p, bool has_bias, bool has_delta_bias) -> Tensor[]",
    _run_backward,
    _fake_backward,
)
