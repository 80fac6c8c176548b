"""From the order of rows to the micro-batches of one rank: the counterpart of `train/data/batches.py`.

A step consumes the next `rows_per_step` rows of the order, dealt out in micro-batches of a fixed number of rows:
micro-batch m goes to rank m modulo the number of ranks. A rank that has fewer gets fillers, strips of two white patches
of which no patch is scored: their loss is an empty sum, and all ranks meet in every exchange of gradients.

What is hidden in a row follows from the run's seed and the row's position in the order, so it is new in every epoch and
needs no state. Each rank draws the masks of the whole step, which takes milliseconds, and so knows how many patches the
step asks for. What a step holds depends on its number alone, never on ranks, micro-batches, or processes that draw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pixelcore.errors import UserError
from pixelcore.masking import draw_masks, mix_seed
from pixelcore.patches import Patches, arrange
from render import Renderer, RenderError
from train.config import MaskedPatchesConfig
from train.data.order import BlockOrder
from train.data.strips.drawing import DrawnAhead
from train.data.strips.row_store import RowStore

HELD_OUT_SEED = 20220714  # of held-out masks, the same in all runs


@dataclass(frozen=True)
class StripMicroBatch:
    """patches: of the strips, indexed for the model. count: patches that are scored, 0 in a filler. rows: (source, row)
    of each strip, none in a filler."""

    patches: Patches
    count: int
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Step:
    """The rows of a step, in the order in which they are dealt out: which, how long, and what is hidden [B, L]."""

    number: int
    source_B: NDArray[np.int64]
    row_B: NDArray[np.int64]
    length_B: NDArray[np.int64]
    hidden_BL: NDArray[np.bool_]


class StripBatches:
    """The rows of a run, by step.

    seed: the run's, for the masks. workers: processes of this rank that draw ahead; 0: none. repeats: there is but one
    step, 0, that is asked for again and again: a held-out text. Close it at the end.
    """

    def __init__(
        self,
        sources: Sequence[RowStore],
        order: BlockOrder,
        renderer: Renderer,
        objective: MaskedPatchesConfig,
        *,
        seed: int,
        rows_per_step: int,
        micro_batch_rows: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        repeats: bool = False,
    ) -> None:
        self.sources, self.order, self.renderer, self.objective = sources, order, renderer, objective
        self.row_patches = sources[0].row_patches
        self.seed = seed
        self.rows_per_step = rows_per_step
        self.micro_batch_rows = micro_batch_rows
        self.rank, self.world = rank, world
        self.repeats = repeats
        num_micro_batches = -(-rows_per_step // micro_batch_rows)
        self.per_rank = -(-num_micro_batches // world)
        self._drawn = DrawnAhead(renderer, workers, 2 * micro_batch_rows)
        self._due: tuple[int, int] | None = None  # the micro-batch whose rows are drawn next
        self._step: _Step | None = None

    def num_targets(self, step: int) -> int:
        """Hidden patches of the whole step, over all ranks."""
        return int(np.count_nonzero(self._plan(step).hidden_BL))

    def micro_batch(self, step: int, index: int, device: torch.device | str) -> StripMicroBatch:
        """This rank's micro-batch `index` (0 to per_rank - 1) of a step. Quickest in the order of steps and indices.

        Raises UserError for a row that can no longer be drawn as it was prepared.
        """
        plan = self._plan(step)
        first, stop = self._share(index)
        if first == stop:
            return self._filler(device)
        if self._due != (step, index):
            self._drawn.start(self._texts_from(step, index))
        self._due = None  # until these rows are taken, it is not known what would come next
        pixels, hidden, names = [], [], []
        for place in range(first, stop):
            length = int(plan.length_B[place])
            pixels.append(self._take(int(plan.source_B[place]), int(plan.row_B[place]), length))
            hidden.append(plan.hidden_BL[place, :length])
            names.append(place * self.row_patches)  # of the whole step: whoever gets the row, its dropout is the same
        self._due = self._after(step, index)
        hidden_P = torch.from_numpy(np.concatenate(hidden))
        patches = arrange(
            _host(torch.from_numpy(np.concatenate(pixels)), device),
            plan.length_B[first:stop].tolist(),
            hidden_P,
            documents=names,
            device=device,
        )
        rows = zip(plan.source_B[first:stop].tolist(), plan.row_B[first:stop].tolist(), strict=True)
        return StripMicroBatch(patches, int(hidden_P.sum()), tuple(rows))

    def texts_and_masks(self, step: int, count: int) -> list[tuple[str, NDArray[np.bool_]]]:
        """The first rows of a step over all ranks, at most `count`: their texts and what is hidden, bool [patches]."""
        plan = self._plan(step)
        places = range(min(count, len(plan.row_B)))
        texts = [self.sources[plan.source_B[place]].text(plan.row_B[place]) for place in places]
        return [
            (text, plan.hidden_BL[place, : plan.length_B[place]]) for place, text in zip(places, texts, strict=True)
        ]

    def close(self) -> None:
        """End the processes that draw. A later micro-batch starts them again."""
        self._due = None
        self._drawn.close()

    # ---- what a step holds -------------------------------------------------------------------------------------------

    def _plan(self, step: int) -> _Step:
        assert step == 0 or not self.repeats, f"step {step} of a held-out text, which is one step"
        if self._step is None or self._step.number != step:
            start = step * self.rows_per_step
            source_B, row_B = self.order.take(start, self.rows_per_step)
            length_B = np.empty(self.rows_per_step, np.int64)
            for number, store in enumerate(self.sources):
                mine = source_B == number
                length_B[mine] = store.num_patches[row_B[mine]]
            seed_B = mix_seed(self.seed, np.arange(start, start + self.rows_per_step))
            padded_length = self.row_patches if self.objective.counts == "paper" else None
            hidden_BL = draw_masks(self.objective.rule, length_B, seed_B, self.objective.ratio, padded_length)
            # hidden padding exists in the original's counts only: here a row ends with its strip
            hidden_BL &= np.arange(hidden_BL.shape[1]) < length_B[:, None]
            self._step = _Step(step, source_B, row_B, length_B, hidden_BL)
        return self._step

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

    def _filler(self, device: torch.device | str) -> StripMicroBatch:
        values = self.renderer.config.height * self.renderer.config.patch_width * self.renderer.config.channels
        white = torch.full((2, values), 255, dtype=torch.uint8)
        name = self.rows_per_step * self.row_patches
        patches = arrange(white, [2], torch.tensor([True, False]), documents=[name], device=device)
        patches = replace(patches, scored_rows=patches.scored_rows[:0], scored=patches.scored[:0])
        return StripMicroBatch(patches, 0, ())


def held_out_batches(
    sources: Sequence[RowStore],
    renderer: Renderer,
    objective: MaskedPatchesConfig,
    *,
    micro_batch_rows: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> StripBatches:
    """Held-out rows as one step, step 0, under masks that are the same in all runs."""
    sizes = [len(source) for source in sources]
    return StripBatches(
        sources,
        BlockOrder(0, sizes),
        renderer,
        objective,
        seed=HELD_OUT_SEED,
        rows_per_step=sum(sizes),
        micro_batch_rows=micro_batch_rows,
        rank=rank,
        world=world,
        workers=workers,
        repeats=True,
    )


def _host(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Memory that a device can copy from while the host goes on."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory()  # pragma: gpu
    return tensor
