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


_recording: list[Recorded] | None = None


@contextmanager
def recorded() -> Iterator[list[Recorded]]:
    """Collect the launches of the block instead of making them; results are left unwritten."""
    global _recording
    assert _recording is None, "recordings do not nest"
    _recording = []
    try:
        yield _recording
    finally:
        _recording = None


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
    if x.device.type == "cpu":
        return default if is_recording() else interpreted
    buckets = tuple(sorted((name, triton.next_power_of_2(size)) for name, size in sizes.items()))  # pragma: gpu
    dtype = str(x.dtype).removeprefix("torch.")  # pragma: gpu
    return measured(op, torch.cuda.get_device_name(x.device), dtype, buckets) or default  # pragma: gpu


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device, for kernels whose programs stay and take many tiles."""
    if device.type == "cpu":
        return _SUPPOSED_PROCESSORS["recorded" if is_recording() else "interpreted"]
    return torch.cuda.get_device_properties(device).multi_processor_count  # pragma: gpu


@cache
def measured(op: str, device: str, dtype: str, buckets: tuple[tuple[str, int], ...]) -> Launch | None:
    """The entry of `launches.toml`, or None and one line of the log."""
    for entry in _table():
        if (entry["op"], entry["device"], entry["dtype"]) == (op, device, dtype) and entry["sizes"] == dict(buckets):
            return Launch(entry["tiles"], entry["num_warps"], entry["num_stages"])
    sizes = ", ".join(f"{name} {size}" for name, size in buckets)
    _log.warning("%s on %s, %s, %s: not measured, running with the default launch", op, device, dtype, sizes)
    return None


@cache
def _table() -> list[dict[str, Any]]:
    text = (Path(__file__).parent / "launches.toml").read_text(encoding="utf-8")
    return tomllib.loads(text).get("launch", [])
