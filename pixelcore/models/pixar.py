"""A language model that reads and writes text as pixels: patches of a strip go in, and each foretells the one after it.

The file reads in the order in which it runs. A patch of 8 rows and 8 L columns becomes a row of width D by one linear
map, its pixels from -1 (ink) to 1 (paper); the layers are those of a Llama decoder (RMSNorm, rotary positions on halves
of the features, SwiGLU, no bias anywhere), each row looking back at its own strip; another linear map, not tied to the
first, says what the next patch will be. There is no vocabulary, so everything that can be drawn can be read.

What the head says decides what can be written. Bernoulli, as published: each pixel is paper with a chance of its own,
independent of the others given the context. Where the next patch may be one of several words it can only answer with
their average, which is no word. A mixture says a few whole patches and how likely each is, and one of them is drawn.
Regression serves colour and grey.

Training passes `NextPatches` (pixelcore.next_patches): nothing is padded, bytes stay bytes up to the first product, and
what is never asked for is never computed. Writing goes through `read`, with keys and values kept. The dense call of the
public interface, `model(image, attention_mask=)`, answers for every position and has the published loss.

Source: PIXAR, arXiv:2401.03321; specs/pixar.md, section 2.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from pixelcore.kv_cache import KVCache, LayerCache
from pixelcore.layers import Linear, PackedLinear, linear
from pixelcore.models.decoder import NormWeight
from pixelcore.next_patches import NextPatches, arrange_next_dense
from pixelcore.ops import REFERENCE, HeadLayout, Ops, rope_table
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


class Pixar(nn.Module):
    """The model of one `PixarConfig`. Parameters are fp32 and uninitialised: see `pixelcore.initialise`.

    compute_dtype: dtype of the activations. recompute: keep only what enters each block and run it again in the
    backward pass. Both are how to run, not what the model is, so neither is part of the configuration.
    """

    def __init__(self, config: PixarConfig, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.compute_dtype = torch.float32
        self.recompute = False
        self.in_proj = PatchMap(config)
        self.start = nn.Parameter(torch.empty(config.hidden_size)) if config.start_vector else None
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = NormWeight(config.hidden_size)
        self.out_proj = PatchMap(config, config.num_components)
        mixed = config.head == "mixture"
        self.score = Linear(config.hidden_size, config.num_components, bias=False) if mixed else None
        self._tables: dict[torch.device, Tensor] = {}

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
            scored = PixarOutput(
                components=every.components[patches.scored_rows],
                scores=None if every.scores is None else every.scores[patches.scored_rows],
                patch=every.patch,
            )
            out.loss, out.count = self._loss(scored, patches, self._published_scale(patches))
        return out

    def _published_scale(self, patches: NextPatches) -> Tensor:
        """Of a regression targets weigh alike; else strips do, those without a target apart: a number for each target,
        of its strip."""
        if self.config.head == "regression":
            return torch.full((), 1 / len(patches.targets), device=patches.pixels.device)
        count_B = torch.tensor(patches.counts)
        each_B = 1 / (count_B.clamp_min(1) * (count_B > 0).sum())
        return torch.repeat_interleave(each_B, count_B).to(patches.pixels.device)

    def _check_length(self, num_rows: int, capacity: int) -> None:
        if num_rows > capacity:
            before = int(self.config.start_vector)
            room = "the model's max_patches" if capacity == self._max_rows else "the room that was made for it"
            raise UserError(
                f"a strip of {num_rows - before} patches is longer than {room} = {capacity - before}: cut it, or ask "
                "for fewer patches"
            )

    @property
    def _max_rows(self) -> int:
        return self.config.max_patches + int(self.config.start_vector)

    def _embed(self, pixels_PA: Tensor, rows_N: Tensor) -> Tensor:
        """Row n: the projection of patch rows_N[n], or the start vector where that is -1."""
        weight_DA = self.in_proj.flat_weight(pixels_PA.shape[1])
        if pixels_PA.dtype == torch.uint8:
            # 2 p - 255 is exact in every dtype: scaled after the product, and never rounded before it
            signed_PA = pixels_PA.to(torch.int16) * 2 - 255
            row_ND = linear(signed_PA.to(self.compute_dtype)[rows_N.clamp_min(0)], weight_DA) / 255
        else:
            row_ND = linear((2 * pixels_PA - 1).to(self.compute_dtype)[rows_N.clamp_min(0)], weight_DA)
        if self.start is None:
            return row_ND
        return torch.where(rows_N[:, None] < 0, self.start.to(row_ND.dtype), row_ND)

    def _hidden(self, residual_ND: Tensor, packed: Packed, cache: KVCache | None = None) -> Tensor:
        table, delta_ND = self._table(residual_ND.device), None
        for index, block in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[index]
            arguments = (residual_ND, delta_ND, packed, table, self.ops, layer_cache)
            if self.recompute and torch.is_grad_enabled():
                residual_ND, delta_ND = checkpoint(block, *arguments, use_reentrant=False)
            else:
                residual_ND, delta_ND = block(*arguments)
        return self.ops.add_norm(residual_ND, delta_ND, self.norm.weight, None, self.config.rms_norm_eps)[1]

    def _predict(self, hidden_ND: Tensor) -> PixarOutput:
        config = self.config
        weight_OD = self.out_proj.flat_weight(config.num_components * config.patch_values).T
        components_NZA = linear(hidden_ND, weight_OD).unflatten(1, (config.num_components, -1))
        scores_NZ = None if self.score is None else self.score(hidden_ND)
        return PixarOutput(components_NZA, scores_NZ, (config.patch_height, config.patch_width))

    def _loss(self, out: PixarOutput, patches: NextPatches, scale: Tensor) -> tuple[Tensor, Tensor]:
        if out.scores is not None:
            return self.ops.mixture_bce(out.components, out.scores, patches.pixels, patches.targets, scale)
        said_MA = out.components[:, 0]
        if self.config.head == "bernoulli":
            return self.ops.pixel_bce(said_MA, patches.pixels, patches.targets, scale)
        if self.config.values == "consistent":
            # from the range of the input to that of the pixels, before anything is rounded again
            said_MA = (said_MA.to(torch.promote_types(said_MA.dtype, torch.float32)) + 1) / 2
        return self.ops.pixel_mse(said_MA, patches.pixels, patches.targets, False, scale)

    def blocks(self) -> Iterable[nn.Module]:
        """What sharding wraps one by one."""
        return self.layers

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

    def _table(self, device: torch.device) -> Tensor:
        # made once per device and not a buffer: a change of dtype must never round the angles
        if device not in self._tables:
            table = rope_table(self.config.head_size, self.config.rope_base, self._max_rows)
            self._tables[device] = table.to(device)
        return self._tables[device]


class PatchMap(nn.Module):
    """The map between the pixels of a patch and a row, stored as the published convolutions [D, Z C, rows, columns]."""

    def __init__(self, config: PixarConfig, num_components: int = 1) -> None:
        super().__init__()
        channels = num_components * config.num_channels
        self.num_components = num_components
        self.weight = nn.Parameter(torch.empty(config.hidden_size, channels, config.patch_height, config.patch_width))

    @property
    def values(self) -> int:
        """Values of one patch."""
        return math.prod(self.weight.shape[1:]) // self.num_components

    def flat_weight(self, num_values: int) -> Tensor:
        """[D, Z A] for patches of Z A values, Z patches of the order row, column, channel; or for grey ones, which
        stand for equal channels, the sum over the channels. Raises UserError if the number is neither."""
        weight_DZCYX = self.weight.unflatten(1, (self.num_components, -1))
        width, _, channels, rows, columns = weight_DZCYX.shape
        if num_values == self.num_components * self.values:
            return weight_DZCYX.permute(0, 1, 3, 4, 2).reshape(width, num_values)
        if num_values == rows * columns and self.num_components == 1:
            return weight_DZCYX.sum(2).flatten(1)
        raise UserError(
            f"the patches have {num_values} values; the model reads {rows} x {columns} pixels of "
            f"{'1 channel' if channels == 1 else f'1 or {channels} channels'}"
        )


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on the normalised residual stream."""

    def __init__(self, config: PixarConfig) -> None:
        super().__init__()
        width, hidden, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        self.eps = config.rms_norm_eps
        self.layout = HeadLayout(heads, heads, config.head_size, rotation="half")
        self.norm1 = NormWeight(width)
        self.qkv = PackedLinear(width, {"q_proj": width, "k_proj": width, "v_proj": width})
        self.out = PackedLinear(width, {"o_proj": width})
        self.norm2 = NormWeight(width)
        self.gate_up = PackedLinear(width, {"gate_proj": hidden, "up_proj": hidden})
        self.down = PackedLinear(hidden, {"down_proj": width})

    def forward(
        self,
        residual_ND: Tensor,
        delta_ND: Tensor | None,
        packed: Packed,
        table: Tensor,
        ops: Ops,
        cache: LayerCache | None,
    ) -> tuple[Tensor, Tensor]:
        """The residual stream and the feed-forward branch not yet added to it."""
        residual_ND, normed_ND = ops.add_norm(residual_ND, delta_ND, self.norm1.weight, None, self.eps)
        q_NHK, k_NHK, v_NHK = ops.split_rope(self.qkv(normed_ND, ops), packed.positions, table, self.layout)
        scale = self.layout.head_size**-0.5
        if cache is None:
            out_NHK, _ = ops.attention(q_NHK, k_NHK, v_NHK, packed, "causal", scale)
        else:
            out_NHK = ops.decode_attention(q_NHK, k_NHK, v_NHK, cache, scale)
        attended_ND = self.out(out_NHK.flatten(1), ops)
        residual_ND, normed_ND = ops.add_norm(residual_ND, attended_ND, self.norm2.weight, None, self.eps)
        return residual_ND, self.down(ops.glu(self.gate_up(normed_ND, ops), "silu"), ops)
