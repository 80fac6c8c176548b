"""What reads a strip, for the model that writes one and for the discriminator that begins as a copy of it.

A patch becomes a row by one linear map, its pixels from -1 (ink) to 1 (paper). The layers are those of a Llama decoder:
RMSNorm, rotary positions on halves of the features, SwiGLU, no bias anywhere; each row looks back at its own strip.
Blocks hand on the residual stream and the branch not yet added to it, because adding and normalising is one operation.

Source: PIXAR, arXiv:2401.03321; specs/pixar.md, sections 2.1 and 2.2.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelcore.config import LoRAConfig, PixarTrunkConfig
from pixelcore.dropout_bits import Drop
from pixelcore.errors import UserError
from pixelcore.kv_cache import KVCache, LayerCache
from pixelcore.layers import PackedLinear
from pixelcore.models.decoder import NormWeight
from pixelcore.ops import HeadLayout, Ops, rope_table
from pixelcore.packed import Packed

_LORA_QKV, _LORA_OUT, _LORA_IN, _LORA_DOWN = range(4)  # what adapters read is all that is ever dropped here


class PixarTrunk(nn.Module):
    """What reads a strip: the map from patches to rows, the start vector, the layers, the last norm. A model is a trunk
    with a head; so is the discriminator that begins as a copy of one (`pixelcore.models.discriminator`).

    compute_dtype: dtype of the activations. recompute: keep only what enters each block and run it again in the
    backward pass. Both are how to run, not what the model is, so neither is part of the configuration.
    """

    def __init__(self, config: PixarTrunkConfig, ops: Ops, lora: LoRAConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.compute_dtype = torch.float32
        self.recompute = False
        self.in_proj = PatchMap(config)
        self.start = nn.Parameter(torch.empty(config.hidden_size)) if config.start_vector else None
        self.layers = nn.ModuleList(Block(config, index, lora) for index in range(config.num_layers))
        self.norm = NormWeight(config.hidden_size)
        self._tables: dict[torch.device, Tensor] = {}

    def encode(
        self,
        pixels_PA: Tensor,
        lengths: Sequence[int],
        dropout_seed: Tensor | None = None,
        documents: Sequence[int] | None = None,
    ) -> tuple[Tensor, Packed]:
        """The last state of every row [N, D] and the rows' structure: the patches [P, A] of strips end to end,
        `lengths` of each, and before each strip the start vector where there is one. dropout_seed: int64 [2], run seed
        and step, for adapters; documents: names of the strips for it. Raises UserError for a strip that is too long.
        """
        before = int(self.config.start_vector)
        self._check_length(max(lengths) + before, self._max_rows)
        packed = Packed.from_lengths([length + before for length in lengths], documents, pixels_PA.device)
        place_N = packed.positions.long() - before
        rows_N = torch.where(place_N < 0, -1, (place_N >= 0).cumsum(0) - 1)
        return self._hidden(self._embed(pixels_PA, rows_N), packed, dropout_seed=dropout_seed), packed

    def _embed(self, pixels_PA: Tensor, rows_N: Tensor) -> Tensor:
        """Row n: the projection of patch rows_N[n], or the start vector where that is -1."""
        weight_DA = self.in_proj.flat_weight(pixels_PA.shape[1]).to(self.compute_dtype)
        return self.ops.patch_embed(pixels_PA, rows_N, weight_DA, None, self.start, None, None, signed=True)

    def _hidden(
        self, residual_ND: Tensor, packed: Packed, cache: KVCache | None = None, dropout_seed: Tensor | None = None
    ) -> Tensor:
        table, delta_ND = self._table(residual_ND.device), None
        for index, block in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[index]
            arguments = (residual_ND, delta_ND, packed, table, self.ops, layer_cache, dropout_seed)
            if self.recompute and torch.is_grad_enabled():
                residual_ND, delta_ND = checkpoint(block, *arguments, use_reentrant=False)
            else:
                residual_ND, delta_ND = block(*arguments)
        return self.ops.add_norm(residual_ND, delta_ND, self.norm.weight, None, self.config.rms_norm_eps)[1]

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

    def blocks(self) -> Iterable[nn.Module]:
        """What sharding wraps one by one."""
        return self.layers

    def _table(self, device: torch.device) -> Tensor:
        # made once per device and not a buffer: a change of dtype must never round the angles
        if device not in self._tables:
            # one more than there are rows: an invented patch may stand behind the last real one
            table = rope_table(self.config.head_size, self.config.rope_base, self._max_rows + 1)
            self._tables[device] = table.to(device)
        return self._tables[device]


class PatchMap(nn.Module):
    """The map between the pixels of a patch and a row, stored as the published convolutions [D, Z C, rows, columns]."""

    def __init__(self, config: PixarTrunkConfig, num_components: int = 1) -> None:
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

    def __init__(self, config: PixarTrunkConfig, index: int, lora: LoRAConfig | None = None) -> None:
        super().__init__()
        width, hidden, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        self.eps = config.rms_norm_eps
        self.first_site, self.lora_drop = 4 * index, lora.dropout if lora else 0.0
        self.layout = HeadLayout(heads, heads, config.head_size, rotation="half")
        self.norm1 = NormWeight(width)
        self.qkv = PackedLinear(width, {"q_proj": width, "k_proj": width, "v_proj": width}, lora)
        self.out = PackedLinear(width, {"o_proj": width}, lora)
        self.norm2 = NormWeight(width)
        self.gate_up = PackedLinear(width, {"gate_proj": hidden, "up_proj": hidden}, lora)
        self.down = PackedLinear(hidden, {"down_proj": width}, lora)

    def forward(
        self,
        residual_ND: Tensor,
        delta_ND: Tensor | None,
        packed: Packed,
        table: Tensor,
        ops: Ops,
        cache: LayerCache | None,
        dropout_seed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The residual stream and the feed-forward branch not yet added to it."""

        def drop(place: int) -> Drop | None:
            if dropout_seed is None or not self.lora_drop:
                return None
            return Drop(dropout_seed, packed, self.first_site + place, self.lora_drop)

        residual_ND, normed_ND = ops.add_norm(residual_ND, delta_ND, self.norm1.weight, None, self.eps)
        q_NHK, k_NHK, v_NHK = ops.split_rope(
            self.qkv(normed_ND, ops, drop(_LORA_QKV)), packed.positions, table, self.layout
        )
        scale = self.layout.head_size**-0.5
        if cache is None:
            rule = "causal" if packed.reach is None else "real_fake"
            out_NHK, _ = ops.attention(q_NHK, k_NHK, v_NHK, packed, rule, scale)
        else:
            out_NHK = ops.decode_attention(q_NHK, k_NHK, v_NHK, cache, scale)
        attended_ND = self.out(out_NHK.flatten(1), ops, drop(_LORA_OUT))
        residual_ND, normed_ND = ops.add_norm(residual_ND, attended_ND, self.norm2.weight, None, self.eps)
        inner_NF = ops.glu(self.gate_up(normed_ND, ops, drop(_LORA_IN)), "silu")
        return residual_ND, self.down(inner_NF, ops, drop(_LORA_DOWN))
