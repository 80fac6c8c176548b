"""A classifier's head for models that read from left to right: their rows stand end to end, without padding.

The last row of a text is the only one that has seen all of it, so its state is what is classified ("end", as published
for PIXAR), or its state through one hidden layer. The mean of all states counts early rows, which have seen little; a
learned score of each row, their softmax as weights, leaves it to training which rows count.
Source: specs/pixar.md, section 5.1.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pixelcore.layers import Linear, linear
from pixelcore.models.decoder import Decoder
from pixelcore.models.heads import TaskOutput, label_loss
from pixelcore.models.pixar_trunk import PixarTrunk
from pixelcore.ops import Ops
from pixelcore.packed import Packed


class PackedHead(nn.Module):
    """Pool the rows of each text into one vector and classify that. takes, needs: as of `Head`."""

    takes: tuple[str, ...] = ("labels",)
    needs: tuple[str, ...] = ()

    def __init__(self, width: int, num_labels: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        if pooling == "end_mlp":
            self.inner = Linear(width, width)
        if pooling == "attention":
            self.score = Linear(width, 1, bias=False)
        self.classifier = Linear(width, num_labels)

    def forward(
        self, rows_ND: Tensor, packed: Packed, ops: Ops, labels: Tensor | None, scale: Tensor | None
    ) -> TaskOutput:
        """rows: of all texts. labels: [B], int64, or float for one output."""
        logits_BO = self.classifier(self._pooled(rows_ND, packed, ops))
        if labels is None:
            return TaskOutput(logits=logits_BO)
        loss, count = label_loss(logits_BO, labels, ops, scale)
        return TaskOutput(loss=loss, logits=logits_BO, count=count)

    def _pooled(self, rows_ND: Tensor, packed: Packed, ops: Ops) -> Tensor:
        if self.pooling in ("end", "end_mlp"):
            end_BD = rows_ND[packed.offsets[1:].long() - 1]
            return end_BD if self.pooling == "end" else ops.gelu(linear(end_BD, self.inner.weight), self.inner.bias)
        if self.pooling == "mean":
            return torch.stack([of_text.mean(0) for of_text in rows_ND.split(packed.lengths)])
        score_N1 = self.score(rows_ND)
        pairs = zip(rows_ND.split(packed.lengths), score_N1.split(packed.lengths))
        return torch.stack([(of_text * score.softmax(0)).sum(0) for of_text, score in pairs])


class PackedTask(nn.Module):
    """What both classifiers with this head are besides: how to run is their trunk's to know."""

    encoder: Decoder | PixarTrunk

    def blocks(self) -> Iterable[nn.Module]:
        """What sharding wraps one by one."""
        return self.encoder.blocks()

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the activations: how to run, not what the model is."""
        return self.encoder.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self.encoder.compute_dtype = dtype

    @property
    def recompute(self) -> bool:
        """Keep only what enters each block, and run it again in the backward pass."""
        return self.encoder.recompute

    @recompute.setter
    def recompute(self, recompute: bool) -> None:
        self.encoder.recompute = recompute
