"""Paint the patches of a strip that are hidden, from those that are not: the objective of the masked autoencoder.

Data are rows of text that are drawn when they are needed (`train/data/strips/`); which of their patches are hidden
follows from the run's seed and the row's place in the order. Held-out rows meet the same masks at every evaluation.
Three figures say how well the model does: the loss that is trained, the error in raw pixels, and the one that can be
compared between renderers: how many of the hidden characters a reader reads off the painted strip
(`infer/benchmarks/masked_characters.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from infer.benchmarks.masked_characters import MaskedCharacters, Row
from infer.reconstruct import figure, predict, reconstruct_rows
from pixelcore.accounting_vit import strip_flops, strip_training_bytes
from pixelcore.config import ViTMAEConfig
from pixelcore.errors import UserError
from pixelcore.models.vit_mae import ViTMAE
from pixelcore.ops import REFERENCE
from pixelcore.patches import Patches
from pixelcore.stored import Stored
from render import Renderer
from render.config import RenderConfig
from render.picture import write_png
from train.config import StripSettings
from train.data.corpus import training_texts
from train.data.order import BlockOrder
from train.data.strips.find_rows import check_row_length, find_rows, renderer_of_model
from train.data.strips.strip_batches import StripBatches, StripMicroBatch, held_out_batches
from train.data.strips.strip_corpus import StripCorpus
from train.distributed import Ranks
from train.objective import Loss
from train.report import Reporter

UNIT = "rows"  # what progress is counted in
CURVE = "loss (squared error of a hidden patch)"


# ------------------------------------------------------------------ before the first step


def adopt(settings: StripSettings, stored: Stored, init: Path) -> StripSettings:
    """The stored architecture and renderer; dropout as the run wants it."""
    assert isinstance(stored.config, ViTMAEConfig)
    model = settings.model
    found = replace(
        stored.config,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        interpolate_positions=model.interpolate_positions,
    )
    return replace(settings, model=found, render=renderer_of_model(settings, stored, init))


def find_data(
    settings: StripSettings, ranks: Ranks, stored: Stored | None, own_text: Path | None
) -> tuple[StripCorpus, StripSettings]:
    """Rows to draw, and settings whose renderer draws rows of the length that is trained on."""
    _check_sizes(settings)
    return find_rows(settings, ranks, stored, own_text)


def _check_sizes(settings: StripSettings) -> None:
    check_row_length(settings)
    model, render, data = settings.model, settings.render, settings.data
    if (render.height, render.patch_width) != (model.patch_size, model.patch_size):
        raise UserError(
            f"render.height = {render.height} and render.patch_width = {render.patch_width} must be model.patch_size = "
            f"{model.patch_size}: edit [render] or [model]"
        )
    if render.channels == 3 and model.num_channels == 1:
        raise UserError("render.color = 'rgb' needs model.num_channels = 3: edit [render] or [model]")
    if data.row_patches > model.num_patches and not model.interpolate_positions:
        raise UserError(
            f"data.row_patches = {data.row_patches} must not exceed model.num_patches = {model.num_patches}: shorten "
            "the rows, or set model.interpolate_positions = true"
        )


def num_blocks(settings: StripSettings) -> int:
    """Rows of one step."""
    return settings.data.rows_per_step


def block_units(settings: StripSettings) -> int:
    """A row is a row."""
    return 1


def describe_block(settings: StripSettings) -> str:
    """A row in words."""
    return f"{settings.data.row_patches} patches"


def block_bytes(settings: StripSettings, blocks: int, bytes_per_value: int, recompute: bool) -> float:
    """Estimated peak memory of a training step with micro-batches of so many full rows."""
    patches, hidden = _full_row(settings)
    return strip_training_bytes(
        settings.model,
        blocks,
        patches,
        hidden,
        bytes_per_value=bytes_per_value,
        recompute=recompute,
        weights_kept=settings.model.attention_dropout > 0,
    )


def block_rows(settings: StripSettings) -> int:
    """Patches of a full row."""
    return settings.data.row_patches


def step_flops(settings: StripSettings) -> float:
    """Floating point operations of one optimizer step, were all its rows full."""
    patches, hidden = _full_row(settings)
    return settings.data.rows_per_step * strip_flops(settings.model, patches, hidden, settings.render.channels)


def _full_row(settings: StripSettings) -> tuple[int, int]:
    """Patches, and hidden ones, of a row that is full."""
    patches = settings.data.row_patches
    return patches, patches - int(patches * (1 - settings.objective.ratio))


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows under their fixed masks, dealt out as one step. characters: the hidden ones that are read at every
    evaluation, None where none are."""

    batches: StripBatches
    settings: StripSettings
    characters: MaskedCharacters | None

    def rows(self, count: int) -> tuple[Sequence[str], Sequence[np.ndarray]]:
        """Texts and masks bool [patches] of the first `count` rows: the order is a permutation, so they are spread."""
        return _first_rows(self.batches, count)


def deal(settings: StripSettings, corpus: StripCorpus, ranks: Ranks) -> tuple[StripBatches, HeldOut]:
    """The training rows in the order of the seed, and the held-out rows."""
    run, data = settings.run, settings.data
    renderer = Renderer(RenderConfig.from_dict(corpus.renderer["config"]))
    dealing: dict[str, Any] = {"micro_batch_rows": run.micro_batch_blocks, "rank": ranks.rank, "world": ranks.world}
    batches = StripBatches(
        corpus.training,
        BlockOrder(run.seed, [len(store) for store in corpus.training], data.weights or None),
        renderer,
        settings.objective,
        seed=run.seed,
        rows_per_step=data.rows_per_step,
        workers=data.workers,
        **dealing,
    )
    held_out = held_out_batches(corpus.held_out, renderer, settings.objective, **dealing)
    # here and not at the first evaluation: rows in which nothing can be read should not end a run that is under way
    characters = _hidden_characters(held_out, corpus, settings) if ranks.world == 1 else None
    return batches, HeldOut(held_out, settings, characters)


def _first_rows(batches: StripBatches, count: int) -> tuple[Sequence[str], Sequence[np.ndarray]]:
    texts, masks = zip(*batches.texts_and_masks(0, count), strict=True)
    return texts, masks


def _hidden_characters(batches: StripBatches, corpus: StripCorpus, settings: StripSettings) -> MaskedCharacters | None:
    """Those of eval.read_rows rows. What could be guessed without a model is learned from the training text."""
    if not settings.eval.read_rows:
        return None
    known = training_texts(corpus.sources, settings.data.field)
    try:
        return MaskedCharacters(batches.renderer.config, known, *_first_rows(batches, settings.eval.read_rows))
    except UserError as cause:
        raise UserError(f"eval.read_rows = {settings.eval.read_rows}: {cause}; 0 reads none") from cause


# ------------------------------------------------------------------ in a step, and after it


def loss(model: nn.Module, batch: StripMicroBatch, scale: Tensor, dropout_seed: Tensor | None) -> Loss:
    """The loss of one micro-batch; scale is 1 / (hidden patches of the whole step)."""
    out = model(batch.patches, scale=scale, dropout_seed=dropout_seed)
    return Loss(out.loss, out.loss.detach(), torch.zeros_like(out.loss))


@torch.no_grad()
def evaluate(model: nn.Module, held_out: HeldOut, ranks: Ranks) -> dict[str, float]:
    """loss: what is trained, over the hidden patches of the held-out rows. pixel_loss: squared error of their pixels, 0
    ink and 1 paper; a prediction of normalised pixels is brought back by the mean and deviation of the true patch, as
    only the truth knows them. Every rank must call it."""
    was_training = model.training
    model.eval()
    one = torch.ones((), device=ranks.device)
    totals = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    for index in range(held_out.batches.per_rank):
        batch = held_out.batches.micro_batch(0, index, ranks.device)
        out = model(batch.patches, scale=one)
        raw = raw_pixel_error(out.logits, batch.patches, held_out.settings.model.normalise_pixels)
        totals += torch.stack((out.loss.double(), raw.double(), out.count.double()))
    model.train(was_training)
    total, raw, count = ranks.sum(totals).tolist()
    return {"loss": total / count, "pixel_loss": raw / count}


def raw_pixel_error(predictions_MO: Tensor, patches: Patches, normalised: bool) -> Tensor:
    """Sum over the scored patches of the mean squared error of their pixels in [0, 1]."""
    if normalised:
        target_MA = patches.pixels[patches.scored].float() / 255
        # the deviation over the values as the loss counts them, every channel one
        values = predictions_MO.shape[1]
        variance_M1 = target_MA.var(1, keepdim=True, correction=0) * (values / (values - 1))
        predictions_MO = predictions_MO.float() * (variance_M1 + 1e-6).sqrt() + target_MA.mean(1, keepdim=True)
    one = torch.ones((), device=predictions_MO.device)
    error, _ = REFERENCE.pixel_mse(predictions_MO, patches.pixels, patches.scored, False, one)
    return error


def say(values: dict[str, float]) -> str:
    """What `evaluate` and `show` found, in a line."""
    line = f"held-out loss {values['loss']:.4f}, raw pixels {values['pixel_loss']:.5f}"
    if "characters" in values:
        line += f", {100 * values['characters']:.2f} % of the hidden characters read"
    return line


def show(
    model: ViTMAE, settings: StripSettings, corpus: StripCorpus, held_out: HeldOut, reporter: Reporter, step: int
) -> dict[str, float]:
    """A picture of a few held-out rows as the model paints them, and how many hidden characters can be read."""
    values: dict[str, float] = {}
    if settings.eval.picture_rows:
        painted = reconstruct_rows(model, held_out.batches.renderer, *held_out.rows(settings.eval.picture_rows))
        write_png(reporter.folder.samples / f"step_{step:08d}.png", Image.fromarray(figure(painted)))
    if held_out.characters is not None:
        found = held_out.characters.score(
            lambda rows: predictions_of(model, rows), normalised=model.config.normalise_pixels
        )
        values = {
            "characters": found.accuracy,
            "characters_low": found.low,
            "characters_high": found.high,
            "characters_count": found.count,
            "characters_ceiling": found.ceiling,
            "characters_nearest": found.nearest,
            "characters_ngram": found.ngram,
            "characters_most_frequent": found.most_frequent,
        }
    return values


def predictions_of(model: ViTMAE, rows: Sequence[Row]) -> list[np.ndarray]:
    """What a model predicts for the hidden patches of rows, as `MaskedCharacters.score` asks for it."""
    size = model.config.patch_size
    patches = [row.pixels_PA.reshape(len(row.pixels_PA), size, size, -1) for row in rows]
    return predict(
        model, [each[..., 0] if each.shape[-1] == 1 else each for each in patches], [row.hidden_P for row in rows]
    )
