"""Predict each token of a document from those before it: the objective of the decoder."""

from dataclasses import dataclass

from torch import Tensor, nn

from train.data.batches import MicroBatch


@dataclass(frozen=True)
class Loss:
    """total: what is differentiated. cross_entropy: the part that says how well the text is predicted. balance: the
    experts' load-balancing loss before its coefficient. All are scaled sums: over the micro-batches and ranks of a step
    they add up to means."""

    total: Tensor
    cross_entropy: Tensor
    balance: Tensor


def loss(model: nn.Module, batch: MicroBatch, scale: Tensor, dropout_seed: Tensor | None) -> Loss:
    """The loss of one micro-batch; scale is 1 / (targets of the whole step)."""
    out = model(batch.ids, batch.packed, targets=batch.targets, scale=scale, dropout_seed=dropout_seed)
    return Loss(out.loss, out.cross_entropy, out.balance * out.count * scale)
