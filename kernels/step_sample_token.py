"""A step's choice of a token: penalty, temperature, top-k, top-p, min-p, the draw and the next row, in one kernel.

    x_i = logits, divided or multiplied by the penalty where seen        d_i = (max x - x_i) / temperature
    top-k   keep d_i <= t, the smallest t that k of them are below       w_i = exp(-d_i)
    top-p   keep w_i >= t, the largest t whose sum reaches p sum(w)      min-p   keep w_i >= min_p
    draw    the first i with w_0 + .. + w_i > u sum(w)                   temperature 0: the first i with d_i = 0

The floor is one read of the logits, 4 V bytes a row. As often written, these are two sorts of the vocabulary and a
dozen passes. A threshold needs no order: every rule keeps what lies on one side of a number, and the number is found by
bisection, halving an interval until nothing lies inside. Floats that are not negative have the order of their bits as
whole numbers, so 31 halvings reach the last bit; the loop ends as soon as a step has counted exactly k, or when no more
than one token can lie in the interval, mostly after half of them.

A program holds the whole row, GROUPS x SPAN values, in registers, so a halving is one comparison and one sum. The draw
finds the group first and then the place in it, so that no running sum over the vocabulary has to be held.

    logits_BV  row b  [ . . . . | . . . . | . . . . | . . . . ]      group sums  s0  s1  s2  s3 -> group 2
                         span 0    span 1    span 2    span 3         of group 2  [ . . . . ]    -> place 1

All settings are numbers on the device, read here, so that one recorded step serves them all; a rule that is off costs a
branch that the whole program takes. The number u is a function of the sequence's seed and step (`pixelcore.uniform`).

The threshold without a sort is that of the sampling kernels of FlashInfer (arXiv:2501.01005) and of radix selection;
sums are fp32, so a token whose margin is below one in a million may fall on the other side than in fp64.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import FLOATS, check, check_limit, check_together, rows
from kernels.launch import Launch, choose, launch
from kernels.philox import uniform, uniform_words
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw
from pixelcore import step_sampling
from pixelcore.step_ops import MOST_ROWS

MOST_TOKENS = 65_536
_SPANS = 512, 2048  # without and with tokens seen: no stack on any architecture at 32768 tokens
_FARTHEST = tl.constexpr(0x7F7FFFFF)  # the bits of the largest fp32
_JUST_ABOVE_ONE = tl.constexpr(0x3F800001)  # and of the next one after 1.0


@triton.jit
def _kernel(
    logits_ptr,
    seen_ptr,
    knobs_ptr,
    seeds_ptr,
    steps_ptr,
    embed_ptr,
    ids_ptr,
    nats_ptr,
    residual_ptr,
    logits_stride,
    seen_stride,
    embed_stride,
    V: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    SPAN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    id = tl.arange(0, GROUPS)[:, None] * SPAN + tl.arange(0, SPAN)[None]
    logits_ptr += row * logits_stride
    x = tl.load(logits_ptr + id, mask=id < V, other=float("-inf"))
    num_finite = tl.sum((tl.abs(x) < float("inf")).to(tl.int32))
    highest = tl.max(x)
    log_sum = highest + tl.log(tl.sum(tl.exp(x - highest)))
    log_sum = tl.where(num_finite == V, log_sum, float("nan"))
    if seen_ptr is not None:
        penalty = tl.load(knobs_ptr + 4)
        four = tl.max_contiguous(id, [1, 4])  # a lane reads the bytes of its logits, and none go to another lane
        seen = tl.load(seen_ptr + row * seen_stride + four, mask=id < V, other=0)  # narrow: a byte a token
        # one of the two terms is 0; a choice between quotient and product needs more registers
        x = tl.where(seen != 0, tl.maximum(x, 0.0) / penalty + tl.minimum(x, 0.0) * penalty, x)
        highest = tl.max(x)
    temperature = tl.load(knobs_ptr)
    distance = (highest - x) / tl.where(temperature > 0, temperature, 1.0)
    chosen = tl.min(tl.where(distance == 0, id, V - 1))
    if temperature > 0:
        top_k, farthest = tl.load(knobs_ptr + 1), float("inf")
        if (top_k > 0) & (top_k < V):
            farthest = _kth(distance, top_k.to(tl.int32))
        weight = tl.where(distance <= farthest, tl.exp(-distance), 0.0)
        top_p, least = tl.load(knobs_ptr + 2), tl.load(knobs_ptr + 3)
        if top_p < 1:
            least = tl.maximum(least, _least_of_nucleus(weight, top_p))
        word = uniform_words(tl.load(seeds_ptr + row), tl.load(steps_ptr + row), tl.zeros((), tl.uint32))[0]
        chosen = _draw(tl.where(weight >= least, weight, 0.0), uniform(word), GROUPS, SPAN)
    is_finite = log_sum == log_sum
    tl.store(ids_ptr + row, tl.where(is_finite, chosen, -1).to(tl.int64))
    tl.store(nats_ptr + row, tl.load(logits_ptr + chosen) - log_sum)
    if seen_ptr is not None:
        tl.store(seen_ptr + row * seen_stride + chosen, 1, mask=is_finite)
    column = tl.arange(0, WIDTH)
    embed_ptr += tl.where(is_finite, chosen, 0).to(tl.int64) * embed_stride
    embedded = tl.load(embed_ptr + column, mask=column < D)
    tl.store(residual_ptr + row * D + column, embedded, mask=column < D)


@triton.jit
def _kth(distance, k):
    """A number with the k smallest distances, and those that equal the last of them, at or below it."""
    low, high = tl.full((), -1, tl.int32), tl.full((), _FARTHEST, tl.int32)
    while high - low > 1:
        middle = low + (high - low) // 2
        near = tl.sum((distance <= middle.to(tl.float32, bitcast=True)).to(tl.int32))
        high = tl.where(near >= k, middle, high)
        low = tl.where(near > k, low, tl.where(near == k, middle - 1, middle))
    return high.to(tl.float32, bitcast=True)


@triton.jit
def _least_of_nucleus(weight, p):
    """The largest number for which the weights from it on sum to p times all of them."""
    low, high = tl.full((), 0, tl.int32), tl.full((), _JUST_ABOVE_ONE, tl.int32)
    from_low = tl.sum(weight)
    from_high, goal = 0.0, from_low * p
    while high - low > 1:
        middle = (low + high) // 2
        mass = tl.sum(tl.where(weight >= middle.to(tl.float32, bitcast=True), weight, 0.0))
        reaches = mass >= goal
        low, from_low = tl.where(reaches, middle, low), tl.where(reaches, mass, from_low)
        high, from_high = tl.where(reaches, high, middle), tl.where(reaches, from_high, mass)
        # two that lie between would weigh twice as much as the lowest number at least
        high = tl.where(from_low - from_high < 1.5 * low.to(tl.float32, bitcast=True), low + 1, high)
    return low.to(tl.float32, bitcast=True)


@triton.jit
def _draw(weight, number, GROUPS: tl.constexpr, SPAN: tl.constexpr):
    """The first id at which the running sum of the weights exceeds that share of their sum."""
    group, place = tl.arange(0, GROUPS), tl.arange(0, SPAN)
    mass = tl.sum(weight, axis=1)
    running = tl.cumsum(mass, axis=0)
    goal = number * tl.max(running, axis=0)
    group_of_id = _first(running > goal, mass > 0, group, GROUPS)
    before = tl.sum(tl.where(group < group_of_id, mass, 0.0), axis=0)
    inside = tl.sum(tl.where(group[:, None] == group_of_id, weight, 0.0), axis=0)
    running = before + tl.cumsum(inside, axis=0)
    return group_of_id * SPAN + _first(running > goal, inside > 0, place, SPAN)


@triton.jit
def _first(reached, has_weight, at, SIZE: tl.constexpr):
    """The first with a weight that has reached the goal; the last with a weight where rounding lets none."""
    first = tl.min(tl.where(reached & has_weight, at, SIZE), axis=0)
    return tl.minimum(first, tl.max(tl.where(has_weight, at, 0), axis=0))


def _run(
    logits_BV: Tensor, seen_BV: Tensor | None, knobs: Tensor, seeds_B: Tensor, steps_B: Tensor, embed_VD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _fake(logits_BV, seen_BV, knobs, seeds_B, steps_B, embed_VD)
    num_tokens, width = embed_VD.shape
    span = _SPANS[seen_BV is not None]
    padded = max(int(triton.next_power_of_2(num_tokens)), 2 * span)
    how = Launch({"GROUPS": padded // span, "SPAN": span}, num_warps=min(max(padded // 1024, 4), 32), num_stages=1)
    how = choose("step_sample_token", logits_BV, how, how, tokens=num_tokens)
    launch(
        _kernel,
        (len(logits_BV),),
        how,
        *(logits_BV, seen_BV, knobs, seeds_B, steps_B, embed_VD, *outputs),
        *(logits_BV.stride(0), 0 if seen_BV is None else seen_BV.stride(0), embed_VD.stride(0)),
        V=num_tokens,
        D=width,
        WIDTH=triton.next_power_of_2(width),
    )
    return outputs


def _fake(
    logits_BV: Tensor, seen_BV: Tensor | None, knobs: Tensor, seeds_B: Tensor, steps_B: Tensor, embed_VD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    num_rows = len(logits_BV)
    ids_B = seeds_B.new_empty(num_rows)
    return ids_B, logits_BV.new_empty(num_rows), embed_VD.new_empty(num_rows, embed_VD.shape[1])


_choose = register(
    __name__,
    "choose",
    "(Tensor logits, Tensor(a!)? seen, Tensor knobs, Tensor seeds, Tensor steps, Tensor embed)"
    " -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
)


def sample_token(
    logits_BV: Tensor, seen_BV: Tensor | None, knobs: Tensor, seeds_B: Tensor, steps_B: Tensor, embed_VD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `pixelcore.step_sampling.sample_token`, in one kernel; writes into seen_BV, where it is given. The knobs are
    the device's and not checked. Raises ValueError for more than 64 rows or 65536 tokens, shapes and dtypes that do not
    fit, or a device on which no kernel runs."""
    check("logits", logits_BV, "B V", (torch.float32,))
    num_rows, num_tokens = logits_BV.shape
    check_limit("rows of logits", num_rows, MOST_ROWS)
    check_limit("tokens of logits", num_tokens, MOST_TOKENS)
    if seen_BV is not None:
        check("seen", seen_BV, "B V", (torch.bool, torch.uint8), B=num_rows, V=num_tokens)
        if seen_BV.stride(1) != 1:
            raise ValueError(
                f"seen has the strides {seen_BV.stride()}: it is written, so its rows must be in one piece"
            )
    check("knobs", knobs, "five", (torch.float32,), five=5)
    check("seeds", seeds_B, "B", (torch.int64,), B=num_rows)
    check("steps", steps_B, "B", (torch.int32,), B=num_rows)
    check("embed", embed_VD, "V D", FLOATS, V=num_tokens)
    check_together(logits=logits_BV, seen=seen_BV, knobs=knobs, seeds=seeds_B, steps=steps_B, embed=embed_VD)
    vectors = (x.contiguous() for x in (knobs, seeds_B, steps_B))
    return _choose(rows(logits_BV), seen_BV, *vectors, rows(embed_VD))


# ------------------------------------------------------------------ what the workshop asks


def _on_a_copy(choose_token: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """`choose_token`, which writes into seen, as a function that gives the new one besides."""

    def function(
        logits_BV: Tensor, seen_BV: Tensor | None, knobs: Tensor, seeds_B: Tensor, steps_B: Tensor, embed_VD: Tensor
    ) -> tuple[Tensor, ...]:
        own = None if seen_BV is None else torch.empty_like(seen_BV).copy_(seen_BV)
        chosen = choose_token(logits_BV, own, knobs, seeds_B, steps_B, embed_VD)
        return chosen if own is None else (*chosen, own)

    return function


reference, fused = _on_a_copy(step_sampling.sample_token), _on_a_copy(sample_token)

_ALL = (0.9, 9.0, 0.9, 0.02, 1.3)  # temperature, top_k, top_p, min_p, penalty
CASES = (
    Case("likeliest", {"B": 2, "V": 130, "D": 24, "knobs": (0.0, 3.0, 0.5, 0.1, 1.0)}),
    Case("every rule, seen", {"B": 3, "V": 1500, "D": 24, "knobs": _ALL, "seen": True}),
    Case("no rule", {"B": 3, "V": 1500, "D": 16, "knobs": (1.5, 0.0, 1.0, 0.0, 1.0)}),
    Case("nucleus of 16 000", {"B": 1, "V": 16_000, "D": 8, "knobs": (0.8, 0.0, 0.95, 0.0, 1.0)}),
    Case("no rows", {"B": 0, "V": 600, "D": 8, "knobs": _ALL}),
)
TIMED = tuple(
    Case(
        f"{num_tokens} tokens, {num_rows} row{'s' * (num_rows > 1)}, {name}",
        {"B": num_rows, "V": num_tokens, "D": 768, "knobs": knobs, "seen": seen},
    )
    for num_tokens in (16_000, 32_000)
    for name, knobs, seen in (("top-p", (0.8, 0.0, 0.95, 0.0, 1.0), False), ("all", (0.8, 50.0, 0.95, 0.05, 1.1), True))
    for num_rows in (1, 16, 64)
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    """The logits of a model that knows something: most of the probability is on a few tokens, as in a trained one."""
    num_rows, num_tokens = case["B"], case["V"]
    seen = draw.integers(0, 3, num_rows, num_tokens) == 0
    return {
        "logits_BV": draw.normal(num_rows, num_tokens, scale=4, dtype=torch.float32),
        "seen_BV": seen if case.get("seen") else None,
        "knobs": torch.tensor(case["knobs"], dtype=torch.float32, device=draw.device),
        "seeds_B": draw.integers(0, 2**62, num_rows),
        "steps_B": draw.integers(0, 1000, num_rows, dtype=torch.int32),
        "embed_VD": draw.normal(num_tokens, case["D"]),
    }


def cost(case: Case, size: int) -> Cost:
    """The logits, what was seen, and of the embedding the rows that are copied."""
    num_rows, num_tokens = case["B"], case["V"]
    read = num_rows * (num_tokens * (4 + bool(case.get("seen"))) + 12) + 20
    return Cost(forward_bytes=read + num_rows * (2 * case["D"] * size + 12), backward_bytes=0)
