"""Loss on held-out text, in the units that can be compared.

Loss per token depends on the tokenizer; bits per byte does not: the bits it takes to write the text, document ends
included, divided by the bytes of the text. Perplexity is exp(loss).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from train.data.batches import Batches
from train.distributed import Ranks


@dataclass(frozen=True)
class HeldOut:
    """Held-out blocks, all of them dealt out as one step, and the bytes of text that they hold."""

    batches: Batches
    num_bytes: int


@torch.no_grad()
def evaluate(model: nn.Module, held_out: HeldOut, ranks: Ranks) -> dict[str, float]:
    """loss (nats per token), perplexity and bits_per_byte of a model on held-out text. Every rank must call it."""
    was_training = model.training
    model.eval()
    one = torch.ones((), device=ranks.device)
    totals = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    for index in range(held_out.batches.per_rank):
        batch = held_out.batches.micro_batch(0, index, ranks.device)
        out = model(batch.ids, batch.packed, targets=batch.targets, scale=one)
        totals += torch.stack((out.cross_entropy.double(), out.count.double()))
    model.train(was_training)
    nats, count = ranks.sum(totals).tolist()
    loss = nats / count
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / held_out.num_bytes,
    }
