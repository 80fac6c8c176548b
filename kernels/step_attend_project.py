"""A step's attention and its way out of it, in two kernels: residual + W_o attention(q) over what the cache holds.

    o_h = sum over places of softmax(scale q_h k)_place v_place        places 0 .. lengths[b]
    y   = residual + W_o [o_1 .. o_H]

The floor is that of reading the places that are held, 2 G K values each, and W_o, H K D values. For one sequence of the
`100m` decoder with 512 places that is 0.5 MB and 1.2 MB, 0.4 us at 4.3 TB/s; for 64 of them 34 MB and 8 us.

The first kernel is FlashDecoding's (Dao and others, 2023; its parts are those of `decode_split.py`): the places of a
sequence are shared out among SPLITS programs, since pairs of a sequence and a key/value head are too few for a GPU, and
the query heads of one key/value head are rows of one tile. Each leaves an output and the logarithm of its sum in fp32.
To make one output of them is a kernel of its own elsewhere; here it is how the second kernel reads its rows, while the
pieces of W_o are on their way. All of its programs do it again, from the L2 cache: as many bytes as a program reads of
W_o for one sequence, eight times as many for 64, which is two microseconds by counting, as much as a launch.

    first kernel    program (sequence, key/value head, split)        keys  | split 0 | split 1 | split 2 |
                                                                             o_0, l_0  o_1, l_1  o_2, l_2
    second kernel   x = what they make together, HEADS heads at a time            '---- x ----'
                    y of COLUMNS columns += x . W_o^T                      y  [ 0 0 | 1 1 | 2 2 ]

Fewer rows than tensor cores ask for are repeated, in registers, and not padded: a repeated row costs no load.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check, check_limit, check_together, rows
from kernels.decode_split import LOG2_E, attend, begin, combine, finish, num_splits, share
from kernels.launch import Launch, cdiv, choose, launch
from kernels.register import register
from kernels.step_rows import FLOATS, check_rows, check_same, check_weight, padded
from kernels.workshop.cases import Case, Cost, Draw
from pixelcore import step_ops

reference = step_ops.attend_project

INTERPRETED_ATTEND, INTERPRETED_PROJECT = Launch({"BLOCK": 16}), Launch({"COLUMNS": 32, "HEADS": 2})
_MOST_SIZE = 128


@triton.jit
def _attend_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    lengths_ptr,
    partials_ptr,
    logs_ptr,
    num_rows,
    capacity,
    keys_stride,
    keys_head_stride,
    keys_place_stride,
    values_stride,
    values_head_stride,
    values_place_stride,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    SPLITS: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence, group = (tl.program_id(0) // G).to(tl.int64), tl.program_id(0) % G
    split = tl.program_id(1)
    member, column = tl.arange(0, ROWS), tl.arange(0, SPAN)[None]
    exists = member < H // G
    inside = exists[:, None] & (column < K)
    pair = sequence * H + group * (H // G) + member
    q = tl.load(q_ptr + pair[:, None] * K + column, mask=inside, other=0)
    count = tl.minimum(tl.load(lengths_ptr + sequence) + 1, capacity)
    first, behind = share(count, split, SPLITS, BLOCK)  # pyright: ignore[reportGeneralTypeIssues]
    largest, total, out = begin(ROWS, SPAN, tl.float32)
    keys_ptr += sequence * keys_stride + group * keys_head_stride
    values_ptr += sequence * values_stride + group * values_head_stride
    everything = tl.full((ROWS,), 0, tl.int32) + count
    largest, total, out = attend(
        *(q, largest, total, out, keys_ptr, values_ptr, keys_place_stride, values_place_stride),
        *(first, behind, everything, SCALE, K, SPAN, BLOCK),
    )
    out, log = finish(largest, total, out)
    pair += split * (num_rows * H)
    tl.store(partials_ptr + pair[:, None] * K + column, out, mask=inside & (first < behind))
    tl.store(logs_ptr + pair, log, mask=exists)


@triton.jit
def _project_kernel(
    partials_ptr,
    logs_ptr,
    weight_ptr,
    residual_ptr,
    sum_ptr,
    num_rows,
    weight_stride,
    residual_stride,
    H: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
):
    times: tl.constexpr = ROWS // BATCH
    row = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    written = (row // times < num_rows) & (row % times == 0) & (column < D)[None]
    row = (row // times).to(tl.int64)
    residual = tl.load(residual_ptr + row * residual_stride + column[None], mask=written, other=0)

    member = tl.arange(0, BATCH * HEADS)[:, None]
    feature = tl.arange(0, SPAN)[None]
    value = tl.arange(0, HEADS * SPAN)[None]
    weight_ptr += column.to(tl.int64)[:, None] * weight_stride
    y = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, H, HEADS):
        head = first + value // SPAN
        there = (column < D)[:, None] & (head < H) & (value % SPAN < K)
        weight = tl.load(weight_ptr + head * K + value % SPAN, mask=there, other=0)
        sequence, head = member // HEADS, first + member % HEADS
        known = (sequence < num_rows) & (head < H)
        pair = sequence.to(tl.int64) * H + head
        inside = known & (feature < K)
        x = combine(partials_ptr, logs_ptr, pair, known, feature, inside, num_rows * H, SPLITS, K)
        x = tl.reshape(x, (BATCH, 1, HEADS * SPAN)).to(weight.dtype)
        x = tl.reshape(tl.broadcast_to(x, (BATCH, times, HEADS * SPAN)), (ROWS, HEADS * SPAN))
        y = tl.dot(x, tl.trans(weight), y, input_precision="ieee")
    tl.store(sum_ptr + row * D + column[None], residual.to(tl.float32) + y, mask=written)


def _run(
    q_BHK: Tensor,
    keys_BGCK: Tensor,
    values_BGCK: Tensor,
    lengths_B: Tensor,
    scale: float,
    out_DO: Tensor,
    residual_BD: Tensor,
) -> Tensor:
    sum_BD = _fake(q_BHK, keys_BGCK, values_BGCK, lengths_B, scale, out_DO, residual_BD)
    (num_rows, heads, size), (_, groups, capacity, _) = q_BHK.shape, keys_BGCK.shape
    chosen_by = {"rows": num_rows, "groups": groups, "head_size": size, "capacity": capacity}
    span = max(16, int(triton.next_power_of_2(size)))
    default = Launch({"BLOCK": 64 if span * q_BHK.itemsize <= 256 else 32}, num_stages=3)
    how = choose("step_attend", q_BHK, default, INTERPRETED_ATTEND, **chosen_by)
    # one program a processor: what a split saves here, every program of the second kernel has to read
    splits = num_splits(2 * num_rows * groups, capacity, how.tiles["BLOCK"], q_BHK.device)
    partials = q_BHK.new_empty(splits, num_rows, heads, size, dtype=torch.float32)
    logs = q_BHK.new_empty(splits, num_rows, heads, dtype=torch.float32)
    constants = {"H": heads, "K": size, "SPAN": span, "SPLITS": splits}
    launch(
        _attend_kernel,
        (num_rows * groups, splits),
        how,
        *(q_BHK, keys_BGCK, values_BGCK, lengths_B, partials, logs, num_rows, capacity),
        *(*keys_BGCK.stride()[:3], *values_BGCK.stride()[:3]),
        G=groups,
        SCALE=scale * LOG2_E,
        ROWS=padded(heads // groups),
        **constants,
    )
    width, batch = sum_BD.shape[1], int(triton.next_power_of_2(num_rows))
    default = _default(splits * batch, span, q_BHK.itemsize)
    chosen_by = {"rows": num_rows, "columns": width, "depth": heads * size, "splits": splits}
    how = choose("step_project", q_BHK, default, INTERPRETED_PROJECT, **chosen_by)
    launch(
        _project_kernel,
        (cdiv(width, how.tiles["COLUMNS"]),),
        how,
        *(partials, logs, out_DO, residual_BD, sum_BD, num_rows, out_DO.stride(0), residual_BD.stride(0)),
        D=width,
        BATCH=batch,
        ROWS=padded(num_rows),
        **constants,
    )
    return sum_BD


def _default(parts: int, span: int, itemsize: int) -> Launch:
    """Of the second kernel: as many heads at a time as make 256 columns of W_o, fewer where there are many parts to
    combine, and as many pieces on their way as leaves room for another program."""
    heads = max(1, min(256 // span, 4096 // (parts * span)))
    piece = 4 * parts * heads * span  # bytes, of the parts
    stages = 2 if itemsize == 4 or piece > 1 << 15 else 3 if piece > 1 << 14 else 4
    return Launch({"COLUMNS": 16, "HEADS": heads}, num_stages=stages)


def _fake(
    q_BHK: Tensor,
    keys_BGCK: Tensor,
    values_BGCK: Tensor,
    lengths_B: Tensor,
    scale: float,
    out_DO: Tensor,
    residual_BD: Tensor,
) -> Tensor:
    return residual_BD.new_empty(residual_BD.shape)


_step = register(
    __name__,
    "step",
    "(Tensor q, Tensor keys, Tensor values, Tensor lengths, float scale, Tensor out, Tensor residual) -> Tensor",
    _run,
    _fake,
)


def fused(
    q_BHK: Tensor,
    keys_BGCK: Tensor,
    values_BGCK: Tensor,
    lengths_B: Tensor,
    scale: float,
    out_DO: Tensor,
    residual_BD: Tensor,
) -> Tensor:
    """As `reference`, in two kernels. Lengths are at least 0: that is not checked, because it would make the host wait
    for the device. Raises ValueError for more than 64 rows, heads beyond 128 or that the key/value heads do not divide,
    sizes and dtypes that do not fit each other, or a device on which no kernel runs."""
    check_rows("q", q_BHK, "B H K")
    num_rows, heads, size = q_BHK.shape
    check_limit("head_size", size, _MOST_SIZE)
    for name, cache in {"keys": keys_BGCK, "values": values_BGCK}.items():
        check(name, cache, "B G C K", FLOATS, B=num_rows, C=keys_BGCK.shape[2], G=keys_BGCK.shape[1], K=size)
        check_same(name, cache, q_BHK)
    groups = keys_BGCK.shape[1]
    if groups == 0 or heads % groups:
        raise ValueError(f"q has {heads} heads and the cache {groups}: these must divide those")
    check("lengths", lengths_B, "B", (torch.int32,), B=num_rows)
    check_weight("out", out_DO, "D O", q_BHK, O=heads * size)
    check_rows("residual", residual_BD, "B D", B=num_rows, D=len(out_DO))
    check_same("residual", residual_BD, q_BHK)
    check_together(q=q_BHK, lengths=lengths_B)
    cache = (rows(keys_BGCK), rows(values_BGCK), lengths_B.contiguous())
    return _step(q_BHK.contiguous(), *cache, scale, rows(out_DO), rows(residual_BD))


# ------------------------------------------------------------------ what the workshop asks


_FULL = 40  # places of a case's cache
CASES = (
    Case("1 row in two splits", {"B": 1, "D": 40, "H": 3, "G": 1, "K": 16, "lengths": (30,)}),
    Case("1 row, the second split empty", {"B": 1, "D": 16, "H": 1, "G": 1, "K": 8, "lengths": (0,)}),
    Case("3 rows, the second full", {"B": 3, "D": 24, "H": 6, "G": 2, "K": 10, "lengths": (15, _FULL, _FULL - 1)}),
    Case("17 rows", {"B": 17, "D": 33, "H": 2, "G": 1, "K": 6, "C": 7}),
)
_DECODER, _PIXAR = {"D": 768, "H": 12, "G": 4, "K": 64, "C": 512}, {"D": 768, "H": 12, "G": 12, "K": 64, "C": 360}
TIMED = tuple(
    Case(f"{name}, {num_rows} row{'s' * (num_rows > 1)}", {"B": num_rows, **sizes, "lengths": (sizes["C"] - 1,)})
    for name, sizes in (("100m", _DECODER), ("pixar-85m", _PIXAR))
    for num_rows in (1, 16, 64)
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    num_rows, width, heads, groups, size = (case[name] for name in ("B", "D", "H", "G", "K"))
    capacity = case.get("C", _FULL)
    lengths = case.get("lengths") or tuple(5 * row % capacity for row in range(num_rows))
    lengths = lengths if len(lengths) == num_rows else lengths * num_rows
    return {
        "q_BHK": draw.normal(num_rows, heads, size),
        "keys_BGCK": draw.normal(num_rows, groups, capacity, size),
        "values_BGCK": draw.normal(num_rows, groups, capacity, size),
        "lengths_B": torch.tensor(lengths, dtype=torch.int32, device=draw.device),
        "scale": size**-0.5,
        "out_DO": draw.normal(width, heads * size, scale=(heads * size) ** -0.5),
        "residual_BD": draw.normal(num_rows, width),
    }


def poison(given: dict[str, Any]) -> dict[str, Any]:
    """What stands in the cache behind the places that are held."""
    capacity, lengths_B = given["keys_BGCK"].shape[2], given["lengths_B"]
    unread_BC = torch.arange(capacity, device=lengths_B.device) > lengths_B[:, None]
    caches = ("keys_BGCK", "values_BGCK")
    return given | {name: given[name].masked_fill(unread_BC[:, None, :, None], torch.nan) for name in caches}


def cost(case: Case, size: int) -> Cost:
    num_rows, columns, places = case["B"], case["H"] * case["K"], case["C"]
    cache = num_rows * 2 * case["G"] * places * case["K"]
    values = cache + columns * case["D"] + num_rows * (columns + 2 * case["D"])
    flops = num_rows * (4 * columns * places + 2 * columns * case["D"])
    return Cost(forward_bytes=values * size, backward_bytes=0, forward_flops=flops)
