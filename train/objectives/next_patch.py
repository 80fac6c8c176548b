"""Predict each patch of a strip from those before it: the objective of the language model that writes text as pixels.

Data are rows of text that are drawn when they are needed (`train/data/strips/`). The end patch of a row is a target
like any other, so the model learns where a text stops; with a start vector the first patch is one too. The trained loss
is in nats a pixel, which says little to people, so held-out rows are also told in bits a patch, which compares models
of one renderer, and in bits a character, which compares any models of the same text: it is the length to which the
model, with an arithmetic coder, would compress the drawn text, and an upper bound of the bits of the text itself.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixelcore.accounting_pixar import flops_per_patch, pixar_training_bytes
from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar
from pixelcore.stored import Stored
from render import Renderer
from render.config import RenderConfig
from render.picture import write_png
from train.config import PatchSettings
from train.continuations import NextWords, picture_of
from train.data.corpus import training_texts
from train.data.order import BlockOrder
from train.data.strips.find_rows import check_row_length, find_rows, renderer_of_model
from train.data.strips.patch_batches import PatchBatches, PatchMicroBatch, held_out_patches
from train.data.strips.strip_corpus import StripCorpus
from train.distributed import Ranks
from train.objective import Loss
from train.report import Reporter

UNIT = "rows"  # what progress is counted in
CURVE = "loss (nats a pixel; of a regression, squared error)"


# ------------------------------------------------------------------ before the first step


def adopt(settings: PatchSettings, stored: Stored, init: Path) -> PatchSettings:
    """The stored architecture, head included, and renderer. Rotary positions have no table that ends, so rows may be
    longer than the stored context, which then grows."""
    assert isinstance(stored.config, PixarConfig)
    room = max(stored.config.max_patches, settings.data.row_patches)
    model = replace(stored.config, max_patches=room)
    return replace(settings, model=model, render=renderer_of_model(settings, stored, init))


def find_data(
    settings: PatchSettings, ranks: Ranks, stored: Stored | None, own_text: Path | None
) -> tuple[StripCorpus, PatchSettings]:
    """Rows to draw, and settings whose renderer draws rows of the length that is trained on."""
    _check_sizes(settings)
    return find_rows(settings, ranks, stored, own_text)


def _check_sizes(settings: PatchSettings) -> None:
    check_row_length(settings)
    model, render, data = settings.model, settings.render, settings.data
    if (render.height, render.patch_width) != (model.patch_height, model.patch_width):
        raise UserError(
            f"render.height = {render.height} and render.patch_width = {render.patch_width} must be model.patch_height "
            f"= {model.patch_height} and model.patch_height * model.patch_length = {model.patch_width}: edit [render] "
            "or [model]"
        )
    if model.head != "regression" and render.color != "binary":
        raise UserError(
            f"render.color = {render.color!r}: model.head = {model.head!r} says of each pixel whether it is ink or "
            "paper: set render.color=binary, or model.head=regression"
        )
    if render.channels > model.num_channels:
        raise UserError("render.color = 'rgb' needs model.num_channels = 3: edit [render] or [model]")
    if data.row_patches > model.max_patches:
        raise UserError(
            f"data.row_patches = {data.row_patches} must not exceed model.max_patches = {model.max_patches}: shorten "
            "the rows, or raise model.max_patches"
        )


def num_blocks(settings: PatchSettings) -> int:
    """Rows of one step."""
    return settings.data.rows_per_step


def block_units(settings: PatchSettings) -> int:
    """A row is a row: how many patches it has is known when it is there."""
    return 1


def describe_block(settings: PatchSettings) -> str:
    """A row in words."""
    return f"{settings.data.row_patches} patches"


def block_bytes(settings: PatchSettings, blocks: int, bytes_per_value: int, recompute: bool) -> float:
    """Estimated peak memory of a training step with micro-batches of so many full rows."""
    rows = blocks * block_rows(settings)
    return pixar_training_bytes(settings.model, rows, bytes_per_value=bytes_per_value, recompute=recompute)


def block_rows(settings: PatchSettings) -> int:
    """Rows of activations of a full strip: one for each patch that is foretold."""
    return settings.data.row_patches - 1 + int(settings.model.start_vector)


def step_flops(settings: PatchSettings) -> float:
    """Floating point operations of one optimizer step, were all its rows full."""
    rows = block_rows(settings)
    return settings.data.rows_per_step * rows * flops_per_patch(settings.model, rows)


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows, dealt out as one step, and the characters of their texts. words: places at which the next word is
    read at every evaluation, None where none is."""

    batches: PatchBatches
    settings: PatchSettings
    num_characters: int
    words: NextWords | None


def deal(settings: PatchSettings, corpus: StripCorpus, ranks: Ranks) -> tuple[PatchBatches, HeldOut]:
    """The training rows in the order of the seed, and the held-out rows."""
    run, data = settings.run, settings.data
    renderer = Renderer(RenderConfig.from_dict(corpus.renderer["config"]))
    dealing: dict[str, Any] = {
        "start_vector": settings.model.start_vector,
        "micro_batch_rows": run.micro_batch_blocks,
        "rank": ranks.rank,
        "world": ranks.world,
    }
    order = BlockOrder(run.seed, [len(store) for store in corpus.training], data.weights or None)
    batches = PatchBatches(
        corpus.training, order, renderer, rows_per_step=data.rows_per_step, workers=data.workers, **dealing
    )
    held_out = held_out_patches(corpus.held_out, renderer, **dealing)
    texts = held_out.texts(0, held_out.rows_per_step)
    words = None
    if settings.eval.words and ranks.world == 1:
        # here and not at the first evaluation: text without a place to read should not end a run that is under way
        words = NextWords(renderer, texts, training_texts(corpus.sources, data.field), settings.eval.words)
    return batches, HeldOut(held_out, settings, sum(map(len, texts)), words)


# ------------------------------------------------------------------ in a step, and after it


def loss(model: nn.Module, batch: PatchMicroBatch, scale: Tensor, dropout_seed: Tensor | None) -> Loss:
    """The loss of one micro-batch; scale is 1 / (foretold patches of the whole step). A filler weighs nothing. There is
    no dropout."""
    out = model(batch.patches, scale=scale if batch.count else torch.zeros_like(scale))
    return Loss(out.loss, out.loss.detach(), torch.zeros_like(out.loss))


@torch.no_grad()
def evaluate(model: nn.Module, held_out: HeldOut, ranks: Ranks) -> dict[str, float]:
    """loss: what is trained, the mean over the foretold patches of the held-out rows. Of a model of ink and paper also
    bits_per_patch, the same in other units, and bits_per_character: all their -log2 p, over the characters of the texts
    that were drawn (code points; end patches cost bits and are no character). Only with a start vector is the first
    patch of a row among them; without one the figure leaves it out, and is that much too low. Every rank must call it.
    """
    was_training = model.training
    model.eval()
    one = torch.ones((), device=ranks.device)
    totals = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    for index in range(held_out.batches.per_rank):
        batch = held_out.batches.micro_batch(0, index, ranks.device)
        found = loss(model, batch, one, None)
        totals[0] += found.reported.double()
        totals[1] += batch.count
    model.train(was_training)
    total, count = ranks.sum(totals).tolist()
    config = held_out.settings.model
    if config.head == "regression":
        return {"loss": total / count}
    bits = total * config.patch_values / math.log(2)
    return {
        "loss": total / count,
        "bits_per_patch": bits / count,
        "bits_per_character": bits / held_out.num_characters,
    }


def say(values: dict[str, float]) -> str:
    """What `evaluate` and `show` found, in a line."""
    line = f"held-out loss {values['loss']:.5f}"
    if "bits_per_patch" in values:
        line += f", {values['bits_per_patch']:.3f} bits a patch, {values['bits_per_character']:.3f} a character"
    if "words_right" in values:
        right, legible, same = (100 * values[f"words_{name}"] for name in ("right", "legible", "most_common"))
        line += f"; next words: {right:.1f} % right, {legible:.1f} % legible, {same:.1f} % the most common one"
    return line


def show(
    model: Pixar, settings: PatchSettings, corpus: StripCorpus, held_out: HeldOut, reporter: Reporter, step: int
) -> dict[str, float]:
    """A picture of a few held-out rows whose second half the model writes, and how many next words are right."""
    batches = held_out.batches
    if settings.eval.picture_rows:
        picture = picture_of(model, batches.renderer, batches.texts(0, settings.eval.picture_rows))
        write_png(reporter.folder.samples / f"step_{step:08d}.png", picture)
    return {} if held_out.words is None else held_out.words.score(model)
