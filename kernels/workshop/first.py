"""The first look at a machine: its ceilings, what a launch costs, which attention of the library takes what.

`bench --first` runs these probes one after the other, each on its own: what fails is written down with its reason. They
answer what must be known before tuning (specs/performance.md, section 9): how far above its floor a kernel can be
expected, how small a kernel may be before its launch costs more than its work, and who the peers of attention are.
"""

import importlib
import shutil
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.register import register
from kernels.registry import KERNELS
from kernels.workshop import attention_peers, ceilings
from kernels.workshop.book import Book
from kernels.workshop.contest import attempt
from kernels.workshop.timing import Clock, Step, measure
from pixelcore.packed import Packed

_SECONDS = 0.1

# Attention of the real models: sequences, query heads, key/value heads, length, head size, causal.
ATTENTION: dict[str, tuple[int, int, int, int, int, bool]] = {
    "pixel encoder": (256, 12, 12, 397, 64, False),
    "pixel decoder": (256, 16, 16, 530, 32, False),
    "pixar-85m": (384, 12, 12, 360, 64, True),
    "100m": (32, 12, 4, 1024, 64, True),
}
# What was computed before anything was measured (specs/performance.md, section 1.1): milliseconds forward, and backward
# in two kernels.
FLOORS_MS = {
    "pixel encoder": (0.157, 0.549),
    "pixel decoder": (0.295, 0.653),
    "pixar-85m": (0.199, 0.599),
    "100m": (0.065, 0.228),
}
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def first(device: torch.device, clock: Clock, book: Book, budget: float | None, say: Callable[[str], None]) -> bool:
    """Run the probes that the book does not hold yet; whether all went well."""
    found: dict[str, Any] = book.record.setdefault("first", {})
    began = time.monotonic()
    for name, probe in PROBES.items():
        if name in found and "failed" not in found[name]:
            continue
        if budget is not None and time.monotonic() - began >= budget:
            say(f"{name}: left out, the budget is spent")
            continue
        started = time.monotonic()
        result, failed = attempt(lambda probe=probe: probe(device, clock))
        found[name] = {"failed": failed} if failed is not None else result
        book.write()
        say(f"{name}: {time.monotonic() - started:.1f} s" + (f": {failed}" if failed else ""))
    return not any("failed" in found.get(name, {}) for name in PROBES)


# ------------------------------------------------------------------ launches


@triton.jit
def _empty_kernel(x_ptr):
    pass


def launches(device: torch.device, clock: Clock) -> dict[str, float]:
    """Microseconds of an empty kernel: on the host when launched, and on the device in a captured graph."""
    x = torch.zeros(1, device=device)
    found = {"triton_launch_host_us": _host_us(lambda: _empty_kernel[(1,)](x), device)}
    if device.type == "cuda":  # pragma: gpu
        many, graph = 200, torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(many):
                _empty_kernel[(1,)](x)
        milliseconds = measure([Step(lambda: None, lambda _: graph.replay())], clock, _SECONDS)[0].median_ms
        found["triton_launch_in_graph_us"] = milliseconds * 1e3 / many
    return found


def calls(device: torch.device, clock: Clock) -> dict[str, float]:
    """Microseconds that the host needs for an operation that does nothing but allocate, with and without its backward
    pass: registered as our kernels are, and as `torch.library.custom_op`."""
    x = torch.zeros(16, device=device, requires_grad=True)
    found = {}
    for name, operation in _operations().items():
        found[f"{name}_forward_us"] = _host_us(lambda call=operation: call(x), device)
        above = torch.ones(16, device=device)
        found[f"{name}_both_us"] = _host_us(
            lambda call=operation, dy=above: torch.autograd.grad(call(x), x, dy), device
        )
    return found


@cache
def _operations() -> dict[str, Callable[[Tensor], Tensor]]:
    """An operation can be registered once in a process."""
    forward = register("probe", "forward", "(Tensor x) -> Tensor", torch.empty_like, torch.empty_like)
    backward = register("probe", "backward", "(Tensor dy) -> Tensor", torch.empty_like, torch.empty_like)

    class Ours(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return forward(x)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return backward(dy)

    def allocate(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    theirs_backward = torch.library.custom_op("pixelcore_probe::backward", allocate, mutates_args=())
    theirs_backward.register_fake(torch.empty_like)
    theirs = torch.library.custom_op("pixelcore_probe::forward", allocate, mutates_args=())
    theirs.register_fake(torch.empty_like)
    theirs.register_autograd(lambda ctx, dy: theirs_backward(dy))
    return {"registered": lambda x: Ours.apply(x), "custom_op": theirs}  # pyright: ignore[reportReturnType]


def _host_us(call: Callable[[], Any], device: torch.device, count: int = 300) -> float:
    """The median over batches, each short enough for the device's queue."""
    batches = []
    for _ in range(7):
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # pragma: gpu
        begin = time.perf_counter()
        for _ in range(count):
            call()
        batches.append((time.perf_counter() - begin) / count * 1e6)
    return sorted(batches)[len(batches) // 2]


# ------------------------------------------------------------------ attention of the library


def attention(device: torch.device, clock: Clock, shapes: dict[str, Any] = ATTENTION) -> dict[str, Any]:
    """Milliseconds and useful TFLOP/s of each backend at each shape, plain, with a mask of keys, and with dropout of
    0.1 beside it; or why it does not run."""
    found: dict[str, Any] = {}
    for shape_name, shape in shapes.items():
        for variant in ("plain", "mask", "mask and dropout"):
            if shape[-1] and variant != "plain":
                continue  # packed rows of causal models need no mask
            for backend_name, backend in _BACKENDS.items():
                result, failed = attempt(
                    lambda shape=shape, variant=variant, backend=backend: _attention(
                        device, clock, shape, _library(shape, variant, backend, device)
                    )
                )
                found[f"{shape_name}, {variant}, {backend_name}"] = result or {"failed": failed}
    return found


def our_attention(device: torch.device, clock: Clock, shapes: dict[str, Any] = ATTENTION) -> dict[str, Any]:
    """Our kernels at the same shapes, packed FlashAttention-2 beside them, and how far above its floor each is. SDPA's
    backends stand under "attention"."""
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        for who, attend in (("ours", KERNELS["attention"].fused), ("FlashAttention-2, packed", _flash_2)):
            result, failed = attempt(
                lambda shape=shape, attend=attend: _attention(device, clock, shape, _packed(shape, attend, device))
            )
            if result is not None and name in FLOORS_MS:
                for direction, floor_ms in zip(("forward", "backward"), FLOORS_MS[name], strict=True):
                    result[f"{direction}_floors"] = result[f"{direction}_ms"] / floor_ms
            found[f"{name}, {who}"] = result or {"failed": failed}
    return found


def _packed(shape: Any, attend: Callable[..., Any], device: torch.device) -> Callable[..., Tensor]:
    """A function of packed rows as one of a dense batch, which is the same memory where all documents are as long."""
    sequences, _, _, length, size, causal = shape
    packed, rule = Packed.from_lengths([length] * sequences, device=device), "causal" if causal else "full"

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        out = attend(*rows, packed, rule, size**-0.5)
        out = out[0] if isinstance(out, tuple) else out
        return out.unflatten(0, (sequences, length)).transpose(1, 2)

    return call


def _flash_2(q: Tensor, k: Tensor, v: Tensor, packed: Packed, rule: str, scale: float) -> Tensor:
    given = {"q_NHK": q, "k_NGK": k, "v_NGK": v, "packed": packed, "rule": rule, "scale": scale}
    return attention_peers.flash_2(given)()


def flex_attention(device: torch.device, clock: Clock, shapes: dict[str, Any] = ATTENTION) -> dict[str, Any]:
    """The same of FlexAttention, compiled; its table of blocks is made outside the measurement."""
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        call, failed = attempt(lambda shape=shape: _flex(shape, device))
        if call is not None:
            result, failed = attempt(lambda shape=shape, call=call: _attention(device, clock, shape, call))
            found[name] = result
        if failed is not None:
            found[name] = {"failed": failed}
        torch.compiler.reset()
    return found


def _flex(shape: Any, device: torch.device) -> Callable[..., Tensor]:
    flex: Any = importlib.import_module("torch.nn.attention.flex_attention")
    _, heads, groups, length, _, causal = shape
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    blocks = None
    if causal:
        blocks = flex.create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device=device)
    return lambda q, k, v: compiled(q, k, v, block_mask=blocks, enable_gqa=heads != groups)


def _library(shape: Any, variant: str, backend: SDPBackend, device: torch.device) -> Callable[..., Tensor]:
    sequences, heads, groups, length, _, causal = shape
    lengths = torch.randint(length // 2, length + 1, (sequences, 1, 1, 1), device=device)
    mask = None if variant == "plain" else torch.arange(length, device=device) < lengths
    options: dict[str, Any] = {"is_causal": causal, "enable_gqa": heads != groups}
    options["dropout_p"] = 0.1 if "dropout" in variant else 0.0

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(q, k, v, mask, **options)

    return call


def _attention(device: torch.device, clock: Clock, shape: Any, call: Callable[..., Tensor]) -> dict[str, float]:
    sequences, heads, groups, length, size, causal = shape
    generator = torch.Generator(device).manual_seed(0)

    def draw(num_heads: int) -> Tensor:
        x = torch.randn(sequences, length, num_heads, size, generator=generator, device=device).bfloat16()
        return x.transpose(1, 2).requires_grad_()

    q, k, v = draw(heads), draw(groups), draw(groups)
    above = torch.randn(sequences, length, heads, size, generator=generator, device=device).bfloat16().transpose(1, 2)
    steps = [
        Step(lambda: None, lambda _: call(q, k, v)),
        Step(lambda: call(q, k, v), lambda out: torch.autograd.grad(out, (q, k, v), above)),
    ]
    forward, backward = measure(steps, clock, _SECONDS)
    operations = 4 * sequences * heads * length * length * size // (2 if causal else 1)
    return {
        "forward_ms": forward.median_ms,
        "backward_ms": backward.median_ms,
        "forward_tflop_s": operations / forward.median_ms / 1e9,
        "backward_tflop_s": 2.5 * operations / backward.median_ms / 1e9,
    }


# ------------------------------------------------------------------ what is there


def tools(device: torch.device, clock: Clock) -> dict[str, bool]:
    """What can be looked at on this machine, and which functions this version of the library has."""
    varlen, _ = attempt(lambda: importlib.import_module("torch.nn.attention.varlen").varlen_attn)
    return {
        "varlen_attn": varlen is not None,
        "linear_cross_entropy": hasattr(F, "linear_cross_entropy"),
        "ncu": shutil.which("ncu") is not None,
        "compute-sanitizer": shutil.which("compute-sanitizer") is not None,
    }


PROBES: dict[str, Callable[[torch.device, Clock], dict[str, Any]]] = {
    "bandwidth": ceilings.bandwidth,
    "product of squares": ceilings.cube,
    "exponentials": ceilings.exponentials,
    "products of the models": ceilings.products,
    "tools": tools,
    "launches": launches,
    "calls": calls,
    "attention": attention,
    "our attention": our_attention,
    "sustained product": lambda device, clock: ceilings.sustained(device),
    "FlexAttention": flex_attention,
}
