"""AdamW on many tensors at once (arXiv:1711.05101). With the gradient g clipped, lr the learning rate, t the step:

    m  = m + (1 - beta1) (g clip - m)
    v  = beta2 v + (1 - beta2) (g clip)^2
    p  = p (1 - lr decay) - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)
    s  = bf16(p)                                        the shadow, which the next step's products read

Each value is read once and written once: p, m, v in and out and g in, 28 bytes a parameter in fp32, and 2 for the
shadow. That is the floor, and a plain pass reaches it; what costs more is to run it once for each of a hundred tensors,
to multiply gradients by the clip factor in a pass of its own, and to cast every weight again wherever it is used.

So there is one launch for all tensors. Programs need no tensor of their own: a chunk is BLOCK neighbours of one tensor,
and a table says which. Where tensors begin stands in a second table, because a GPU's kernel can take a number for an
address. Triton's own launch takes tensors one by one; that a table serves any number of them is how PyTorch's
multi-tensor kernels work, whose tables travel as arguments of several launches.

    program    0          1          2            3               chunk  (0, 0) (0, 1) (1, 0) (2, 0)
    tensors    [ w0 w0 w0 | w0 w0  ] [ bias     ] [ w1 w1 w1 ]    table  p  g  m  v  s  size   of tensor 0
                 whole      ragged     ragged       whole                p  g  m  v  s  size   of tensor 1 ...

A whole chunk whose addresses 16 divides is read and written 16 bytes a thread; the ragged rest of a tensor, and shards
that begin anywhere, take a second way through the same program, value by value.

The host never waits: learning rate, clip, step and the flag of a gradient that is not finite are read from the device.
"""

import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check
from kernels.device_tables import Tables
from kernels.launch import Launch, choose, launch
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops

DEFAULT = Launch({"BLOCK": 4096, "PIECE": 1024}, num_warps=8)
INTERPRETED = Launch({"BLOCK": 1 << 14, "PIECE": 1 << 12})


@triton.jit
def _kernel(
    table_ptr,
    chunks_ptr,
    step_ptr,
    learning_rate_ptr,
    clip_ptr,
    found_inf_ptr,
    WIDE: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr,
    WEIGHT_DECAY: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):
    if tl.load(found_inf_ptr) == 0:
        chunk_ptr = chunks_ptr + tl.program_id(0).to(tl.int64) * 2
        row_ptr = table_ptr + tl.load(chunk_ptr).to(tl.int64) * 6
        begin = tl.load(chunk_ptr + 1).to(tl.int64) * BLOCK
        p, g, m = tl.load(row_ptr), tl.load(row_ptr + 1), tl.load(row_ptr + 2)
        v, s, size = tl.load(row_ptr + 3), tl.load(row_ptr + 4), tl.load(row_ptr + 5)
        # 1 - beta^t loses its digits in fp32 as long as beta^t is nearly 1
        step = tl.load(step_ptr).to(tl.float64)
        rate = tl.load(learning_rate_ptr).to(tl.float64)
        rate1 = (rate / (1 - tl.exp(step * LOG_BETA1))).to(WIDE)
        root2 = (1 / tl.sqrt(1 - tl.exp(step * LOG_BETA2))).to(WIDE)
        shrink = (1 - rate * WEIGHT_DECAY).to(WIDE)
        clip = tl.load(clip_ptr).to(WIDE)
        if (begin + BLOCK <= size) & (((p | g | m | v | s) & 15) == 0):
            at = begin + tl.arange(0, BLOCK)
            inside = tl.full([BLOCK], True, tl.int1)
            _update(p, g, m, v, s, at, inside, shrink, rate1, root2, clip, WIDE, BETA1, BETA2, EPS, 16)
        else:
            for piece in range(0, tl.minimum(BLOCK, size - begin).to(tl.int32), PIECE):
                at = begin + piece + tl.arange(0, PIECE)
                _update(p, g, m, v, s, at, at < size, shrink, rate1, root2, clip, WIDE, BETA1, BETA2, EPS, 1)


@triton.jit
def _update(
    p,
    g,
    m,
    v,
    s,
    at,
    inside,
    shrink,
    rate1,
    root2,
    clip,
    WIDE: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Update the values of these numbers. p, g, m, v, s are addresses that ALIGNED divides; s of no shadow is 0."""
    p_ptr = tl.multiple_of(p.to(tl.pointer_type(WIDE)), ALIGNED) + at  # pyright: ignore[reportArgumentType]
    g_ptr = tl.multiple_of(g.to(tl.pointer_type(WIDE)), ALIGNED) + at  # pyright: ignore[reportArgumentType]
    m_ptr = tl.multiple_of(m.to(tl.pointer_type(WIDE)), ALIGNED) + at  # pyright: ignore[reportArgumentType]
    v_ptr = tl.multiple_of(v.to(tl.pointer_type(WIDE)), ALIGNED) + at  # pyright: ignore[reportArgumentType]
    s_ptr = tl.multiple_of(s.to(tl.pointer_type(tl.bfloat16)), ALIGNED) + at
    gradient = tl.load(g_ptr, mask=inside, other=0) * clip
    first = tl.load(m_ptr, mask=inside, other=0)
    second = tl.load(v_ptr, mask=inside, other=0)
    parameter = tl.load(p_ptr, mask=inside, other=0)
    first += (1 - BETA1) * (gradient - first)
    second = BETA2 * second + (1 - BETA2) * gradient * gradient
    parameter = parameter * shrink - rate1 * first / (tl.sqrt(second) * root2 + EPS)
    tl.store(m_ptr, first, mask=inside)
    tl.store(v_ptr, second, mask=inside)
    tl.store(p_ptr, parameter, mask=inside)
    if s != 0:
        tl.store(s_ptr, parameter.to(tl.float32).to(tl.bfloat16), mask=inside)


def _run(
    parameters: list[Tensor],
    gradients: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    shadows: list[Tensor],
    step: Tensor,
    learning_rate: Tensor,
    clip: Tensor,
    found_inf: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    how = choose("adamw", parameters[0], DEFAULT, INTERPRETED)
    whole = [g.contiguous() for g in gradients]  # a gradient is only read, so a copy will do
    addresses = [tuple(map(Tensor.data_ptr, tensors)) for tensors in (parameters, whole, firsts, seconds)]
    addresses.append(tuple(map(Tensor.data_ptr, shadows)) or (0,) * len(parameters))
    sizes, block = tuple(map(Tensor.numel, parameters)), how.tiles["BLOCK"]
    device = parameters[0].device
    # the first address too: whoever finds a table has to wait for what its maker did to the same tensor
    chunks = _tables.find((block, addresses[0][0], *sizes), device, lambda: _chunks(sizes, block))
    table = _tables.find((*addresses, sizes), device, lambda: np.array([*addresses, sizes], np.int64).T.copy())
    launch(
        _kernel,
        (len(chunks),),
        how,
        *(table, chunks, step, learning_rate, clip, found_inf),
        WIDE=wide(parameters[0]),
        BETA1=beta1,
        BETA2=beta2,
        LOG_BETA1=math.log(max(beta1, _LEAST)),
        LOG_BETA2=math.log(max(beta2, _LEAST)),
        EPS=eps,
        WEIGHT_DECAY=weight_decay,
    )
    torch.autograd.graph.increment_version([*parameters, *firsts, *seconds, *shadows])


def _chunks(sizes: Sequence[int], block: int) -> np.ndarray:
    """int32 [chunks, 2]: a tensor, and which of its blocks."""
    counts = [-(-size // block) for size in sizes]
    numbers = [np.arange(count) for count in counts]
    return np.stack((np.repeat(np.arange(len(sizes)), counts), np.concatenate(numbers)), 1).astype(np.int32)


_LEAST = 1e-300  # a beta of 0 has no logarithm
_tables = Tables(limit=64)


def _fake(*_: Any) -> None:
    """Nothing is returned."""


_step = register(
    __name__,
    "step",
    "(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] firsts, Tensor(c!)[] seconds, Tensor(d!)[] shadows, "
    "Tensor step, Tensor learning_rate, Tensor clip, Tensor found_inf, "
    "float beta1, float beta2, float eps, float weight_decay) -> ()",
    _run,
    _fake,
)


def adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    step: Tensor,
    learning_rate: Tensor,
    clip: Tensor,
    found_inf: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    shadows: list[Tensor] | None = None,
) -> None:
    """As `pixelcore.ops.adamw`, in one launch. Parameters, gradients and moments are all fp32, or all fp64, and all but
    gradients lie in one piece. Where found_inf is 1 nothing is written, shadows included."""
    if not parameters:
        return
    lists = {"parameters": parameters, "gradients": gradients, "firsts": firsts, "seconds": seconds}
    _check(lists if shadows is None else lists | {"shadows": shadows})
    for name, x in {"step": step, "learning_rate": learning_rate, "clip": clip, "found_inf": found_inf}.items():
        check(name, x, "", (torch.float32,))
        if x.device != parameters[0].device:
            raise ValueError(
                f"{name} is on {x.device} and parameters[0] on {parameters[0].device}: one device is needed"
            )
    scalars = (step, learning_rate, clip, found_inf)
    _step(parameters, gradients, firsts, seconds, shadows or [], *scalars, *betas, eps, weight_decay)


_dtype, _shape, _device = attrgetter("dtype"), attrgetter("shape"), attrgetter("device")


def _check(lists: dict[str, list[Tensor]]) -> None:
    """Raise ValueError unless tensors of one place fit each other. Hundreds are looked at in every step, so they are
    looked at list by list, and one by one only to say what is wrong."""
    parameters = lists["parameters"]
    x = parameters[0]
    check("parameters[0]", x.flatten()[:0], "N", (torch.float32, torch.float64))
    shapes = list(map(_shape, parameters))
    for name, tensors in lists.items():
        dtype = torch.bfloat16 if name == "shadows" else x.dtype
        if list(map(_shape, tensors)) != shapes:
            found = list(map(list, map(_shape, tensors)))
            raise ValueError(
                f"{name} have the shapes {found}: they must be those of the parameters, {list(map(list, shapes))}"
            )
        for what, look, wanted in (("dtype", _dtype, dtype), ("device", _device, x.device)):
            if set(map(look, tensors)) != {wanted}:
                index = next(i for i, tensor in enumerate(tensors) if look(tensor) != wanted)
                raise ValueError(f"{name}[{index}].{what} is {look(tensors[index])}: it must be {wanted}")
        if name != "gradients" and not all(map(Tensor.is_contiguous, tensors)):
            index = next(i for i, tensor in enumerate(tensors) if not tensor.is_contiguous())
            raise ValueError(f"{name}[{index}] has the strides {tensors[index].stride()}: it must lie in one piece")


# ------------------------------------------------------------------ what the workshop asks


def _on_copies(update: Callable[..., None]) -> Callable[..., tuple[Tensor, ...]]:
    """`update`, which writes into its arguments, as a function of them that gives parameters, moments and shadows, each
    end to end. offset: by how many values the tensors miss the beginning of their memory, as shards may."""

    def function(
        parameters: list[Tensor],
        gradients: list[Tensor],
        firsts: list[Tensor],
        seconds: list[Tensor],
        shadows: list[Tensor] | None,
        offset: int,
        scalars: dict[str, float],
        recipe: dict[str, Any],
    ) -> tuple[Tensor, ...]:
        given = (parameters, gradients, firsts, seconds)
        own = [[_copy(x, offset) for x in tensors] for tensors in given]
        copies = None if shadows is None else [_copy(x, offset) for x in shadows]
        device = parameters[0].device
        on_device = {name: torch.tensor(value, device=device) for name, value in scalars.items()}
        update(*own, **on_device, **recipe, shadows=copies)
        written = (own[0], own[2], own[3], *(() if copies is None else (copies,)))
        return tuple(torch.cat([x.flatten() for x in tensors]) for tensors in written)

    return function


def _copy(x: Tensor, offset: int) -> Tensor:
    return x.new_empty(x.numel() + offset)[offset:].view(x.shape).copy_(x)


reference, fused = _on_copies(ops.adamw), _on_copies(adamw)

_EDGES = ((1,), (16,), (127,), (128, 1), (3, 43), (0, 7), (2, 10_000))  # the last: a whole chunk and a ragged one
CASES = (
    Case("with decay and shadows", {"shapes": _EDGES, "shadows": True, "decay": 0.1}),
    Case("first step, clipped, no decay", {"shapes": ((16,), (3, 43)), "clip": 0.25, "step": 1.0}),
    Case("shards that begin anywhere", {"shapes": ((129,), (1 << 14,)), "shadows": True, "offset": 3}),
    Case("a gradient that is not finite", {"shapes": ((127,), (1 << 14,)), "shadows": True, "found_inf": 1.0}),
)
# T matrices and as many vectors, N rows of width D in all
TIMED = tuple(
    Case(name, {"N": num_parameters // 768, "D": 768, "T": 50, "shadows": True, "decay": 0.1})
    for name, num_parameters in (("pixel-base, 112 M", 112_000_000), ("100m, 88 M", 88_000_000), ("85 M", 85_000_000))
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    """Parameters and moments have their own dtype, whatever the activations'."""
    dtype = torch.float64 if draw.dtype == torch.float64 else torch.float32
    shapes = case.get("shapes") or _shapes(case)
    lists = [[draw.normal(*shape, dtype=dtype) for shape in shapes] for _ in range(4)]
    bad = case.get("found_inf", 0.0)
    if bad:
        lists[1][0][0] = torch.nan
    return {
        "parameters": lists[0],
        "gradients": lists[1],
        "firsts": lists[2],
        "seconds": [x.square() for x in lists[3]],
        "shadows": [x.bfloat16() for x in lists[0]] if case.get("shadows") else None,
        "offset": case.get("offset", 0),
        "scalars": {
            "step": case.get("step", 10.0),
            "learning_rate": 1e-2,
            "clip": case.get("clip", 1.0),
            "found_inf": bad,
        },
        "recipe": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": case.get("decay", 0.0)},
    }


def _shapes(case: Case) -> list[tuple[int, ...]]:
    matrix, vector = (max(case["N"] // case["T"], 1), case["D"]), (case["D"],)
    return [shape for _ in range(case["T"]) for shape in (matrix, vector)]


def cost(case: Case, size: int) -> Cost:
    """size, of the activations, changes nothing: 28 bytes of fp32 and 2 of the shadow."""
    num_values = sum(math.prod(shape) for shape in _shapes(case))
    return Cost(forward_bytes=(28 + 2 * bool(case.get("shadows"))) * num_values, backward_bytes=0)
