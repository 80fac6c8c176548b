"""Keys and values of the tokens seen so far, so that each new token costs one row of work and not a whole sequence.

The memory is taken once, [sequences, heads, capacity, head size] for each layer; sequences of one batch may hold
different numbers of tokens. A forward pass announces how many new tokens each sequence brings (`begin`), every layer
appends its own keys and values, and `commit` moves the lengths on: a pass that fails half-way leaves the cache as it
was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from pixelcore.errors import UserError
from pixelcore.packed import Packed


@dataclass(frozen=True)
class Chunk:
    """What one pass brings, made once for all layers.

    held, new: tokens that each sequence holds before the pass, and its new ones, on the host, so that nothing waits for
    the device. On the device: held_B int32 [B]; starts int32 [B + 1], the first of each sequence's new rows, and N at
    the end; positions int32 [N], place of each new row in its sequence; firsts int64 [N], the first new row of its
    sequence.
    """

    held: tuple[int, ...]
    new: tuple[int, ...]
    held_B: Tensor
    starts: Tensor
    positions: Tensor
    firsts: Tensor

    @staticmethod
    def of(held: Sequence[int], new: Sequence[int], device: torch.device | str) -> "Chunk":
        """All numbers travel to the device in one copy, for which the host does not wait."""
        batch, num_rows = len(new), sum(new)
        room = (batch + 4) // 4 * 4  # each part begins where 16 divides the address, which kernels are compiled for
        starts = [0, *accumulate(new)]
        firsts = np.repeat(starts[:-1], new)
        numbers = np.zeros(2 * room + 2 * num_rows, np.int32)
        numbers[:batch], numbers[room : room + batch + 1] = held, starts
        numbers[2 * room :] = np.concatenate((np.arange(num_rows) - firsts + np.repeat(held, new), firsts))
        host = torch.from_numpy(numbers)
        if torch.device(device).type == "cuda":
            host = host.pin_memory()  # pragma: gpu
        x = host.to(device, non_blocking=True)
        held_B, starts, positions = x[:batch], x[room : room + batch + 1], x[2 * room : 2 * room + num_rows]
        return Chunk(tuple(held), tuple(new), held_B, starts, positions, x[2 * room + num_rows :].long())


class LayerCache:
    """One layer's share: keys and values [B, G, C, K], finite also where nothing is held, and the chunk that a pass
    brings."""

    def __init__(self, keys: Tensor, values: Tensor, chunk: Chunk | None = None) -> None:
        self.keys = keys
        self.values = values
        self.chunk = chunk

    def append(self, k_NGK: Tensor, v_NGK: Tensor) -> None:
        """Write the new rows of each sequence behind those it holds."""
        assert self.chunk is not None, "no pass has begun"
        if max(self.chunk.new) == 1:  # firsts number the sequences
            place_B = self.chunk.held_B.long()
            self.keys[self.chunk.firsts, :, place_B] = k_NGK
            self.values[self.chunk.firsts, :, place_B] = v_NGK
            return
        first = 0
        for sequence, (held, new) in enumerate(zip(self.chunk.held, self.chunk.new, strict=True)):
            place = slice(held, held + new)
            self.keys[sequence, :, place] = k_NGK[first : first + new].transpose(0, 1)
            self.values[sequence, :, place] = v_NGK[first : first + new].transpose(0, 1)
            first += new


class KVCache:
    """The caches of all layers and the lengths they share."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_sequences: int,
        num_key_value_heads: int,
        head_size: int,
        capacity: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        shape = (num_layers, 2, num_sequences, num_key_value_heads, capacity, head_size)
        memory = torch.zeros(shape, device=device, dtype=dtype)
        self.layers = [LayerCache(memory[layer, 0], memory[layer, 1]) for layer in range(num_layers)]
        self.capacity = capacity
        self.lengths = [0] * num_sequences

    def begin(self, new: Sequence[int], device: torch.device | str) -> Packed:
        """Announce `new` tokens (at least one) for each sequence; returns the structure of their rows, positions
        going on where each sequence stands. Raises UserError when a sequence would outgrow the cache."""
        if len(new) != len(self.lengths):
            raise ValueError(f"{len(new)} sequences brought tokens; the cache holds {len(self.lengths)}")
        if not new or min(new) < 1:
            raise ValueError(f"new = {list(new)} must be positive and at least one")
        longest = max(held + more for held, more in zip(self.lengths, new, strict=True))
        if longest > self.capacity:
            raise UserError(
                f"{longest} tokens do not fit a context of {self.capacity}: shorten the prompt or ask for fewer "
                "tokens (or let the window slide, where the command offers it)"
            )
        chunk = Chunk.of(self.lengths, new, device)
        for layer in self.layers:
            layer.chunk = chunk
        return Packed(chunk.starts, chunk.positions, chunk.firsts, max(new), chunk.new)

    def commit(self) -> None:
        """The announced tokens are now part of each sequence."""
        chunk = self.layers[0].chunk
        assert chunk is not None, "no pass has begun"
        self.lengths = [held + new for held, new in zip(chunk.held, chunk.new, strict=True)]

    def select(self, sequences: Sequence[int]) -> None:
        """Go on with these sequences, in this order: one that is named twice becomes two, one that is not is dropped.

        Between two passes, not within one. The memory is that of the new number of sequences; it is copied, unless all
        go on in the order in which they stand.
        """
        if list(sequences) == list(range(len(self.lengths))):
            return
        index = torch.tensor(list(sequences), dtype=torch.int64, device=self.layers[0].keys.device)
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        self.lengths = [self.lengths[sequence] for sequence in sequences]
