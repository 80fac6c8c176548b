"""One case and everybody who runs it: ours, the eager reference, the peers, and what nobody can avoid.

The case is drawn once, on the device, from a normal distribution, and everyone gets the same tensors. Everyone's
results and gradients are compared with those of the reference in a wider dtype before anything is timed: a peer that
computes something else is named and takes no part in the verdict, and a kernel that does fails the case. Then three
directions are timed by the rules of `timing.py`:

    forward     as in training: the graph is built and what the backward pass needs is kept, by everyone
    backward    of a graph that was just built, outside the measurement, and is used once
    both        one after the other; for losses, whose gradient is finished in the forward pass, the only fair figure

The book also keeps the error of every result and every gradient, of everyone, and the most memory that forward and
backward pass together held.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.workshop.arena import Arena, OnDevice
from kernels.workshop.cases import Case
from kernels.workshop.composites import IN_PLACE
from kernels.workshop.own_layout import OwnLayout
from kernels.workshop.peers import Peer, missing
from kernels.workshop.timing import Clock, Step, Times, measure

DIRECTIONS = ("forward", "backward", "both")
_SLACK = 4  # times the eager reference's error, and as many roundings: beyond that, it is another function


@dataclass(frozen=True)
class Subject:
    """What is timed: a kernel's file or a composite, whom it is compared with, and which kernels must be right."""

    name: str
    kernel: Any
    peers: Sequence[Peer]
    parts: Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where and how a run measures. ceilings: GB/s of a copy, TFLOP/s of a product, by name. seconds: of each step in
    each of two passes."""

    dtype: torch.dtype
    device: torch.device
    clock: Clock
    ceilings: Mapping[str, float]
    seconds: float = 0.2


def time_case(subject: Subject, case: Case, setting: Setting) -> dict[str, Any]:
    """Compare, then time everyone. RuntimeError where the kernel itself fails or computes something else."""
    kernel, renewed = subject.kernel, IN_PLACE.get(subject.name, ())
    given = kernel.arguments(case, OnDevice(setting.dtype, setting.device, torch.Generator().manual_seed(0)))
    truth = _truth(kernel.reference, given, renewed, setting.dtype)
    arena = Arena(given, renewed, setting.dtype)
    contestants = [
        Contestant("eager", "eager", lambda: lambda: kernel.reference(**given), arena),
        Contestant("ours", "ours", lambda: lambda: kernel.fused(**given), arena),
        *(_peer(peer, arena) for peer in subject.peers),
    ]
    eager_errors = [0.0] * len(truth)
    for contestant in contestants:
        errors = contestant.introduce(truth, eager_errors, setting)
        if contestant.role == "eager" and errors is not None:
            eager_errors = errors
        if contestant.role == "ours" and contestant.entry["status"] != "timed":
            raise RuntimeError(contestant.entry["reason"])
    del truth
    ready = [contestant for contestant in contestants if contestant.entry["status"] == "timed"]
    work = _work(kernel.cost(case, setting.dtype.itemsize))
    for direction in DIRECTIONS if arena.leaves else DIRECTIONS[:1]:
        taking_part = [contestant for contestant in ready if contestant.runs(direction)]
        times = measure([contestant.step(direction) for contestant in taking_part], setting.clock, setting.seconds)
        for contestant, found in zip(taking_part, times, strict=True):
            contestant.entry[direction] = found.as_dict() | _rates(found, *work[direction], setting.ceilings)
    return {
        "status": "measured",
        "bytes": {direction: num_bytes for direction, (num_bytes, _) in work.items()},
        "flops": {direction: flops for direction, (_, flops) in work.items()},
        "ceilings": dict(setting.ceilings),
        "contestants": [contestant.entry for contestant in contestants],
    }


def attempt(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call gives, or None and, in one line, why it failed.

    Kernels of other libraries raise what they like at a shape that they cannot do, and what is left of a lease must not
    be lost over it. This is the one place where every exception is caught, and all of them are written down.
    """
    try:
        return call(), None
    except Exception as cause:
        lines = str(cause).strip().splitlines()
        return None, f"{type(cause).__name__}: {' '.join(lines[0].split())[:300] if lines else 'no message'}"


class Contestant:
    """One way to run a case. entry: what the book says of it."""

    def __init__(
        self,
        name: str,
        role: str,
        make: Callable[[], Callable[[], Any] | OwnLayout],
        arena: Arena,
        overwrites: Sequence[str] = (),
        compared: bool = True,
        absent: str | None = None,
        forward_only: bool = False,
    ) -> None:
        self.role, self.make, self.arena = role, make, arena
        self.overwrites = (*arena.renewed, *overwrites)
        self.compared = compared
        self.differentiates = bool(arena.leaves) and not forward_only
        self.own: OwnLayout | None = None
        self.entry: dict[str, Any] = {"name": name, "role": role}
        if absent is not None:
            self.entry |= {"status": "missing", "reason": absent}

    def introduce(self, truth: Sequence[Tensor], eager_errors: Sequence[float], setting: Setting) -> list[float] | None:
        """The first call: is it there, does it run, does it compute the same, how much memory does it take? Returns the
        error of each result."""
        if "status" in self.entry:
            return None
        begin = time.monotonic()
        self.arena.save(self.overwrites)
        found, reason = attempt(lambda: self._first(truth, setting))
        self.arena.dirty.update((*self.overwrites, *self.arena.written))
        self.arena.clean()
        if found is None:
            self.entry |= {"status": "failed", "reason": reason}
            return None
        errors, roundings, peak = found
        seconds = round(time.monotonic() - begin, 2)
        self.entry |= {"status": "timed", "error": max(errors, default=None), "peak_bytes": peak}
        self.entry["errors"] = dict(zip(self._names(len(truth)), errors))
        self.entry["first_calls_s"] = seconds
        for index, (error, eager_error, rounding) in enumerate(zip(errors, eager_errors, roundings)):
            limit = _SLACK * (eager_error + rounding)
            if self.role != "eager" and not error <= limit:
                reason = f"it computes something else: result {index} is {error:.1e} off, more than {limit:.1e}"
                self.entry |= {"status": "differs", "reason": reason}
                break
        return errors

    def _first(self, truth: Sequence[Tensor], setting: Setting) -> tuple[list[float], list[float], int | None]:
        self.prepare()
        if not self.compared:
            self.whole()  # what is compiled is compiled before memory is counted
        results = self.results() if self.compared else []
        truth = truth if self.differentiates else truth[: len(truth) - len(self.arena.leaves)]
        errors = distances(results, truth) if self.compared else []
        dtypes = [x.dtype if x.is_floating_point() else setting.dtype for x in results]
        roundings = [max(torch.finfo(setting.dtype).eps, torch.finfo(dtype).eps) for dtype in dtypes]
        del results
        self.arena.clean()
        return errors, roundings, setting.clock.peak_bytes(self.whole)

    def _names(self, num_results: int) -> list[str]:
        leaves = self.arena.differentiated
        outputs = [f"output {index}" for index in range(num_results - len(leaves))]
        return [*outputs, *(f"gradient of {name}" for name in leaves)]

    def prepare(self) -> None:
        made = self.make()
        self.own = made if isinstance(made, OwnLayout) else None
        self.prepared = made.call if isinstance(made, OwnLayout) else made

    def runs(self, direction: str) -> bool:
        return direction == "forward" or self.differentiates

    def call(self) -> Any:
        self.arena.dirty.update(self.overwrites)
        return self.prepared()

    def gradients(self, outputs: Any) -> tuple[Tensor, ...]:
        return self.arena.gradients(outputs, self.own)

    def whole(self) -> Any:
        outputs = self.call()
        return self.gradients(outputs) if self.differentiates else outputs

    def step(self, direction: str) -> Step:
        if direction == "forward":
            return Step(self.arena.clean, lambda _: self.call())
        if direction == "backward":
            return Step(self._after_forward, self.gradients)
        return Step(self.arena.clean, lambda _: self.whole())

    def _after_forward(self) -> Any:
        self.arena.clean()
        return self.call()

    def results(self) -> list[Tensor]:
        """Outputs and gradients, or what an operation in place has written."""
        outputs = self.call()
        if self.arena.written:
            return [torch.cat([x.flatten() for x in self.arena.given[name]]) for name in self.arena.written]
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        found = [x for x in tensors if x is not None] + list(self.gradients(outputs) if self.differentiates else ())
        return [x.detach() if self.own is None else self.own.rows(x.detach()) for x in found]


def _peer(peer: Peer, arena: Arena) -> Contestant:
    random = peer.random and arena.given.get("drop") is not None
    role = "floor" if peer.floor else "peer"
    compared = not peer.floor and not random
    make = partial(peer.make, arena.given)
    return Contestant(peer.name, role, make, arena, peer.overwrites, compared, missing(peer), peer.forward_only)


# ------------------------------------------------------------------ errors and rates


def _truth(
    reference: Callable[..., Any], given: Mapping[str, Any], renewed: Sequence[str], dtype: torch.dtype
) -> list[Tensor]:
    """The results of the reference in a wider dtype. Lists, of an operation in place, keep their own."""
    wide = torch.float64 if dtype == torch.float32 else torch.float32

    def widened(x: Any) -> Any:
        if isinstance(x, list):
            return [y.clone() for y in x]
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x.detach().to(x.dtype if renewed else wide, copy=True).requires_grad_(x.requires_grad)

    own = {name: widened(x) for name, x in given.items()}
    truth = Contestant("truth", "truth", lambda: lambda: reference(**own), Arena(own, renewed, dtype))
    truth.prepare()
    return truth.results()


def distances(found: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """The relative error of each result, |found - truth| / |truth|; infinite where it is not a number."""
    if [x.shape for x in found] != [x.shape for x in truth]:
        raise RuntimeError(f"its results have the shapes {[list(x.shape) for x in found]}")
    errors = []
    for x, wanted in zip(found, truth, strict=True):
        apart = float(torch.linalg.vector_norm((x.to(wanted.dtype) - wanted).float()))
        norm = float(torch.linalg.vector_norm(wanted.float()))
        errors.append(apart / (norm or 1.0) if math.isfinite(apart) else math.inf)
    return errors


def _work(cost: Any) -> dict[str, tuple[int, int]]:
    """Bytes and operations of each direction."""
    forward, backward = (cost.forward_bytes, cost.forward_flops), (cost.backward_bytes, cost.backward_flops)
    return dict(zip(DIRECTIONS, (forward, backward, (forward[0] + backward[0], forward[1] + backward[1]))))


def _rates(times: Times, num_bytes: int, flops: int, ceilings: Mapping[str, float]) -> dict[str, float | None]:
    """GB/s and TFLOP/s of what must be done at least, and their shares of what a copy and a product reach here."""
    gb_s = num_bytes / times.median_ms / 1e6 if num_bytes and times.median_ms else None
    tflop_s = flops / times.median_ms / 1e9 if flops and times.median_ms else None
    copy, product = ceilings.get("copy_gb_s"), ceilings.get("product_tflop_s")
    return {
        "gb_s": gb_s,
        "tflop_s": tflop_s,
        "share_of_copy": gb_s / copy if gb_s and copy else None,
        "share_of_product": tflop_s / product if tflop_s and product else None,
    }
