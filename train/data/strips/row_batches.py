"""From the order of rows to the drawn rows of one rank: the counterpart of `train/data/batches.py`.

A step consumes the next `rows_per_step` rows of the order, dealt out in micro-batches of a fixed number of rows:
micro-batch m goes to rank m modulo the number of ranks. A rank that has fewer gets fillers, whose loss is nothing, so
that all ranks meet in every exchange of gradients. What a step holds depends on its number alone, never on ranks,
micro-batches, or processes that draw.

What is made of drawn rows is the objective's: `StripBatches` hides some of their patches, `PatchBatches` asks for each
patch after those before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pixelcore.errors import UserError
from render import Renderer, RenderError
from train.data.order import BlockOrder
from train.data.strips.drawing import DrawnAhead
from train.data.strips.row_store import RowStore


@dataclass(frozen=True)
class StepRows:
    """The rows of a step over all ranks, in the order in which they are dealt out: which, how long, and where they
    stand in the order of the run."""

    step: int
    source_B: NDArray[np.int64]
    row_B: NDArray[np.int64]
    length_B: NDArray[np.int64]
    position_B: NDArray[np.int64]


@dataclass(frozen=True)
class DrawnRows:
    """The rows of a micro-batch, at least one. places: of the rows within the step, in the arrays of `step`. pixels:
    uint8 [P, A], their patches end to end."""

    step: StepRows
    places: slice
    pixels: NDArray[np.uint8]

    @property
    def lengths(self) -> list[int]:
        """Patches of each row."""
        return self.step.length_B[self.places].tolist()

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """(source, row) of each."""
        sources, rows = self.step.source_B[self.places], self.step.row_B[self.places]
        return tuple(zip(sources.tolist(), rows.tolist(), strict=True))

    @property
    def positions(self) -> tuple[int, ...]:
        """Where each stands in the order of the run."""
        return tuple(self.step.position_B[self.places].tolist())


class RowBatches:
    """The rows of a run, by step.

    workers: processes of this rank that draw ahead; 0: none. repeats: there is but one step, 0, that is asked for again
    and again: a held-out text. Close it at the end.
    """

    def __init__(
        self,
        sources: Sequence[RowStore],
        order: BlockOrder,
        renderer: Renderer,
        *,
        rows_per_step: int,
        micro_batch_rows: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        repeats: bool = False,
    ) -> None:
        self.sources, self.order, self.renderer = sources, order, renderer
        self.row_patches = sources[0].row_patches
        self.rows_per_step = rows_per_step
        self.micro_batch_rows = micro_batch_rows
        self.rank, self.world = rank, world
        self.repeats = repeats
        num_micro_batches = -(-rows_per_step // micro_batch_rows)
        self.per_rank = -(-num_micro_batches // world)
        self._drawn = DrawnAhead(renderer, workers, 2 * micro_batch_rows)
        self._due: tuple[int, int] | None = None  # the micro-batch whose rows are drawn next
        self._step: StepRows | None = None

    def rows_of(self, step: int) -> StepRows:
        """What a step holds, over all ranks."""
        assert step == 0 or not self.repeats, f"step {step} of a held-out text, which is one step"
        if self._step is None or self._step.step != step:
            start = step * self.rows_per_step
            source_B, row_B = self.order.take(start, self.rows_per_step)
            length_B = np.empty(self.rows_per_step, np.int64)
            for number, store in enumerate(self.sources):
                mine = source_B == number
                length_B[mine] = store.num_patches[row_B[mine]]
            position_B = np.arange(start, start + self.rows_per_step)
            self._step = StepRows(step, source_B, row_B, length_B, position_B)
        return self._step

    def draw(self, step: int, index: int) -> DrawnRows | None:
        """The rows of this rank's micro-batch `index` (0 to per_rank - 1) of a step, None where a filler has to stand.
        Quickest in the order of steps and indices.

        Raises UserError for a row that can no longer be drawn as it was prepared.
        """
        plan = self.rows_of(step)
        first, stop = self._share(index)
        if first == stop:
            return None
        if self._due != (step, index):
            self._drawn.start(self._texts_from(step, index))
        self._due = None  # until these rows are taken, it is not known what would come next
        pixels = [
            self._take(int(plan.source_B[place]), int(plan.row_B[place]), int(plan.length_B[place]))
            for place in range(first, stop)
        ]
        self._due = self._after(step, index)
        return DrawnRows(plan, slice(first, stop), np.concatenate(pixels))

    def texts(self, step: int, count: int) -> list[str]:
        """The texts of the first rows of a step over all ranks, at most `count` of them."""
        plan = self.rows_of(step)
        rows = zip(plan.source_B[:count].tolist(), plan.row_B[:count].tolist(), strict=True)
        return [self.sources[source].text(row) for source, row in rows]

    def white(self, num_patches: int) -> torch.Tensor:
        """Blank patches, uint8 [num_patches, A]: what fillers are made of."""
        values = self.renderer.config.height * self.renderer.config.patch_width * self.renderer.config.channels
        return torch.full((num_patches, values), 255, dtype=torch.uint8)

    def close(self) -> None:
        """End the processes that draw. A later micro-batch starts them again."""
        self._due = None
        self._drawn.close()

    def _share(self, index: int) -> tuple[int, int]:
        """Where this rank's micro-batch begins and ends within the step; both the same where there is none left."""
        first = (index * self.world + self.rank) * self.micro_batch_rows
        return min(first, self.rows_per_step), min(first + self.micro_batch_rows, self.rows_per_step)

    # ---- drawing ahead -----------------------------------------------------------------------------------------------

    def _texts_from(self, step: int, index: int) -> Iterator[tuple[str, int]]:
        """The texts of this rank's rows, in the order of steps, without end."""
        while True:
            first, stop = self._share(index)
            source_B, row_B = self.order.take(step * self.rows_per_step + first, stop - first)
            for source, row in zip(source_B.tolist(), row_B.tolist(), strict=True):
                yield self.sources[source].text(row), self.row_patches
            step, index = self._after(step, index)

    def _after(self, step: int, index: int) -> tuple[int, int]:
        """The micro-batch with rows that comes after this one."""
        if index + 1 < self.per_rank and self._share(index + 1)[0] < self.rows_per_step:
            return step, index + 1
        return (0 if self.repeats else step + 1), 0

    def _take(self, source: int, row: int, length: int) -> NDArray[np.uint8]:
        try:
            drawn = self._drawn.take()
        except RenderError as cause:
            raise UserError(f"{self.sources[source].folder}: row {row} cannot be drawn: {cause}") from cause
        if len(drawn) != length:
            tell = f"it is drawn in {len(drawn)} patches, not {length}"
            raise self.sources[source].damage(row, tell, self.renderer)
        return drawn


def all_as_one_step(sources: Sequence[RowStore]) -> dict[str, Any]:
    """How `RowBatches` deals out held-out rows: all of them in one step, in an order that is the same in all runs."""
    sizes = [len(source) for source in sources]
    return {"order": BlockOrder(0, sizes), "rows_per_step": sum(sizes), "repeats": True}


def for_device(pixels: NDArray[np.uint8], device: torch.device | str) -> torch.Tensor:
    """Pixels in memory that a device can copy from while the host goes on."""
    tensor = torch.from_numpy(pixels)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory()  # pragma: gpu
    return tensor
