"""What the forward and the backward kernels of attention share: loads of a tile, and the mask of dropout for a tile.

    keys         0 ........ 15 16 ....... 31 ...      a row of weights
    counters     c0            c1                     one for sixteen keys: Philox-4x32, seven rounds
    words        w0 w1 w2 w3   w0 w1 w2 w3            each of a word's four bytes decides one key, the lowest the first
    bytes        .... .... ....

A byte is compared without being cut out: the word is shifted until the byte is its highest.

The tensor cores leave a tile of 64 columns so that each of four threads holds sixteen columns of a row, which are no
neighbours: 0 1 8 9 16 17 ..., and the next thread 2 3 10 11 ... A counter of sixteen neighbours would be needed by all
four, made four times or exchanged through shared memory. But in which order the keys stand in a tile is free, as all
sums over keys are; so they are dealt out (`dealt`), and in the columns of a thread stand the sixteen keys of a counter.
Rows of keys and values are loaded from other addresses, which costs nothing, and each thread makes its own bits.

    columns      0 1   2 3   4 5   6 7   8 9   10 11   ...
    keys         0 1  16 17 32 33 48 49  2 3   18 19   ...

Where a tile is computed transposed, keys in its rows, a thread holds two keys and not sixteen: there the words, a
quarter as many as weights, are exchanged.
"""

import triton
import triton.language as tl

from kernels.philox import side_by_side

ROUNDS = tl.constexpr(7)


@triton.jit
def load_tile(ptr, stride, row, end, K: tl.constexpr, SPAN: tl.constexpr):
    """[R, SPAN]: these rows of one head of a document, zeros from row `end` and from column K on.

    ptr: the head's first feature in the document's first row. stride: from row to row. row: integers [R].
    """
    column = tl.arange(0, SPAN)[None]
    return tl.load(ptr + row.to(tl.int64)[:, None] * stride + column, mask=_inside(row, end, column, K, SPAN), other=0)


@triton.jit
def store_tile(ptr, stride, row, end, values, K: tl.constexpr, SPAN: tl.constexpr):
    """The same places written."""
    column = tl.arange(0, SPAN)[None]
    tl.store(ptr + row.to(tl.int64)[:, None] * stride + column, values, mask=_inside(row, end, column, K, SPAN))


@triton.jit
def _inside(row, end, column, K: tl.constexpr, SPAN: tl.constexpr):
    inside = (row < end)[:, None]
    if K < SPAN:
        inside = inside & (column < K)
    return inside


@triton.jit
def keep_tile(key, document, position, site, first, COLUMNS: tl.constexpr, THRESHOLD: tl.constexpr):
    """Bool [R, COLUMNS], True where the weights of these rows for the keys first, first + 1, ... stay.

    key: `kernels.philox.load_key`, once for all tiles. document, position: integers [R, 1]. site: that of the use of
    dropout, and the head times 65,536. first and COLUMNS divide by 16. THRESHOLD: `dropout_bits.attention_threshold`.
    """
    R: tl.constexpr = position.shape[0]
    group = first // 16 + tl.arange(0, COLUMNS // 16)[None]
    words = _words(key, document, position, group, site)
    words = side_by_side(words[0], words[1], words[2], words[3])
    words = tl.reshape(tl.broadcast_to(words[:, :, None], (R, COLUMNS // 4, 4)), (R, COLUMNS))
    shift = 24 - tl.arange(0, COLUMNS)[None] % 4 * 8
    return (words << shift.to(tl.uint32)) >= tl.full((1, 1), THRESHOLD << 24, tl.uint32)


@triton.jit
def dealt(COLUMNS: tl.constexpr):
    """Integers [COLUMNS]: which key of a tile stands in each column, where they are dealt out so that all keys of a
    counter lie with one thread."""
    N: tl.constexpr = min(COLUMNS, 64) // 4  # pyright: ignore[reportAssignmentType]
    column = tl.arange(0, COLUMNS)
    return column // (4 * N) * (4 * N) + column // 2 % 4 * N + column % (4 * N) // 8 * 2 + column % 2


@triton.jit
def keep_dealt(key, document, position, site, first, COLUMNS: tl.constexpr, THRESHOLD: tl.constexpr):
    """`keep_tile` for the keys first + dealt(COLUMNS)."""
    R: tl.constexpr = position.shape[0]
    N: tl.constexpr = min(COLUMNS, 64) // 4  # pyright: ignore[reportAssignmentType]
    group = first // 16 + tl.arange(0, COLUMNS // 16)[None]
    words = _words(key, document, position, group, site)
    words = tl.join(tl.join(words[0], words[2]), tl.join(words[1], words[3]))
    shift = (24 - 8 * tl.arange(0, 4)).to(tl.uint32)
    words = tl.reshape(words, (R, COLUMNS // 16, 4))[:, :, :, None] << shift[None, None, None]
    words = tl.permute(tl.reshape(words, (R, COLUMNS // (4 * N), 4, N // 2, 2)), (0, 1, 3, 2, 4))
    return tl.reshape(words, (R, COLUMNS)) >= tl.full((1, 1), THRESHOLD << 24, tl.uint32)


@triton.jit
def keep_tile_transposed(key, document, position, site, first, KEYS: tl.constexpr, THRESHOLD: tl.constexpr):
    """Bool [KEYS, R], the transpose of `keep_tile`. document, position: integers [1, R]."""
    R: tl.constexpr = position.shape[1]
    group = first // 16 + tl.arange(0, KEYS // 16)[:, None]
    words = _words(key, document, position, group, site)
    words = tl.join(tl.join(words[0], words[2]), tl.join(words[1], words[3]))
    words = tl.permute(tl.reshape(words, (KEYS // 16, R, 4)), (0, 2, 1))
    words = tl.reshape(words, (KEYS // 4, 1, R))
    words = tl.reshape(tl.broadcast_to(words, (KEYS // 4, 4, R)), (KEYS, R))
    shift = 24 - tl.arange(0, KEYS)[:, None] % 4 * 8
    return (words << shift.to(tl.uint32)) >= tl.full((1, 1), THRESHOLD << 24, tl.uint32)


@triton.jit
def _words(key, document, position, group, site):
    return tl.philox(
        key, document.to(tl.uint32), position.to(tl.uint32), group.to(tl.uint32), tl.cast(site, tl.uint32), ROUNDS
    )
