"""A masked autoencoder as the original computes it, in plain PyTorch: the peer of `benchmarks/mae_step.py`.

Rows have the full width: padding is embedded, attended from and painted like text, and only hidden from others by an
additive mask of the keys. Grey strips are copied into three channels, the pixels of all patches are predicted, and the
loss picks those that count. Attention is the library's fused one. Sizes are those of a `ViTMAEConfig`; the weights are
random, since only time is measured. Source: specs/pixel.md, sections 2.2 to 2.6.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelcore.config import ViTMAEConfig


class PlainBlock(nn.Module):
    """Pre-norm attention and feed-forward, with separate maps for query, key and value as the original has them."""

    def __init__(self, width: int, num_heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_BLD: Tensor, bias_B11L: Tensor) -> Tensor:
        normed = self.norm1(x_BLD)
        q, k, v = (
            layer(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, bias_B11L).transpose(1, 2).flatten(2)
        x_BLD = x_BLD + self.out(attended)
        return x_BLD + self.down(F.gelu(self.up(self.norm2(x_BLD))))


class PlainMAE(nn.Module):
    """The whole model on padded batches."""

    places: Tensor
    decoder_places: Tensor

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__()
        width, decoder_width, patch = config.hidden_size, config.decoder_hidden_size, config.patch_size
        self.patch = patch
        self.project = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("places", torch.randn(1, config.num_patches + 1, width) * 0.02)
        self.encoder = nn.ModuleList(
            PlainBlock(width, config.num_attention_heads, config.intermediate_size, config.layer_norm_eps)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.register_buffer("decoder_places", torch.randn(1, config.num_patches + 1, decoder_width) * 0.02)
        self.decoder = nn.ModuleList(
            PlainBlock(
                decoder_width,
                config.decoder_num_attention_heads,
                config.decoder_intermediate_size,
                config.layer_norm_eps,
            )
            for _ in range(config.decoder_num_layers)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.predict = nn.Linear(decoder_width, patch * patch * 3)

    def forward(self, pixels_B3YX: Tensor, real_BL: Tensor, hidden_BL: Tensor) -> Tensor:
        """The loss. pixels float in [0, 1]; real and hidden bool; every row hides the same number of patches."""
        batch, length = real_BL.shape
        rows_BLD = self.project(pixels_B3YX).flatten(2).transpose(1, 2) + self.places[:, 1:]
        order_BL = hidden_BL.float().argsort(1)
        kept = length - int(hidden_BL[0].sum())
        kept_BK = order_BL[:, :kept]
        x = rows_BLD.gather(1, kept_BK[..., None].expand(-1, -1, rows_BLD.shape[2]))
        x = torch.cat([(self.cls + self.places[:, :1]).expand(batch, -1, -1), x], 1)
        bias = self._bias(real_BL.gather(1, kept_BK))
        for block in self.encoder:
            x = block(x, bias)
        x = self.embed(self.norm(x))
        tokens = torch.cat([x[:, 1:], self.mask_token.expand(batch, length - kept, -1)], 1)
        restored = tokens.gather(1, order_BL.argsort(1)[..., None].expand(-1, -1, tokens.shape[2]))
        x = torch.cat([x[:, :1], restored], 1) + self.decoder_places
        bias = self._bias(real_BL)
        for block in self.decoder:
            x = block(x, bias)
        predicted_BLO = self.predict(self.decoder_norm(x))[:, 1:]
        target_BLO = F.unfold(pixels_B3YX, self.patch, stride=self.patch).transpose(1, 2)
        target_BLO = target_BLO.unflatten(2, (3, -1)).transpose(2, 3).flatten(2)
        variance, mean = torch.var_mean(target_BLO, -1, keepdim=True)
        error_BL = (predicted_BLO - (target_BLO - mean) / (variance + 1e-6).sqrt()).square().mean(-1)
        counts_BL = hidden_BL & real_BL
        return (error_BL * counts_BL).sum() / counts_BL.sum()

    def _bias(self, real_BL: Tensor) -> Tensor:
        seen = torch.cat([torch.ones_like(real_BL[:, :1]), real_BL], 1)
        return ((~seen).float() * -10000.0)[:, None, None, :]
