"""Attention inside each document of a packed buffer, forward: out = softmax(scale q k^T + rule) v, and its log-sum-exp.

The matrix of scores is never in memory. A program takes a tile of ROWS rows of one head and goes over the keys they
see, KEYS at a time; it keeps for each row the largest score m so far, the sum l of exp(score - m), and the weighted sum
of values, and corrects the last two where m grows (online softmax, Milakov and Gimelshein, arXiv:1805.02867; tiled so
that everything stays on the chip: FlashAttention, arXiv:2205.14135).

    one document, rule causal, visible rows behind none               length

    rows     0..63    [ m m ]                                          m  masked: the rule is asked for each pair
            64..127   [ . . m m ]                                      .  free: no code for masks is run
           128..191   [ . . . . m m ]                                     nothing: never loaded
           192..229   [ . . . . . . m m ]   <- begins first: most to do

Whether a tile of keys is free is one comparison of two numbers, the same for all threads. A loop for free tiles and
another one would drain the pipeline of loads between them, and at 400 rows a document there are seven tiles; so there
is one loop, with the mask in a branch. Under real_fake the loop goes on, behind the largest reach, with the tiles in
which the rows see themselves.

exp(x) is 2^(x log2 e), and the scale and log2 e are one constant: a score costs a multiply-add, an exp2 and its share
of a maximum and a sum. What comes out is the natural log-sum-exp. A row that sees nothing keeps m = -inf and l = 0: its
output is zero, its log-sum-exp -inf.

Programs stay on the device and take items of the work list (`attention_schedule.py`), a tile and a head each.
"""

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import aligned
from kernels.attention_rules import COLUMNS, RULES
from kernels.attention_schedule import find_tile, schedule
from kernels.attention_tiles import dealt, keep_dealt, load_tile, store_tile
from kernels.device_tables import Tables
from kernels.launch import Launch, choose, launch, num_processors
from kernels.philox import load_key
from kernels.workshop.cases import wide
from pixelcore.dropout_bits import attention_threshold

LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)
INTERPRETED = Launch({"ROWS": 32, "KEYS": 32, "PROGRAMS": 1})
_visible_tables = Tables(64)


def default(span: int, x: Tensor, dropped: bool) -> Launch:
    """Square tiles for head sizes to 64: the last tile of a document is half empty, and this is the smallest that the
    tensor cores take at full rate. PROGRAMS: how many a Hopper's processor holds at a time, by their registers. fp32 is
    multiplied without tensor cores, from registers, and is for checks."""
    if x.element_size() > 2:
        return Launch({"ROWS": 32, "KEYS": 32, "PROGRAMS": 2}, 4, 1)
    if span > 64:
        return Launch({"ROWS": 128, "KEYS": 32, "PROGRAMS": 1}, 8, 3)
    programs = (4, 3) if span <= 32 else (3, 2)
    return Launch({"ROWS": 64, "KEYS": 64, "PROGRAMS": programs[dropped]}, 4, 3)


@triton.jit(do_not_specialize=["num_rows", "site"])
def _forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
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
    site,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    SEES: tl.constexpr,
    RANGE: tl.constexpr,
    FACTOR: tl.constexpr,
    THRESHOLD: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    if THRESHOLD:
        key = load_key(seed_ptr)
    # what is the same for all items is computed again for each: kept, it would cost the registers of a third program
    for item in tl.range(  # pyright: ignore[reportGeneralTypeIssues]
        tl.program_id(0), tl.load(count_ptr) * H, tl.num_programs(0), disable_licm=True
    ):
        head = item % H  # pyright: ignore[reportOperatorIssue]
        document, tile, start, length = find_tile(  # pyright: ignore[reportGeneralTypeIssues]
            tiles_ptr, offsets_ptr, item // H, num_rows
        )
        start = start.to(tl.int64)
        first = tile * ROWS
        row = first + tl.arange(0, ROWS)
        q = load_tile(q_ptr + start * q_stride + head * K, q_stride, row, length, K, SPAN)
        head_k_ptr = k_ptr + start * k_stride + head // (H // G) * K
        head_v_ptr = v_ptr + start * v_stride + head // (H // G) * K

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

        if THRESHOLD:
            named = tl.load(document_ptr + start + row, mask=row < length, other=0)[:, None]
            position = tl.load(position_ptr + start + row, mask=row < length, other=0)[:, None]
        largest = tl.full((ROWS,), float("-inf"), WIDE)
        total = tl.zeros((ROWS,), WIDE)
        out = tl.zeros((ROWS, SPAN), WIDE)
        for index in range(0, num_tiles + num_own):
            at = index * KEYS
            if reach_ptr is not None:
                at = tl.where(index < num_tiles, index, own + index - num_tiles) * KEYS
            there = dealt(KEYS) if THRESHOLD else tl.arange(0, KEYS)
            k = load_tile(head_k_ptr + tl.cast(at, tl.int64) * k_stride, k_stride, there, shown - at, K, SPAN)
            v = load_tile(head_v_ptr + tl.cast(at, tl.int64) * v_stride, v_stride, there, shown - at, K, SPAN)
            score = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=WIDE)
            if at + KEYS > free:
                seen = SEES(row[:, None] - at, there[None], reach[:, None] - at) & (there < shown - at)[None]
                score = tl.where(seen, score, float("-inf"))
            larger = tl.maximum(largest, tl.max(score, axis=1) * FACTOR)
            base = tl.where(larger == float("-inf"), 0, larger)  # nothing seen yet: -inf - -inf would be NaN
            weight = tl.exp2(score * FACTOR - base[:, None])
            correction = tl.exp2(largest - base)
            total = total * correction + tl.sum(weight, axis=1)
            if THRESHOLD:
                keep = keep_dealt(key, named, position, site + (head << 16), at, KEYS, THRESHOLD)
                # a zero that the compiler does not know: from one it knows it makes choices between halves, 44 more
                # instructions a tile
                weight = tl.where(keep, weight, (correction * 0)[:, None])
            out = tl.dot(weight.to(v.dtype), v, out * correction[:, None], input_precision="ieee", out_dtype=WIDE)
            largest = larger

        nothing = total == 0
        total = tl.where(nothing, 1, total)
        log_sum = tl.where(nothing, float("-inf"), (largest + tl.log2(total)) * LN_2)
        tl.store(lse_ptr + (start + row) * H + head, log_sum, mask=row < length)
        out *= (256 / (256 - THRESHOLD) / total)[:, None]
        store_tile(out_ptr + start * (H * K) + head * K, H * K, row, length, out, K, SPAN)


def run_forward(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
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
) -> tuple[Tensor, Tensor]:
    out_NHK, lse_NH = fake_forward(q_NHK, k_NGK, v_NGK)
    q_NHK, k_NGK, v_NGK = aligned(q_NHK), aligned(k_NGK), aligned(v_NGK)
    num_rows, num_heads, head_size = q_NHK.shape
    span, threshold = head_span(head_size), attention_threshold(p) if seed is not None else 0
    default_how = default(span, q_NHK, threshold > 0)
    how = choose("attention_forward", q_NHK, default_how, INTERPRETED, head_size=head_size, dropped=int(threshold > 0))
    tiles, count = schedule(offsets, how.tiles["ROWS"], num_rows)
    launch(
        _forward_kernel,
        (min(len(tiles) * num_heads, num_processors(q_NHK.device) * how.tiles["PROGRAMS"]),),
        how,
        q_NHK,
        k_NGK,
        v_NGK,
        out_NHK,
        lse_NH,
        offsets,
        visible_table(visible, q_NHK),
        reach_N,
        tiles,
        count,
        seed,
        documents_N,
        positions_N,
        num_rows,
        q_NHK.stride(0),
        k_NGK.stride(0),
        v_NGK.stride(0),
        site,
        H=num_heads,
        G=k_NGK.shape[1],
        K=head_size,
        SPAN=span,
        SEES=RULES[rule],
        RANGE=COLUMNS[rule],
        FACTOR=scale * LOG2_E,
        THRESHOLD=threshold,
        WIDE=wide(q_NHK),
    )
    return out_NHK, lse_NH


def fake_forward(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    statistics = torch.float64 if q_NHK.dtype == torch.float64 else torch.float32
    return q_NHK.new_empty(q_NHK.shape), q_NHK.new_empty(q_NHK.shape[:2], dtype=statistics)


def head_span(head_size: int) -> int:
    """Columns of a tile: the head size's next power of two, which products have from 16 on."""
    return max(int(triton.next_power_of_2(head_size)), 16)


def visible_table(visible: list[int] | None, like: Tensor) -> Tensor | None:
    """The number of visible rows of each document, int32 on the device."""
    if visible is None:
        return None
    return _visible_tables.find(tuple(visible), like.device, lambda: np.array(visible, np.int32))
