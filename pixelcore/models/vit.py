"""A vision transformer over strips of rendered text: the encoder that PIXEL models are pretrained and fine-tuned with.

The file reads in the order in which it runs. Each patch of 16 x 16 pixels becomes a row of width D by one linear map;
a CLS row stands before each strip; every row gets the vector of its place (`pixelcore.positions`). Each block
normalises the residual stream, lets every row look at all rows of its own strip, adds what it found, normalises again,
and passes each row through a feed-forward layer with an exact GELU. A last normalisation ends the encoder.

Rows are packed (`pixelcore.patches`): what is hidden or padding is not computed. That equals the original's additive
mask of -10000, whose weights underflow to zero, because CLS is always seen. Grey strips are read by a projection whose
weights are summed over the channels, once per forward pass: the original copies grey into three channels, and the sum
is the same map at a third of the arithmetic. Source: specs/pixel.md, sections 2.2 and 2.3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelcore.config import EncoderConfig, HeadConfig, LoRAConfig, ViTConfig
from pixelcore.dropout_bits import Drop
from pixelcore.errors import UserError
from pixelcore.layers import PackedLinear
from pixelcore.ops import HeadLayout, Ops
from pixelcore.packed import Packed
from pixelcore.patches import Patches
from pixelcore.positions import stretch

# places where a layer drops; a site is layer * SITES_PER_LAYER + place, and the embedding stands before layer 0
_EMBEDDING, _ATTENTION, _AFTER_ATTENTION, _AFTER_FEED_FORWARD = range(4)
SITES_PER_LAYER = 4

# what adapters read is dropped at sites of its own, as many to a layer, behind all others that there are
_LORA_QKV, _LORA_OUT, _LORA_UP, _LORA_DOWN = range(1 << 15, (1 << 15) + SITES_PER_LAYER)

# the residual stream, the branch not yet added to it and that branch's bias; both are absent before the first block
Stream = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Run:
    """How to run a forward pass, as opposed to what the model is.

    compute_dtype: dtype of the activations. recompute: keep only what enters each block and run it again in the
    backward pass. dropout_seed: int64 [2], run seed and step; without it nothing is dropped.
    """

    ops: Ops
    compute_dtype: torch.dtype = torch.float32
    recompute: bool = False
    dropout_seed: Tensor | None = None

    def drop(self, packed: Packed, site: int, p: float) -> Drop | None:
        """None where nothing is dropped: no seed (evaluation) or p = 0."""
        if self.dropout_seed is None or p == 0:
            return None
        return Drop(self.dropout_seed, packed, site, p)


@dataclass(frozen=True, kw_only=True)
class TrunkShape:
    """A stack of blocks, of the encoder or of the decoder of a masked autoencoder. final_eps is of the last norm. lora:
    adapters on every block's maps."""

    num_layers: int
    width: int
    num_heads: int
    hidden: int
    qkv_bias: bool
    eps: float
    final_eps: float
    dropout: float
    attention_dropout: float
    lora: LoRAConfig | None = None


class Trunk(nn.Module):
    """Blocks and the normalisation behind them. first_layer numbers the layers of a model, so that no two of them
    share the random bits of dropout."""

    def __init__(self, shape: TrunkShape, first_layer: int) -> None:
        super().__init__()
        self.shape = shape
        self.blocks = nn.ModuleList(Block(shape, first_layer + index) for index in range(shape.num_layers))
        self.norm = Norm(shape.width)
        self.last_site = (first_layer + shape.num_layers) * SITES_PER_LAYER + _AFTER_FEED_FORWARD

    def run_blocks(self, x_ND: Tensor, packed: Packed, run: Run, rows_M: Tensor | None = None) -> Tensor:
        """Rows through all blocks and the last norm. rows_M: int64 [M], the only rows of the result that are asked for;
        the last block then looks at all rows and computes the rest of itself for these."""
        stream: Stream = (x_ND, None, None)
        for index, block in enumerate(self.blocks):
            wanted = rows_M if index == len(self.blocks) - 1 else None
            if run.recompute and torch.is_grad_enabled():
                stream = checkpoint(block, *stream, packed, run, wanted, use_reentrant=False)
            else:
                stream = block(*stream, packed, run, wanted)
        drop = run.drop(packed if rows_M is None else packed.select(rows_M), self.last_site, self.shape.dropout)
        residual_ND, delta_ND, delta_bias_D = stream
        return run.ops.add_norm(
            residual_ND, delta_ND, self.norm.weight, self.norm.bias, self.shape.final_eps, drop, delta_bias_D
        )[1]

    def stream_after(self, x_ND: Tensor, packed: Packed, run: Run, num_blocks: int) -> Tensor:
        """The residual stream behind the first `num_blocks` blocks, before any norm; nothing may be dropped."""
        assert run.dropout_seed is None and 0 <= num_blocks <= len(self.blocks)
        stream: Stream = (x_ND, None, None)
        for block in self.blocks[:num_blocks]:
            stream = block(*stream, packed, run, None)
        residual_ND, delta_ND, delta_bias_D = stream
        if delta_ND is None or delta_bias_D is None:
            return residual_ND
        return residual_ND + (delta_ND + delta_bias_D.to(delta_ND.dtype))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on the normalised residual stream."""

    def __init__(self, shape: TrunkShape, layer: int) -> None:
        super().__init__()
        self.shape = shape
        self.site = layer * SITES_PER_LAYER
        self.layout = HeadLayout(shape.num_heads, shape.num_heads, shape.width // shape.num_heads, rotation="none")
        self.norm1 = Norm(shape.width)
        qkv_parts = {"q_proj": shape.width, "k_proj": shape.width, "v_proj": shape.width}
        self.qkv = PackedLinear(shape.width, qkv_parts, shape.lora, shape.qkv_bias)
        self.out = PackedLinear(shape.width, {"o_proj": shape.width}, shape.lora, bias=True)
        self.norm2 = Norm(shape.width)
        self.up = PackedLinear(shape.width, {"up_proj": shape.hidden}, shape.lora, bias=True)
        self.down = PackedLinear(shape.hidden, {"down_proj": shape.width}, shape.lora, bias=True)

    def forward(
        self,
        residual_ND: Tensor,
        delta_ND: Tensor | None,
        delta_bias_D: Tensor | None,
        packed: Packed,
        run: Run,
        rows_M: Tensor | None,
    ) -> Stream:
        """The stream behind this layer, of all rows or of rows_M alone. Its feed-forward branch and the bias of that
        are added by the norm that follows, in its pass over memory; so is the bias of `out` here."""
        shape, ops = self.shape, run.ops
        drop = run.drop(packed, self.site + _AFTER_FEED_FORWARD, shape.dropout)
        residual_ND, normed_ND = ops.add_norm(
            residual_ND, delta_ND, self.norm1.weight, self.norm1.bias, shape.eps, drop, delta_bias_D
        )
        qkv_NO = self.qkv(normed_ND, ops, self._lora_drop(run, packed, _LORA_QKV))
        q_NHK, k_NHK, v_NHK = ops.split_rope(qkv_NO, packed.positions, None, self.layout)
        drop = run.drop(packed, self.site + _ATTENTION, shape.attention_dropout)
        attended_NHK, _ = ops.attention(q_NHK, k_NHK, v_NHK, packed, "full", self.layout.head_size**-0.5, drop)
        attended_ND = attended_NHK.flatten(1)
        if rows_M is not None:
            residual_ND, attended_ND, packed = residual_ND[rows_M], attended_ND[rows_M], packed.select(rows_M)
        drop = run.drop(packed, self.site + _AFTER_ATTENTION, shape.dropout)
        branch_ND = self.out.without_bias(attended_ND, ops, self._lora_drop(run, packed, _LORA_OUT))
        residual_ND, normed_ND = ops.add_norm(
            residual_ND, branch_ND, self.norm2.weight, self.norm2.bias, shape.eps, drop, self.out.bias
        )
        # the bias of `up` belongs to the GELU: adding it and bending the sum is one pass over memory
        inner_NF = self.up.without_bias(normed_ND, ops, self._lora_drop(run, packed, _LORA_UP))
        inner_NF = ops.gelu(inner_NF, self.up.bias)
        branch_ND = self.down.without_bias(inner_NF, ops, self._lora_drop(run, packed, _LORA_DOWN))
        assert self.down.bias is not None
        # a copy: where parameters are sharded by block, this block's memory is freed when it returns
        return residual_ND, branch_ND, self.down.bias.clone()

    def _lora_drop(self, run: Run, packed: Packed, place: int) -> Drop | None:
        lora = self.shape.lora
        return None if lora is None else run.drop(packed, self.site + place, lora.dropout)


class Encoder(Trunk):
    """Embedded rows with their positions through the blocks and the last norm, whatever the rows are of.

    trainable_positions: fine-tuning trains the table of positions and drops embedded features; pretraining does
    neither, and its table is a buffer.
    """

    positions: Tensor

    def __init__(self, config: EncoderConfig, trainable_positions: bool) -> None:
        shape = TrunkShape(
            num_layers=config.num_layers,
            width=config.hidden_size,
            num_heads=config.num_attention_heads,
            hidden=config.intermediate_size,
            qkv_bias=config.qkv_bias,
            eps=config.layer_norm_eps,
            final_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout,
            attention_dropout=config.attention_dropout,
            lora=config.lora if isinstance(config, HeadConfig) else None,
        )
        super().__init__(shape, first_layer=0)
        self.embedding_dropout = config.hidden_dropout if trainable_positions else 0.0
        self.cls_token = nn.Parameter(torch.empty(1, config.hidden_size))
        table_LD = torch.empty(config.num_units + 1, config.hidden_size)
        if trainable_positions:
            self.positions = nn.Parameter(table_LD)
        else:
            self.register_buffer("positions", table_LD)

    def encode(
        self, embedded_ND: Tensor, packed: Packed, run: Run, layer: int | None = None, rows_M: Tensor | None = None
    ) -> Tensor:
        """[N, D], or [M, D] for rows_M. layer: the residual stream after so many blocks instead, 0 for embedded rows;
        no norm is applied to it."""
        drop = run.drop(packed, _EMBEDDING, self.embedding_dropout)
        if drop is not None:
            embedded_ND = run.ops.dropout(embedded_ND, drop)
        if layer is not None:
            return self.stream_after(embedded_ND, packed, run, layer)
        return self.run_blocks(embedded_ND, packed, run, rows_M)


class StripEncoder(Encoder):
    """Patches to rows of width D: the projection, the positions, the blocks and the last norm."""

    def __init__(self, config: ViTConfig, trainable_positions: bool) -> None:
        super().__init__(config, trainable_positions)
        self.config = config
        self.patch = PatchProjection(config)

    def forward(self, patches: Patches, run: Run, layer: int | None = None) -> Tensor:
        """[N, D] for the rows of `patches.kept`, of each strip CLS and then what is not hidden. layer: as of `encode`.

        Raises UserError if a strip is longer than the table of positions and must not be.
        """
        table_LD, places_N = stretch(
            self.positions,
            patches.kept_places,
            patches.kept.lengths,
            patches.num_patches,
            self.config.interpolate_positions,
        )
        weight_DA = self.patch.flat_weight(patches.pixels.shape[1]).to(run.compute_dtype)
        embedded_ND = run.ops.patch_embed(
            patches.pixels, patches.kept_rows, weight_DA, self.patch.bias, self.cls_token[0], table_LD, places_N
        )
        return self.encode(embedded_ND, patches.kept, run, layer)


class PatchProjection(nn.Module):
    """The map from the pixels of a patch to a row, stored as the published convolution [D, C, patch, patch]."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.weight = nn.Parameter(torch.empty(config.hidden_size, config.num_channels, size, size))
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def flat_weight(self, num_values: int) -> Tensor:
        """[D, A] for patches of A values in the order row, column, channel: all channels, or their sum for grey ones.

        Raises UserError if A is neither.
        """
        _, channels, size, _ = self.weight.shape
        if num_values == size * size * channels:
            return self.weight.permute(0, 2, 3, 1).flatten(1)
        if num_values == size * size:
            return self.weight.sum(1).flatten(1)
        raise UserError(
            f"the patches have {num_values} values; the model reads {size} x {size} pixels of 1 "
            f"{'' if channels == 1 else f'or {channels} '}channel{'s' if channels > 1 else ''}"
        )


class Norm(nn.Module):
    """The learned scale and shift of a LayerNorm; `ops.add_norm` does the arithmetic."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
