"""Many documents of different lengths in one flat array of rows.

Padding wastes arithmetic and a mask of pairs wastes memory, so models here never see either: the rows of all documents
of a micro-batch stand end to end in `x_ND`, and a `Packed` record says where each document begins. Attention looks at
one document at a time; everything else in a transformer works on rows and needs no structure at all.

`documents` gives every row the number of its document in the step's global batch. Dropout is counted from it, so a
document meets the same mask whichever micro-batch, rank or padding it arrives in.

A caller who must answer for padding too (a dense call whose result has a row for every position) lays it behind the
real rows of its document and says in `visible` how many are real: padding then looks and is never looked at.

A discriminator asks of many invented patches at once how well each would follow the real ones before it. They too stand
behind the real rows of their document and are never looked at, except each by itself, and `reach` says how far each row
looks. Every one of them then finds what it would have found alone at its place in the strip.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """The structure of N packed rows that hold M documents.

    offsets: int32 [M + 1], first row of each document and N at the end. positions: int32 [N], place of each row in its
    document. documents: int64 [N], a number that names the row's document within the step. max_length: rows of the
    longest document. lengths: rows of each document, on the host, so that no loop has to wait for the device.
    visible: how many rows of each document, the first ones, others may look at; None means all of them.
    reach: int32 [N], for the rule "real_fake" of attention alone: a row sees its document up to and including this one
    of its rows, counted from 0, and itself.
    """

    offsets: Tensor
    positions: Tensor
    documents: Tensor
    max_length: int
    lengths: tuple[int, ...]
    visible: tuple[int, ...] | None = None
    reach: Tensor | None = None

    @staticmethod
    def from_lengths(
        lengths: Sequence[int],
        documents: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        visible: Sequence[int] | None = None,
    ) -> "Packed":
        """Lay documents of these lengths (each at least 1) end to end.

        documents names each of them; without it a document is named by its first row, which is what the training
        loop's global row numbers amount to when the batch is the whole step.
        """
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths = {list(lengths)} must be positive and at least one")
        if visible is not None and any(not 1 <= seen <= rows for seen, rows in zip(visible, lengths, strict=True)):
            raise ValueError(f"visible = {list(visible)} must be from 1 to the lengths {list(lengths)}")
        starts = [0, *accumulate(lengths)]
        length_M = torch.tensor(lengths, dtype=torch.int64)
        offset_M = torch.tensor(starts, dtype=torch.int64)
        name_M = offset_M[:-1] if documents is None else torch.tensor(documents, dtype=torch.int64)
        position_N = torch.arange(starts[-1]) - torch.repeat_interleave(offset_M[:-1], length_M)
        return Packed(
            offsets=offset_M.to(torch.int32).to(device),
            positions=position_N.to(torch.int32).to(device),
            documents=torch.repeat_interleave(name_M, length_M).to(device),
            max_length=max(lengths),
            lengths=tuple(lengths),
            visible=None if visible is None or tuple(visible) == tuple(lengths) else tuple(visible),
        )

    def to(self, device: torch.device | str) -> "Packed":
        """The same structure on another device."""
        return Packed(
            self.offsets.to(device, non_blocking=True),
            self.positions.to(device, non_blocking=True),
            self.documents.to(device, non_blocking=True),
            self.max_length,
            self.lengths,
            self.visible,
            None if self.reach is None else self.reach.to(device, non_blocking=True),
        )

    def select(self, rows_M: Tensor) -> "Packed":
        """The names of some rows, for dropout: document and position. The structure stays that of all rows."""
        return replace(self, positions=self.positions[rows_M], documents=self.documents[rows_M])

    def equal_runs(self) -> list[tuple[int, int, int, int]]:
        """Neighbouring documents of one length, all or equally many rows of them visible, as (first row, number of
        documents, length, visible rows): each run is one dense batch and costs one call."""
        runs: list[tuple[int, int, int, int]] = []
        row = 0
        for length, visible in zip(self.lengths, self.visible or self.lengths, strict=True):
            if runs and runs[-1][2:] == (length, visible):
                first, count, _, _ = runs[-1]
                runs[-1] = (first, count + 1, length, visible)
            else:
                runs.append((row, 1, length, visible))
            row += length
        return runs
