"""Attention of few rows over many keys, cut along the keys: what one program does, and how the pieces become one.

A new token looks at everything its sequence holds. There are as many programs as pairs of a sequence and a key/value
head, four for one sequence of a small model, and a GPU has 132 processors: the keys are therefore shared out among
SPLITS programs as well (FlashDecoding, Dao and others, 2023; attention is its own partial result in the softmax's
terms, Milakov and Gimelshein, arXiv:1805.02867). Each program ends with an output of its own, as if its keys were all
there are, and with the logarithm of the sum of its exponentials:

    o_s = sum_j 2^(x_j - l_s) v_j     l_s = log2 sum_j 2^(x_j)     x = scale log2(e) q k     keys j of split s
    o   = sum_s 2^(l_s - l) o_s       l   = log2 sum_s 2^(l_s)

The query heads that read one key/value head are rows of one tile, so that a key is read once for all of them, and the
product has the 16 rows that tensor cores ask for; a head alone fills them as well as it can, which costs nothing where
the memory is the limit.

    keys of a sequence     | block | block | block | block | block | blo    |  capacity
    share of split         |       0       |       1       |     2      | 3: none, l = -inf

How many splits there are is decided on the host by what it knows without asking the device (`num_splits`); which keys
they are follows from the length that the program reads, so equal lengths give equal bits, in a replayed graph too. A
split without keys writes nothing but its l, and what it did not write is never looked at.

A kernel is made of these parts in this order: `share`, `begin`, `attend` (once for each tensor that holds keys),
`finish`; and `combine` in the kernel that follows.
"""

import math

import torch
import triton
import triton.language as tl

from kernels.launch import cdiv, num_processors

LOG2_E = math.log2(math.e)  # a scale of scores times this one is the SCALE of `attend`
_MOST = 32
_PER_PROCESSOR = 2  # programs; unmeasured


def num_splits(programs: int, capacity: int, block: int, device: torch.device) -> int:
    """Into how many splits a power of two divides keys, so that so many programs become about two on each processor:
    at most 32, and no more than there are blocks of keys."""
    most = min(_MOST, cdiv(capacity, block), _PER_PROCESSOR * num_processors(device) // max(programs, 1))
    return 1 << max(most, 1).bit_length() - 1


@triton.jit
def share(count, split, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """The first of the keys 0 .. count - 1 that are this split's, and the one behind its last: whole blocks."""
    each = tl.cdiv(tl.cdiv(count, BLOCK), SPLITS) * BLOCK
    first = split * each
    return first, tl.minimum(first + each, count)


@triton.jit
def begin(ROWS: tl.constexpr, SPAN: tl.constexpr, WIDE: tl.constexpr):
    """The state of rows that have seen no key: largest score, sum of exponentials [ROWS], weighted values."""
    largest = tl.full((ROWS,), float("-inf"), WIDE)
    return largest, tl.zeros((ROWS,), WIDE), tl.zeros((ROWS, SPAN), WIDE)


@triton.jit
def attend(
    q,
    largest,
    total,
    out,
    keys_ptr,
    values_ptr,
    key_stride,
    value_stride,
    first,
    behind,
    seen,
    SCALE: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The state after the keys first .. behind - 1, whose rows are key_stride and value_stride apart; none of them may
    be there.

    q: [ROWS, SPAN], zero beyond K. seen: [ROWS], row r looks at keys up to and including seen[r]. What stands at
    `behind` and after it is not read.
    """
    column = tl.arange(0, SPAN)[None]
    for block in range(first, behind, BLOCK):
        key = block + tl.arange(0, BLOCK)
        inside = (key < behind)[:, None] & (column < K)
        at = key.to(tl.int64)[:, None]
        k = tl.load(keys_ptr + at * key_stride + column, mask=inside, other=0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=out.dtype) * SCALE
        visible = (key < behind)[None] & (key[None] <= seen[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        base = tl.where(larger == float("-inf"), 0, larger)  # of a row that has seen nothing: no inf - inf
        shrink = tl.exp2(largest - base)
        weights = tl.exp2(scores - base[:, None])
        v = tl.load(values_ptr + at * value_stride + column, mask=inside, other=0)
        total = total * shrink + tl.sum(weights, axis=1)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision="ieee", out_dtype=out.dtype)
        largest = larger
    return largest, total, out


@triton.jit
def finish(largest, total, out):
    """Output [ROWS, SPAN] and l [ROWS], the logarithm to base 2; zeros and -inf of a row that has seen nothing."""
    some = total > 0
    out = out / tl.where(some, total, 1)[:, None]
    return out, tl.where(some, largest + tl.log2(tl.where(some, total, 1)), float("-inf"))


@triton.jit
def combine(partials_ptr, logs_ptr, pair, known, feature, inside, num_pairs, SPLITS: tl.constexpr, K: tl.constexpr):
    """The outputs of all splits as one [R, C]. All of them are read at once: one wait for the memory and not SPLITS.

    partials: [SPLITS, num_pairs, K] and logs: [SPLITS, num_pairs], in the dtype of sums; a pair is a row and a head,
    row * H + head. pair: int64 [R, 1], feature: [1, C]; known [R, 1] and inside [R, C] say which there are. Elements
    outside are zero, as are those of a pair that has seen nothing.
    """
    place = tl.arange(0, SPLITS).to(tl.int64)[:, None, None] * num_pairs + pair[None]
    log = tl.load(logs_ptr + place, mask=known[None], other=float("-inf"))
    largest = tl.max(log, axis=0, keep_dims=True)
    weight = tl.exp2(log - tl.where(largest == float("-inf"), 0, largest))
    total = tl.sum(weight, axis=0)
    part = tl.load(partials_ptr + place * K + feature[None], mask=inside[None], other=0)
    out = tl.sum(tl.where(weight > 0, part, 0) * weight, axis=0)  # a split without keys has left its part unwritten
    return out / tl.where(total > 0, total, 1)
