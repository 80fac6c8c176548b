"""Keys and values of the tokens seen so far, so that each new token costs one row of work and not a whole sequence.

The memory is taken once, [sequences, heads, capacity, head size] for each layer; sequences of one batch may hold
different numbers of tokens. A forward pass announces how many new tokens each sequence brings (`begin`), every layer
appends its own keys and values, and `commit` moves the lengths on: a pass that fails half-way leaves the cache as it
was.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pixelcore.errors import UserError
from pixelcore.packed import Packed


class LayerCache:
    """One layer's share: keys and values [B, G, C, K], finite also where nothing is held; held and new are tokens per
    sequence, on the host."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.held: list[int] = [0] * keys.shape[0]
        self.new: list[int] = [0] * keys.shape[0]

    def append(self, k_NGK: Tensor, v_NGK: Tensor) -> None:
        """Write the new rows of each sequence behind those it holds."""
        if len(self.new) > 1 and max(self.new) == 1:  # the same at once
            sequences, places = torch.arange(len(self.held)), torch.tensor(self.held)
            self.keys[sequences, :, places] = k_NGK
            self.values[sequences, :, places] = v_NGK
            return
        first = 0
        for sequence, (held, new) in enumerate(zip(self.held, self.new, strict=True)):
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
        longest = max(held + more for held, more in zip(self.lengths, new, strict=True))
        if longest > self.capacity:
            raise UserError(
                f"{longest} tokens do not fit a context of {self.capacity}: shorten the prompt or ask for fewer "
                "tokens (or let the window slide, where the command offers it)"
            )
        for layer in self.layers:
            layer.held, layer.new = list(self.lengths), list(new)
        packed = Packed.from_lengths(new, device=device)
        held = torch.repeat_interleave(torch.tensor(self.lengths, dtype=torch.int32), torch.tensor(list(new)))
        return Packed(
            packed.offsets, packed.positions + held.to(device), packed.documents, packed.max_length, packed.lengths
        )

    def commit(self) -> None:
        """The announced tokens are now part of each sequence."""
        self.lengths = [held + new for held, new in zip(self.layers[0].held, self.layers[0].new, strict=True)]

    def select(self, sequences: Sequence[int]) -> None:
        """Go on with these sequences, in this order: one that is named twice becomes two, one that is not is dropped.

        Between two passes, not within one. The memory is that of the new number of sequences.
        """
        index = torch.tensor(list(sequences), dtype=torch.int64, device=self.layers[0].keys.device)
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        self.lengths = [self.lengths[sequence] for sequence in sequences]
