"""A language model that reads and writes text as pixels: patches of a strip go in, and each foretells the one after it.

The file reads in the order in which it runs. A patch of 8 rows and 8 L columns becomes a row of width D by one linear
map; the layers (`pixar_trunk.py`) let each row look back at its own strip; another linear map, not tied to the first,
says what the next patch will be. There is no vocabulary, so everything that can be drawn can be read.

What the head says decides what can be written. Bernoulli, as published: each pixel is paper with a chance of its own,
independent of the others given the context. Where the next patch may be one of several words it can only answer with
their average, which is no word. A mixture says a few whole patches and how likely each is, and one of them is drawn.
Regression serves colour and grey.

Training passes `NextPatches` (pixelcore.next_patches): nothing is padded, bytes stay bytes up to the first product, and
what is never asked for is never computed. Writing goes through `read`, with keys and values kept. The dense call of the
public interface, `model(image, attention_mask=)`, answers for every position and has the published loss.

Source: PIXAR, arXiv:2401.03321; specs/pixar.md, section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from pixelcore.kv_cache import KVCache
from pixelcore.layers import Linear, linear
from pixelcore.models.pixar_trunk import PatchMap, PixarTrunk
from pixelcore.next_patches import NextPatches, arrange_next_dense
from pixelcore.ops import REFERENCE, Ops
from pixelcore.packed import Packed
from pixelcore.patches import unpatchify


@dataclass
class PixarOutput:
    """What is said of the patches that come next.

    components: [rows, Z, A], or [B, L, Z, A] of a dense call; one (Z = 1) unless the head is a mixture. The log-odds of
    paper, or of a regression the values themselves. scores: [.., Z], whose softmax is how likely each component of a
    mixture is. loss: the scaled sum over the patches that count of -log p(patch) / A in nats, or of the mean squared
    distance; times A / ln 2 it is bits a patch. count: patches that the loss counts. Both None where nothing follows.
    patch: rows and columns of a patch.
    """

    components: Tensor
    scores: Tensor | None
    patch: tuple[int, int]
    loss: Tensor | None = None
    count: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The log-odds of each pixel by itself, of a mixture those of its average; values of a regression. [rows, A],
        or of a dense call an image like the one that went in: column by column what comes one patch further right."""
        logits = self.components.squeeze(-2) if self.scores is None else mixture_log_odds(self.components, self.scores)
        return logits if logits.dim() == 2 else unpatchify(logits, *self.patch)


def mixture_log_odds(components: Tensor, scores: Tensor) -> Tensor:
    """[.., A]: log p / (1 - p) of p = sum over z of softmax(scores)[z] * sigmoid(components[z])."""
    wide = torch.promote_types(components.dtype, torch.float32)
    weights, odds = scores.to(wide).log_softmax(-1)[..., None], components.to(wide)
    return (weights + F.logsigmoid(odds)).logsumexp(-2) - (weights + F.logsigmoid(-odds)).logsumexp(-2)


class Pixar(PixarTrunk):
    """The model of one `PixarConfig`. Parameters are fp32 and uninitialised: see `pixelcore.initialise`."""

    config: PixarConfig

    def __init__(self, config: PixarConfig, ops: Ops = REFERENCE) -> None:
        super().__init__(config, ops)
        self.out_proj = PatchMap(config, config.num_components)
        mixed = config.head == "mixture"
        self.score = Linear(config.hidden_size, config.num_components, bias=False) if mixed else None

    def forward(
        self, image: Tensor | NextPatches, *, attention_mask: Tensor | None = None, scale: Tensor | None = None
    ) -> PixarOutput:
        """What follows each patch, and the loss.

        image: `NextPatches`; or [B, C, patch_height, patch_width * L], uint8 or float in [0, 1], C the model's channels
        or 1. attention_mask, of a dense call: [B, L], 1 where a patch is real, all of them when absent; padding stands
        on the right. scale, of `NextPatches`: scalar, 1 / (targets of the step); the mean over this call when absent.
        The dense loss is the published one: of a regression the mean over the targets of the batch, else the mean over
        the strips of the mean over the targets of each.
        Raises UserError for pixels and masks that do not fit the model or each other, and for a strip that is too long.
        """
        if isinstance(image, NextPatches):
            assert attention_mask is None, "packed patches have no padding"
            return self._packed(image, scale)
        assert scale is None, "the dense call has the published scale"
        return self._dense(image, attention_mask)

    def read(
        self, pixels: Tensor, lengths: Sequence[int], cache: KVCache | None = None, last_only: bool = False
    ) -> PixarOutput:
        """What follows each of these patches, without a loss.

        pixels: [P, A], patches of strips end to end, `lengths` of each; with a cache the next patches of its sequences.
        A model with a start vector reads it before the first patch of each strip and answers for it as well, so a
        length may be 0 there. last_only: what follows the last patch of each strip alone.
        Raises UserError for a strip that is too long, and for one without patches where nothing stands before them.
        """
        held = [0] * len(lengths) if cache is None else cache.lengths
        before = [int(self.config.start_vector and had == 0) for had in held]
        new = [length + more for length, more in zip(lengths, before, strict=True)]
        if min(new) < 1:
            raise UserError(
                f"strip {new.index(min(new))} brings no patch, and only a start vector, at the beginning of a strip, "
                "goes on from nothing: give at least one patch, or a model with start_vector = true"
            )
        if len(pixels) != sum(lengths):
            raise ValueError(f"{len(pixels)} patches for strips of {sum(lengths)}: lengths = {list(lengths)}")
        capacity = self._max_rows if cache is None else cache.capacity
        self._check_length(max(had + more for had, more in zip(held, new, strict=True)), capacity)
        packed = Packed.from_lengths(new, device=pixels.device) if cache is None else cache.begin(new, pixels.device)
        starts = [row for rows, first in zip(new, before, strict=True) for row in [-1] * first + [0] * (rows - first)]
        start_N = torch.tensor(starts)
        if not len(pixels):  # start vectors alone read no patch, but rows are looked up in a table that is not empty
            pixels = pixels.new_zeros(1, pixels.shape[1])
        rows_N = torch.where(start_N < 0, -1, (start_N == 0).cumsum(0) - 1).to(pixels.device)
        hidden_ND = self._hidden(self._embed(pixels, rows_N), packed, cache)
        if cache is not None:
            cache.commit()
        return self._predict(hidden_ND[packed.offsets[1:].long() - 1] if last_only else hidden_ND)

    def _packed(self, patches: NextPatches, scale: Tensor | None) -> PixarOutput:
        self._check_length(patches.packed.max_length, self._max_rows)
        out = self._predict(self._hidden(self._embed(patches.pixels, patches.rows), patches.packed))
        if scale is None:
            scale = torch.full((), 1 / len(patches.targets), device=patches.pixels.device)
        out.loss, out.count = self._loss(out, patches, scale)
        return out

    def _dense(self, image: Tensor, attention_mask: Tensor | None) -> PixarOutput:
        patches = arrange_next_dense(image, self.config, attention_mask)
        batch = len(image)
        self._check_length(patches.packed.max_length, self._max_rows)
        hidden_ND = self._hidden(self._embed(patches.pixels, patches.rows), patches.packed)
        every = self._predict(hidden_ND)
        before = int(self.config.start_vector)  # its row has no place in the image: it is scored and not shown
        out = PixarOutput(
            components=every.components.unflatten(0, (batch, -1))[:, before:],
            scores=None if every.scores is None else every.scores.unflatten(0, (batch, -1))[:, before:],
            patch=every.patch,
        )
        if len(patches.targets):
            out.loss, out.count = self._loss(every, patches, self._published_scale(patches))
        return out

    def _published_scale(self, patches: NextPatches) -> Tensor:
        """Of a regression targets weigh alike; else strips do, those without a target apart: a number for each target,
        of its strip."""
        if self.config.head == "regression":
            return torch.full((), 1 / len(patches.targets), device=patches.pixels.device)
        count_B = torch.tensor(patches.counts)
        each_B = 1 / (count_B.clamp_min(1) * (count_B > 0).sum())
        return torch.repeat_interleave(each_B, count_B).to(patches.pixels.device)

    def _predict(self, hidden_ND: Tensor) -> PixarOutput:
        config = self.config
        weight_OD = self.out_proj.flat_weight(config.num_components * config.patch_values).T
        components_NZA = linear(hidden_ND, weight_OD).unflatten(1, (config.num_components, -1))
        scores_NZ = None if self.score is None else self.score(hidden_ND)
        return PixarOutput(components_NZA, scores_NZ, (config.patch_height, config.patch_width))

    def _loss(self, every: PixarOutput, patches: NextPatches, scale: Tensor) -> tuple[Tensor, Tensor]:
        components_MZA, scores_MZ = every.components, every.scores
        if len(patches.scored_rows) < len(patches.rows):  # not in training, unless a row was asked for every patch
            components_MZA = components_MZA[patches.scored_rows]
            scores_MZ = None if scores_MZ is None else scores_MZ[patches.scored_rows]
        if scores_MZ is not None:
            return self.ops.mixture_bce(components_MZA, scores_MZ, patches.pixels, patches.targets, scale)
        said_MA = components_MZA[:, 0]
        if self.config.head == "bernoulli":
            return self.ops.pixel_bce(said_MA, patches.pixels, patches.targets, scale)
        if self.config.values == "consistent":
            # from the range of the input to that of the pixels, before anything is rounded again
            said_MA = (said_MA.to(torch.promote_types(said_MA.dtype, torch.float32)) + 1) / 2
        return self.ops.pixel_mse(said_MA, patches.pixels, patches.targets, False, scale)

    def new_cache(self, num_sequences: int, capacity: int | None = None) -> KVCache:
        """An empty cache on the model's device; capacity in patches, at most and by default max_patches."""
        room = min(capacity or self.config.max_patches, self.config.max_patches)
        return KVCache(
            num_layers=self.config.num_layers,
            num_sequences=num_sequences,
            num_key_value_heads=self.config.num_attention_heads,
            head_size=self.config.head_size,
            capacity=room + int(self.config.start_vector),
            device=self.norm.weight.device,
            dtype=self.compute_dtype,
        )
