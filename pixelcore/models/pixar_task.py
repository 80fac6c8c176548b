"""A classifier of strips that began as a model that writes them (PIXAR): its trunk, and a head in place of the pixels.

Strips are read as in pretraining, from left to right and without padding. The call is that of the other task models,
dense strips and a mask, so that training and prediction need not know which of them they have.
Source: PIXAR, arXiv:2401.03321; specs/pixar.md, section 5.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pixelcore.config import PixarTaskConfig
from pixelcore.models.heads import TaskOutput
from pixelcore.models.packed_head import PackedHead, PackedTask
from pixelcore.models.pixar_trunk import PixarTrunk
from pixelcore.next_patches import check_dense
from pixelcore.ops import REFERENCE, Ops


class PixarTask(PackedTask):
    """The model of one `PixarTaskConfig`. Parameters are fp32 and uninitialised: see `pixelcore.initialise`."""

    encoder: PixarTrunk

    def __init__(self, config: PixarTaskConfig, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.encoder = PixarTrunk(config, ops, config.lora)
        self.head = PackedHead(config.hidden_size, config.num_labels, config.pooling)

    def forward(
        self,
        pixel_values: Tensor,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        scale: Tensor | None = None,
        dropout_seed: Tensor | None = None,
        documents: Sequence[int] | None = None,
    ) -> TaskOutput:
        """Scores, and the loss where there are labels.

        pixel_values: [B, C, patch_height, patch_width * L], uint8 or float in [0, 1]. attention_mask: [B, L], 1 where a
        patch is real; padding stands on the right. labels: int64 [B], or float [B] for regression. scale: scalar, 1 /
        (targets of the step); the mean over this call when absent. dropout_seed, documents: taken as by the other task
        models; nothing is dropped here but what adapters read.
        Raises UserError for pixels and masks that do not fit the model or each other, and for a strip that is too long.
        """
        pixels_BLA, real = check_dense(pixel_values, self.config, attention_mask)
        real_BL = torch.arange(pixels_BLA.shape[1]) < torch.tensor(real)[:, None]
        rows_ND, packed = self.encoder.encode(pixels_BLA[real_BL.to(pixels_BLA.device)], real, dropout_seed, documents)
        return self.head(rows_ND, packed, self.ops, labels, scale)
