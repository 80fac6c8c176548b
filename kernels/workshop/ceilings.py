"""What the machine can do at best, measured and not read off a data sheet: bytes per second, operations per second.

A speed means something beside its ceiling, and the ceiling of the same minute: clocks and neighbours differ. Every
bench begins with a copy and a large matrix product, each timed by the rules of `timing.py`, and every figure of it is a
share of these. `bench --first` measures the rest: reading and writing alone, exponentials, which bound attention with
narrow heads, and the products of the real models, whose shapes a library serves less well than a cube.

All of it on random numbers: a product of zeros runs faster, as it takes less power.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from kernels.workshop.book import clocks
from kernels.workshop.timing import Clock, Step, measure

_BYTES = 4 << 30  # many times the cache
_SIDE = 8192
_SECONDS = 0.1

# Products of the real models, forward: rows, inputs, outputs (specs/performance.md, section 0).
PRODUCTS: dict[str, tuple[int, int, int]] = {
    "pixel encoder, q k v": (101_632, 768, 2304),
    "pixel encoder, out": (101_632, 768, 768),
    "pixel encoder, up": (101_632, 768, 3072),
    "pixel encoder, down": (101_632, 3072, 768),
    "pixel decoder, q k v": (135_680, 512, 1536),
    "pixel decoder, up": (135_680, 512, 2048),
    "pixel decoder, down": (135_680, 2048, 512),
    "pixar-85m, q k v": (138_240, 768, 2304),
    "pixar-85m, gate and up": (138_240, 768, 4096),
    "pixar-85m, down": (138_240, 2048, 768),
    "100m, q k v": (32_768, 768, 1280),
    "100m, gate and up": (32_768, 768, 4096),
    "100m, down": (32_768, 2048, 768),
    "100m, head": (32_768, 768, 16_000),
}


def ceilings(device: torch.device, clock: Clock, num_bytes: int = _BYTES, side: int = _SIDE) -> dict[str, float]:
    """GB/s of a copy, bytes read and bytes written both counted; TFLOP/s of a product of squares in bf16."""
    return {**bandwidth(device, clock, num_bytes), **cube(device, clock, side)}


def bandwidth(device: torch.device, clock: Clock, num_bytes: int = _BYTES) -> dict[str, float]:
    """A quarter of num_bytes is read by "read", written by "write", and both by "copy"."""
    generator = torch.Generator(device).manual_seed(0)
    source = torch.randn(num_bytes // 16, generator=generator, device=device)
    target = torch.empty_like(source)
    size = source.numel() * source.element_size()
    calls = {"copy": lambda: target.copy_(source), "read": source.sum, "write": lambda: target.fill_(1.5)}
    milliseconds = _medians(calls, clock)
    return {
        "copy_gb_s": 2 * size / milliseconds["copy"] / 1e6,
        "read_gb_s": size / milliseconds["read"] / 1e6,
        "write_gb_s": size / milliseconds["write"] / 1e6,
    }


def cube(device: torch.device, clock: Clock, side: int = _SIDE) -> dict[str, float]:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator, device=device).bfloat16() for _ in range(2))
    return {"product_tflop_s": 2 * side**3 / _medians({"product": lambda: a @ b}, clock)["product"] / 1e9}


def products(
    device: torch.device, clock: Clock, shapes: Mapping[str, tuple[int, int, int]] = PRODUCTS
) -> dict[str, dict[str, float]]:
    """TFLOP/s of y = x w^T, dx = dy w and dw = dy^T x in bf16."""
    generator, found = torch.Generator(device).manual_seed(0), {}
    for name, (rows, inputs, outputs) in shapes.items():
        x, w, dy = (
            torch.randn(size, generator=generator, device=device).bfloat16()
            for size in ((rows, inputs), (outputs, inputs), (rows, outputs))
        )
        calls = {
            "y": lambda x=x, w=w: F.linear(x, w),
            "dx": lambda dy=dy, w=w: dy @ w,
            "dw": lambda dy=dy, x=x: dy.T @ x,
        }
        operations = 2 * rows * inputs * outputs
        found[name] = {f"{what}_tflop_s": operations / ms / 1e9 for what, ms in _medians(calls, clock).items()}
    return found


@triton.jit
def _exp_kernel(x_ptr, TURNS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place)
    for _ in range(TURNS):
        x = tl.exp2(-x)  # falls into its fixed point near 0.64
    tl.store(x_ptr + place, x)


def exponentials(device: torch.device, clock: Clock, programs: int = 132 * 32, turns: int = 1024) -> dict[str, float]:
    """How many a second; they bound the softmax of narrow heads."""
    kernel: Any = _exp_kernel
    block = 1024
    x = torch.rand(programs * block, generator=torch.Generator(device).manual_seed(0), device=device)
    milliseconds = _medians({"exp": lambda: kernel[(programs,)](x, TURNS=turns, BLOCK=block)}, clock)["exp"]
    return {"exp_per_s": programs * block * turns / milliseconds * 1e3}


def sustained(device: torch.device, seconds: float = 10.0, side: int = _SIDE) -> dict[str, Any]:
    """TFLOP/s of a product repeated without a pause, and clocks on the way: a card that runs into its power limit is
    slower after seconds than in a short measurement."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator, device=device).bfloat16() for _ in range(2))
    readings, began, count = [], time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds or not count:
        for _ in range(200 if device.type == "cuda" else 1):
            torch.mm(a, b)
            count += 1
        if elapsed >= len(readings):
            readings.append(clocks(device))  # while the queue is being worked off
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # pragma: gpu
    elapsed = time.monotonic() - began
    return {"product_tflop_s": count * 2 * side**3 / elapsed / 1e12, "seconds": elapsed, "clocks": readings}


def _medians(calls: Mapping[str, Callable[[], Any]], clock: Clock) -> dict[str, float]:
    steps = [Step(lambda: None, lambda _, call=call: call()) for call in calls.values()]
    times = measure(steps, clock, _SECONDS)
    return {name: max(found.median_ms, math.ulp(1.0)) for name, found in zip(calls, times, strict=True)}
