"""The encoder of `vit.py` over tokens: what a model of strips is compared with, and it differs in nothing else.

Each token becomes a row of width D by a table in place of the patch projection. Everything behind it is the same code:
a CLS row before each text, the sin-cos positions of a strip, the blocks, the norm, the heads of tasks. A text takes as
many places as it has tokens, and </s> stands where a strip has its end patch.

Rows of the table are multiplied by sqrt(D) when they are looked up (Vaswani et al., arXiv:1706.03762, section 3.4): the
same numbers also score tokens, and beside positions of size 1 a table that is small enough for that would not be seen.

In pretraining some tokens are hidden (`train/objectives/masked_tokens.py`) and the model says which they were. It has
no decoder: PIXEL's is there for patches that the encoder never sees, and here a hidden token is a row of the encoder
like any other, with a learned vector in its place. But if the last rows had to be vectors of the table, the last layers
would learn a task that is thrown away afterwards; so one hidden layer stands between, and is left out in fine-tuning as
PIXEL's decoder is. The table itself scores the tokens, which saves another of its size. Source: Devlin et al.,
arXiv:1810.04805.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelcore.config import TokenEncoderConfig, TokenMLMConfig, TokenTaskConfig
from pixelcore.errors import UserError
from pixelcore.layers import Linear, linear
from pixelcore.models.heads import Encoded, TaskModel, TaskOutput
from pixelcore.models.vit import Encoder, Norm, Run
from pixelcore.ops import REFERENCE, Ops
from pixelcore.packed import Packed

CLS = -1  # in place of a token's id


@dataclass
class MLMOutput:
    """logits: [M, V] of the scored rows. loss: scaled sum of their cross entropies; None without targets. count: int64
    scalar, targets that count."""

    logits: Tensor
    loss: Tensor | None = None
    count: Tensor | None = None


class TokenEncoder(Encoder):
    """Tokens to rows of width D."""

    def __init__(self, config: TokenEncoderConfig, trainable_positions: bool) -> None:
        super().__init__(config, trainable_positions)
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(
        self,
        ids_N: Tensor,
        packed: Packed,
        run: Run,
        places_N: Tensor | None = None,
        mask_D: Tensor | None = None,
        rows_M: Tensor | None = None,
    ) -> Tensor:
        """[N, D], or [M, D] for rows_M.

        ids_N: int64, of each text `CLS` and then its tokens; vocab_size where a token is hidden and mask_D stands for
        it. places_N: rows of the table of positions, those of `packed` when absent.
        Raises UserError for a text that is longer than the table.
        """
        if packed.max_length > len(self.positions):
            raise UserError(
                f"a text of {packed.max_length - 1} tokens is longer than the model's max_tokens = "
                f"{self.config.max_tokens}: cut it"
            )
        is_hidden_N1 = (ids_N == self.config.vocab_size)[:, None]
        known_N = ids_N.clamp_min(0) if mask_D is None else ids_N.clamp(0, self.config.vocab_size - 1)
        row_ND = self.embed(known_N)
        if mask_D is not None:
            row_ND = torch.where(is_hidden_N1, mask_D.to(row_ND.dtype), row_ND)
        row_ND = row_ND * self.config.hidden_size**0.5
        row_ND = torch.where((ids_N == CLS)[:, None], self.cls_token[0].to(row_ND.dtype), row_ND)
        places_N = packed.positions if places_N is None else places_N
        embedded_ND = (row_ND + self.positions[places_N]).to(run.compute_dtype)
        return self.encode(embedded_ND, packed, run, rows_M=rows_M)


class TokenMLM(nn.Module):
    """The model of one `TokenMLMConfig`. Parameters are fp32 and uninitialised: see `pixelcore.initialise`.

    compute_dtype and recompute: as in `ViTMAE`, how to run and not what the model is.
    """

    def __init__(self, config: TokenMLMConfig, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.compute_dtype = torch.float32
        self.recompute = False
        self.encoder = TokenEncoder(config, trainable_positions=False)
        self.mask_token = nn.Parameter(torch.empty(1, config.hidden_size))
        self.head = MaskedTokenHead(config)

    def forward(
        self,
        ids: Tensor,
        packed: Packed,
        *,
        scored_rows: Tensor,
        targets: Tensor | None = None,
        scale: Tensor | None = None,
        dropout_seed: Tensor | None = None,
    ) -> MLMOutput:
        """Scores of all tokens at some rows, and the loss where it is known which stood there.

        ids: int64 [N], of each text `CLS` and then its tokens, vocab_size where one is hidden. packed: the texts, CLS
        rows counted. scored_rows: int64 [M]. targets: int64 [M], `IGNORED` where a row does not count. scale: scalar,
        1 / (targets of the step); the mean over this call when absent. dropout_seed: int64 [2], run seed and step.
        """
        run = Run(self.ops, self.compute_dtype, self.recompute, dropout_seed)
        rows_MD = self.encoder(ids, packed, run, mask_D=self.mask_token[0], rows_M=scored_rows)
        logits_MV = self.head(rows_MD, self.encoder.embed.weight, self.ops)
        if targets is None:
            return MLMOutput(logits_MV)
        if scale is None:
            scale = torch.full((), 1 / max(len(targets), 1), device=targets.device)
        loss, count = self.ops.cross_entropy(logits_MV, targets, scale)
        return MLMOutput(logits_MV, loss, count)

    def encode(self, ids: Tensor, packed: Packed) -> Tensor:
        """[N, D], the rows after the encoder's last norm."""
        run = Run(self.ops, self.compute_dtype, self.recompute)
        return self.encoder(ids, packed, run, mask_D=self.mask_token[0])

    def blocks(self) -> Iterable[nn.Module]:
        """What sharding wraps one by one."""
        return self.encoder.blocks


class MaskedTokenHead(nn.Module):
    """One hidden layer, and the table of the embedding as the map to the vocabulary."""

    def __init__(self, config: TokenMLMConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.linear = Linear(config.hidden_size, config.hidden_size)
        self.norm = Norm(config.hidden_size)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    def forward(self, rows_MD: Tensor, table_VD: Tensor, ops: Ops) -> Tensor:
        inner_MD = ops.gelu(linear(rows_MD, self.linear.weight), self.linear.bias)
        inner_MD = ops.add_norm(inner_MD, None, self.norm.weight, self.norm.bias, self.eps, None)[1]
        return linear(inner_MD, table_VD, self.bias)


class TokenTask(TaskModel):
    """The model of one `TokenTaskConfig`."""

    texts, units = "texts", "tokens"
    config: TokenTaskConfig
    encoder: TokenEncoder

    def __init__(self, config: TokenTaskConfig, ops: Ops = REFERENCE) -> None:
        super().__init__(config, TokenEncoder(config, trainable_positions=True), ops)

    def forward(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        word_starts: Tensor | None = None,
        arc_labels: Tensor | None = None,
        rel_labels: Tensor | None = None,
        scale: Tensor | None = None,
        dropout_seed: Tensor | None = None,
        documents: Sequence[int] | None = None,
    ) -> TaskOutput:
        """Scores, and the loss where the targets of the task are given.

        ids: int64 [B, L]. attention_mask: [B, L], 1 where a token is real. All else is as of `ViTTask`, with tokens in
        place of patches.
        """
        given = {
            "labels": labels,
            "start_positions": start_positions,
            "end_positions": end_positions,
            "word_starts": word_starts,
            "arc_labels": arc_labels,
            "rel_labels": rel_labels,
        }
        real_BL = _real(ids, attention_mask)
        targets, run = self.targets_of(given, *ids.shape), self.run(dropout_seed)
        order_BL = real_BL.logical_not().long().argsort(dim=1, stable=True)  # real tokens first, then the padding
        batch, length = ids.shape
        names = range(batch) if documents is None else documents
        visible = (real_BL.sum(1) + 1).tolist()
        packed = Packed.from_lengths([length + 1] * batch, names, ids.device, visible)
        order_BL = order_BL.to(ids.device)
        ids_N = nn.functional.pad(ids.gather(1, order_BL), (1, 0), value=CLS).flatten()
        places_N = nn.functional.pad(order_BL + 1, (1, 0)).flatten()
        rows_ND = self.encoder(ids_N, packed, run, places_N)
        return self.head(Encoded(rows_ND, packed, order_BL, real_BL.to(ids.device)), run, targets, scale)


def _real(ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """bool [B, L] on the host."""
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise UserError(f"ids {list(ids.shape)} of {ids.dtype} must be [batch, tokens] of int64")
    if attention_mask is None:
        return torch.ones(ids.shape, dtype=torch.bool)
    if attention_mask.shape != ids.shape:
        raise UserError(f"attention_mask {list(attention_mask.shape)} must be [batch, tokens], {list(ids.shape)}")
    real_BL = attention_mask.cpu().bool()
    if not bool(real_BL.any(1).all()):
        text = int(real_BL.any(1).logical_not().nonzero()[0])
        raise UserError(f"text {text} has no real token: leave it out, or correct its attention mask")
    return real_BL
