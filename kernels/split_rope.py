"""Divide a packed projection into q, k and v, and turn q and k by their positions (rotary positions, arXiv:2104.09864).

    forward   a' = a cos - b sin       (a, b) a pair of features, and cos, sin of position * base^(-2j / K) from a table
              b' = a sin + b cos       v is copied
    backward  da =  da' cos + db' sin
              db = -da' sin + db' cos  the same rotation by the opposite angle, from dq, dk, dv into one packed dqkv

There is nothing to reuse but the table, which stays in the cache, so the floor is the memory's: every value of the
projection is read once and written once, both ways. As separate operations the library reads and writes q and k once
more for each of slice, widen, multiply, narrow. The gradient is written packed, as the product that follows wants it.

A model without rotary positions gets views of the projection, for nothing. Their gradients would be packed by one more
pass over memory (`torch.cat`, which is what the library does with the gradients of pieces), as long as a third of the
attention itself. But the backward pass of attention writes dq, dk and dv side by side in one array: where they still
stand so, that array is the gradient, and nothing moves.

A program takes ROWS rows. It fetches their cosines and sines once and goes over all their heads, HEADS at a time:

    qkv_NO      [ q q q q | q q q q | k k k k | v v v v ]        H = 8, G = 4, HEADS = 4
    program 0     step 0    step 1    step 2    step 3           rows 0 .. ROWS - 1
    program 1     step 0    ...                                  the next ROWS rows

Where the partner of a feature stands is the layout's choice. In halves it is K / 2 further, so a pair is two loads of
neighbours. Interleaved it is the neighbour: what one load brings is taken apart and put together again in registers.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check, check_together, rows
from kernels.launch import Launch, cdiv, choose, launch
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops
from pixelcore.ops import HeadLayout

reference = ops.split_rope

DEFAULT = Launch({"ROWS": 16, "HEADS": 4}, num_warps=4)
INTERPRETED = Launch({"ROWS": 64, "HEADS": 16})


@triton.jit
def _forward_kernel(
    qkv_ptr,
    positions_ptr,
    table_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    num_rows,
    stride,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    HALVES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None, None]
    inside = row < num_rows
    cos, sin = _angles(  # pyright: ignore[reportGeneralTypeIssues]
        positions_ptr + row, table_ptr, inside, K, SPAN, WIDE
    )
    qkv_ptr += row * stride
    _turn(qkv_ptr, K, q_ptr + row * (H * K), cos, sin, inside, H, K, SPAN, HALVES, HEADS)
    _turn(qkv_ptr + H * K, K, k_ptr + row * (G * K), cos, sin, inside, G, K, SPAN, HALVES, HEADS)
    _copy(qkv_ptr + (H + G) * K, K, v_ptr + row * (G * K), inside, G, K, SPAN, HEADS)


@triton.jit
def _backward_kernel(
    dq_ptr,
    dk_ptr,
    dv_ptr,
    positions_ptr,
    table_ptr,
    dqkv_ptr,
    num_rows,
    dq_stride,
    dq_head_stride,
    dk_stride,
    dk_head_stride,
    dv_stride,
    dv_head_stride,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    HALVES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None, None]
    inside = row < num_rows
    cos, sin = _angles(  # pyright: ignore[reportGeneralTypeIssues]
        positions_ptr + row, table_ptr, inside, K, SPAN, WIDE
    )
    dqkv_ptr += row * ((H + 2 * G) * K)
    _turn(dq_ptr + row * dq_stride, dq_head_stride, dqkv_ptr, cos, -sin, inside, H, K, SPAN, HALVES, HEADS)
    _turn(dk_ptr + row * dk_stride, dk_head_stride, dqkv_ptr + H * K, cos, -sin, inside, G, K, SPAN, HALVES, HEADS)
    _copy(dv_ptr + row * dv_stride, dv_head_stride, dqkv_ptr + (H + G) * K, inside, G, K, SPAN, HEADS)


@triton.jit
def _angles(positions_ptr, table_ptr, inside, K: tl.constexpr, SPAN: tl.constexpr, WIDE: tl.constexpr):
    """Cosines and sines [ROWS, 1, SPAN / 2] of the rows' positions; the table holds them in turn."""
    column = tl.arange(0, SPAN)[None, None]
    position = tl.load(positions_ptr, mask=inside, other=0).to(tl.int64)
    angles = tl.load(table_ptr + position * K + column, mask=inside & (column < K), other=0).to(WIDE)
    return tl.split(tl.reshape(angles, (angles.shape[0], 1, SPAN // 2, 2)))


@triton.jit
def _turn(
    from_ptr,
    from_stride,
    to_ptr,
    cos,
    sin,
    inside,
    NUM_HEADS: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    HALVES: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Turn all heads of a tile of rows. The heads of from_ptr are from_stride apart, those of to_ptr stand packed."""
    for first_head in tl.static_range(0, NUM_HEADS, HEADS):  # pyright: ignore[reportGeneralTypeIssues]
        head = first_head + tl.arange(0, HEADS)[None, :, None]
        if HALVES:
            pair = tl.arange(0, SPAN // 2)[None, None]
            here = inside & (head < NUM_HEADS) & (pair < K // 2)
            a = tl.load(from_ptr + head * from_stride + pair, mask=here, other=0).to(cos.dtype)
            b = tl.load(from_ptr + head * from_stride + K // 2 + pair, mask=here, other=0).to(cos.dtype)
            tl.store(to_ptr + head * K + pair, a * cos - b * sin, mask=here)
            tl.store(to_ptr + head * K + K // 2 + pair, a * sin + b * cos, mask=here)
        else:
            column = tl.arange(0, SPAN)[None, None]
            here = inside & (head < NUM_HEADS) & (column < K)
            x = tl.load(from_ptr + head * from_stride + column, mask=here, other=0).to(cos.dtype)
            a, b = tl.split(tl.reshape(x, (x.shape[0], HEADS, SPAN // 2, 2)))
            turned = tl.join(a * cos - b * sin, a * sin + b * cos)
            tl.store(to_ptr + head * K + column, tl.reshape(turned, x.shape), mask=here)


@triton.jit
def _copy(
    from_ptr,
    from_stride,
    to_ptr,
    inside,
    NUM_HEADS: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    HEADS: tl.constexpr,
):
    column = tl.arange(0, SPAN)[None, None]
    for first_head in tl.static_range(0, NUM_HEADS, HEADS):  # pyright: ignore[reportGeneralTypeIssues]
        head = first_head + tl.arange(0, HEADS)[None, :, None]
        here = inside & (head < NUM_HEADS) & (column < K)
        tl.store(to_ptr + head * K + column, tl.load(from_ptr + head * from_stride + column, mask=here), mask=here)


def _run_forward(
    qkv_NO: Tensor, positions_N: Tensor, table: Tensor, heads: int, key_value_heads: int, halves: bool
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _fake_forward(qkv_NO, positions_N, table, heads, key_value_heads, halves)
    how, grid, constants = _how("split_rope_forward", qkv_NO, heads, key_value_heads, halves)
    sizes = (qkv_NO.shape[0], qkv_NO.stride(0))
    launch(_forward_kernel, grid, how, qkv_NO, positions_N, table, *outputs, *sizes, **constants)
    return outputs


def _fake_forward(
    qkv_NO: Tensor, positions_N: Tensor, table: Tensor, heads: int, key_value_heads: int, halves: bool
) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, size = qkv_NO.shape[0], qkv_NO.shape[1] // (heads + 2 * key_value_heads)
    q_NHK = qkv_NO.new_empty(num_rows, heads, size)
    k_NGK, v_NGK = (qkv_NO.new_empty(num_rows, key_value_heads, size) for _ in range(2))
    return q_NHK, k_NGK, v_NGK


def _run_backward(
    dq_NHK: Tensor, dk_NGK: Tensor, dv_NGK: Tensor, positions_N: Tensor, table: Tensor, halves: bool
) -> Tensor:
    dqkv_NO = _fake_backward(dq_NHK, dk_NGK, dv_NGK, positions_N, table, halves)
    how, grid, constants = _how("split_rope_backward", dqkv_NO, dq_NHK.shape[1], dk_NGK.shape[1], halves)
    strides = (stride for x in (dq_NHK, dk_NGK, dv_NGK) for stride in x.stride()[:2])
    tensors = (dq_NHK, dk_NGK, dv_NGK, positions_N, table, dqkv_NO)
    launch(_backward_kernel, grid, how, *tensors, dqkv_NO.shape[0], *strides, **constants)
    return dqkv_NO


def _fake_backward(
    dq_NHK: Tensor, dk_NGK: Tensor, dv_NGK: Tensor, positions_N: Tensor, table: Tensor, halves: bool
) -> Tensor:
    num_rows, heads, size = dq_NHK.shape
    return dq_NHK.new_empty(num_rows, (heads + 2 * dk_NGK.shape[1]) * size)


def _how(
    op: str, packed_NO: Tensor, heads: int, key_value_heads: int, halves: bool
) -> tuple[Launch, tuple[int], dict[str, Any]]:
    """The launch, its grid, and the kernel's constants but for the tile sizes."""
    num_rows, columns = packed_NO.shape
    size = columns // (heads + 2 * key_value_heads)
    how = choose(op, packed_NO, DEFAULT, INTERPRETED, heads=heads, head_size=size)
    constants = {"H": heads, "G": key_value_heads, "K": size, "SPAN": triton.next_power_of_2(size)}
    grid = (cdiv(num_rows, how.tiles["ROWS"]),)
    return how, grid, {**constants, "HALVES": halves, "WIDE": wide(packed_NO)}


_forward = register(
    __name__,
    "forward",
    "(Tensor qkv, Tensor positions, Tensor table, int heads, int key_value_heads, bool halves)"
    " -> (Tensor, Tensor, Tensor)",
    _run_forward,
    _fake_forward,
)
_backward = register(
    __name__,
    "backward",
    "(Tensor dq, Tensor dk, Tensor dv, Tensor positions, Tensor table, bool halves) -> Tensor",
    _run_backward,
    _fake_backward,
)


class _SplitRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_NO: Tensor, positions_N: Tensor, table: Tensor, heads: int, key_value_heads: int, halves: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(positions_N, table)
        ctx.halves = halves
        return _forward(qkv_NO, positions_N, table, heads, key_value_heads, halves)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dq_NHK: Tensor, dk_NGK: Tensor, dv_NGK: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradients = (rows(dq_NHK), rows(dk_NGK), rows(dv_NGK))
        return _backward(*gradients, *ctx.saved_tensors, ctx.halves), None, None, None, None, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_NO: Tensor, positions_N: Tensor, table: Tensor | None, layout: HeadLayout
    ) -> tuple[Tensor, Tensor, Tensor]:
        return reference(qkv_NO, positions_N, table, layout)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dq_NHK: Tensor, dk_NGK: Tensor, dv_NGK: Tensor
    ) -> tuple[Tensor | None, ...]:
        return _packed(dq_NHK, dk_NGK, dv_NGK), None, None, None


def _packed(dq_NHK: Tensor, dk_NGK: Tensor, dv_NGK: Tensor) -> Tensor:
    """[N, O] of the three: what they are pieces of where they stand side by side, else a copy."""
    parts = (dq_NHK, dk_NGK, dv_NGK)
    shape = (dq_NHK.shape[0], sum(x.shape[1] * x.shape[2] for x in parts))
    # a compiler's tensors have no addresses, and it moves what it likes
    if not torch.compiler.is_compiling() and _side_by_side(parts, shape[1]):
        return dq_NHK.as_strided(shape, (shape[1], 1))
    return torch.cat(parts, dim=1).flatten(1)


def _side_by_side(parts: tuple[Tensor, ...], columns: int) -> bool:
    size, memory, place = parts[0].shape[2], parts[0].untyped_storage().data_ptr(), parts[0].storage_offset()
    for x in parts:
        if x.stride() != (columns, size, 1) or x.untyped_storage().data_ptr() != memory or x.storage_offset() != place:
            return False
        place += x.shape[1] * size
    return True


def fused(
    qkv_NO: Tensor, positions_N: Tensor, table: Tensor | None, layout: HeadLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference`, in one pass each way; q, k and v are fresh and contiguous. With rotation "none" there is nothing
    to compute, and they are the reference's views of the projection.

    positions: int32 or int64, one for each row. Each must be a row of the table: that is not checked, because it would
    make the host wait for the device, and one beyond it reads other memory. Raises ValueError for columns that are not
    those of the layout, an odd head size, a table of another head size, or a device on which no kernel runs.
    """
    num_heads = layout.num_heads + 2 * layout.num_key_value_heads
    check("qkv", qkv_NO, "N O", O=num_heads * layout.head_size)
    if layout.rotation == "none":
        return _Split.apply(qkv_NO, positions_N, table, layout)  # pyright: ignore[reportReturnType]
    if layout.rotation not in ("interleaved", "half"):
        raise ValueError(f"rotation = {layout.rotation!r}: it must be 'interleaved', 'half' or 'none'")
    if layout.head_size % 2:
        raise ValueError(f"head_size = {layout.head_size}: features are turned in pairs, so it must be even")
    if table is None:
        raise ValueError(f"table = None: rotation {layout.rotation!r} needs the cosines and sines of `rope_table`")
    check("positions", positions_N, "N", (torch.int32, torch.int64), N=qkv_NO.shape[0])
    check("table", table, "P J 2", (torch.float32, torch.float64), J=layout.head_size // 2, **{"2": 2})
    check_together(qkv=qkv_NO, positions=positions_N, table=table)
    halves = layout.rotation == "half"
    tensors = (rows(qkv_NO), positions_N.contiguous(), table.contiguous())
    return _SplitRope.apply(  # pyright: ignore[reportReturnType]
        *tensors, layout.num_heads, layout.num_key_value_heads, halves
    )


# ------------------------------------------------------------------ what the workshop asks


_HALVES = {"H": 2, "G": 2, "K": 8, "rotation": "half"}
_PAIRS = {"H": 4, "G": 2, "K": 8, "rotation": "interleaved"}
CASES = (
    *(Case(f"{num_rows} rows, halves", {"N": num_rows, **_HALVES}) for num_rows in (1, 127, 129)),
    *(Case(f"{num_rows} rows, pairs", {"N": num_rows, **_PAIRS}) for num_rows in (16, 128)),
    Case("halves, 17 query heads and one key/value head", {"N": 3, "H": 17, "G": 1, "K": 6, "rotation": "half"}),
    Case("pairs, 18 query heads and two", {"N": 3, "H": 18, "G": 2, "K": 6, "rotation": "interleaved"}),
    Case("positions left to the model", {"N": 3, "H": 2, "G": 2, "K": 4, "rotation": "none"}),
    Case("no rows", {"N": 0, **_PAIRS}),
)
TIMED = (
    Case("pixar-85m, 384 x 360", {"N": 138_240, "H": 12, "G": 12, "K": 64, "rotation": "half", "length": 360}),
    Case("100m, 32 x 1024", {"N": 32_768, "H": 12, "G": 4, "K": 64, "rotation": "interleaved", "length": 1024}),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    length = case.get("length", 50)
    positions_N = (torch.arange(case["N"], dtype=torch.int32) + 7).remainder(length)
    return {
        "qkv_NO": draw.normal(case["N"], (case["H"] + 2 * case["G"]) * case["K"], grad=True),
        "positions_N": positions_N.to(draw.device),
        "table": ops.rope_table(case["K"], 10_000.0, length).to(draw.device),
        "layout": HeadLayout(case["H"], case["G"], case["K"], case["rotation"]),
    }


def cost(case: Case, size: int) -> Cost:
    values = case["N"] * (case["H"] + 2 * case["G"]) * case["K"] * size
    return Cost(forward_bytes=2 * values, backward_bytes=2 * values)
