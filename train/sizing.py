"""How much fits at once, and what a step will cost: decided and said before the first step."""

import logging
import os
import time
from collections.abc import Callable

import torch

from pixelcore.errors import UserError

_log = logging.getLogger(__name__)

_SHARE_OF_MEMORY = 0.6  # the estimate leaves out allocator slack and whatever else the machine does
_CPU_ROWS = 2048  # more at once is not faster on a CPU, and progress shows less often

# dense bf16 (fp32 accumulate) peak of a device, FLOP/s, from the makers' data sheets
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}


def micro_batch_blocks(
    needed: Callable[[int], float], device: torch.device, *, limit: int, rows: int, block: str
) -> int:
    """The largest number of blocks, at most `limit`, whose training step fits the memory that is free now.

    needed: bytes of a step with so many blocks at once. rows: of activations in a block. block: what it is, in words.
    Raises UserError if one block does not fit.
    """
    free = free_bytes(device) * _SHARE_OF_MEMORY
    if needed(1) > free:
        raise UserError(
            f"a step of one block of {block} needs about {needed(1) / 2**30:.1f} GiB, and {device} has "
            f"{free / 2**30:.1f} GiB to give: choose a smaller preset, shorter blocks, or --set run.recompute=true; or "
            "set run.micro_batch_blocks to try all the same"
        )
    if device.type == "cpu":
        limit = min(limit, max(1, _CPU_ROWS // rows))
    blocks = 1
    while blocks * 2 <= limit and needed(blocks * 2) <= free:
        blocks *= 2
    return blocks


def free_bytes(device: torch.device) -> int:
    """Memory a run could take now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]  # pragma: gpu
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # no such file outside Linux


def announce_cpu_cost(flops: float, step: str, num_steps: int) -> None:
    """On a CPU, say how long a step will take, and which preset is sized for one, before anybody waits for it.

    flops: floating point operations of a step. step: what it is made of, in words.
    """
    rate = measure_matmul_flops() * 0.6  # the share of the matrix product's speed that a whole step reaches
    seconds = flops / rate
    advice = "" if seconds * num_steps < 6 * 3600 else "; the preset sized for a CPU is demo: --preset demo"
    _log.info(
        "a step is %s and %.3g TFLOP: about %s on this CPU, %s for all %d steps%s",
        step,
        flops / 1e12,
        human_time(seconds),
        human_time(seconds * num_steps),
        num_steps,
        advice,
    )


def measure_matmul_flops(size: int = 1024, repeats: int = 3) -> float:
    """FLOP/s of an fp32 matrix product here, the best of a few."""
    matrix = torch.ones(size, size)
    torch.mm(matrix, matrix)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def peak_flops(device: torch.device) -> float | None:
    """The device's bf16 peak where it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)  # pragma: gpu
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)  # pragma: gpu


def human_time(seconds: float) -> str:
    """Seconds as people say them."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} seconds"
