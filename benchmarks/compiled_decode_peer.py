"""One token, or one patch, at a time in plain PyTorch with a static cache, for `torch.compile` to make the best of.

This is what users write who want small models to be fast without kernels of their own, in the manner that gpt-fast made
known (PyTorch blog, "Accelerating Generative AI with PyTorch II", 2023): every tensor has a fixed place and shape, the
position is a number on the device, what stands behind it in the cache is masked, attention is the library's, and
mode="reduce-overhead" records what Inductor makes of it as a CUDA graph. The weights are those of our model itself, not
copies, so both hold the same numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelcore.models.decoder import Attention, Block, Decoder, FeedForward
from pixelcore.models.pixar import Pixar
from pixelcore.models.pixar_trunk import Block as PixarBlock
from pixelcore.ops import rope_table


class PlainLayer(nn.Module):
    """Attention over its own static cache, then a gated feed-forward layer; no dropout, no adapters."""

    def __init__(self, block: Block | PixarBlock, eps: float, batch: int, capacity: int) -> None:
        super().__init__()
        attention, feed_forward = (block.attention, block.feed_forward) if isinstance(block, Block) else (block, block)
        assert isinstance(attention, Attention | PixarBlock) and isinstance(feed_forward, FeedForward | PixarBlock)
        layout = attention.layout
        self.heads, self.groups, self.size = layout.num_heads, layout.num_key_value_heads, layout.head_size
        self.halves, self.eps = layout.rotation == "half", eps
        self.norm1, self.qkv, self.out = block.norm1.weight, attention.qkv.weight, attention.out.weight
        self.norm2, self.gate_up, self.down = block.norm2.weight, feed_forward.gate_up.weight, feed_forward.down.weight
        for name in ("keys", "values"):
            self.register_buffer(name, self.qkv.new_zeros(batch, self.groups, capacity, self.size))

    def forward(self, x_BTD: Tensor, places_T: Tensor, cos_TK: Tensor, sin_TK: Tensor, mask_TC: Tensor) -> Tensor:
        qkv = F.linear(self._norm(x_BTD, self.norm1), self.qkv)
        q, k, v = qkv.unflatten(-1, (-1, self.size)).split((self.heads, self.groups, self.groups), dim=2)
        q, k = self._turn(q, cos_TK, sin_TK), self._turn(k, cos_TK, sin_TK)
        assert isinstance(self.keys, Tensor) and isinstance(self.values, Tensor)
        self.keys.index_copy_(2, places_T, k.transpose(1, 2))
        self.values.index_copy_(2, places_T, v.transpose(1, 2))
        grouped = self.heads != self.groups
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), self.keys, self.values, mask_TC, enable_gqa=grouped
        )
        x_BTD = x_BTD + F.linear(attended.transpose(1, 2).flatten(2), self.out)
        gate, up = F.linear(self._norm(x_BTD, self.norm2), self.gate_up).chunk(2, dim=-1)
        return x_BTD + F.linear(F.silu(gate) * up, self.down)

    def _norm(self, x_BTD: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(x_BTD.float(), weight_D.shape, weight_D.float(), self.eps).to(x_BTD.dtype)

    def _turn(self, x: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        cos, sin = cos_TK[:, None], sin_TK[:, None]
        if self.halves:
            first, second = x.float().chunk(2, dim=-1)
            return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)
        first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(-2).to(x.dtype)


class PlainTrunk(nn.Module):
    """The layers and the last norm."""

    def __init__(self, model: Decoder | Pixar, batch: int, capacity: int) -> None:
        super().__init__()
        config = model.config
        blocks = [block for block in model.layers if isinstance(block, Block | PixarBlock)]
        self.layers = nn.ModuleList(PlainLayer(block, config.rms_norm_eps, batch, capacity) for block in blocks)
        self.norm, self.eps = model.norm.weight, config.rms_norm_eps
        device = self.norm.device
        self.register_buffer("table", rope_table(config.head_size, config.rope_base, capacity).to(device))
        self.register_buffer("every_place", torch.arange(capacity, device=device))

    def hidden(self, x_BTD: Tensor, places_T: Tensor) -> Tensor:
        """Of the last of these rows: [B, D]."""
        assert isinstance(self.table, Tensor) and isinstance(self.every_place, Tensor)
        cos_TK, sin_TK = self.table[places_T].unbind(-1)
        mask_TC = self.every_place <= places_T[:, None]
        for layer in self.layers:
            x_BTD = layer(x_BTD, places_T, cos_TK, sin_TK, mask_TC)
        last_BD = x_BTD[:, -1]
        return F.rms_norm(last_BD.float(), self.norm.shape, self.norm.float(), self.eps).to(last_BD.dtype)


class PlainDecoder(PlainTrunk):
    """Greedy tokens."""

    def __init__(self, model: Decoder, batch: int, capacity: int) -> None:
        super().__init__(model, batch, capacity)
        self.embed, self.head = model.embed.weight, model.head_weight

    def forward(self, ids_BT: Tensor, places_T: Tensor) -> Tensor:
        """The likeliest next ids, [B, 1]."""
        logits_BV = F.linear(self.hidden(F.embedding(ids_BT, self.embed), places_T), self.head)
        return logits_BV.float().argmax(-1, keepdim=True)


class PlainPixar(PlainTrunk):
    """Patches of 0 and 1, each pixel the likelier of the two; of a Bernoulli head."""

    def __init__(self, model: Pixar, batch: int, capacity: int) -> None:
        super().__init__(model, batch, capacity)
        values = model.config.patch_values
        self.register_buffer("into", model.in_proj.flat_weight(values).detach().contiguous())
        self.register_buffer("head", model.out_proj.flat_weight(values).T.detach().contiguous())

    def forward(self, pixels_BTA: Tensor, places_T: Tensor) -> Tensor:
        """The next patches, [B, 1, A], in the dtype of the weights."""
        assert isinstance(self.into, Tensor) and isinstance(self.head, Tensor)
        odds_BA = F.linear(self.hidden(F.linear(2 * pixels_BTA - 1, self.into), places_T), self.head)
        return (odds_BA > 0).to(pixels_BTA.dtype)[:, None]
