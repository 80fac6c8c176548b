"""From the order of examples to the micro-batches of one rank.

A step takes the next rows of the order, which follows from the seed, sorts them by length and divides them evenly among
micro-batches and ranks: a step's loss is a sum over its rows, so how they are divided changes nothing but the padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infer.task_rows import TaskRows
from pixelcore.errors import UserError
from train.data.order import BlockOrder


@dataclass(frozen=True)
class TaskMicroBatch:
    """given: the model's keyword arguments. documents: of each row its place in the order of the run, on which dropout
    depends."""

    given: dict[str, Tensor]
    documents: tuple[int, ...]


@dataclass(frozen=True)
class _Step:
    """The rows of a step, the shortest first: their numbers, places in the order and targets."""

    step: int
    rows_B: NDArray[np.int64]
    positions_B: NDArray[np.int64]
    targets: list[Mapping[str, NDArray[Any]]]


class TaskBatches:
    """The rows of a run, by step."""

    def __init__(
        self, rows: TaskRows, *, seed: int, rows_per_step: int, micro_batch_rows: int, rank: int = 0, world: int = 1
    ) -> None:
        if rows_per_step < world:
            raise UserError(f"data.rows_per_step = {rows_per_step} must be at least the {world} processes: raise it")
        self.rows, self.rows_per_step = rows, rows_per_step
        self.rank, self.world = rank, world
        # no process may be without a row, or it would wait in vain for the others
        self.per_rank = max(1, min(-(-rows_per_step // (micro_batch_rows * world)), rows_per_step // world))
        self.order = BlockOrder(seed, [len(rows)])
        self._step: _Step | None = None

    def num_targets(self, step: int) -> int:
        """Targets of a step over all ranks; at least 1, since it divides."""
        return max(1, sum(map(self.rows.task.num_targets, self._rows_of(step).targets)))

    def micro_batch(self, step: int, index: int, device: torch.device | str) -> TaskMicroBatch:
        """This rank's micro-batch `index` (0 to per_rank - 1) of a step."""
        plan = self._rows_of(step)
        places = np.array_split(np.arange(self.rows_per_step), self.per_rank * self.world)[
            index * self.world + self.rank
        ]
        given = self.rows.batch(plan.rows_B[places].tolist(), [plan.targets[place] for place in places.tolist()])
        return TaskMicroBatch(
            {name: tensor.to(device, non_blocking=True) for name, tensor in given.items()},
            tuple(plan.positions_B[places].tolist()),
        )

    def close(self) -> None:
        """Nothing runs on."""

    def _rows_of(self, step: int) -> _Step:
        if self._step is None or self._step.step != step:
            positions_B = np.arange(step * self.rows_per_step, (step + 1) * self.rows_per_step)
            _, rows_B = self.order.take(int(positions_B[0]), self.rows_per_step)
            lengths_B = [self.rows.row(row).layout.num_units for row in rows_B.tolist()]
            by_length_B = np.argsort(lengths_B, kind="stable")
            rows_B, positions_B = rows_B[by_length_B], positions_B[by_length_B]
            self._step = _Step(step, rows_B, positions_B, [self.rows.targets(row) for row in rows_B.tolist()])
        return self._step
