"""Attention of new tokens over a cache, and their way into it (FlashDecoding, Dao and others, 2023; arXiv:2205.14135):

    o_i = sum_j softmax_j(scale q_i k_j) v_j      j: all that the sequence held, and the new tokens up to i

One new token reads the keys and values of its whole sequence and computes next to nothing with each: the floor is the
memory's, 2 G K values for every token that is held, at 100m's shapes 1 KB a layer. What it takes to reach it is to have
that many bytes on the way at once, so the keys are shared out among programs (`decode_split.py`, where the formulas
stand), and to read a key once for all query heads that look at it: these are rows of one tile, and so are the tokens of
a chunk, because the prompt and any other number of new tokens come the same way.

    tile of ROWS rows      token 0, head 0 | token 0, head 1 | token 0, head 2 | token 1, head 0 | ...
    keys of a sequence     | held block | held block | held bl |  | new block | n |      of the cache | of k and v
    share of split         |     0      |     1      |            2           | 3 |

The new keys are read from k and v and not from the cache, into which the same launch writes them: places in the cache
are either read, below the held end, or written, from there on, so no program waits for another, and one launch is
saved of three, where a launch costs as much as reading 8 MB. What stands behind the end is not looked at.

Held and new tokens are numbers on the device; the host knows only how many rows the longest chunk has and how many keys
fit. Where there is more than one split a second kernel makes one output of theirs, in a fixed order. There is no
backward pass: nobody learns from a cache.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import aligned, check, check_limit, check_together
from kernels.decode_split import LOG2_E, attend, begin, combine, finish, num_splits, share
from kernels.launch import Launch, cdiv, choose, launch
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops
from pixelcore.kv_cache import Chunk, LayerCache

INTERPRETED, INTERPRETED_WIDE = Launch({"ROWS": 16, "BLOCK": 16}), Launch({"ROWS": 32, "BLOCK": 16})
INTERPRETED_COMBINE = Launch({"PAIRS": 16})
_FEW_ROWS, _MANY_ROWS = 16, 64
_MOST_RATIO, _MOST_SIZE = 32, 128
_COMBINED = 8192  # values of all splits that a program of 4 warps holds at once


@triton.jit
def _attend_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    keys_ptr,
    values_ptr,
    held_ptr,
    starts_ptr,
    out_ptr,
    logs_ptr,
    q_stride,
    k_stride,
    v_stride,
    keys_stride,
    values_stride,
    capacity,
    num_pairs,
    RATIO: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    SPLITS: tl.constexpr,
    SCALE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    TOKENS: tl.constexpr = ROWS // RATIO
    sequence, group = tl.program_id(0) // G, tl.program_id(0) % G
    split = tl.program_id(1)
    token = (tl.num_programs(2) - 1 - tl.program_id(2)) * TOKENS  # the last tokens see most: they begin
    held, start = tl.load(held_ptr + sequence), tl.load(starts_ptr + sequence).to(tl.int64)
    new = (tl.load(starts_ptr + sequence + 1) - start).to(tl.int32)
    keys_ptr += sequence.to(tl.int64) * keys_stride + group.to(tl.int64) * capacity * K
    values_ptr += sequence.to(tl.int64) * values_stride + group.to(tl.int64) * capacity * K
    k_ptr += start * k_stride + group * K
    v_ptr += start * v_stride + group * K
    if token < new:
        place, column = tl.arange(0, ROWS), tl.arange(0, SPAN)
        row_token, head = token + place // RATIO, group * RATIO + place % RATIO
        there = (place < TOKENS * RATIO) & (row_token < new)
        inside = there[:, None] & (column < K)[None]
        row = start + row_token
        q = tl.load(q_ptr + (row * q_stride + head * K)[:, None] + column[None], mask=inside, other=0)
        count = held + tl.minimum(token + TOKENS, new)
        first, behind = share(  # pyright: ignore[reportGeneralTypeIssues]
            count, split, SPLITS, BLOCK
        )
        largest, total, out = begin(ROWS, SPAN, WIDE)
        everything = tl.zeros((ROWS,), tl.int32) + held
        end = tl.minimum(behind, held)
        largest, total, out = attend(
            q, largest, total, out, keys_ptr, values_ptr, K, K, first, end, everything, SCALE, K, SPAN, BLOCK
        )
        first_new = tl.maximum(first, held) - held
        end = behind - held
        largest, total, out = attend(
            q, largest, total, out, k_ptr, v_ptr, k_stride, v_stride, first_new, end, row_token, SCALE, K, SPAN, BLOCK
        )
        out, log = finish(largest, total, out)
        pair = split.to(tl.int64) * num_pairs + row * (G * RATIO) + head
        tl.store(out_ptr + (pair * K)[:, None] + column[None], out, mask=inside & (first < behind))
        if SPLITS > 1:
            tl.store(logs_ptr + pair, log, mask=there)
        own = (token + place)[:, None].to(tl.int64)
        mine = ((place < TOKENS) & (token + place < new) & (split == 0))[:, None] & (column < K)[None]
        k = tl.load(k_ptr + own * k_stride + column[None], mask=mine)
        v = tl.load(v_ptr + own * v_stride + column[None], mask=mine)
        tl.store(keys_ptr + (held + own) * K + column[None], k, mask=mine)
        tl.store(values_ptr + (held + own) * K + column[None], v, mask=mine)


@triton.jit
def _combine_kernel(
    partials_ptr,
    logs_ptr,
    out_ptr,
    num_pairs,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    SPLITS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)[:, None]
    column = tl.arange(0, SPAN)[None]
    known = pair < num_pairs
    inside = known & (column < K)
    out = combine(partials_ptr, logs_ptr, pair, known, column, inside, num_pairs, SPLITS, K)
    tl.store(out_ptr + pair * K + column, out, mask=inside)


def _run(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    keys_BGCK: Tensor,
    values_BGCK: Tensor,
    held_B: Tensor,
    starts: Tensor,
    longest: int,
    scale: float,
) -> Tensor:
    q_NHK, k_NGK, v_NGK = aligned(q_NHK), aligned(k_NGK), aligned(v_NGK)
    num_rows, heads, size = q_NHK.shape
    batch, groups, capacity, _ = keys_BGCK.shape
    pairs, ratio, span = batch * groups, heads // groups, max(int(triton.next_power_of_2(size)), 16)
    default = _default(longest * ratio, ratio, span, q_NHK.element_size())
    interpreted = INTERPRETED if ratio <= _FEW_ROWS else INTERPRETED_WIDE
    sizes = {"rows": longest * ratio, "ratio": ratio, "head_size": size, "programs": pairs, "capacity": capacity}
    how = choose("decode_attention", q_NHK, default, interpreted, **sizes)
    tiles = cdiv(longest, how.tiles["ROWS"] // ratio)
    splits = num_splits(pairs * tiles, capacity, how.tiles["BLOCK"], q_NHK.device)
    out_NHK = _fake(q_NHK)
    partials = logs = out_NHK
    if splits > 1:
        sums = torch.promote_types(q_NHK.dtype, torch.float32)
        partials = q_NHK.new_empty(splits, num_rows, heads, size, dtype=sums)
        logs = q_NHK.new_empty(splits, num_rows, heads, dtype=sums)
    tensors = (q_NHK, k_NGK, v_NGK, keys_BGCK, values_BGCK)
    strides = (x.stride(0) for x in tensors)
    constants = {"K": size, "SPAN": span, "SPLITS": splits}
    launch(
        _attend_kernel,
        (pairs, splits, tiles),
        how,
        *(*tensors, held_B, starts, partials, logs, *strides, capacity, num_rows * heads),
        RATIO=ratio,
        G=groups,
        SCALE=scale * LOG2_E,
        WIDE=wide(q_NHK),
        **constants,
    )
    if splits > 1:
        default = Launch({"PAIRS": max(_COMBINED // (splits * span), 1)})
        how = choose("decode_attention_combine", q_NHK, default, INTERPRETED_COMBINE, head_size=size, splits=splits)
        grid = (cdiv(num_rows * heads, how.tiles["PAIRS"]),)
        launch(_combine_kernel, grid, how, partials, logs, out_NHK, num_rows * heads, **constants)
    if not keys_BGCK.is_inference():  # such tensors have no version
        torch.autograd.graph.increment_version((keys_BGCK, values_BGCK))
    return out_NHK


def _default(rows: int, ratio: int, span: int, item_bytes: int) -> Launch:
    """For a token or a few, as many rows as tensor cores take at once. These do not multiply fp32, for which threads
    need more registers each: half the rows and keys for twice the threads."""
    few, times = rows <= _FEW_ROWS and ratio <= _FEW_ROWS, 2 if item_bytes > 2 else 1
    tiles = {"ROWS": _FEW_ROWS if few else _MANY_ROWS // times, "BLOCK": (64 if span <= 64 else 32) // times}
    return Launch(tiles, num_warps=(2 if few else 4) * times, num_stages=3)


def _fake(q_NHK: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q_NHK, memory_format=torch.contiguous_format)


_append_and_attend: Any = register(
    __name__,
    "append_and_attend",
    "(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor held, Tensor starts, int longest, "
    "float scale) -> Tensor",
    _run,
    _fake,
)


def decode_attention(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cache: LayerCache, scale: float) -> Tensor:
    """As `pixelcore.ops.decode_attention`: k and v are written into the cache, and there is no gradient.

    Head sizes to 128, at most 32 query heads for each key/value head. The chunk of the cache says on the host what fits
    and on the device what is read; that both say the same is not checked, because the host would have to wait.
    Raises ValueError for shapes or dtypes that do not fit each other, for a chunk of another number of rows, and where
    a sequence would outgrow the cache.
    """
    chunk = cache.chunk
    if chunk is None:
        raise ValueError("cache.chunk = None: `KVCache.begin` announces what a pass brings")
    _check(q_NHK, k_NGK, v_NGK, cache.keys, cache.values, chunk)
    tensors = (q_NHK, k_NGK, v_NGK, cache.keys, cache.values, chunk.held_B, chunk.starts)
    return _append_and_attend(*tensors, max(chunk.new), scale)


def _check(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, keys_BGCK: Tensor, values_BGCK: Tensor, chunk: Chunk) -> None:
    check("q", q_NHK, "N H K")
    num_rows, heads, size = q_NHK.shape
    check_limit("head size K", size, _MOST_SIZE)
    if q_NHK.dtype == torch.float64 and q_NHK.is_cuda:
        raise ValueError("q is float64: products of a GPU's kernels are of float32, float16 or bfloat16")
    check("k", k_NGK, "N G K", (q_NHK.dtype,), N=num_rows, K=size)
    groups = k_NGK.shape[1]
    check("v", v_NGK, "N G K", (q_NHK.dtype,), N=num_rows, G=groups, K=size)
    if heads % groups:
        raise ValueError(f"H = {heads} query heads, G = {groups}: G must divide H")
    check_limit("query heads of a key/value head", heads // groups, _MOST_RATIO)
    check("cache.keys", keys_BGCK, "B G C K", (q_NHK.dtype,), B=len(chunk.new), G=groups, K=size)
    batch, _, capacity, _ = keys_BGCK.shape
    check("cache.values", values_BGCK, "B G C K", (q_NHK.dtype,), B=batch, G=groups, C=capacity, K=size)
    for name, x in {"cache.keys": keys_BGCK, "cache.values": values_BGCK}.items():
        if not x[0].is_contiguous():
            raise ValueError(f"{name} has the strides {x.stride()}: each sequence's part must lie in one piece")
    if sum(chunk.new) != num_rows:
        raise ValueError(f"q has {num_rows} rows: the chunk announced {sum(chunk.new)}")
    for sequence, (held, new) in enumerate(zip(chunk.held, chunk.new, strict=True)):
        if held + new > capacity:
            raise ValueError(
                f"sequence {sequence} holds {held} tokens and brings {new}: the cache is full at C = {capacity}"
            )
    check_together(q=q_NHK, k=k_NGK, v=v_NGK, keys=keys_BGCK, values=values_BGCK, held=chunk.held_B)
    if torch.is_grad_enabled() and (q_NHK.requires_grad or k_NGK.requires_grad or v_NGK.requires_grad):
        raise ValueError("q, k or v requires a gradient: decoding has none, so run it under torch.no_grad()")


# ------------------------------------------------------------------ what the workshop asks


def _on_copies(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """`function`, which writes into the cache, as a function of keys and values that gives the output and what each
    sequence then holds, end to end."""

    def on_copies(
        q_NHK: Tensor,
        k_NGK: Tensor,
        v_NGK: Tensor,
        keys_BGCK: Tensor,
        values_BGCK: Tensor,
        chunk: Chunk,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        cache = LayerCache(_copy(keys_BGCK), _copy(values_BGCK), chunk)
        out_NHK = function(q_NHK, k_NGK, v_NGK, cache, scale)
        return out_NHK, _held(cache.keys, chunk), _held(cache.values, chunk)

    return on_copies


def _copy(x: Tensor) -> Tensor:
    return x.new_empty_strided(x.shape, x.stride()).copy_(x)


def _held(x_BGCK: Tensor, chunk: Chunk) -> Tensor:
    lengths = [held + new for held, new in zip(chunk.held, chunk.new, strict=True)]
    return torch.cat([x_GCK[:, :length].transpose(0, 1) for x_GCK, length in zip(x_BGCK, lengths, strict=True)])


reference, fused = _on_copies(ops.decode_attention), _on_copies(decode_attention)

CASES = (
    Case("a prompt, nothing held", {"held": (0,), "new": (18,), "H": 6, "G": 2, "C": 19, "K": 24}),
    Case("one token of one sequence", {"held": (37,), "new": (1,), "H": 3, "G": 1, "C": 48, "K": 16}),
    Case(
        "chunks, ragged, one fills its cache", {"held": (30, 0, 17), "new": (3, 5, 1), "H": 8, "G": 1, "C": 33, "K": 8}
    ),
    Case("tokens of a ragged batch", {"held": (16, 0, 41), "new": (1, 1, 1), "H": 2, "G": 2, "C": 42, "K": 6}),
)
SMALL = CASES[1]
TIMED = (
    *(
        Case(f"100m, {batch} x 1 at {length}", {"B": batch, "H": 12, "G": 4, "C": length, "K": 64})
        for batch, length in ((1, 512), (16, 512), (64, 512), (1, 1024), (16, 1024), (64, 1024))
    ),
    *(
        Case(f"pixar-85m, {batch} x 1 at 360", {"B": batch, "H": 12, "G": 12, "C": 360, "K": 64})
        for batch in (1, 16, 64)
    ),
    Case("100m, 1 x 1 at 16k", {"B": 1, "H": 12, "G": 4, "C": 16_384, "K": 64}),
    Case("100m, a prompt of 512", {"B": 1, "H": 12, "G": 4, "C": 1024, "K": 64, "new": (512,), "held": (0,)}),
    Case("100m, 16 chunks of 64 at 1024", {"B": 16, "H": 12, "G": 4, "C": 1024, "K": 64, "step": 64}),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    """Timed shapes fill their caches."""
    held, new = _lengths(case)
    rows, keys = sum(new), (len(new), case["G"], case["C"], case["K"])
    return {
        "q_NHK": draw.normal(rows, case["H"], case["K"]),
        "k_NGK": draw.normal(rows, case["G"], case["K"]),
        "v_NGK": draw.normal(rows, case["G"], case["K"]),
        "keys_BGCK": draw.normal(*keys),
        "values_BGCK": draw.normal(*keys),
        "chunk": Chunk.of(held, new, draw.device),
        "scale": case["K"] ** -0.5,
    }


def _lengths(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if "new" in case.sizes:
        return case["held"], case["new"]
    step = case.get("step", 1)
    return (case["C"] - step,) * case["B"], (step,) * case["B"]


def poison(given: dict[str, Any]) -> dict[str, Any]:
    """NaN behind what each sequence holds."""
    for name in ("keys_BGCK", "values_BGCK"):
        for x_GCK, held in zip(given[name], given["chunk"].held, strict=True):
            x_GCK[:, held:] = torch.nan
    return given


def cost(case: Case, size: int) -> Cost:
    """Keys and values that are held are read once; new ones are read, and written into the cache."""
    held, new = _lengths(case)
    rows, pairs = sum(new), sum(n * h + n * (n + 1) // 2 for h, n in zip(held, new, strict=True))
    values = 2 * (sum(held) + 2 * rows) * case["G"] + 2 * rows * case["H"]
    return Cost(
        forward_bytes=values * case["K"] * size,
        backward_bytes=0,
        forward_flops=4 * pairs * case["H"] * case["K"],
    )
