"""From the order of blocks to the micro-batches of one rank.

A step consumes the next `blocks_per_step` blocks of the order. They are dealt out in micro-batches of a fixed number
of blocks: micro-batch m goes to rank m modulo the number of ranks, and a rank that has fewer gets one of fillers, so
that all ranks meet in every exchange of gradients. The step's content, its number of targets and the names of its
documents depend on the position alone, never on how it was dealt: one process and many compute the same loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcore.ops import IGNORED
from pixelcore.packed import Packed
from train.data.blocks import Block, Blocks
from train.data.order import BlockOrder


@dataclass(frozen=True)
class MicroBatch:
    """ids and targets int64 [N], N = micro-batch blocks * block size; the structure of their documents."""

    ids: Tensor
    targets: Tensor
    packed: Packed


class Batches:
    """The training data of a run, by step."""

    def __init__(
        self,
        sources: Sequence[Blocks],
        order: BlockOrder,
        *,
        blocks_per_step: int,
        micro_batch_blocks: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.sources = sources
        self.order = order
        self.block_size = sources[0].size
        self.blocks_per_step = blocks_per_step
        self.micro_batch_blocks = micro_batch_blocks
        self.rank, self.world = rank, world
        num_micro_batches = -(-blocks_per_step // micro_batch_blocks)
        self.per_rank = -(-num_micro_batches // world)

    def num_targets(self, step: int) -> int:
        """Targets of the whole step, over all ranks."""
        source_S, block_S = self.order.take(step * self.blocks_per_step, self.blocks_per_step)
        return sum(
            int(blocks.num_targets_of(block_S[source_S == index]).sum()) for index, blocks in enumerate(self.sources)
        )

    def micro_batch(self, step: int, index: int, device: torch.device | str) -> MicroBatch:
        """This rank's micro-batch `index` (0 to per_rank - 1) of a step."""
        slots = self.slots(index)
        first, count = slots.start, len(slots)
        ids, targets, lengths, documents = [], [], [], []
        for slot, content in enumerate(self.read(step, slots)):
            ids.append(torch.from_numpy(content.ids))
            targets.append(torch.from_numpy(content.targets))
            row = (first + slot) * self.block_size  # of the whole step: the name of a document is its first row
            for length in content.lengths:
                lengths.append(length)
                documents.append(row)
                row += length
        for slot in range(count, self.micro_batch_blocks):
            ids.append(torch.zeros(self.block_size, dtype=torch.int64))
            targets.append(torch.full((self.block_size,), IGNORED))
            lengths.append(self.block_size)
            documents.append((first + slot) * self.block_size)
        packed = Packed.from_lengths(lengths, documents, device)
        return MicroBatch(_put(torch.cat(ids), device), _put(torch.cat(targets), device), packed)

    def slots(self, index: int) -> range:
        """Blocks of a step in this rank's micro-batch `index`; at the end of a step fewer than elsewhere, or none."""
        first = (index * self.world + self.rank) * self.micro_batch_blocks
        return range(first, max(first, min(first + self.micro_batch_blocks, self.blocks_per_step)))

    def read(self, step: int, slots: range) -> Iterator[Block]:
        """Some blocks of a step."""
        source_S, block_S = self.order.take(step * self.blocks_per_step + slots.start, len(slots))
        for source, block in zip(source_S.tolist(), block_S.tolist(), strict=True):
            yield self.sources[source].read(block)

    def close(self) -> None:
        """Nothing is held open: blocks are read from a memory map."""


def _put(tensor: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)  # pragma: gpu
    return tensor
