"""The backward pass of `attention.py`, in two kernels that each write what no other program writes: no atomics.

With S = scale q k^T, P = exp(S - lse) where the rule lets a row see, and Z the mask of dropout over its probability:

    dV = (Z P)^T dO          dP = Z (dO V^T)          delta = rowsum(dO O) - dlse
    dS = P (dP - delta)      dQ = scale dS K          dK = scale dS^T Q

P is made again from q, k and the log-sum-exp of its row, and a row's sum of P dP is that of dO O, so no row has to be
whole at any time (FlashAttention, arXiv:2205.14135). dQ is a sum over keys, dK and dV are sums over rows: each kernel
keeps its own sums in registers, in fp32, and goes over the other side.

    _dq_kernel: a program has rows            _dkv_kernel: a program has keys           m  masked: the rule is asked
                                                                                        .  free of code for masks
            keys 0    1    2    3                     keys 0    1    2    3
    rows 0     [ m                 ]          rows 0     [ m                 ]
         1     [ .  , m            ]               1     [ .    m            ]
         2     [ .  , .  , m       ]               2     [ .    .    m       ]
         3     [ .  , .  , .  , m  ]               3     [ .    .    .    m  ]
               ------ over keys ---->                      over rows, and over the query heads of the key/value head

Both compute S and dP: seven products and two exponentials a pair, where five and one would do. The form that does with
five, `attention_one_pass.py`, pays elsewhere and is chosen where it was measured to be faster. delta is found by the
first kernel on its way, from O and dO, and read by the second.

The second kernel holds S transposed, keys in its rows, and has next to nothing to mask (`attention_pairs.py`).

dQ, dK and dV are written side by side as one array [N, (H + 2 G) K], which is the layout of the projection that q, k
and v come from: the product that follows takes it as it is (`split_rope.py`).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import aligned
from kernels.attention_forward import LOG2_E, head_span, visible_table
from kernels.attention_one_pass import WHOLE, one_pass_default, one_pass_kernel
from kernels.attention_pairs import SEEN_FROM, add_rows, exp_score, row_statistics, rows_that_see, store_statistics
from kernels.attention_rules import COLUMNS, RULES
from kernels.attention_schedule import find_tile, schedule
from kernels.attention_tiles import keep_tile, load_tile, store_tile
from kernels.launch import Launch, cdiv, choose, is_recording, launch, measured_or_none, num_processors
from kernels.philox import load_key
from kernels.workshop.cases import wide
from pixelcore.dropout_bits import attention_threshold

INTERPRETED = Launch({"ROWS": 32, "KEYS": 32, "PROGRAMS": 1})


def dq_default(row_bytes: int) -> Launch:
    """By the bytes of a row of a tile: what fits the registers of all architectures. PROGRAMS: how many a Hopper's
    processor holds at a time, by their registers. 512 bytes are fp32, for checks."""
    return {
        64: Launch({"ROWS": 64, "KEYS": 64, "PROGRAMS": 3}, 4, 2),
        128: Launch({"ROWS": 64, "KEYS": 32, "PROGRAMS": 3}, 4, 2),
        256: Launch({"ROWS": 64, "KEYS": 32, "PROGRAMS": 1}, 8, 2),
        512: Launch({"ROWS": 32, "KEYS": 32, "PROGRAMS": 1}, 8, 1),
    }[max(row_bytes, 64)]


def dkv_default(row_bytes: int) -> Launch:
    """The same. To heads of 64 a second stage of loads spills on one architecture or another: other programs of the
    processor fill the wait for the first."""
    return {
        64: Launch({"ROWS": 32, "KEYS": 64, "PROGRAMS": 4}, 4, 1),
        128: Launch({"ROWS": 32, "KEYS": 64, "PROGRAMS": 3}, 4, 1),
        256: Launch({"ROWS": 16, "KEYS": 64, "PROGRAMS": 1}, 8, 2),
        512: Launch({"ROWS": 32, "KEYS": 32, "PROGRAMS": 1}, 8, 1),
    }[max(row_bytes, 64)]


@triton.jit(do_not_specialize=["num_rows", "site"])
def _dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    dout_ptr,
    lse_ptr,
    dlse_ptr,
    statistics_ptr,
    dqkv_ptr,
    offsets_ptr,
    visible_ptr,
    reach_ptr,
    tiles_ptr,
    count_ptr,
    seed_ptr,
    document_ptr,
    position_ptr,
    num_rows,
    q_stride,
    k_stride,
    v_stride,
    dout_stride,
    site,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    SEES: tl.constexpr,
    RANGE: tl.constexpr,
    SCALE: tl.constexpr,
    UNIT: tl.constexpr,
    THRESHOLD: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    if THRESHOLD:
        key = load_key(seed_ptr)
    for item in range(tl.program_id(0), tl.load(count_ptr) * H, tl.num_programs(0)):
        head = item % H  # pyright: ignore[reportOperatorIssue]
        document, tile, start, length = find_tile(  # pyright: ignore[reportGeneralTypeIssues]
            tiles_ptr, offsets_ptr, item // H, num_rows
        )
        start = start.to(tl.int64)
        first = tile * ROWS
        row = first + tl.arange(0, ROWS)
        q = load_tile(q_ptr + start * q_stride + head * K, q_stride, row, length, K, SPAN)
        dout = load_tile(dout_ptr + start * dout_stride + head * K, dout_stride, row, length, K, SPAN)
        out = load_tile(out_ptr + (start * H + head) * K, H * K, row, length, K, SPAN)
        lse, delta = row_statistics(
            out, dout, lse_ptr, dlse_ptr, (start + row) * H + head, row < length, THRESHOLD, UNIT
        )
        store_statistics(statistics_ptr, lse, delta, head, start + row, row < length, num_rows, H)

        shown = length
        if visible_ptr is not None and reach_ptr is None:
            shown = tl.minimum(tl.load(visible_ptr + document), length)
        reach, low, high = row, 0, 0
        if reach_ptr is not None:
            reach = tl.load(reach_ptr + start + row, mask=row < length, other=-1)
            low, high = tl.min(tl.where(row < length, reach, length)), tl.max(reach)
        last = tl.minimum(first + ROWS, length) - 1
        free, stop = RANGE(first, last, low, high, shown)
        free = tl.minimum(free, shown)
        num_tiles = tl.cdiv(tl.minimum(stop, shown), KEYS)
        own, num_own = num_tiles, 0
        if reach_ptr is not None:
            own = tl.maximum(num_tiles, first // KEYS)
            num_own = tl.maximum(tl.cdiv(last + 1, KEYS) - own, 0)

        head_k_ptr = k_ptr + start * k_stride + head // (H // G) * K
        head_v_ptr = v_ptr + start * v_stride + head // (H // G) * K
        if THRESHOLD:
            named = tl.load(document_ptr + start + row, mask=row < length, other=0)[:, None]
            position = tl.load(position_ptr + start + row, mask=row < length, other=0)[:, None]
        dq = tl.zeros((ROWS, SPAN), WIDE)
        for index in range(0, (num_tiles + num_own) * KEYS, KEYS):
            at = index
            if reach_ptr is not None and index >= num_tiles * KEYS:
                at = index + (own - num_tiles) * KEYS
            column = at + tl.arange(0, KEYS)
            k = load_tile(head_k_ptr, k_stride, column, shown, K, SPAN)
            v = load_tile(head_v_ptr, v_stride, column, shown, K, SPAN)
            score = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=WIDE)
            weight = exp_score(score, lse[:, None], SCALE, UNIT)
            if at + KEYS > free:
                seen = SEES(row[:, None], column[None], reach[:, None]) & (column < shown)[None]
                weight = tl.where(seen, weight, 0)
            dweight = tl.dot(dout, tl.trans(v), input_precision="ieee", out_dtype=WIDE)
            if THRESHOLD:
                keep = keep_tile(key, named, position, site + (head << 16), at, KEYS, THRESHOLD)
                dweight = tl.where(keep, dweight, 0)
            dscore = weight * (dweight - delta[:, None])
            dq = tl.dot(dscore.to(k.dtype), k, dq, input_precision="ieee", out_dtype=WIDE)
        WIDTH: tl.constexpr = (H + 2 * G) * K
        KEPT: tl.constexpr = 256 / (256 - THRESHOLD)
        store_tile(dqkv_ptr + start * WIDTH + head * K, WIDTH, row, length, dq * (SCALE * KEPT), K, SPAN)


@triton.jit(do_not_specialize=["num_rows", "site"])
def _dkv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    statistics_ptr,
    dqkv_ptr,
    offsets_ptr,
    visible_ptr,
    reach_ptr,
    tiles_ptr,
    count_ptr,
    seed_ptr,
    document_ptr,
    position_ptr,
    num_rows,
    q_stride,
    k_stride,
    v_stride,
    dout_stride,
    site,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    SEES: tl.constexpr,
    RANGE: tl.constexpr,
    SCALE: tl.constexpr,
    UNIT: tl.constexpr,
    THRESHOLD: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    dropout_key = 0
    if THRESHOLD:
        dropout_key = load_key(seed_ptr)
    for item in range(tl.program_id(0), tl.load(count_ptr) * G, tl.num_programs(0)):
        group = item % G  # pyright: ignore[reportOperatorIssue]
        document, tile, start, length = find_tile(  # pyright: ignore[reportGeneralTypeIssues]
            tiles_ptr, offsets_ptr, item // G, num_rows
        )
        start = start.to(tl.int64)
        first = (tl.cdiv(length, KEYS) - 1 - tile) * KEYS  # the list begins with the last rows; here the first do most
        column = first + tl.arange(0, KEYS)
        k = load_tile(k_ptr + start * k_stride + group * K, k_stride, column, length, K, SPAN)
        v = load_tile(v_ptr + start * v_stride + group * K, v_stride, column, length, K, SPAN)

        shown = length
        if visible_ptr is not None:
            shown = tl.minimum(tl.load(visible_ptr + document), length)
        begin, free, end = rows_that_see(first, first + KEYS - 1, shown, length, reach_ptr, RANGE)
        dk = tl.zeros((KEYS, SPAN), WIDE)
        dv = tl.zeros((KEYS, SPAN), WIDE)
        for head in range(group * (H // G), (group + 1) * (H // G)):
            for at in range(begin // ROWS * ROWS, end, ROWS):
                dk, dv, _ = add_rows(
                    dk,
                    dv,
                    k,
                    v,
                    column,
                    first,
                    None,
                    at,
                    free,
                    length,
                    start,
                    head,
                    q_ptr,
                    dout_ptr,
                    statistics_ptr,
                    reach_ptr,
                    document_ptr,
                    position_ptr,
                    num_rows,
                    q_stride,
                    dout_stride,
                    dropout_key,
                    site,
                    H,
                    K,
                    SPAN,
                    SEES,
                    SCALE,
                    UNIT,
                    THRESHOLD,
                    WIDE,
                    ROWS,
                    KEYS,
                )

        if visible_ptr is not None and reach_ptr is None:
            dk = tl.where((column < shown)[:, None], dk, 0)
            dv = tl.where((column < shown)[:, None], dv, 0)
        WIDTH: tl.constexpr = (H + 2 * G) * K
        KEPT: tl.constexpr = 256 / (256 - THRESHOLD)
        dk_ptr = dqkv_ptr + start * WIDTH + (H + group) * K
        store_tile(dk_ptr, WIDTH, column, length, dk * (SCALE * KEPT), K, SPAN)
        store_tile(dk_ptr + G * K, WIDTH, column, length, dv * KEPT, K, SPAN)


def run_backward(
    dout_NHK: Tensor | None,
    dlse_NH: Tensor | None,
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    out_NHK: Tensor,
    lse_NH: Tensor,
    offsets: Tensor,
    visible: list[int] | None,
    reach_N: Tensor | None,
    rule: str,
    scale: float,
    seed: Tensor | None,
    documents_N: Tensor | None,
    positions_N: Tensor | None,
    site: int,
    p: float,
) -> Tensor:
    """[N, (H + 2 G) K]: dq, dk and dv of a row side by side. dout, dlse: None is zero."""
    dqkv_NO = fake_backward(dout_NHK, dlse_NH, q_NHK, k_NGK)
    statistics_2HN = lse_NH.new_empty(2, *lse_NH.T.shape)
    num_rows, num_heads, head_size = q_NHK.shape
    num_groups, span = k_NGK.shape[1], head_span(head_size)
    row_bytes = span * min(q_NHK.element_size(), 4)
    dout_NHK = torch.zeros_like(out_NHK) if dout_NHK is None else dout_NHK
    q_NHK, k_NGK, v_NGK, dout_NHK = aligned(q_NHK), aligned(k_NGK), aligned(v_NGK), aligned(dout_NHK)
    lse = (lse_NH, None if dlse_NH is None else dlse_NH.contiguous())
    structure = (offsets, visible_table(visible, q_NHK), reach_N)
    strides = [x.stride(0) for x in (q_NHK, k_NGK, v_NGK, dout_NHK)]
    more = (seed, documents_N, positions_N, num_rows, *strides, site)
    constants = {
        "H": num_heads,
        "G": num_groups,
        "K": head_size,
        "SPAN": span,
        "SEES": RULES[rule],
        "SCALE": scale,
        "UNIT": LOG2_E if q_NHK.element_size() == 2 else 1.0,
        "THRESHOLD": attention_threshold(p) if seed is not None else 0,
        "WIDE": wide(q_NHK),
    }

    def run(kernel: Any, how: Launch, block: int, heads: int, RANGE: Any, *tensors: Tensor | None) -> None:
        tiles, count = schedule(offsets, block, num_rows)
        programs = min(tiles.shape[0] * heads, num_processors(q_NHK.device) * how.tiles["PROGRAMS"])
        launch(kernel, (programs,), how, *tensors, *structure, tiles, count, *more, RANGE=RANGE, **constants)

    def one_pass(how: Launch) -> None:
        sums_NHK = q_NHK.new_empty(q_NHK.shape, dtype=lse_NH.dtype)
        tensors = (q_NHK, k_NGK, v_NGK, out_NHK, dout_NHK, *lse, statistics_2HN, sums_NHK, dqkv_NO)
        run(one_pass_kernel, how, WHOLE, num_groups, SEEN_FROM[rule], *tensors)

    def split() -> None:
        how = choose("attention_dq", q_NHK, dq_default(row_bytes), INTERPRETED, head_size=head_size)
        tensors = (q_NHK, k_NGK, v_NGK, out_NHK, dout_NHK, *lse, statistics_2HN, dqkv_NO)
        run(_dq_kernel, how, how.tiles["ROWS"], num_heads, COLUMNS[rule], *tensors)
        how = choose("attention_dkv", q_NHK, dkv_default(row_bytes), INTERPRETED, head_size=head_size)
        tensors = (q_NHK, k_NGK, v_NGK, dout_NHK, statistics_2HN, dqkv_NO)
        run(_dkv_kernel, how, how.tiles["KEYS"], num_groups, SEEN_FROM[rule], *tensors)

    sizes = {"head_size": head_size, "rows": cdiv(num_rows, max(offsets.shape[0] - 1, 1))}
    faster = measured_or_none("attention_one_pass", q_NHK, **sizes)
    if faster or is_recording():  # the inspection looks at both forms
        one_pass(faster or one_pass_default(row_bytes))
    if not faster:
        split()
    return dqkv_NO


def fake_backward(dout_NHK: Tensor | None, dlse_NH: Tensor | None, q_NHK: Tensor, k_NGK: Tensor, *_: Any) -> Tensor:
    num_rows, num_heads, head_size = q_NHK.shape
    return q_NHK.new_empty(num_rows, (num_heads + 2 * k_NGK.shape[1]) * head_size)
