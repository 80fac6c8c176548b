"""The backward pass of attention in one pass: what one program needs, no other program writes.

A program owns a document and a key/value head. It goes over the keys in blocks, whose dK and dV stay in registers, and
for each block over the rows that see it. What a block adds to dQ is added to an fp32 array in memory, which belongs to
the program alone: it reads, adds and writes, in a fixed order, so equal runs end in equal bits. (FlashAttention adds
with atomics from many programs there, and offers an order of turns where bits must repeat.)

    a document          keys  block 0    block 1    block 2
        rows   0            [    1    ]                           1, 2, ... the order; of GQA each row stands for the
               1            [    2    ] [    4    ]               query heads of the group, one after the other
               2            [    3    ] [    5    ] [    6    ]
                            dK, dV      dK, dV      dK, dV        in registers, written at the end of a block
        dQ of a row: written by block 0, added to by the others, narrowed to its dtype when all is done

Five products and one exponential a pair of row and key, where `attention_backward.py` has seven and two. In exchange
there are only as many items as documents times key/value heads, an item lasts as long as a document, and dQ goes
through the L2 cache twice for each block of keys. So it can win where there are many documents of a few blocks each, as
in the batches of PIXEL (thousands of items), and not where a batch is a few long texts. It runs where it was measured
to be faster: where `launches.toml` has an entry of the op "attention_one_pass".

dQ is a sum over keys, so keys that do not exist must be masked here: their scores are those of zeros, and exp(-lse) may
be anything.
"""

import triton
import triton.language as tl

from kernels.attention_pairs import add_rows, row_statistics, rows_that_see, store_statistics
from kernels.attention_schedule import find_tile
from kernels.attention_tiles import load_tile, store_tile
from kernels.launch import Launch
from kernels.philox import load_key

WHOLE = 2**30  # rows of a block that holds any document


def one_pass_default(row_bytes: int) -> Launch:
    """By the bytes of a row of a tile: what fits all architectures. PROGRAMS: how many of them a processor holds at the
    same time."""
    return {
        64: Launch({"ROWS": 32, "KEYS": 64, "PROGRAMS": 2}, 4, 2),
        128: Launch({"ROWS": 32, "KEYS": 64, "PROGRAMS": 1}, 8, 1),
        256: Launch({"ROWS": 32, "KEYS": 32, "PROGRAMS": 1}, 8, 2),
        512: Launch({"ROWS": 32, "KEYS": 32, "PROGRAMS": 1}, 8, 1),
    }[max(row_bytes, 64)]


@triton.jit(do_not_specialize=["num_rows", "site"])
def one_pass_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    dout_ptr,
    lse_ptr,
    dlse_ptr,
    statistics_ptr,
    sums_ptr,
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
    WIDTH: tl.constexpr = (H + 2 * G) * K
    KEPT: tl.constexpr = 256 / (256 - THRESHOLD)
    dropout_key = 0
    if THRESHOLD:
        dropout_key = load_key(seed_ptr)
    for item in range(tl.program_id(0), tl.load(count_ptr) * G, tl.num_programs(0)):
        group = item % G  # pyright: ignore[reportOperatorIssue]
        document, _, start, length = find_tile(  # pyright: ignore[reportGeneralTypeIssues]
            tiles_ptr, offsets_ptr, item // G, num_rows
        )
        start = start.to(tl.int64)
        shown = length
        if visible_ptr is not None:
            shown = tl.minimum(tl.load(visible_ptr + document), length)
        num_keys = shown
        if reach_ptr is not None:
            num_keys = length
        for head in range(group * (H // G), (group + 1) * (H // G)):
            for at in range(0, length, ROWS):
                row = at + tl.arange(0, ROWS)
                dout = load_tile(dout_ptr + start * dout_stride + head * K, dout_stride, row, length, K, SPAN)
                out = load_tile(out_ptr + (start * H + head) * K, H * K, row, length, K, SPAN)
                at_row = (start + row) * H + head
                lse, delta = row_statistics(out, dout, lse_ptr, dlse_ptr, at_row, row < length, THRESHOLD, UNIT)
                store_statistics(statistics_ptr, lse, delta, head, start + row, row < length, num_rows, H)

        for first in range(0, length, KEYS):
            tl.debug_barrier()  # what other threads of the program wrote, statistics and sums, is seen from here on
            column = first + tl.arange(0, KEYS)
            k = load_tile(k_ptr + start * k_stride + group * K, k_stride, column, length, K, SPAN)
            v = load_tile(v_ptr + start * v_stride + group * K, v_stride, column, length, K, SPAN)
            begin, free, end = rows_that_see(first, first + KEYS - 1, shown, length, reach_ptr, RANGE)
            if first + KEYS > num_keys:
                free = end  # dQ is a sum over keys, and must not meet those that do not exist
            dk = tl.zeros((KEYS, SPAN), WIDE)
            dv = tl.zeros((KEYS, SPAN), WIDE)
            for head in range(group * (H // G), (group + 1) * (H // G)):
                head_sums_ptr = sums_ptr + (start * H + head) * K
                for at in range(begin // ROWS * ROWS, end, ROWS):
                    dk, dv, dscore = add_rows(
                        dk,
                        dv,
                        k,
                        v,
                        column,
                        first,
                        num_keys,
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
                    # the first block finds nothing there, and sees to every row
                    row = at + tl.arange(0, ROWS)
                    sums = load_tile(head_sums_ptr, H * K, row, tl.where(first > 0, length, 0), K, SPAN)
                    sums += tl.dot(tl.trans(dscore), k, input_precision="ieee", out_dtype=WIDE)
                    store_tile(head_sums_ptr, H * K, row, length, sums, K, SPAN)
            if visible_ptr is not None and reach_ptr is None:
                dk = tl.where((column < shown)[:, None], dk, 0)
                dv = tl.where((column < shown)[:, None], dv, 0)
            dk_ptr = dqkv_ptr + start * WIDTH + (H + group) * K
            store_tile(dk_ptr, WIDTH, column, length, dk * (SCALE * KEPT), K, SPAN)
            store_tile(dk_ptr + G * K, WIDTH, column, length, dv * KEPT, K, SPAN)

        tl.debug_barrier()
        seen = tl.where(shown > 0, length, 0)  # without a visible key no block sees to a row
        for head in range(group * (H // G), (group + 1) * (H // G)):
            for at in range(0, length, ROWS):
                row = at + tl.arange(0, ROWS)
                sums = load_tile(sums_ptr + (start * H + head) * K, H * K, row, seen, K, SPAN)
                store_tile(dqkv_ptr + start * WIDTH + head * K, WIDTH, row, length, sums * (SCALE * KEPT), K, SPAN)
