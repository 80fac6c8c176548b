"""A classifier of texts that began as a decoder of tokens: what reads, and a head in place of the vocabulary.

The token partner of `pixar_task.py`: the same head on the same kind of rows, so that the two differ in what they read
and in nothing else. Texts are padded only in the call; the model reads them end to end.
"""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from pixelcore.config import DecoderConfig, DecoderTaskConfig, DecoderTrunkConfig
from pixelcore.errors import UserError
from pixelcore.models.decoder import Decoder
from pixelcore.models.heads import TaskOutput
from pixelcore.models.packed_head import PackedHead, PackedTask
from pixelcore.ops import REFERENCE, Ops
from pixelcore.packed import Packed


class DecoderTask(PackedTask):
    """The model of one `DecoderTaskConfig`. Parameters are fp32 and uninitialised: see `pixelcore.initialise`."""

    encoder: Decoder

    def __init__(self, config: DecoderTaskConfig, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        # tied: there is no second matrix of the vocabulary, and the first is asked for embeddings alone
        trunk = {field.name: getattr(config, field.name) for field in fields(DecoderTrunkConfig)}
        self.encoder = Decoder(DecoderConfig(**trunk, tie_word_embeddings=True), ops)
        self.head = PackedHead(config.hidden_size, config.num_labels, config.pooling)

    def forward(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        scale: Tensor | None = None,
        dropout_seed: Tensor | None = None,
        documents: Sequence[int] | None = None,
    ) -> TaskOutput:
        """Scores, and the loss where there are labels.

        ids: int64 [B, T]. attention_mask: [B, T], 1 where a token is real; padding stands on the right. labels: int64
        [B], or float [B] for regression. scale: scalar, 1 / (targets of the step); the mean over this call when absent.
        dropout_seed: int64 [2], run seed and step; without it nothing is dropped. documents: names of the texts for
        dropout, else their first row.
        Raises UserError for a mask that does not fit, and for a text without a token or that is too long.
        """
        real_BT = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        lengths = _lengths(real_BT, ids)
        packed = Packed.from_lengths(lengths, documents, ids.device)
        rows_ND, balance = self.encoder.encode(ids[real_BT], packed, dropout_seed)
        out = self.head(rows_ND, packed, self.ops, labels, scale)
        if out.loss is not None and self.config.moe is not None:
            # weighted by the micro-batch's share of the targets, so that the sum over a step is a mean
            share = 1.0 if scale is None else out.count * scale
            out.loss = out.loss + self.config.moe.balance_coefficient * balance * share
        return out


def _lengths(real_BT: Tensor, ids: Tensor) -> list[int]:
    """Tokens of each text. Raises UserError for a mask that is no row of ones before zeros."""
    if real_BT.shape != ids.shape:
        raise UserError(f"attention_mask {list(real_BT.shape)} must be [batch, tokens] of the ids, {list(ids.shape)}")
    length_B = real_BT.sum(1)
    if bool((length_B == 0).any()):
        raise UserError(f"text {int((length_B == 0).nonzero()[0])} has no token: leave it out, or correct its mask")
    if bool((real_BT != (torch.arange(ids.shape[1], device=ids.device) < length_B[:, None])).any()):
        raise UserError("attention_mask: padding stands before real tokens; it must stand behind them")
    return length_B.tolist()
