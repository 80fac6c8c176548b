"""A step's choice of a patch: the component, its pixels, whether the strip ends, and the next row, in one kernel.

    component   the highest score, or drawn: the first z with s_0 + .. + s_z > u sum(s),  s = exp(score / temperature)
    pixel       paper where x > 0, or where u < sigmoid(x / temperature)
    end         ink on more than 8 tenths of the pixels; where strips may end, all of it becomes ink
    row         y = W t,  t = 1 for paper and -1 for ink
    log p       lse over z of (log softmax(score)_z + sum over the pixels of log sigmoid(x_za t_a))

The floor is that of reading W, 2 D A bytes in bf16 (197 KB at D 768 and A 128: 0.05 us), so all that counts is that
nothing waits: as often written, these are some twenty operations of a few kilobytes each. Making a patch takes one
component's pixels and is cheaper than a message between programs, so every program of a strip makes it anew; all make
the same one, because the numbers they draw with are a function of seed and step (`pixelcore.uniform`).

    program    0                          1             2             3
    strip b    patch, black, log p        y [ . . . .   . . . .       . . . . ]     COLUMNS of the D columns each

A product of one row needs no tensor cores: a program multiplies its rows of W, which other strips find in the L2 cache,
with a row of signs, and adds in fp32. Log p takes all components, Z x A values, and is one program's work beside them.

How a patch is decided is known when the kernel is compiled; the temperature is a number on the device.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import FLOATS, check, check_limit, check_together, rows
from kernels.launch import Launch, cdiv, choose, launch
from kernels.philox import side_by_side, uniform, uniform_words
from kernels.register import register
from kernels.workshop.cases import Case, Cost, Draw
from pixelcore import step_sampling
from pixelcore.step_ops import MOST_ROWS
from pixelcore.step_sampling import BLACK

reference = step_sampling.next_patch

MOST_VALUES = 65_536  # of all components, padded to powers of two
_DECODINGS = ("threshold", "mixture", "sample")
_INK, _OF = tl.constexpr(BLACK[0]), tl.constexpr(BLACK[1])


@triton.jit
def _kernel(
    components_ptr,
    scores_ptr,
    temperature_ptr,
    seeds_ptr,
    steps_ptr,
    in_ptr,
    pixels_ptr,
    nats_ptr,
    black_ptr,
    residual_ptr,
    components_stride,
    scores_stride,
    in_stride,
    Z: tl.constexpr,
    A: tl.constexpr,
    D: tl.constexpr,
    COMPONENT_DRAWN: tl.constexpr,
    PIXELS_DRAWN: tl.constexpr,
    STOP: tl.constexpr,
    COMPONENTS: tl.constexpr,
    VALUES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    seed, step, temperature = tl.load(seeds_ptr + row), tl.load(steps_ptr + row), tl.load(temperature_ptr)
    z, a = tl.arange(0, COMPONENTS), tl.arange(0, VALUES)
    score = tl.where(z < Z, 0.0, float("-inf"))
    if scores_ptr is not None:
        score = tl.load(scores_ptr + row * scores_stride + z, mask=z < Z, other=float("-inf")).to(tl.float32)
    components_ptr += row * components_stride
    component = _component(score, temperature, seed, step, COMPONENT_DRAWN, Z, COMPONENTS)
    odds = tl.load(components_ptr + component * A + a, mask=a < A, other=0).to(tl.float32)
    paper = odds > 0
    if PIXELS_DRAWN:
        words = uniform_words(seed, step, 1 + tl.arange(0, VALUES // 4)[None])
        word = tl.reshape(side_by_side(words[0], words[1], words[2], words[3]), (VALUES,))
        paper = uniform(word) < tl.sigmoid(odds / temperature)
    black = _OF * tl.sum(((a < A) & (paper == 0)).to(tl.int32), axis=0) > _INK * A
    if STOP:
        paper = paper & (black == 0)
    sign = tl.where(a < A, tl.where(paper, 1.0, -1.0), 0.0)
    if part == 0:
        tl.store(pixels_ptr + row * A + a, tl.where(paper, 255, 0).to(tl.uint8), mask=a < A)
        tl.store(black_ptr + row, black)
        tl.store(nats_ptr + row, _log_probability(components_ptr, score, z, a, sign, Z, A))
    else:
        column = (part - 1) * COLUMNS + tl.arange(0, COLUMNS)
        weight_ptr = in_ptr + column.to(tl.int64)[:, None] * in_stride + a[None]
        weight = tl.load(weight_ptr, mask=(column < D)[:, None] & (a < A)[None], other=0)
        y = tl.sum(weight.to(tl.float32) * sign[None], axis=1)
        tl.store(residual_ptr + row * D + column, y, mask=column < D)


@triton.jit
def _component(
    score, temperature, seed, step, COMPONENT_DRAWN: tl.constexpr, Z: tl.constexpr, COMPONENTS: tl.constexpr
):
    """Which one, from 0 to Z - 1 whatever the scores are."""
    z = tl.arange(0, COMPONENTS)
    highest = tl.max(score, axis=0)
    reached = score == highest
    has_weight = z < Z
    if COMPONENT_DRAWN:
        weight = tl.exp((score - highest) / temperature)
        running = tl.cumsum(weight, axis=0)
        word = uniform_words(seed, step, tl.zeros((), tl.uint32))[0]
        reached = running > uniform(word) * tl.max(running, axis=0)
        has_weight = weight > 0
    first = tl.min(tl.where(reached & has_weight, z, Z - 1), axis=0)
    return tl.minimum(first, tl.max(tl.where(has_weight, z, 0), axis=0))


@triton.jit
def _log_probability(components_ptr, score, z, a, sign, Z: tl.constexpr, A: tl.constexpr):
    """Of the patch with these signs, under all components; NaN where a score or one of their values is not finite."""
    inside = (z < Z)[:, None] & (a < A)[None]
    x = tl.load(components_ptr + z[:, None] * A + a[None], mask=inside, other=0).to(tl.float32)
    num_finite = tl.sum((inside & (tl.abs(x) < float("inf"))).to(tl.int32))
    num_finite += tl.sum((tl.abs(score) < float("inf")).to(tl.int32), axis=0)
    odds = x * sign[None]
    pixel = tl.minimum(odds, 0.0) - tl.log(1 + tl.exp(-tl.abs(odds)))
    nats = tl.sum(tl.where(inside, pixel, 0.0), axis=1)
    after = tl.where(z < Z, score + nats, float("-inf"))
    highest, most = tl.max(score, axis=0), tl.max(after, axis=0)
    share = tl.log(tl.sum(tl.exp(after - most), axis=0) / tl.sum(tl.exp(score - highest), axis=0))
    return tl.where(num_finite == Z * A + Z, most - highest + share, float("nan"))


def _run(
    components_BZA: Tensor,
    scores_BZ: Tensor | None,
    decoding: str,
    stop: bool,
    temperature: Tensor,
    seeds_B: Tensor,
    steps_B: Tensor,
    in_DA: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _fake(components_BZA, scores_BZ, decoding, stop, temperature, seeds_B, steps_B, in_DA)
    num_rows, num_components, num_values = components_BZA.shape
    width = len(in_DA)
    padded = _padded(num_components, num_values)
    # a weight tile and all components are held in registers, 16 or 32 values a thread
    default = Launch({"COLUMNS": 64}, num_warps=min(max(padded[0] * padded[1] // 1024, 8), 32), num_stages=1)
    interpreted = Launch({"COLUMNS": 512})
    sizes = {"components": num_components, "values": num_values, "columns": width}
    how = choose("step_next_patch", in_DA, default, interpreted, **sizes)
    launch(
        _kernel,
        (num_rows, 1 + cdiv(width, how.tiles["COLUMNS"])),
        how,
        *(components_BZA, scores_BZ, temperature, seeds_B, steps_B, in_DA, *outputs),
        *(components_BZA.stride(0), 0 if scores_BZ is None else scores_BZ.stride(0), in_DA.stride(0)),
        Z=num_components,
        A=num_values,
        D=width,
        COMPONENT_DRAWN=decoding != "threshold",
        PIXELS_DRAWN=decoding == "sample",
        STOP=stop,
        COMPONENTS=padded[0],
        VALUES=padded[1],
    )
    return outputs


def _padded(num_components: int, num_values: int) -> tuple[int, int]:
    return int(triton.next_power_of_2(num_components)), max(int(triton.next_power_of_2(num_values)), 4)


def _fake(
    components_BZA: Tensor,
    scores_BZ: Tensor | None,
    decoding: str,
    stop: bool,
    temperature: Tensor,
    seeds_B: Tensor,
    steps_B: Tensor,
    in_DA: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_rows, _, num_values = components_BZA.shape
    pixels_BA = in_DA.new_empty(num_rows, num_values, dtype=torch.uint8)
    nats_B = in_DA.new_empty(num_rows, dtype=torch.float32)
    return pixels_BA, nats_B, in_DA.new_empty(num_rows, dtype=torch.bool), in_DA.new_empty(num_rows, len(in_DA))


_choose = register(
    __name__,
    "choose",
    "(Tensor components, Tensor? scores, str decoding, bool stop, Tensor temperature, Tensor seeds, Tensor steps,"
    " Tensor map) -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)


def fused(
    components_BZA: Tensor,
    scores_BZ: Tensor | None,
    decoding: str,
    stop: bool,
    temperature: Tensor,
    seeds_B: Tensor,
    steps_B: Tensor,
    in_DA: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference`, in one kernel; the residual is rounded once. The temperature is the device's and not checked.
    Raises ValueError for an unknown decoding, more than 64 rows or 65536 values of a row, shapes and dtypes that do not
    fit, or a device on which no kernel runs."""
    if decoding not in _DECODINGS:
        raise ValueError(f"decoding = {decoding!r}: it must be one of {', '.join(_DECODINGS)}")
    check("components", components_BZA, "B Z A", (torch.float32,))
    num_rows, num_components, num_values = components_BZA.shape
    check_limit("rows of components", num_rows, MOST_ROWS)
    padded = _padded(num_components, num_values)
    check_limit("components times values, as powers of two,", padded[0] * padded[1], MOST_VALUES)
    if scores_BZ is not None:
        check("scores", scores_BZ, "B Z", (torch.float32,), B=num_rows, Z=num_components)
        scores_BZ = rows(scores_BZ)
    check("temperature", temperature, "", (torch.float32,))
    check("seeds", seeds_B, "B", (torch.int64,), B=num_rows)
    check("steps", steps_B, "B", (torch.int32,), B=num_rows)
    check("in", in_DA, "D A", FLOATS[1:], A=num_values)
    check_together(
        components=components_BZA, scores=scores_BZ, temperature=temperature, seeds=seeds_B, steps=steps_B, map=in_DA
    )
    if components_BZA.stride()[1:] != (num_values, 1):
        components_BZA = components_BZA.contiguous()
    vectors = (seeds_B.contiguous(), steps_B.contiguous())
    return _choose(components_BZA, scores_BZ, decoding, stop, temperature, *vectors, rows(in_DA))


# ------------------------------------------------------------------ what the workshop asks


CASES = (
    Case("threshold, one component", {"B": 3, "Z": 1, "A": 24, "D": 20, "decoding": "threshold"}),
    Case("mixture", {"B": 3, "Z": 5, "A": 16, "D": 520, "decoding": "mixture", "stop": True, "shift": -1.2}),
    Case("sample, 32 components", {"B": 2, "Z": 32, "A": 128, "D": 24, "decoding": "sample", "temperature": 0.8}),
    Case("sample, nearly black", {"B": 3, "Z": 1, "A": 20, "D": 16, "decoding": "sample", "stop": True, "shift": -2.5}),
    Case("no rows", {"B": 0, "Z": 2, "A": 16, "D": 80, "decoding": "mixture"}),
)
TIMED = tuple(
    Case(
        f"pixar-85m, {num_rows} row{'s' * (num_rows > 1)}, {decoding}, {num_components} components",
        {"B": num_rows, "Z": num_components, "A": 128, "D": 768, "decoding": decoding, "stop": True},
    )
    for num_components, decoding in ((1, "threshold"), (1, "sample"), (32, "mixture"), (32, "sample"))
    for num_rows in (1, 16, 64)
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    """shift: of the log-odds; below 0 there is more ink than paper. One component has no scores."""
    num_rows, num_components, num_values = (case[letter] for letter in "BZA")
    said = draw.normal(num_rows, num_components * (num_values + 1), scale=2, shift=case.get("shift", 0.0), dtype=_WIDE)
    return {
        "components_BZA": said[:, : num_components * num_values].unflatten(1, (num_components, num_values)),
        "scores_BZ": said[:, num_components * num_values :] if num_components > 1 else None,
        "decoding": case["decoding"],
        "stop": case.get("stop", False),
        "temperature": torch.tensor(case.get("temperature", 1.0), device=draw.device),
        "seeds_B": draw.integers(0, 2**62, num_rows),
        "steps_B": draw.integers(0, 1000, num_rows, dtype=torch.int32),
        "in_DA": draw.normal(case["D"], num_values, scale=num_values**-0.5),
    }


_WIDE = torch.float32  # of logits, whatever the activations are


def cost(case: Case, size: int) -> Cost:
    """All components and scores, the map once, and what is written."""
    num_rows, num_components, num_values, width = (case[letter] for letter in "BZAD")
    said = num_rows * num_components * (num_values + (num_components > 1)) * 4
    written = num_rows * (num_values + 5 + width * size)
    return Cost(said + width * num_values * size + written, 0, 2 * num_rows * width * num_values)
