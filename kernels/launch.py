"""How a kernel is started: which tile sizes, how many warps, on which device.

The best tile sizes depend on the device, the dtype and the shape, and are found by measuring; `launches.toml` holds
what was found. A shape that nobody measured gets the kernel's own default, which is chosen to fit every supported
architecture (99 KB of shared memory, no spills), and one line of the log says so. Triton's autotuner would measure
inside the first training step and again for every new shape, so it is not used.

Sizes are bucketed to the next power of two, so that one entry serves the neighbourhood in which it was measured.

`recorded` collects launches in place of making them. The inspector compiles exactly these, so it looks at what the
models run and not at a list that was kept beside it.
"""

import logging
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)  # kernels that were decorated under TRITON_INTERPRET=1 stay so
_SUPPOSED_PROCESSORS = {"interpreted": 3, "recorded": 132}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """Tile sizes by the name of the kernel's parameter, warps of a program, stages of the loads' pipeline."""

    tiles: Mapping[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class Recorded:
    """A launch that was collected: the kernel, its positional arguments and constants by name, and how."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: Mapping[str, Any]
    how: Launch


@dataclass(frozen=True)
class Entry:
    """What `launches.toml` says of an op on a device, in a dtype, in a bucket of sizes."""

    op: str
    device: str
    dtype: str
    sizes: Mapping[str, int]
    how: Launch


_recording: list[Recorded] | None = None
_recorded_for: str | None = None


@contextmanager
def recorded(device: str | None = None) -> Iterator[list[Recorded]]:
    """Collect the launches of the block instead of making them; results are left unwritten.

    device: the name of a GPU, to record what was measured on it where anything was, and the defaults otherwise.
    """
    global _recording, _recorded_for
    assert _recording is None, "recordings do not nest"
    _recording, _recorded_for = [], device
    try:
        yield _recording
    finally:
        _recording = _recorded_for = None


def is_recording() -> bool:
    """Whether launches are being collected, so that tensors of a CPU may pass for those of a GPU."""
    return _recording is not None


def launch(kernel: Any, grid: tuple[int, ...], how: Launch, *arguments: Any, **constants: Any) -> None:
    """Start `kernel` on every program of the grid; a grid of no programs starts nothing.

    arguments: what the kernel reads at run time, in the order of its parameters. constants: its constexpr parameters,
    less the tile sizes, which are `how`'s.
    """
    if 0 in grid:
        return
    if _recording is not None:
        _recording.append(Recorded(kernel, grid, arguments, dict(constants), how))
        return
    device = next(x.device for x in arguments if isinstance(x, torch.Tensor))
    options = {**constants, **how.tiles, "num_warps": how.num_warps, "num_stages": how.num_stages}
    if device.type == "cpu":
        kernel[grid](*arguments, **options)
        return
    with torch.cuda.device(device):  # pragma: gpu
        kernel[grid](*arguments, **options)


def choose(op: str, x: torch.Tensor, default: Launch, interpreted: Launch, **sizes: int) -> Launch:
    """The launch that was measured for this op, device, dtype of x and bucket of sizes; else the default, with one
    line of the log on a GPU.

    interpreted: for the interpreter, to which a program costs milliseconds whatever its size: large tiles, few
    programs, and still more than one of them for the cases that are checked.
    """
    if x.device.type == "cpu" and not is_recording():
        return interpreted
    if is_recording():
        return _find(op, _recorded_for, *_bucket(x, sizes)) or default
    return measured(op, torch.cuda.get_device_name(x.device), *_bucket(x, sizes)) or default  # pragma: gpu


def measured_or_none(op: str, x: torch.Tensor, **sizes: int) -> Launch | None:
    """The same where there is no default: of another form of an operation, which runs only where it was measured to be
    faster, and so never in the interpreter."""
    if is_recording():
        return _find(op, _recorded_for, *_bucket(x, sizes))
    if x.device.type == "cpu":
        return None
    return _find(op, torch.cuda.get_device_name(x.device), *_bucket(x, sizes))  # pragma: gpu


def _bucket(x: torch.Tensor, sizes: Mapping[str, int]) -> tuple[str, tuple[tuple[str, int], ...]]:
    buckets = tuple(sorted((name, int(triton.next_power_of_2(size))) for name, size in sizes.items()))
    return str(x.dtype).removeprefix("torch."), buckets


def cdiv(number: int, size: int) -> int:
    """How many pieces of this size hold so many."""
    return -(-number // size)


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device, for kernels whose programs stay and take many tiles."""
    if device.type == "cpu":
        return _SUPPOSED_PROCESSORS["recorded" if is_recording() else "interpreted"]
    return torch.cuda.get_device_properties(device).multi_processor_count  # pragma: gpu


@cache
def measured(op: str, device: str, dtype: str, buckets: tuple[tuple[str, int], ...]) -> Launch | None:
    """The entry of `launches.toml`, or None and one line of the log."""
    found = _find(op, device, dtype, buckets)
    if found:
        return found
    sizes = ", ".join(f"{name} {size}" for name, size in buckets)
    _log.warning("%s on %s, %s, %s: not measured, running with the default launch", op, device, dtype, sizes)
    return None


def _find(op: str, device: str | None, dtype: str, buckets: tuple[tuple[str, int], ...]) -> Launch | None:
    wanted = (op, device, dtype, dict(buckets))
    return next((x.how for x in entries() if (x.op, x.device, x.dtype, x.sizes) == wanted), None)


@cache
def entries() -> tuple[Entry, ...]:
    """Everything in `launches.toml`."""
    text = (Path(__file__).parent / "launches.toml").read_text(encoding="utf-8")
    return tuple(
        Entry(x["op"], x["device"], x["dtype"], x["sizes"], Launch(x["tiles"], x["num_warps"], x["num_stages"]))
        for x in tomllib.loads(text).get("launch", [])
    )
