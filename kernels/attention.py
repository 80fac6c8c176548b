"""Attention inside the documents of a packed buffer, forward and backward, with the log-sum-exp as a second output.

    scores   s = scale q k^T           of the pairs that the rule lets see each other, else -inf
    weights  p = exp(s - lse)          lse = log sum exp(s), natural, [N, H]
    forward  out = (p * keep / (1 - rate)) v
    backward dp = (dout v^T) * keep / (1 - rate)
             delta = sum(dout * out) - dlse                 of each row and head
             ds = p * (dp - delta)
             dq = scale ds k      dk = scale ds^T q         dv = (p * keep / (1 - rate))^T dout

This file is the face of the operation: what is checked, what PyTorch sees, what the workshop draws. The kernels are in

    attention_rules.py       who sees whom: full, causal, real_fake
    attention_schedule.py    which tiles there are, made on the device from the offsets
    attention_tiles.py       loads and the mask of dropout
    attention_forward.py     out and lse
    attention_backward.py    dq, dk and dv: two kernels, over the rows and over the keys, no atomics
    attention_one_pass.py    the same in one kernel, a program for all keys of a document
    attention_pairs.py       what the kernels of the backward pass share

Floor: 4 K operations a pair of row and key forward, 10 K backward (14 K in two kernels, which compute scores twice),
one exponential a pair each time, and every row of q, k, v, out read or written once. At 400 to 1000 rows a document and
a head size of 64 the products, the exponentials and the memory are within a third of each other, so none may wait.

Both operations end in the same arguments: offsets, visible, reach, rule, scale, and of dropout seed, documents,
positions, site, p (no dropout: seed None). dout or dlse is None where nobody differentiates that output. The gradients
come as one array [N, (H + 2 G) K], as the projection has them, and are handed on as views of it. A row that sees
nothing has the output zero, lse -inf and gives no gradient.
"""

import math
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from kernels.arguments import check, check_limit, check_together
from kernels.attention_backward import fake_backward, run_backward
from kernels.attention_forward import fake_forward, run_forward
from kernels.attention_rules import RULES
from kernels.philox import INTEGERS, parts
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw
from pixelcore import ops
from pixelcore.dropout_bits import Drop
from pixelcore.packed import Packed

reference = ops.softmax_attention

LIMIT = 128  # of the head size
_HALVES_AND_SINGLE = (torch.bfloat16, torch.float16, torch.float32)  # of what a GPU multiplies here

_STRUCTURE = (
    "Tensor offsets, int[]? visible, Tensor? reach, str rule, float scale, "
    "Tensor? seed, Tensor? documents, Tensor? positions, int site, float p"
)
_forward = register(
    __name__,
    "forward",
    f"(Tensor q, Tensor k, Tensor v, {_STRUCTURE}) -> (Tensor, Tensor)",
    run_forward,
    fake_forward,
)
_backward = register(
    __name__,
    "backward",
    f"(Tensor? dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_STRUCTURE}) -> Tensor",
    run_backward,
    fake_backward,
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_NHK: Tensor,
        k_NGK: Tensor,
        v_NGK: Tensor,
        offsets: Tensor,
        visible: tuple[int, ...] | None,
        reach_N: Tensor | None,
        rule: str,
        scale: float,
        seed: Tensor | None,
        documents_N: Tensor | None,
        positions_N: Tensor | None,
        site: int,
        p: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # mostly nobody differentiates the log-sum-exp
        names = (seed, documents_N, positions_N)
        out_NHK, lse_NH = _forward(q_NHK, k_NGK, v_NGK, offsets, visible, reach_N, rule, scale, *names, site, p)
        ctx.save_for_backward(q_NHK, k_NGK, v_NGK, out_NHK, lse_NH, offsets, reach_N, *names)
        ctx.use = visible, rule, scale, site, p
        return out_NHK, lse_NH

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dout_NHK: Tensor | None, dlse_NH: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if dout_NHK is None and dlse_NH is None:
            return (None,) * 13
        *tensors, offsets, reach_N, seed, documents_N, positions_N = ctx.saved_tensors
        visible, rule, scale, site, p = ctx.use
        names = (seed, documents_N, positions_N)
        dqkv_NO = _backward(dout_NHK, dlse_NH, *tensors, offsets, visible, reach_N, rule, scale, *names, site, p)
        (_, num_heads, head_size), num_groups = tensors[0].shape, tensors[1].shape[1]
        # views of one array, in the layout of a packed projection: see `split_rope.py`
        gradients = dqkv_NO.unflatten(1, (-1, head_size)).split((num_heads, num_groups, num_groups), dim=1)
        return *gradients, *(None,) * 10


def fused(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, packed: Packed, rule: str, scale: float, drop: Drop | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference`: the output [N, H, K] and the natural log-sum-exp fp32 [N, H], both differentiable.

    q, k and v may be views of one packed projection; heads of a row that do not stand side by side are copied. H is a
    multiple of G. K: even, at most 128; 32, 64 and 128 are the sizes that the kernels were made for. Documents are what
    `packed.offsets` says on the device, where nobody checks them again: where `packed.lengths` is not empty, it must
    say the same. What else does not fit raises ValueError, and on a GPU fp64 does, which it does not multiply here.
    """
    check("q", q_NHK, "N H K")
    num_rows, num_heads, head_size = q_NHK.shape
    check("k", k_NGK, "N G K", (q_NHK.dtype,), N=num_rows, K=head_size)
    check("v", v_NGK, "N G K", (q_NHK.dtype,), N=num_rows, G=k_NGK.shape[1], K=head_size)
    if q_NHK.is_cuda and q_NHK.dtype not in _HALVES_AND_SINGLE:
        raise ValueError(f"q is {q_NHK.dtype}: on a GPU this kernel takes bfloat16, float16 and float32")
    if head_size % 2 or not head_size:
        raise ValueError(f"q has the head size {head_size}: it must be even and at least 2")
    check_limit("head size", head_size, LIMIT)
    if not k_NGK.shape[1] or num_heads % k_NGK.shape[1]:
        raise ValueError(
            f"q has {num_heads} heads and k has {k_NGK.shape[1]}: the first must be a multiple of the second"
        )
    if rule not in RULES:
        raise ValueError(f"rule = {rule!r}: it must be one of {', '.join(map(repr, RULES))}")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale = {scale}: it must be above zero and finite")
    _check_documents(packed, rule, num_rows)
    reach_N = packed.reach if rule == "real_fake" else None
    seed, documents_N, positions_N, site, p = parts(drop, num_rows)
    check_together(q=q_NHK, k=k_NGK, v=v_NGK, offsets=packed.offsets, reach=reach_N, seed=seed)
    return _Attention.apply(  # pyright: ignore[reportReturnType]
        q_NHK,
        k_NGK,
        v_NGK,
        packed.offsets.contiguous(),
        packed.visible,
        None if reach_N is None else reach_N.contiguous(),
        rule,
        scale,
        seed,
        documents_N,
        positions_N,
        site,
        p,
    )


def _check_documents(packed: Packed, rule: str, num_rows: int) -> None:
    check("packed.offsets", packed.offsets, "M+1", (torch.int32,))
    num_documents = packed.offsets.shape[0] - 1
    if num_documents < 0:
        raise ValueError("packed.offsets is empty: it must hold the first row of each document, and the end")
    lengths = packed.lengths
    if lengths and (len(lengths) != num_documents or min(lengths) < 0 or sum(lengths) != num_rows):
        raise ValueError(
            f"packed.lengths are {len(lengths)} numbers, the smallest {min(lengths)}, of sum {sum(lengths)}: they must "
            f"be rows of the {num_documents} documents of packed.offsets, not negative, of sum {num_rows}"
        )
    if rule == "real_fake":
        if packed.reach is None:
            raise ValueError("packed.reach = None: the rule 'real_fake' needs a reach for each row")
        check("packed.reach", packed.reach, "N", INTEGERS, N=num_rows)
    if packed.visible is not None and (len(packed.visible) != num_documents or min(packed.visible, default=0) < 0):
        raise ValueError(
            f"packed.visible = {packed.visible}: it must be {num_documents} numbers, one a document, not negative"
        )


# ------------------------------------------------------------------ what the workshop asks


def _case(name: str, lengths: tuple[int, ...], H: int, G: int, K: int, rule: str, **more: Any) -> Case:
    return Case(name, {"lengths": lengths, "H": H, "G": G, "K": K, "rule": rule, **more})


# documents around the tiles' 32 rows
CASES = (
    _case("one token, and twenty", (1, 20), 1, 1, 16, "full"),
    _case("full, GQA 2, dropped", (33, 0), 2, 1, 44, "full", p=0.3),
    _case("causal, GQA 3", (64,), 3, 1, 32, "causal"),
    _case("causal, GQA 8", (3,), 8, 1, 16, "causal"),
    _case("full, rows that see nothing", (34, 3), 1, 1, 16, "full", visible=(33, 0)),
    _case("causal, rows that are not seen", (65,), 1, 1, 64, "causal", visible=(40,), p=0.5),
    _case("real and fake", (2, 48), 1, 1, 16, "real_fake", visible=(1, 33), p=0.2),
    _case("no rows", (0,), 1, 1, 16, "full"),
)
SMALL = _case("small", (5, 0, 2), 2, 1, 16, "causal", p=0.2)


def _timed(name: str, M: int, longest: int, H: int, G: int, K: int, rule: str, **more: Any) -> Case:
    """M documents of up to so many rows. fill: a part of them is shorter, evenly spread, so that this much is full."""
    return Case(name, {"M": M, "longest": longest, "H": H, "G": G, "K": K, "rule": rule, **more})


TIMED = (
    _timed("pixel-base, encoder, dropped", 256, 397, 12, 12, 64, "full", fill=0.81, p=0.1),
    _timed("pixel-base, encoder", 256, 397, 12, 12, 64, "full", fill=0.81),
    _timed("pixel-base, decoder, dropped", 256, 530, 16, 16, 32, "full", fill=0.81, p=0.1),
    _timed("pixar-85m, 384 x 360", 384, 360, 12, 12, 64, "causal"),
    _timed("100m, 32 x 1024", 32, 1024, 12, 4, 64, "causal"),
    _timed("pixel-base, encoder, all full", 256, 397, 12, 12, 64, "full"),
    _timed("pixel-base, decoder", 256, 530, 16, 16, 32, "full", fill=0.81),
    _timed("8 x 4096, heads of 128", 8, 4096, 12, 4, 128, "causal"),
)


def lengths_of(case: Case) -> tuple[int, ...]:
    """Rows of each document. Where they are filled in part, most are full and the others are of any length above a
    half, as the rows of a corpus of books are."""
    if "lengths" in case.sizes:
        return case["lengths"]
    longest, short = case["longest"], 2 * (1 - case.get("fill", 1.0))
    spread = [(index * 0.6180339887498949) % 1 for index in range(case["M"])]  # the golden ratio: even, in no order
    return tuple(round(longest * (1 - short * min(part, 1))) for part in spread)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    lengths, drop = lengths_of(case), None
    num_rows, query, key = sum(lengths), (case["H"], case["K"]), (case["G"], case["K"])
    packed = _packed(case, draw)
    if case.get("p"):
        drop = Drop(torch.tensor([11, 3], device=draw.device), packed, 5, case["p"])
    return {
        "q_NHK": draw.normal(num_rows, *query, grad=True),
        "k_NGK": draw.normal(num_rows, *key, grad=True),
        "v_NGK": draw.normal(num_rows, *key, grad=True),
        "packed": packed,
        "rule": case["rule"],
        "scale": case["K"] ** -0.5,
        "drop": drop,
    }


def _packed(case: Case, draw: Draw) -> Packed:
    """The case's documents, of which some may be empty, or show none of their rows."""
    lengths, visible = lengths_of(case), case.get("visible")
    filled = draw.packed([length for length in lengths if length] or [1])
    num_rows, offsets = sum(lengths), torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=draw.device)
    reach_N = None
    if case["rule"] == "real_fake":
        place, far = filled.positions, torch.tensor(visible, device=draw.device).repeat_interleave(offsets.diff())
        reach_N = torch.where(place < far, place, (place * 7) % far).to(torch.int32)
    return Packed(
        offsets,
        filled.positions[:num_rows],
        filled.documents[:num_rows],
        max(lengths),
        lengths,
        visible,
        reach_N,
    )


def poison(given: dict[str, Any]) -> dict[str, Any]:
    """NaN in the keys and values that nobody looks at."""
    packed: Packed = given["packed"]
    if packed.visible is None or given["rule"] == "real_fake":
        return given
    seen = torch.tensor(packed.visible, device=packed.offsets.device).repeat_interleave(packed.offsets.diff())
    hidden = (packed.positions >= seen)[:, None, None]
    spoilt = {
        name: given[name].detach().masked_fill(hidden, math.nan).requires_grad_(given[name].requires_grad)
        for name in ("k_NGK", "v_NGK")
    }
    return given | spoilt


def cost(case: Case, size: int) -> Cost:
    """Pairs of the fakes are counted as if each reached the last real row."""
    lengths = lengths_of(case)
    pairs = sum(
        length * seen if case["rule"] == "full" else seen * (seen + 1) // 2 + (length - seen) * seen
        for length, seen in zip(lengths, case.get("visible") or lengths, strict=True)
    )
    num_rows, H, G, K = sum(lengths), case["H"], case["G"], case["K"]
    values, statistics = num_rows * 2 * (H + G) * K * size, num_rows * H * 4
    products = 2 * K * H * pairs
    return Cost(
        forward_bytes=values + statistics,
        backward_bytes=2 * values + statistics,
        forward_flops=2 * products,
        backward_flops=5 * products,
    )
