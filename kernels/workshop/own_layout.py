"""The same numbers in another order of memory, for peers that want them so.

A peer of attention that knows no packed rows gets a batch in which every document is as long as the longest one:

    packed rows          a a a b b b b b c        N rows, no waste, offsets say where a document begins
    padded batch         a a a . .                [documents, heads, longest, head size]; what stands behind a document
                         b b b b b                is zero, is computed and is thrown away
                         c . . . .

Both are made before anything is timed, so the padded peer pays for the arithmetic of padding and not for the copies.
Its results are compared, and their gradients arrive, row by row where the documents are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pixelcore.packed import Packed


@dataclass(frozen=True)
class OwnLayout:
    """A call on tensors of its own. leaves: what it differentiates, in the order of the case's. lay: from the case's
    rows to its layout; rows: from its layout back. above: gradients of its results, made once."""

    call: Callable[[], Any]
    leaves: Sequence[Tensor]
    lay: Callable[[Tensor], Tensor]
    rows: Callable[[Tensor], Tensor]
    above: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Padding:
    """Packed rows [N, H, K] as a batch [B, H, S, K] whose memory is [B, S, H, K], and back."""

    documents_N: Tensor
    places_N: Tensor
    num_documents: int
    longest: int

    @staticmethod
    def of(packed: Packed) -> "Padding":
        lengths_M = packed.offsets.diff().long()
        index_M = torch.arange(len(lengths_M), device=lengths_M.device)
        documents_N = torch.repeat_interleave(index_M, lengths_M)
        places_N = torch.arange(len(documents_N), device=lengths_M.device) - packed.offsets.long()[documents_N]
        return Padding(documents_N, places_N, len(lengths_M), packed.max_length)

    def lay(self, x_NHK: Tensor) -> Tensor:
        padded_BSHK = x_NHK.new_zeros(self.num_documents, self.longest, *x_NHK.shape[1:])
        padded_BSHK[self.documents_N, self.places_N] = x_NHK.detach()
        return padded_BSHK.transpose(1, 2)

    def leaf(self, x_NHK: Tensor) -> Tensor:
        return self.lay(x_NHK).requires_grad_(x_NHK.requires_grad)

    def rows(self, x_BHSK: Tensor) -> Tensor:
        return x_BHSK.transpose(1, 2)[self.documents_N, self.places_N]
