"""Predict each patch of a strip so that a discriminator takes it for real: stage 2 of the model that writes strips.

Likelihood makes a model hedge: what could be one word or the other is painted as both. A few hundred steps against a
discriminator make it choose, which costs likelihood and gains legibility, and soon words that can be read and are wrong
(specs/pixar.md, section 4.3). So held-out rows are looked at as in stage 1, in the same figures: how far to go is read
off them, on text of the training corpus that is held out, never on what the model is judged by in the end.

A run begins with a trained model and a discriminator that begins beside it (`train/opponent.py`, which also says what a
step does). Everything that is not named here is that of `next_patch`.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pixelcore.accounting_pixar import pixar_training_bytes
from pixelcore.adversarial import fake_patches
from pixelcore.errors import UserError
from pixelcore.stored import Stored
from train.config import AdversarialSettings, ContextDiscriminatorConfig
from train.data.strips.strip_corpus import StripCorpus
from train.distributed import Ranks
from train.objective import Loss
from train.objectives import next_patch
from train.objectives.next_patch import (
    CURVE,
    UNIT,
    adopt,
    block_rows,
    block_units,
    deal,
    describe_block,
    evaluate,
    num_blocks,
    say,
    show,
)
from train.opponent import Round

__all__ = [
    "CURVE",
    "UNIT",
    "adopt",
    "block_bytes",
    "block_rows",
    "block_units",
    "deal",
    "describe_block",
    "evaluate",
    "find_data",
    "loss",
    "num_blocks",
    "say",
    "show",
    "step_flops",
]


def find_data(
    settings: AdversarialSettings, ranks: Ranks, stored: Stored | None, own_text: Path | None
) -> tuple[StripCorpus, AdversarialSettings]:
    """Rows to draw, as in stage 1. Raises UserError besides for what stage 2 cannot do."""
    model, objective, discriminator = settings.model, settings.objective, settings.discriminator
    if model.head == "regression":
        raise UserError(
            "model.head = 'regression': a discriminator judges black and white, and grey would give a prediction away: "
            "begin with a model whose head is bernoulli or mixture"
        )
    if settings.run.parallel == "fsdp" and ranks.world > 1:
        raise UserError(
            "run.parallel = 'fsdp': stage 2 keeps generator and discriminator whole on every rank: set run.parallel=ddp"
        )
    hot = {"objective": objective.hot_layers}
    if isinstance(discriminator, ContextDiscriminatorConfig):
        hot["discriminator"] = discriminator.hot_layers
    for table, layers in hot.items():
        if layers > model.num_layers:
            raise UserError(
                f"{table}.hot_layers = {layers} must not exceed model.num_layers = {model.num_layers}; 0 trains all of "
                "them"
            )
    corpus, found = next_patch.find_data(settings, ranks, stored, own_text)
    return corpus, replace(settings, model=found.model, render=found.render)


def block_bytes(settings: AdversarialSettings, blocks: int, bytes_per_value: int, recompute: bool) -> float:
    """Estimated peak memory of a training step with micro-batches of so many full rows: two models, one of which is at
    work, at most with the fakes beside the real patches."""
    fakes = settings.objective.fakes_per_strip if isinstance(settings.discriminator, ContextDiscriminatorConfig) else 0
    strips = 1 if settings.objective.rollout == 1 else 2  # copies stand beside them
    rows = blocks * (strips * (block_rows(settings) + 1) + fakes)
    at_work = pixar_training_bytes(settings.model, rows, bytes_per_value=bytes_per_value, recompute=recompute)
    return at_work + pixar_training_bytes(settings.model, 0, bytes_per_value=bytes_per_value)


def step_flops(settings: AdversarialSettings) -> float:
    """Floating point operations of one optimizer step, were all its rows full. A forward pass is a third of a training
    pass: the generator has four of these thirds, the discriminator two for the pulls and three to learn; the one that
    sees single patches is left out. With a rollout the generator reads copies of the strips as well, and once more for
    each step of both lessons; the discriminator learns of reals and fakes apart."""
    generator, steps = next_patch.step_flops(settings), settings.objective.rollout
    thirds = 4 if steps == 1 else 7 + 2 * steps
    if not isinstance(settings.discriminator, ContextDiscriminatorConfig):
        return generator * thirds / 3
    rows = block_rows(settings)
    judged = 5 * (rows + settings.objective.fakes_per_strip) / rows
    return generator * (thirds + judged + (0 if steps == 1 else 3)) / 3


def loss(model: nn.Module, batch: Round, scale: Tensor, dropout_seed: Tensor | None) -> Loss:
    """The loss of one micro-batch, reported without its adversarial part; scale is 1 / (foretold patches of the whole
    step). A filler weighs nothing."""
    out = model(batch.patches, scale=scale if batch.count else torch.zeros_like(scale))
    fakes_FA = fake_patches(out, batch.rows, batch.fakes, batch.draws)
    return Loss(out.loss + (fakes_FA * batch.pull).sum(), out.loss.detach(), torch.zeros_like(out.loss))
