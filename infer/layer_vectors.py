"""Texts and words as vectors of every layer at once: what the analyses of an encoder compare from layer to layer.

Layer 0 is the embedded patches, layer n the residual stream after n blocks, before any norm. One pass through the model
gives all of them. A text becomes one vector in one of two ways:

    mean        over CLS and the patches, the end patch included
    published   the sum over the same rows, divided by the number of patches alone, as the programs of PIXEL-M4 do: CLS
                is counted in the sum and not in the divisor (specs/pixel.md, section 7)

The two differ by a factor near 1 that depends on the length of the text. Directions are the same, so a cosine cannot
tell them apart, but a mean that is taken away from all vectors can. A word is the mean of its patches.

Strips are drawn once and read by several encoders; the one that a trained model is compared with has the same
configuration and the weights with which training begins. Whatever that one can do is in the pictures, not learned.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infer.pixels import longest_strip, patch_values
from infer.reconstruct import PATCHES_PER_PASS
from infer.task_rows import Row, Strips
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models import MODELS
from pixelcore.models.heads import ViTTask
from pixelcore.models.vit import Encoder, Run
from pixelcore.models.vit_mae import ViTMAE
from pixelcore.patches import Patches, arrange
from render import Renderer

POOLINGS = ("mean", "published")

PixelModel = ViTMAE | ViTTask


@dataclass(frozen=True)
class DrawnTexts:
    """Strips in the order of the texts. truncated: the share of texts that were cut. missing_glyphs: the share of
    characters that no font has."""

    rows: list[Row]
    patch_width: int
    truncated: float
    missing_glyphs: float


def draw_texts(model: PixelModel, renderer: Renderer, texts: Sequence[str] | Sequence[list[str]]) -> DrawnTexts:
    """Texts, or the words of each, as strips that the model can read; what does not fit is cut at the end. Raises
    UserError for a text that is empty or cannot be drawn, naming it by its number from 1."""
    strips = Strips(renderer, longest_strip(renderer, model.config))
    rows: list[Row] = []
    for number, text in enumerate(texts, 1):
        if not "".join(text).strip():
            raise UserError(f"text {number} is empty: give at least one character that is not a space")
        try:
            rows += strips.rows(text, None, spans=False)
        except UserError as cause:
            raise UserError(f"text {number}: {cause}") from cause
    characters = sum(len("".join(text)) for text in texts)
    return DrawnTexts(
        rows=rows,
        patch_width=renderer.config.patch_width,
        truncated=sum(row.layout.cut for row in rows) / max(len(rows), 1),
        missing_glyphs=sum(row.missing for row in rows) / max(characters, 1),
    )


def random_encoder(model: PixelModel, seed: int) -> PixelModel:
    """A model of the same configuration as training begins it, where the given one is and of its dtype."""
    fresh = MODELS[model.config.kind](model.config, model.ops)
    assert isinstance(fresh, PixelModel)
    initialise(fresh, seed)
    fresh.compute_dtype = model.compute_dtype
    place = model.encoder.cls_token
    return fresh.to(device=place.device, dtype=place.dtype).eval()


def text_vectors(model: PixelModel, drawn: DrawnTexts, pooling: str = "mean") -> NDArray[np.float32]:
    """float32 [layers + 1, texts, D]. pooling: see the head of this file."""
    assert pooling in POOLINGS

    def members(rows: Sequence[Row], first: int) -> tuple[list[Tensor], list[int]]:
        """Of each text all its rows of the encoder, and what their sum is divided by."""
        begin, sets, divisors = 0, [], []
        for row in rows:
            size = row.layout.num_units + 1
            sets.append(torch.arange(begin, begin + size))
            divisors.append(size if pooling == "mean" else size - 1)
            begin += size
        return sets, divisors

    return _pooled(model, drawn, members)


def word_vectors(
    model: PixelModel, drawn: DrawnTexts, wanted: Sequence[Sequence[int]]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """float32 [layers + 1, W, D] and bool [W] for the wanted words of each text, end to end. wanted: their numbers in
    the text, from 0. A word that was cut off has no patches: its vector is zero, and the second array says False."""
    seen = []
    for row, words in zip(drawn.rows, wanted, strict=True):
        starts = row.layout.word_starts
        assert starts is not None
        seen += [word + 1 < len(starts) and starts[word] < starts[word + 1] for word in words]

    def members(rows: Sequence[Row], first: int) -> tuple[list[Tensor], list[int]]:
        begin, sets = 0, []
        for place, row in enumerate(rows, first):
            starts = row.layout.word_starts
            assert starts is not None
            for word in wanted[place]:
                # behind CLS, patch i is row i + 1
                ends = starts[word : word + 2].tolist() if word + 1 < len(starts) else [0, 0]
                sets.append(torch.arange(begin + 1 + ends[0], begin + 1 + ends[1]))
            begin += row.layout.num_units + 1
        return sets, [max(len(rows_of), 1) for rows_of in sets]

    return _pooled(model, drawn, members), np.array(seen, bool)


_Members = Callable[[Sequence[Row], int], tuple[list[Tensor], list[int]]]


@torch.inference_mode()
def _pooled(model: PixelModel, drawn: DrawnTexts, members: _Members) -> NDArray[np.float32]:
    """Sums over sets of rows, divided, of every layer. members: of some strips and the number of the first of them."""
    device = model.encoder.cls_token.device
    run = Run(model.ops, model.compute_dtype)
    found: list[list[Tensor]] = [[] for _ in range(model.config.num_layers + 1)]
    first = 0
    for group in _groups(drawn.rows):
        sets, divisors = members(group, first)
        first += len(group)
        counts = [row.layout.num_units for row in group]
        pixels_PA = torch.cat([_patches(row, drawn.patch_width) for row in group])
        member_N = torch.cat(sets).to(device)
        owner_N = torch.repeat_interleave(torch.tensor([len(rows_of) for rows_of in sets])).to(device)
        divisor_S1 = torch.tensor(divisors, device=device)[:, None]
        patches = arrange(pixels_PA, counts, device=device)
        for layer, stream_ND in enumerate(_streams(model.encoder, patches, run)):
            sum_SD = stream_ND.new_zeros(len(sets), stream_ND.shape[1], dtype=torch.float32)
            sum_SD.index_add_(0, owner_N, stream_ND[member_N].float())
            found[layer].append((sum_SD / divisor_S1).cpu())
    return np.stack([torch.cat(of_layer).numpy() for of_layer in found])


def _streams(encoder: Encoder, patches: Patches, run: Run) -> Iterator[Tensor]:
    """The residual stream [N, D] of every layer, as `Trunk.stream_after` gives that of one."""
    stream = (encoder(patches, run, 0), None, None)
    yield stream[0]
    for block in encoder.blocks:
        stream = block(*stream, patches.kept, run, None)
        residual_ND, delta_ND, bias_D = stream
        yield residual_ND + (delta_ND + bias_D.to(delta_ND.dtype))


def _groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Strips in their order, so many patches at a time, at least one strip each."""
    group: list[Row] = []
    total = 0
    for row in rows:
        if group and total + row.layout.num_units > PATCHES_PER_PASS:
            yield group
            group, total = [], 0
        group.append(row)
        total += row.layout.num_units
    if group:
        yield group


def _patches(row: Row, width: int) -> Tensor:
    """[L, A] of columns [X, Y] or [X, Y, 3]: values by row, column, channel."""
    columns = row.units.reshape(row.layout.num_units, width, *row.units.shape[1:])
    return patch_values(np.swapaxes(columns, 1, 2))
