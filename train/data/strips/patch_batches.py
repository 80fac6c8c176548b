"""Rows of which each patch is foretold from those before it: micro-batches for a language model over patches.

Nothing is drawn by chance here, so a step is its rows. A filler, which a rank gets that has no rows left, is a strip of
two white patches. It has a target like any strip, because a forward pass without one is no use to anybody; whoever
takes the loss of a filler, `count` = 0, weighs it with zero, so that its gradients are zeros and not missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pixelcore.next_patches import NextPatches, arrange_next
from render import Renderer
from train.data.order import BlockOrder
from train.data.strips.row_batches import RowBatches, all_as_one_step, for_device
from train.data.strips.row_store import RowStore


@dataclass(frozen=True)
class PatchMicroBatch:
    """patches: of the strips, indexed for the model. count: patches that are foretold, 0 in a filler. Of each strip,
    and none of a filler: lengths, its patches, the end patch included; rows, its (source, row); positions, where it
    stands in the order of the run, which is a number that no other row of the run has."""

    patches: NextPatches
    count: int
    lengths: tuple[int, ...] = ()
    rows: tuple[tuple[int, int], ...] = ()
    positions: tuple[int, ...] = ()


class PatchBatches(RowBatches):
    """The rows of a run, by step. start_vector: whether the model foretells the first patch of a row too. dealing: as
    of `RowBatches`."""

    def __init__(
        self, sources: Sequence[RowStore], order: BlockOrder, renderer: Renderer, *, start_vector: bool, **dealing: Any
    ) -> None:
        super().__init__(sources, order, renderer, **dealing)
        self.start_vector = start_vector

    def num_targets(self, step: int) -> int:
        """Foretold patches of the whole step, over all ranks."""
        return int(self.rows_of(step).length_B.sum()) - (not self.start_vector) * self.rows_per_step

    def micro_batch(self, step: int, index: int, device: torch.device | str) -> PatchMicroBatch:
        """This rank's micro-batch `index` (0 to per_rank - 1) of a step. Quickest in the order of steps and indices.

        Raises UserError for a row that can no longer be drawn as it was prepared.
        """
        drawn = self.draw(step, index)
        if drawn is None:
            return PatchMicroBatch(arrange_next(self.white(2), [2], self.start_vector, device=device), 0)
        pixels = for_device(drawn.pixels, device)
        patches = arrange_next(pixels, drawn.lengths, self.start_vector, device=device)
        return PatchMicroBatch(patches, sum(patches.counts), tuple(drawn.lengths), drawn.rows, drawn.positions)


def held_out_patches(
    sources: Sequence[RowStore], renderer: Renderer, *, start_vector: bool, **dealing: Any
) -> PatchBatches:
    """Held-out rows as one step, step 0. dealing: micro_batch_rows, rank, world, workers."""
    shared = all_as_one_step(sources) | dealing
    return PatchBatches(sources, shared.pop("order"), renderer, start_vector=start_vector, **shared)
