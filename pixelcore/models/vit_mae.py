"""A masked autoencoder over rendered text: an encoder reads the patches that are left, a small decoder paints the rest.

The encoder of `pixelcore.models.vit` sees CLS and the patches that are not hidden. Its rows are projected to the
decoder's width and put back in their places, with one learned vector, the mask token, wherever a patch is missing; the
decoder adds its own positions, lets all rows of a strip look at each other, and predicts the pixels of each patch. The
loss compares the prediction of hidden patches with their pixels, each patch normalised to mean 0 and variance 1.

Training passes `Patches` (pixelcore.patches): nothing is padded, only hidden patches are predicted, and the last block
of the decoder finishes their rows alone. The dense call of the public interface, `model(pixel_values, attention_mask=,
patch_mask=)`, answers for every position, padding too, as the original does; it sorts the real patches of each strip to
the front, runs the same code and sorts back. The masks are arguments: what to hide is drawn elsewhere.

Source: PIXEL, arXiv:2207.06991; specs/pixel.md, sections 2.3, 2.5 and 2.6.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelcore.config import ViTMAEConfig
from pixelcore.errors import UserError
from pixelcore.layers import Linear
from pixelcore.models.vit import Run, StripEncoder, Trunk, TrunkShape
from pixelcore.ops import REFERENCE, Ops
from pixelcore.patches import Patches, arrange_dense
from pixelcore.positions import stretch

_DECODER_FINAL_EPS = 1e-5  # the one norm that the original leaves at its library's default


@dataclass
class MAEOutput:
    """loss: the scaled sum of the squared errors, each a mean over a patch; None where nothing was hidden. count: int64
    scalar, patches that the loss counts. logits: predicted pixels [B, L, A] of a dense call, [M, A] of the scored
    patches of a packed one. mask: bool [B, L], what a dense call hid."""

    loss: Tensor | None
    logits: Tensor
    mask: Tensor | None = None
    count: Tensor | None = None


class ViTMAE(nn.Module):
    """The model of one `ViTMAEConfig`. Parameters are fp32 and uninitialised: see `pixelcore.initialise`.

    compute_dtype: dtype of the activations. recompute: keep only what enters each block and run it again in the
    backward pass. Both are how to run, not what the model is, so neither is part of the configuration.
    """

    def __init__(self, config: ViTMAEConfig, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.compute_dtype = torch.float32
        self.recompute = False
        self.encoder = StripEncoder(config, trainable_positions=False)
        self.decoder = PixelDecoder(config)

    def forward(
        self,
        pixel_values: Tensor | Patches,
        *,
        attention_mask: Tensor | None = None,
        patch_mask: Tensor | None = None,
        scale: Tensor | None = None,
        dropout_seed: Tensor | None = None,
    ) -> MAEOutput:
        """Predictions of pixels, and the loss where patches are hidden.

        pixel_values: `Patches`, whose structure holds the masks; or [B, C, patch, patch * L], uint8 or float in [0, 1],
        with C the model's channels or 1. attention_mask: [B, L], 1 where a patch is real, all of them when absent.
        patch_mask: [B, L], 1 where a patch is hidden; without it everything is read and the loss is None.
        scale: scalar, 1 / (scored patches of the step); the mean over this call when absent.
        dropout_seed: int64 [2], run seed and step; without it nothing is dropped.
        Raises UserError for pixels and masks that do not fit the model or each other.
        """
        if isinstance(pixel_values, Patches):
            assert attention_mask is None and patch_mask is None, "the masks of packed patches are in their structure"
            return self._packed(pixel_values, scale, dropout_seed)
        return self._dense(pixel_values, attention_mask, patch_mask, scale, dropout_seed)

    def encode(self, patches: Patches, dropout_seed: Tensor | None = None) -> Tensor:
        """[N, D], the rows of `patches.kept` after the encoder's last norm: of each strip CLS, then its patches."""
        return self.encoder(patches, self._run(dropout_seed))

    def blocks(self) -> Iterable[nn.Module]:
        """What sharding wraps one by one."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def _run(self, dropout_seed: Tensor | None) -> Run:
        return Run(self.ops, self.compute_dtype, self.recompute, dropout_seed)

    def _packed(self, patches: Patches, scale: Tensor | None, dropout_seed: Tensor | None) -> MAEOutput:
        if patches.whole is None:
            raise UserError(
                "nothing is hidden in these strips, so there is nothing to predict: arrange them with masks"
            )
        run = self._run(dropout_seed)
        rows_MD = self.decoder(self.encoder(patches, run), patches, run, patches.scored_rows)
        prediction_MO = self.decoder.predict(rows_MD)
        loss, count = self._loss(prediction_MO, patches, scale)
        return MAEOutput(loss=loss, logits=prediction_MO, count=count)

    def _loss(self, prediction_MO: Tensor, patches: Patches, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        if scale is None:
            scale = torch.full((), 1 / len(patches.scored), device=prediction_MO.device)
        return self.ops.pixel_mse(prediction_MO, patches.pixels, patches.scored, self.config.normalise_pixels, scale)

    def _dense(
        self,
        pixel_values: Tensor,
        attention_mask: Tensor | None,
        patch_mask: Tensor | None,
        scale: Tensor | None,
        dropout_seed: Tensor | None,
    ) -> MAEOutput:
        patches, order_BL, patch_mask = arrange_dense(pixel_values, self.config, attention_mask, patch_mask)
        run = self._run(dropout_seed)
        rows_RD = self.decoder(self.encoder(patches, run), patches, run)
        batch, length = order_BL.shape
        sorted_BLO = self.decoder.predict(rows_RD).unflatten(0, (batch, length + 1))[:, 1:]
        logits_BLO = sorted_BLO.gather(1, order_BL.argsort(1)[..., None].expand(sorted_BLO.shape))
        if patch_mask is None:
            return MAEOutput(loss=None, logits=logits_BLO)
        # scored by patches here, since the CLS rows are gone
        loss, count = self._loss(sorted_BLO.flatten(0, 1)[patches.scored], patches, scale)
        return MAEOutput(loss=loss, logits=logits_BLO, mask=patch_mask, count=count)


class PixelDecoder(Trunk):
    """Rows of the encoder to rows of the whole strips, and the map from them to pixels."""

    positions: Tensor

    def __init__(self, config: ViTMAEConfig) -> None:
        shape = TrunkShape(
            num_layers=config.decoder_num_layers,
            width=config.decoder_hidden_size,
            num_heads=config.decoder_num_attention_heads,
            hidden=config.decoder_intermediate_size,
            qkv_bias=config.qkv_bias,
            eps=config.layer_norm_eps,
            final_eps=_DECODER_FINAL_EPS,
            dropout=config.hidden_dropout,
            attention_dropout=config.attention_dropout,
        )
        # one layer number further: the encoder's last norm drops at the site of a layer that it does not have
        super().__init__(shape, first_layer=config.num_layers + 1)
        self.config = config
        self.embed = Linear(config.hidden_size, shape.width)
        self.mask_token = nn.Parameter(torch.empty(1, shape.width))
        self.register_buffer("positions", torch.empty(config.num_patches + 1, shape.width))
        self.predict = Linear(shape.width, config.patch_values)

    def forward(self, encoded_ND: Tensor, patches: Patches, run: Run, rows_M: Tensor | None = None) -> Tensor:
        """[R, D] for all rows of the strips after the last norm, or [M, D] for rows_M of them."""
        table_LD, places_R = stretch(
            self.positions,
            patches.places,
            patches.decoded.lengths,
            patches.num_patches,
            self.config.interpolate_positions,
        )
        embedded_ND = self.embed(encoded_ND)
        whole_RD = run.ops.unshuffle(embedded_ND, self.mask_token[0], patches.restore, table_LD, places_R)
        return self.run_blocks(whole_RD, patches.decoded, run, rows_M)
