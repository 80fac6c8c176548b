"""How long does a call take, on the device and on the host?

Device work is asynchronous, caches remember, and clocks wander with heat and load, so a single stopwatch lies. The
rules here, each for one of those:

- The device's own events mark the beginning and the end of a call, and the device is kept busy until the host has
  queued all of it, so that what is measured is kernels and not the time that Python needs to launch them. The host's
  time is measured beside it.
- Before each call a buffer larger than the L2 cache is written. The lines that it leaves behind are written back during
  the call, about as many as the call itself leaves for its successor, which is how it is inside a model.
- Versions take turns, A B C A B C and never A A B B, so that every one of them meets the same clocks.
- Everything is done twice. The difference of the two medians is noise, and a smaller difference between versions means
  nothing.

`HostClock` does the same on a CPU, where only the machinery around it can be tested.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

_FEWEST, _MOST = 5, 100  # rounds of one pass
_PASSES = 2
_WARM_UP = 3
_CYCLES_PER_MS = 2_000_000  # of a busy wait; clocks are below 2 GHz, so it lasts a little longer
_LONGEST_WAIT_MS = 5.0


@dataclass(frozen=True)
class Step:
    """What is timed. prepare makes, outside the measurement, what call takes."""

    prepare: Callable[[], Any]
    call: Callable[[Any], Any]


@dataclass(frozen=True)
class Times:
    """Of one step: over all samples, the medians of the two passes, and their relative difference."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    medians_ms: tuple[float, ...]
    noise: float
    host_ms: float
    samples: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"medians_ms": list(self.medians_ms)}


class Clock(Protocol):
    """name: what it measures with. sample runs a call and returns something to be read after `settle`: (device ms, host
    ms). wait_ms: how long the host is thought to need."""

    name: str

    def sample(self, call: Callable[[], Any], wait_ms: float) -> Any: ...
    def read(self, sample: Any) -> tuple[float, float]: ...
    def settle(self) -> None: ...
    def peak_bytes(self, call: Callable[[], Any]) -> int | None: ...


class HostClock:
    """The host's own clock, for devices without events."""

    name = "host"

    def sample(self, call: Callable[[], Any], wait_ms: float) -> Any:
        begin = time.perf_counter()
        call()
        elapsed_ms = (time.perf_counter() - begin) * 1e3
        return elapsed_ms, elapsed_ms

    def read(self, sample: Any) -> tuple[float, float]:
        return sample

    def settle(self) -> None:
        pass

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        call()
        return None


class CudaClock:  # pragma: gpu
    """CUDA events of one device, with a flushed cache before each call."""

    name = "cuda events"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        self._buffer = torch.empty(max(4 * cache, 256 << 20), dtype=torch.uint8, device=device)

    def sample(self, call: Callable[[], Any], wait_ms: float) -> Any:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(min(wait_ms, _LONGEST_WAIT_MS) * _CYCLES_PER_MS))
        self._buffer.zero_()
        begin.record()
        started = time.perf_counter()
        call()
        host_ms = (time.perf_counter() - started) * 1e3
        end.record()
        return begin, end, host_ms

    def read(self, sample: Any) -> tuple[float, float]:
        begin, end, host_ms = sample
        return begin.elapsed_time(end), host_ms

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        """The most memory that was held during a call, beyond what was held before it."""
        self.settle()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        result = call()
        self.settle()
        del result
        return torch.cuda.max_memory_allocated(self.device) - before


def measure(steps: Sequence[Step], clock: Clock, seconds: float) -> list[Times]:
    """Time the steps in turns. seconds: about how long each of them may take in each of the two passes."""
    costs = [_cost(step, clock) for step in steps]
    rounds = int(seconds * len(steps) / sum(whole for whole, _ in costs))
    rounds = min(max(rounds, _FEWEST), _MOST)
    passes = [_one_pass(steps, clock, [host_ms for _, host_ms in costs], rounds) for _ in range(_PASSES)]
    return [_summary([one[index] for one in passes]) for index in range(len(steps))]


def _cost(step: Step, clock: Clock) -> tuple[float, float]:
    """Seconds that one turn of a step takes with everything around it, and milliseconds that the host needs to launch
    it. Warms up."""
    turns, hosts = [], []
    for _ in range(_WARM_UP):
        clock.settle()
        begin = time.perf_counter()
        prepared = step.prepare()
        clock.settle()
        sample = clock.sample(lambda held=prepared: step.call(held), 0.0)
        clock.settle()
        turns.append(time.perf_counter() - begin)
        hosts.append(clock.read(sample)[1])
    return max(min(turns), 1e-7), min(hosts)


def _one_pass(
    steps: Sequence[Step], clock: Clock, hosts_ms: Sequence[float], rounds: int
) -> list[list[tuple[float, float]]]:
    """Device and host milliseconds: for each step, of each round."""
    found: list[list[tuple[float, float]]] = [[] for _ in steps]
    for _ in range(rounds):
        samples = []
        for step, host_ms in zip(steps, hosts_ms, strict=True):
            prepared = step.prepare()
            samples.append(clock.sample(lambda step=step, held=prepared: step.call(held), 1.5 * host_ms + 0.05))
            del prepared
        clock.settle()
        for values, sample in zip(found, samples, strict=True):
            values.append(clock.read(sample))
    return found


def _summary(passes: Sequence[Sequence[tuple[float, float]]]) -> Times:
    medians = tuple(statistics.median(device_ms for device_ms, _ in one) for one in passes)
    every = [sample for one in passes for sample in one]
    devices = torch.tensor([device_ms for device_ms, _ in every], dtype=torch.float64)
    low, middle, high = devices.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return Times(
        median_ms=middle,
        p20_ms=low,
        p80_ms=high,
        medians_ms=medians,
        noise=max(medians) / max(min(medians), 1e-9) - 1,
        host_ms=statistics.median(host_ms for _, host_ms in every),
        samples=len(every),
    )
