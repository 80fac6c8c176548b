"""A step's way into attention: normalise, multiply with the packed projection, turn q and k, and keep k and v.

    [q, k, v] = W (n x) / r      r = sqrt(mean(x^2) + eps), n: the norm's weight
    (a, b) -> (a cos - b sin, a sin + b cos)      each pair of features of q and k, by the angle of the row's place
    keys[b, :, place] = k,  values[b, :, place] = v      place = lengths[b], unless the sequence is full

The floor is that of reading W, (H + 2 G) K D values: 2.0 MB in bf16 of the `100m` decoder, 0.5 us at 4.3 TB/s, 3.5 MB
of PIXAR. As separate operations it is a norm, a product, a rotation and two copies, whose beginnings and ends take
longer than the bytes.

The place comes from the device, so the same launch serves every step. What one program multiplies are whole pairs: it
takes the two rows of W that make a pair one after the other, wherever they stand, and both of its features end in the
same thread of a tensor core's result, where they are turned by each other.

    interleaved   rows of W  0 1 2 3 ..               PAIRS = 2: program 0 takes 0 1 2 3
    half          rows of W  0 K/2 1 (K/2 + 1) ..                program 0 takes 0 K/2 1 (K/2 + 1)

Whether a pair is of q, k or v, its head says; a program may have some of each. v is turned by no angle. The product is
that of `step_rows.py`. The cache is written and nothing else; two sequences never share a place of it.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check, check_together, rows
from kernels.launch import Launch, cdiv, choose, launch
from kernels.register import register
from kernels.step_rows import FLOATS, check_norm, check_rows, check_same, check_weight, constants, default, product
from kernels.workshop.cases import Case, Cost, Draw
from pixelcore import ops, step_ops
from pixelcore.ops import HeadLayout

PAIRS = 8
INTERPRETED = Launch({"PAIRS": 32, "DEPTH": 64})


@triton.jit
def _kernel(
    residual_ptr,
    norm_ptr,
    weight_ptr,
    table_ptr,
    lengths_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    num_rows,
    capacity,
    residual_stride,
    weight_stride,
    keys_stride,
    keys_head_stride,
    keys_place_stride,
    values_stride,
    values_head_stride,
    values_place_stride,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    HALVES: tl.constexpr,
    D: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.arange(0, ROWS)[:, None].to(tl.int64)
    length = tl.load(lengths_ptr + row, mask=row < num_rows, other=0)
    place = tl.minimum(length, capacity - 1).to(tl.int64)
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)[None]
    inside = (row < num_rows) & (pair < (H + 2 * G) * (K // 2))
    cos = tl.full((ROWS, PAIRS), 1, tl.float32)
    sin = tl.zeros((ROWS, PAIRS), tl.float32)
    if table_ptr is not None:
        turned = inside & (pair < (H + G) * (K // 2))
        angle_ptr = table_ptr + place * K + pair % (K // 2) * 2
        cos = tl.load(angle_ptr, mask=turned, other=1).to(tl.float32)
        sin = tl.load(angle_ptr + 1, mask=turned, other=0).to(tl.float32)

    turn = tl.arange(0, 2 * PAIRS)
    of_pair = tl.program_id(0) * PAIRS + turn // 2
    feature = of_pair // (K // 2) * K + _feature(of_pair, turn % 2, K, HALVES)
    exists = of_pair < (H + 2 * G) * (K // 2)
    y = product(
        *(residual_ptr, norm_ptr, weight_ptr, feature, exists),
        *(num_rows, residual_stride, weight_stride, D, EPS, ROWS, DEPTH),
    )
    a, b = tl.split(tl.reshape(y, (ROWS, PAIRS, 2)))

    head = pair // (K // 2)
    first, second = _feature(pair, 0, K, HALVES), _feature(pair, 1, K, HALVES)
    _store(q_ptr + (row * H + head) * K, first, second, a, b, cos, sin, inside & (head < H))
    fits = inside & (length < capacity)
    is_key = (head >= H) & (head < H + G)
    key_ptr = keys_ptr + row * keys_stride + (head - H) * keys_head_stride + place * keys_place_stride
    _store(key_ptr, first, second, a, b, cos, sin, fits & is_key)
    value_ptr = values_ptr + row * values_stride + (head - H - G) * values_head_stride + place * values_place_stride
    _store(value_ptr, first, second, a, b, cos, sin, fits & (head >= H + G))


@triton.jit
def _feature(pair, which, K: tl.constexpr, HALVES: tl.constexpr):
    """Where in its head the first or the second feature of a pair stands."""
    if HALVES:
        return pair % (K // 2) + which * (K // 2)
    else:
        return pair % (K // 2) * 2 + which


@triton.jit
def _store(to_ptr, first, second, a, b, cos, sin, here):
    tl.store(to_ptr + first, a * cos - b * sin, mask=here)  # narrow: a few values of each row
    tl.store(to_ptr + second, a * sin + b * cos, mask=here)  # narrow: the same


def _run(
    residual_BD: Tensor,
    norm_D: Tensor,
    eps: float,
    qkv_OD: Tensor,
    table: Tensor | None,
    lengths_B: Tensor,
    heads: int,
    halves: bool,
    keys_BGCK: Tensor,
    values_BGCK: Tensor,
) -> Tensor:
    q_BHK = _fake(residual_BD, norm_D, eps, qkv_OD, table, lengths_B, heads, halves, keys_BGCK, values_BGCK)
    num_rows, width = residual_BD.shape
    num_pairs = len(qkv_OD) // 2
    chosen_by = {"rows": num_rows, "columns": len(qkv_OD), "depth": width}
    shallow = default(residual_BD, "PAIRS", PAIRS, deepest=64)  # deeper, 64 rows spill on sm_100
    how = choose("step_norm_qkv", residual_BD, shallow, INTERPRETED, **chosen_by)
    launch(
        _kernel,
        (cdiv(num_pairs, how.tiles["PAIRS"]),),
        how,
        *(residual_BD, norm_D, qkv_OD, table, lengths_B, q_BHK, keys_BGCK, values_BGCK),
        *(num_rows, keys_BGCK.shape[2], residual_BD.stride(0), qkv_OD.stride(0)),
        *(*keys_BGCK.stride()[:3], *values_BGCK.stride()[:3]),
        H=heads,
        G=keys_BGCK.shape[1],
        K=keys_BGCK.shape[3],
        HALVES=halves,
        **constants(residual_BD, eps),
    )
    if not keys_BGCK.is_inference():
        torch.autograd.graph.increment_version((keys_BGCK, values_BGCK))
    return q_BHK


def _fake(
    residual_BD: Tensor,
    norm_D: Tensor,
    eps: float,
    qkv_OD: Tensor,
    table: Tensor | None,
    lengths_B: Tensor,
    heads: int,
    halves: bool,
    keys_BGCK: Tensor,
    values_BGCK: Tensor,
) -> Tensor:
    return residual_BD.new_empty(len(residual_BD), heads, keys_BGCK.shape[3])


_step = register(
    __name__,
    "step",
    "(Tensor residual, Tensor norm, float eps, Tensor qkv, Tensor? table, Tensor lengths, int heads, bool halves, "
    "Tensor(a!) keys, Tensor(b!) values) -> Tensor",
    _run,
    _fake,
)


def norm_qkv(
    residual_BD: Tensor,
    norm_D: Tensor,
    eps: float,
    qkv_OD: Tensor,
    table: Tensor | None,
    lengths_B: Tensor,
    layout: HeadLayout,
    keys_BGCK: Tensor,
    values_BGCK: Tensor,
) -> Tensor:
    """As `pixelcore.step_ops.norm_qkv`, in one kernel. Lengths are at least 0: that is not checked, because it would
    make the host wait for the device. Raises ValueError for more than 64 rows, sizes, dtypes and a layout that do not
    fit each other, a table of fewer positions than the cache has places, or a device on which no kernel runs."""
    heads, key_value_heads, size = layout.num_heads, layout.num_key_value_heads, layout.head_size
    check_rows("residual", residual_BD, "B D")
    num_rows, width = residual_BD.shape
    check_norm(norm_D, residual_BD)
    check_weight("qkv", qkv_OD, "O D", residual_BD, O=(heads + 2 * key_value_heads) * size, D=width)
    check("lengths", lengths_B, "B", (torch.int32,), B=num_rows)
    for name, cache in {"keys": keys_BGCK, "values": values_BGCK}.items():
        check(name, cache, "B G C K", FLOATS, B=num_rows, G=key_value_heads, C=keys_BGCK.shape[2], K=size)
        check_same(name, cache, residual_BD)
        if cache.stride(3) != 1:
            raise ValueError(f"{name} has the strides {cache.stride()}: the last must be 1, it is written in place")
    check_together(residual=residual_BD, table=table, lengths=lengths_B)
    if layout.rotation not in ("interleaved", "half", "none"):
        raise ValueError(f"rotation = {layout.rotation!r}: it must be 'interleaved', 'half' or 'none'")
    if size % 2:
        raise ValueError(f"head_size = {size}: features are taken in pairs, so it must be even")
    if layout.rotation == "none":
        table = None
    elif table is None:
        raise ValueError(f"table = None: rotation {layout.rotation!r} needs the cosines and sines of `rope_table`")
    else:
        check("table", table, "P J 2", (torch.float32, torch.float64), J=size // 2, **{"2": 2})
        if len(table) < keys_BGCK.shape[2]:
            raise ValueError(f"table has {len(table)} positions: the cache has places for {keys_BGCK.shape[2]}")
        table = table.contiguous()
    tensors = (rows(residual_BD), norm_D.contiguous(), eps, rows(qkv_OD), table, lengths_B.contiguous())
    return _step(*tensors, heads, layout.rotation == "half", keys_BGCK, values_BGCK)


# ------------------------------------------------------------------ what the workshop asks


def _on_copies(step: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """`step`, which writes into the cache, as a function that gives q, keys and values."""

    def function(
        residual_BD: Tensor,
        norm_D: Tensor,
        eps: float,
        qkv_OD: Tensor,
        table: Tensor | None,
        lengths_B: Tensor,
        layout: HeadLayout,
        keys_BGCK: Tensor,
        values_BGCK: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = _copy(keys_BGCK), _copy(values_BGCK)
        q_BHK = step(residual_BD, norm_D, eps, qkv_OD, table, lengths_B, layout, keys, values)
        return q_BHK, keys, values

    return function


def _copy(x: Tensor) -> Tensor:
    """A copy whose rows are apart where those of x are."""
    size, gap = x[0].numel(), 0 if x.is_contiguous() else 5
    return x.new_empty(len(x), size + gap)[:, :size].unflatten(1, x.shape[1:]).copy_(x)


reference, fused = _on_copies(step_ops.norm_qkv), _on_copies(norm_qkv)

_FULL = 9  # places of a case's cache
CASES = (
    Case("1 row, halves", {"B": 1, "D": 72, "H": 3, "G": 3, "K": 8, "rotation": "half", "lengths": (4,)}),
    Case(
        "3 rows, pairs, the second full",
        {"B": 3, "D": 16, "H": 4, "G": 2, "K": 10, "rotation": "interleaved", "lengths": (0, _FULL, _FULL - 1)},
    ),
    Case("17 rows, halves", {"B": 17, "D": 33, "H": 2, "G": 1, "K": 6, "rotation": "half"}),
    Case("64 rows, as they are", {"B": 64, "D": 16, "H": 1, "G": 1, "K": 2, "rotation": "none"}),
)
_DECODER = {"D": 768, "H": 12, "G": 4, "K": 64, "rotation": "interleaved", "C": 512}
_PIXAR = {"D": 768, "H": 12, "G": 12, "K": 64, "rotation": "half", "C": 360}
TIMED = (
    *(Case(f"100m, {num_rows} row{'s' * (num_rows > 1)}", {"B": num_rows, **_DECODER}) for num_rows in (1, 16, 64)),
    *(Case(f"pixar-85m, {num_rows} row{'s' * (num_rows > 1)}", {"B": num_rows, **_PIXAR}) for num_rows in (1, 16, 64)),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    num_rows, width, capacity = case["B"], case["D"], case.get("C", _FULL)
    heads, key_value_heads, size = case["H"], case["G"], case["K"]
    lengths = case.get("lengths") or [(7 * row + 3) % capacity for row in range(num_rows)]
    cache = (num_rows, key_value_heads, capacity, size)
    return {
        "residual_BD": draw.normal(num_rows, width, scale=2),
        "norm_D": draw.normal(width, shift=1, scale=0.2, dtype=torch.float32),
        "eps": 0.01,
        "qkv_OD": draw.normal((heads + 2 * key_value_heads) * size, width, scale=width**-0.5),
        "table": None if case["rotation"] == "none" else ops.rope_table(size, 10_000.0, capacity + 1).to(draw.device),
        "lengths_B": torch.tensor(lengths, dtype=torch.int32, device=draw.device),
        "layout": HeadLayout(heads, key_value_heads, size, case["rotation"]),
        "keys_BGCK": draw.normal(*cache),
        "values_BGCK": draw.normal(*cache),
    }


def cost(case: Case, size: int) -> Cost:
    """Of the cache one place of each sequence; what the function makes of it for a check copies all of it."""
    num_rows, width = case["B"], case["D"]
    columns = (case["H"] + 2 * case["G"]) * case["K"]
    values = columns * width + num_rows * (width + columns)
    return Cost(forward_bytes=values * size, backward_bytes=0, forward_flops=2 * num_rows * columns * width)
