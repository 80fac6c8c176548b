"""Groups of steps, one behind the other: the host's side of the loop without a host (`pixelcore.decode_step`).

A step of a small model takes a GPU less time than it takes Python to ask for it, so a group of steps is recorded once,
as a CUDA graph, and replayed: one request for some thousand operations. The host learns what was drawn from one copy of
the group's results. It looks for ends, makes text of ids and shows it while the device is busy with the next group,
which was asked for before:

    device   | prompts | group 1 | group 2 | group 3 | group 4 ...
    host               .         | reads 1 | reads 2 | reads 3 ...

So text comes in groups, and what the device did after the last end, at most two groups, was for nothing. To record a
group takes the host as long as to run it once without a graph. The first group is therefore not recorded: it compiles
what is not compiled yet, and whoever wants no more than it never pays for a recording.

A batch keeps its shape until its last sequence has ended. Going on with fewer would need another cache and another
recording, and a step is bound by its weights and by the number of its operations, which few sequences need as well.

On a CPU, where kernels run under Triton's interpreter, nothing runs ahead and nothing is recorded.
"""

import logging
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from kernels import step_ops_of
from pixelcore.decode_step import Steps, why_not
from pixelcore.models.decoder import Decoder
from pixelcore.models.pixar import Pixar
from pixelcore.step_ops import StepOps

GROUP = 16  # steps between two looks of the host
_log = logging.getLogger(__name__)


def ops_of_steps(model: Decoder | Pixar, instead: str | None = None) -> StepOps | None:
    """The operations that a model's steps run on; None where it runs as it is: on the reference's operations always.

    instead: what else asks for the model itself. The log says why a model of fused operations is not stepped.
    """
    ops = step_ops_of(model.ops)
    reason = instead or why_not(model)
    if ops is None or reason is None:
        return ops
    say_once(reason)
    return None


@cache
def say_once(reason: str) -> None:
    """Training asks for text again and again."""
    _log.info("--ops fused: the model runs as it is, token by token, and not in recorded steps: %s", reason)


class StepLoop:
    """Runs the steps of one batch after another; a recording serves all of them."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self._runs_ahead = steps.device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._recorded: tuple[Tensor, ...] = ()

    @property
    def is_recorded(self) -> bool:
        """Whether groups are replayed from now on."""
        return self._graph is not None

    def groups(self, first: tuple[Tensor, ...], wanted: int) -> Iterator[tuple[Tensor, ...]]:
        """What is drawn for every sequence, group by group, on the host: [R, B] and so on, R at most `GROUP`.

        first: what the steps' `begin` gave, which is a group of one. wanted: steps after it; who has seen enough of
        them leaves.
        """
        arriving, asked = _Arriving(first), 0
        while arriving is not None:
            following = None
            count = min(GROUP, wanted - asked)
            if count and self._runs_ahead:
                following = _Arriving(self._run(count, asked, wanted))  # pragma: gpu
            yield arriving.read()
            if count and not self._runs_ahead:
                following = _Arriving(self._run(count, asked, wanted))
            arriving, asked = following, asked + count

    def _run(self, count: int, asked: int, wanted: int) -> tuple[Tensor, ...]:
        if self._graph is None and self._runs_ahead and asked and wanted - asked >= GROUP:
            self._record()  # pragma: gpu
        if self._graph is None:
            return self.steps.run(count)
        self._graph.replay()  # pragma: gpu
        return tuple(one[:count] for one in self._recorded)  # pragma: gpu

    def _record(self) -> None:  # pragma: gpu
        """Record a group. Nothing runs while it is recorded."""
        graph = torch.cuda.CUDAGraph()
        # another thread, which loads data, may go on asking the device for memory
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._recorded = self.steps.run(GROUP)
        self._graph = graph


class _Arriving:
    """A group on its way to the host: what is copied now is not what a later replay writes over it."""

    def __init__(self, group: tuple[Tensor, ...]) -> None:
        self._group = tuple(one.to("cpu", non_blocking=True) for one in group)
        self._arrived = None
        if group[0].is_cuda:
            self._arrived = torch.cuda.Event()  # pragma: gpu
            self._arrived.record()  # pragma: gpu

    def read(self) -> tuple[Tensor, ...]:
        if self._arrived is not None:
            self._arrived.synchronize()  # pragma: gpu
        return self._group
