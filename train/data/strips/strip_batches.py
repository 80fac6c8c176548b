"""Rows of which some patches are hidden: micro-batches for a model that paints them.

What is hidden in a row follows from the run's seed and the row's position in the order, so it is new in every epoch and
needs no state. Each rank draws the masks of the whole step, which takes milliseconds, and so knows how many patches the
step asks for. A filler is a strip of two white patches of which no patch is scored: its loss is an empty sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pixelcore.masking import draw_masks, mix_seed
from pixelcore.patches import Patches, arrange
from render import Renderer
from train.config import MaskedPatchesConfig
from train.data.order import BlockOrder
from train.data.strips.row_batches import RowBatches, all_as_one_step, for_device
from train.data.strips.row_store import RowStore

HELD_OUT_SEED = 20220714  # of held-out masks, the same in all runs


@dataclass(frozen=True)
class StripMicroBatch:
    """patches: of the strips, indexed for the model. count: patches that are scored, 0 in a filler. rows: (source, row)
    of each strip, none in a filler."""

    patches: Patches
    count: int
    rows: tuple[tuple[int, int], ...]


class StripBatches(RowBatches):
    """The masked rows of a run, by step. seed: the run's, for the masks; dealing: as of `RowBatches`."""

    def __init__(
        self,
        sources: Sequence[RowStore],
        order: BlockOrder,
        renderer: Renderer,
        objective: MaskedPatchesConfig,
        *,
        seed: int,
        **dealing: Any,
    ) -> None:
        super().__init__(sources, order, renderer, **dealing)
        self.objective, self.seed = objective, seed
        self._hidden: tuple[int, NDArray[np.bool_]] | None = None  # a step, and what is hidden in it

    def num_targets(self, step: int) -> int:
        """Hidden patches of the whole step, over all ranks."""
        return int(np.count_nonzero(self._hidden_of(step)))

    def micro_batch(self, step: int, index: int, device: torch.device | str) -> StripMicroBatch:
        """This rank's micro-batch `index` (0 to per_rank - 1) of a step. Quickest in the order of steps and indices.

        Raises UserError for a row that can no longer be drawn as it was prepared.
        """
        drawn = self.draw(step, index)
        if drawn is None:
            return self._filler(device)
        hidden_bL = self._hidden_of(step)[drawn.places]
        hidden_P = torch.from_numpy(hidden_bL[np.arange(hidden_bL.shape[1]) < np.array(drawn.lengths)[:, None]])
        # names within the whole step: whoever gets the row, its dropout is the same
        names = [place * self.row_patches for place in range(drawn.places.start, drawn.places.stop)]
        pixels = for_device(drawn.pixels, device)
        patches = arrange(pixels, drawn.lengths, hidden_P, documents=names, device=device)
        return StripMicroBatch(patches, int(hidden_P.sum()), drawn.rows)

    def texts_and_masks(self, step: int, count: int) -> list[tuple[str, NDArray[np.bool_]]]:
        """The first rows of a step over all ranks, at most `count`: their texts and what is hidden, bool [patches]."""
        texts, hidden_BL, length_B = self.texts(step, count), self._hidden_of(step), self.rows_of(step).length_B
        return [(text, hidden_BL[place, : length_B[place]]) for place, text in enumerate(texts)]

    def _hidden_of(self, step: int) -> NDArray[np.bool_]:
        """What is hidden in the rows of a step, [B, L]."""
        if self._hidden is None or self._hidden[0] != step:
            plan = self.rows_of(step)
            seed_B = mix_seed(self.seed, plan.position_B)
            padded_length = self.row_patches if self.objective.counts == "paper" else None
            hidden_BL = draw_masks(self.objective.rule, plan.length_B, seed_B, self.objective.ratio, padded_length)
            # hidden padding exists in the original's counts only: here a row ends with its strip
            hidden_BL &= np.arange(hidden_BL.shape[1]) < plan.length_B[:, None]
            self._hidden = step, hidden_BL
        return self._hidden[1]

    def _filler(self, device: torch.device | str) -> StripMicroBatch:
        name = self.rows_per_step * self.row_patches
        patches = arrange(self.white(2), [2], torch.tensor([True, False]), documents=[name], device=device)
        patches = replace(patches, scored_rows=patches.scored_rows[:0], scored=patches.scored[:0])
        return StripMicroBatch(patches, 0, ())


def held_out_batches(
    sources: Sequence[RowStore], renderer: Renderer, objective: MaskedPatchesConfig, **dealing: Any
) -> StripBatches:
    """Held-out rows as one step, step 0, under masks that are the same in all runs. dealing: micro_batch_rows, rank,
    world, workers."""
    shared = all_as_one_step(sources) | dealing
    return StripBatches(sources, shared.pop("order"), renderer, objective, seed=HELD_OUT_SEED, **shared)
