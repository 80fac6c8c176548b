"""What both forms of the backward pass of attention do with one tile of keys and one tile of rows.

The tile of scores is transposed, keys in its rows and rows in its columns:

              rows
    keys   [ S^T ] -> P^T = exp2(S^T - lse) -> dV += (Z P)^T dO
           [ dP^T ] = V dO^T ---------------> dS^T = P^T (Z dP^T - delta) -> dK += dS^T Q

P^T and dS^T are then the left factors of the two products, which tensor cores take from the registers that they are in.
And little has to be masked for dK and dV: a key that does not exist, or that nobody may look at, adds only to rows of
them that are not written, or written as zeros; a row that does not exist, or sees nothing, has the log-sum-exp
infinity, whose P is 0. What is left is the diagonal of the rule.

The dropped weights are remembered in the sign of P, which is never negative: a mask of its own would stay in 32
registers through two products. What dropout keeps is scaled at the end, in the sums and not in every weight, so delta
is kept small by the same factor.
"""

import triton
import triton.language as tl

from kernels.attention_tiles import keep_tile_transposed, load_tile

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def row_statistics(out, dout, lse_ptr, dlse_ptr, at, exists, THRESHOLD: tl.constexpr, UNIT: tl.constexpr):
    """Of a tile of rows: the log-sum-exp times UNIT, and infinity where there is no row or it sees nothing; and delta
    times the share that dropout keeps. at: where the rows stand in lse and dlse."""
    lse = tl.load(lse_ptr + at, mask=exists, other=float("inf"))
    delta = tl.sum(out.to(lse.dtype) * dout.to(lse.dtype), axis=1)
    if dlse_ptr is not None:
        delta -= tl.load(dlse_ptr + at, mask=exists, other=0)
    return tl.where(lse == float("-inf"), float("inf"), lse) * UNIT, delta * ((256 - THRESHOLD) / 256)


@triton.jit
def exp_score(score, lse, SCALE: tl.constexpr, UNIT: tl.constexpr):
    """exp(scale * score - lse) of a log-sum-exp times UNIT. With log2(e) for UNIT it is one multiply-add and exp2, and
    the weight is as exact as fp32 can tell the product of log2(e) and lse: right for 16 bits. With 1, for fp32, it is
    one product more and no further from the truth than lse is."""
    return tl.exp2((score * (SCALE * UNIT) - lse) * (LOG2_E / UNIT))


@triton.jit
def store_statistics(ptr, lse, delta, head, place, exists, num_rows, H: tl.constexpr):
    """[2, H, N]: the rows of a head are neighbours, as they are read."""
    # narrow: a document begins at any row
    tl.store(ptr + tl.cast(head, tl.int64) * num_rows + place, lse, mask=exists)
    tl.store(ptr + tl.cast(H + head, tl.int64) * num_rows + place, delta, mask=exists)


@triton.jit
def add_rows(
    dk,
    dv,
    k,
    v,
    column,
    first_key,
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
    H: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    SEES: tl.constexpr,
    SCALE: tl.constexpr,
    UNIT: tl.constexpr,
    THRESHOLD: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """(dK, dV, dS^T): the sums with what the rows at, at + 1, ... of a head add to them, less the factors that all of
    it has. From row `free` on nothing is masked. num_keys: the number of keys; None where dS^T is of no interest."""
    row = at + tl.arange(0, ROWS)
    q = load_tile(q_ptr + start * q_stride + head * K, q_stride, row, length, K, SPAN)
    dout = load_tile(dout_ptr + start * dout_stride + head * K, dout_stride, row, length, K, SPAN)
    statistics_ptr += tl.cast(head, tl.int64) * num_rows + start + row
    lse = tl.load(statistics_ptr, mask=row < length, other=float("inf"))
    score = tl.dot(k, tl.trans(q), input_precision="ieee", out_dtype=WIDE)
    weight = exp_score(score, lse[None], SCALE, UNIT)
    if at < free:
        reach = row
        if reach_ptr is not None:
            reach = tl.load(reach_ptr + start + row, mask=row < length, other=-1)
        seen = SEES(row[None], column[:, None], reach[None])
        if num_keys is not None:
            seen = seen & (column < num_keys)[:, None]
        weight = tl.where(seen, weight, 0)
    kept = weight
    if THRESHOLD:
        named = tl.load(document_ptr + start + row, mask=row < length, other=0)[None]
        position = tl.load(position_ptr + start + row, mask=row < length, other=0)[None]
        keep = keep_tile_transposed(dropout_key, named, position, site + (head << 16), first_key, KEYS, THRESHOLD)
        weight = tl.where(keep, weight, -weight)
        kept = tl.maximum(weight, 0)
    dv = tl.dot(kept.to(q.dtype), dout, dv, input_precision="ieee", out_dtype=WIDE)
    dweight = tl.dot(v, tl.trans(dout), input_precision="ieee", out_dtype=WIDE)
    if THRESHOLD:
        dweight = tl.where(weight > 0, dweight, 0)
        weight = tl.abs(weight)
    # read here and not above, where it would hold registers through two products
    delta = tl.load(statistics_ptr + H * num_rows, mask=row < length, other=0)
    dscore = (weight * (dweight - delta[None])).to(q.dtype)
    dk = tl.dot(dscore, q, dk, input_precision="ieee", out_dtype=WIDE)
    return dk, dv, dscore


@triton.jit
def _all(first, last, end):
    return 0, 0


@triton.jit
def _from_itself(first, last, end):
    return first, last


@triton.jit
def _that_may_reach(first, last, end):
    return first, end


# (begin, free) of the keys first .. last: no row before begin sees any, every row from free on sees all, but fakes.
# end: the number of rows
SEEN_FROM = {"full": _all, "causal": _from_itself, "real_fake": _that_may_reach}


@triton.jit
def rows_that_see(first, last, shown, length, reach_ptr, SEEN_FROM: tl.constexpr):
    """(begin, free, end): as above, and the row from which on nobody looks. shown: how many rows are visible."""
    begin, free = SEEN_FROM(first, last, length)
    end = length
    if first >= shown:
        end = 0
        if reach_ptr is not None:
            end = tl.minimum(last + 1, length)  # fakes, each seen by itself
    return begin, free, end
