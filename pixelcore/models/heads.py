"""What a fine-tuned PIXEL does with the encoder's rows: classify a strip, tag its patches, find an answer, parse.

All four tasks read the same rows, CLS and one row for each patch, and end in one or two linear maps. The interest is in
between. A classifier squeezes patches into one vector, by their mean, their maximum, CLS, or attention with a learned
query. A tagger labels patches: a word's label stands on its first one. An answer is a first and a last patch, or CLS,
which is put behind the patches and means "no answer here". A parser averages the patches of each word and scores every
pair of words with a bilinear form (Dozat and Manning, arXiv:1611.01734, without its projections).

The numbers are those of the original program, peculiarities included: the softmax over answers runs over padding, as
does attention pooling on request, and so padding is computed here, as rows that look and are not looked at.

Heads know rows and not what they are of: `token_encoder.py` puts them on an encoder of tokens; read token for patch.
Sources: specs/pixel.md, section 3; Lee et al., Set Transformer, arXiv:1810.00825.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelcore.config import HeadConfig, ViTTaskConfig
from pixelcore.errors import UserError
from pixelcore.layers import Linear, linear
from pixelcore.models.vit import SITES_PER_LAYER, Encoder, Norm, Run, StripEncoder
from pixelcore.ops import IGNORED, REFERENCE, Ops
from pixelcore.packed import Packed
from pixelcore.patches import arrange_dense

_POOLER_EPS = 1e-12  # whatever the encoder's is
_NEVER_THE_LARGEST = -1e9
_LEAST_COUNT = 1e-9


@dataclass
class TaskOutput:
    """loss: scaled sum over the targets that count; None without labels. count: int64 scalar, their number.

    logits: [B, O] of a sequence, [B, L, O] of its patches. start_logits, end_logits: [B, L + 1], the last of them CLS.
    arc_logits: [B, W, U], for each word the score of each possible head, 0 the root, U = W + 1; W = L, or with
    mask_heads the words of the longest row.
    rel_logits: [B, W, U, O], the score of each relation to that head.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    arc_logits: Tensor | None = None
    rel_logits: Tensor | None = None
    count: Tensor | None = None


@dataclass(frozen=True)
class Encoded:
    """The encoder's rows of a dense batch. rows_ND: of each strip CLS, its real patches, its padding. packed: their
    structure. order_BL: the place in the strip of each of these patches. real_BL: bool, in the order of the strip."""

    rows_ND: Tensor
    packed: Packed
    order_BL: Tensor
    real_BL: Tensor

    @property
    def cls_BD(self) -> Tensor:
        return self.rows_ND.unflatten(0, (len(self.order_BL), -1))[:, 0]

    def in_strips(self, x_NF: Tensor) -> Tensor:
        """[B, L, F] in the order of the strips, without CLS, of what was computed from the rows one by one."""
        x_BLF = x_NF.unflatten(0, (len(self.order_BL), -1))[:, 1:]
        return x_BLF.gather(1, self.order_BL.argsort(1)[..., None].expand(x_BLF.shape))


class TaskModel(nn.Module):
    """An encoder and the head of a task. Parameters are fp32 and uninitialised.

    compute_dtype and recompute: as in `ViTMAE`, how to run and not what the model is. texts, units: what a row of a
    batch and a column of it are called.
    """

    texts: str
    units: str

    def __init__(self, config: HeadConfig, encoder: Encoder, ops: Ops) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.compute_dtype = torch.float32
        self.recompute = False
        self.encoder = encoder
        self.head = HEADS[config.task](config)

    def blocks(self) -> Iterable[nn.Module]:
        """What sharding wraps one by one."""
        return self.encoder.blocks

    def run(self, dropout_seed: Tensor | None) -> Run:
        """How this call runs."""
        return Run(self.ops, self.compute_dtype, self.recompute, dropout_seed)

    def targets_of(self, given: Mapping[str, Tensor | None], batch: int, length: int) -> dict[str, Tensor]:
        """The inputs of the head that are there. Raises UserError for those of another task, for one without the
        others, and for shapes that do not fit."""
        targets = {name: value for name, value in given.items() if value is not None}
        self._check_names(targets)
        for name, target in targets.items():
            if not self.head.fits(name, tuple(target.shape), batch, length):
                raise UserError(
                    f"{name} has shape {list(target.shape)}, which does not fit {batch} {self.texts} of {length} "
                    f"{self.units} and a {self.config.task} model of {self.config.num_labels} labels"
                )
        return targets

    def _check_names(self, targets: Mapping[str, Tensor]) -> None:
        strangers = [name for name in targets if name not in self.head.takes]
        if strangers:
            raise UserError(
                f"{strangers[0]} is no input of a {self.config.task} model, which takes {', '.join(self.head.takes)}"
            )
        missing = [name for name in self.head.needs if name not in targets]
        # targets come together or not at all
        loss_inputs = [name for name in self.head.takes if name not in self.head.needs]
        if any(name in targets for name in loss_inputs):
            missing += [name for name in loss_inputs if name not in targets]
        if missing:
            raise UserError(f"a {self.config.task} model needs {missing[0]} too: give it")


class ViTTask(TaskModel):
    """The model of one `ViTTaskConfig`."""

    texts, units = "strips", "patches"
    config: ViTTaskConfig
    encoder: StripEncoder

    def __init__(self, config: ViTTaskConfig, ops: Ops = REFERENCE) -> None:
        super().__init__(config, StripEncoder(config, trainable_positions=True), ops)

    def forward(
        self,
        pixel_values: Tensor,
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

        pixel_values: [B, C, patch, patch * L], uint8 or float in [0, 1]. attention_mask: [B, L], 1 where a patch is
        real. labels: of "sequence" int64 [B], or float [B] for regression and [B, O] for labels that do not exclude
        each other; of "token" int64 [B, L], `IGNORED` where a patch has none. start_positions, end_positions: int64
        [B], patches of the answer, L for no answer; others are ignored. word_starts: int64 [B, words + 1], the first
        patch of each word and the end of the last one, then negative; arc_labels and rel_labels: int64 [B, words], the
        head of each word (0 the root, word j is j + 1) and the relation to it, then negative.
        scale: scalar, 1 / (targets of the step); the mean over this call when absent. dropout_seed: int64 [2].
        documents: names of the strips for dropout, else their number in the batch.
        Raises UserError for inputs that do not fit, and for targets of another task.
        """
        given = {
            "labels": labels,
            "start_positions": start_positions,
            "end_positions": end_positions,
            "word_starts": word_starts,
            "arc_labels": arc_labels,
            "rel_labels": rel_labels,
        }
        patches, order_BL, _ = arrange_dense(pixel_values, self.config, attention_mask, documents=documents)
        targets, run = self.targets_of(given, *order_BL.shape), self.run(dropout_seed)
        all_BL = torch.ones_like(order_BL, dtype=torch.bool)
        real_BL = all_BL if attention_mask is None else attention_mask.to(order_BL.device).bool()
        encoded = Encoded(self.encoder(patches, run), patches.kept, order_BL, real_BL)
        return self.head(encoded, run, targets, scale)


class Head(nn.Module):
    """What the heads share. takes: their inputs besides the strips; needs: those without which there are no scores."""

    takes: tuple[str, ...] = ("labels",)
    needs: tuple[str, ...] = ()

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.site = (config.num_layers + 1) * SITES_PER_LAYER  # behind all sites of the encoder

    def fits(self, name: str, shape: tuple[int, ...], batch: int, length: int) -> bool:
        """Whether an input of this name and shape goes with `batch` strips of `length` patches."""
        return shape == (batch,)

    def drop(self, x_NF: Tensor, encoded: Encoded, run: Run) -> Tensor:
        """Dropout of rows, CLS included; without a seed nothing happens."""
        drop = run.drop(encoded.packed, self.site, self.config.hidden_dropout)
        return x_NF if drop is None else run.ops.dropout(x_NF, drop)


class SequenceHead(Head):
    """Pool a strip into one vector and classify that."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        if config.pooling == "cls":
            self.pool = Linear(width, width)
        if config.pooling in ("mean", "max"):
            self.linear = Linear(width, width)
        if config.pooling != "cls" and config.pooler_norm:
            self.norm = Norm(width)
        if config.pooling.startswith("pma"):
            num_heads = int(config.pooling.removeprefix("pma"))
            self.attention = AttentionPooling(width, num_heads, sees_padding=config.pma_padding == "published")
        self.classifier = Linear(width, config.num_labels)

    def fits(self, name: str, shape: tuple[int, ...], batch: int, length: int) -> bool:
        return shape in ((batch,), (batch, self.config.num_labels))

    def forward(self, encoded: Encoded, run: Run, targets: Mapping[str, Tensor], scale: Tensor | None) -> TaskOutput:
        logits_BO = self.classifier(self._pooled(encoded, run))
        if "labels" not in targets:
            return TaskOutput(logits=logits_BO)
        loss, count = label_loss(logits_BO, targets["labels"], run.ops, scale)
        return TaskOutput(loss=loss, logits=logits_BO, count=count)

    def _pooled(self, encoded: Encoded, run: Run) -> Tensor:
        pooling = self.config.pooling
        if pooling == "cls":
            return torch.tanh(self.pool(encoded.cls_BD))
        x_ND = encoded.rows_ND
        if pooling in ("mean", "max"):
            x_ND = run.ops.gelu(linear(x_ND, self.linear.weight), self.linear.bias)
        if self.config.pooler_norm:
            x_ND = run.ops.add_norm(x_ND, None, self.norm.weight, self.norm.bias, _POOLER_EPS, None)[1]
        x_BLD = encoded.in_strips(self.drop(x_ND, encoded, run))
        real_BL1 = encoded.real_BL[..., None]
        if pooling == "mean":
            return (x_BLD * real_BL1).sum(1) / real_BL1.sum(1).clamp_min(_LEAST_COUNT)
        if pooling == "max":
            return x_BLD.masked_fill(~real_BL1, _NEVER_THE_LARGEST).amax(1)
        return self.attention(x_BLD, real_BL1)


class AttentionPooling(nn.Module):
    """One learned query looks at the patches with several heads.

    sees_padding: as published, where a padding patch has the key 0, so that it keeps the weight of a score of 0, its
    value leaks in, and what is said of a strip depends on how long its neighbours in the batch are. As published in any
    case: scores are divided by the root of the whole width, not of a head's, which trained weights have come to expect.
    """

    def __init__(self, width: int, num_heads: int, sees_padding: bool) -> None:
        super().__init__()
        self.num_heads, self.sees_padding = num_heads, sees_padding
        self.seed = nn.Parameter(torch.empty(1, 1, width))
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.o = Linear(width, width)

    def forward(self, x_BLD: Tensor, real_BL1: Tensor) -> Tensor:
        """[B, D] of patches [B, L, D]."""
        width = x_BLD.shape[-1]
        query_BHLK, key_BHLK, value_BHLK = (
            rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for rows in (self.q(self.seed.to(x_BLD.dtype)), self.k(x_BLD) * real_BL1, self.v(x_BLD))
        )
        score_BHLL = query_BHLK @ key_BHLK.transpose(2, 3) * width**-0.5
        if not self.sees_padding:
            score_BHLL = score_BHLL.masked_fill(~real_BL1.mT[:, None], -math.inf)
        seen_BD = (query_BHLK + score_BHLL.softmax(-1) @ value_BHLK).transpose(1, 2).flatten(1)
        return seen_BD + self.o(seen_BD).relu()


class TokenHead(Head):
    """A label for each patch."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def fits(self, name: str, shape: tuple[int, ...], batch: int, length: int) -> bool:
        return shape == (batch, length)

    def forward(self, encoded: Encoded, run: Run, targets: Mapping[str, Tensor], scale: Tensor | None) -> TaskOutput:
        logits_BLO = encoded.in_strips(self.classifier(self.drop(encoded.rows_ND, encoded, run)))
        if "labels" not in targets:
            return TaskOutput(logits=logits_BLO)
        loss, count = _cross_entropy(logits_BLO.flatten(0, 1), targets["labels"].flatten(), run.ops, scale)
        return TaskOutput(loss=loss, logits=logits_BLO, count=count)


class AnswerHead(Head):
    """The first and the last patch of an answer; CLS, behind the patches, stands for none. Each is a target."""

    takes = ("start_positions", "end_positions")

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def forward(self, encoded: Encoded, run: Run, targets: Mapping[str, Tensor], scale: Tensor | None) -> TaskOutput:
        scores_NO = self.classifier(encoded.rows_ND)
        cls_BO = scores_NO.unflatten(0, (len(encoded.order_BL), -1))[:, :1]
        start_BU, end_BU = torch.cat((encoded.in_strips(scores_NO), cls_BO), dim=1).unbind(-1)
        output = TaskOutput(start_logits=start_BU, end_logits=end_BU)
        if targets:
            target_B2 = torch.cat([targets[name] for name in self.takes])
            inside_B2 = (target_B2 >= 0) & (target_B2 < start_BU.shape[1])
            target_B2 = torch.where(inside_B2, target_B2, IGNORED)
            output.loss, output.count = _cross_entropy(torch.cat((start_BU, end_BU)), target_B2, run.ops, scale)
        return output


class ParserHead(Head):
    """For each word its head, another word or the root, and its relation to it.

    As published, there are as many words as a strip could have patches. Those that are not there are zero, as is the
    score of each of them as a head, and the softmax runs over them too: over as many as the longest strip has, however
    short this one is. With `mask_heads` it runs over the root and the words that are there.
    """

    takes = ("word_starts", "arc_labels", "rel_labels")
    needs = ("word_starts",)

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.pool = Linear(width, width)
        self.arcs = nn.Parameter(torch.empty(1, width + 1, width))
        self.relations = nn.Parameter(torch.empty(config.num_labels, width + 1, width + 1))

    def fits(self, name: str, shape: tuple[int, ...], batch: int, length: int) -> bool:
        # a word has a patch of its own or shares one, and one more start is the end of the last word
        return len(shape) == 2 and shape[0] == batch and shape[1] <= length + (name == "word_starts")

    def forward(self, encoded: Encoded, run: Run, targets: Mapping[str, Tensor], scale: Tensor | None) -> TaskOutput:
        patches_BLD = encoded.in_strips(self.drop(encoded.rows_ND, encoded, run))
        starts_BS = targets["word_starts"].to(patches_BLD.device)
        words_BWD = word_means(patches_BLD, starts_BS)
        if self.config.mask_heads:
            words_BWD = words_BWD[:, : starts_BS.shape[1] - 1]
        root_B1D = torch.tanh(self.pool(encoded.cls_BD))[:, None]
        heads_BUD = torch.cat((root_B1D, words_BWD), dim=1)
        arcs_BWU = biaffine(_with_one(words_BWD), heads_BUD, self.arcs)[..., 0]
        if self.config.mask_heads:
            are_there_BU = F.pad((starts_BS[:, :-1] >= 0) & (starts_BS[:, 1:] >= 0), (1, 0), value=True)
            arcs_BWU = arcs_BWU.masked_fill(~are_there_BU[:, None], _NEVER_THE_LARGEST)
        rels_BWUO = biaffine(_with_one(words_BWD), _with_one(heads_BUD), self.relations)
        output = TaskOutput(arc_logits=arcs_BWU, rel_logits=rels_BWUO)
        if "arc_labels" in targets:
            output.loss, output.count = self._loss(output, targets, run.ops, scale)
        return output

    def _loss(
        self, output: TaskOutput, targets: Mapping[str, Tensor], ops: Ops, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy of the heads plus that of the relations at the true heads."""
        assert output.arc_logits is not None and output.rel_logits is not None
        num_words, num_heads = output.arc_logits.shape[1:]
        arc_BW, rel_BW = (
            F.pad(targets[name], (0, num_words - targets[name].shape[1]), value=IGNORED)
            for name in ("arc_labels", "rel_labels")
        )
        counts_BW = (arc_BW >= 0) & (arc_BW < num_heads) & (rel_BW >= 0)
        place_BW1O = arc_BW.where(counts_BW, 0)[..., None, None].expand(-1, -1, 1, output.rel_logits.shape[-1])
        rels_BWO = output.rel_logits.gather(2, place_BW1O)[:, :, 0]
        # the original pads every strip to the longest there may be: without its zeros, a loss would depend on the batch
        num_absent = 0 if self.config.mask_heads else max(0, self.config.num_units + 1 - num_heads)
        arcs_BWU = F.pad(output.arc_logits, (0, num_absent))
        losses = [
            _cross_entropy(logits.flatten(0, 1), labels_BW.where(counts_BW, IGNORED).flatten(), ops, scale)
            for logits, labels_BW in ((arcs_BWU, arc_BW), (rels_BWO, rel_BW))
        ]
        (arc_loss, count), (rel_loss, _) = losses
        return arc_loss + rel_loss, count


def word_means(patches_BLD: Tensor, word_starts_BS: Tensor) -> Tensor:
    """[B, L, D]: the mean of the patches of each word, from its start to that of the next, at least one; zero where
    there is no word. word_starts: int64 [B, S], one more than words, then negative."""
    num_patches = patches_BLD.shape[1]
    first_BW1, next_BW1 = word_starts_BS[:, :-1, None], word_starts_BS[:, 1:, None]
    place_L = torch.arange(num_patches, device=patches_BLD.device)
    inside_BWL = (place_L >= first_BW1) & (place_L < torch.maximum(next_BW1, first_BW1 + 1))
    inside_BWL = inside_BWL & (first_BW1 >= 0) & (next_BW1 >= 0)
    share_BWL = inside_BWL / inside_BWL.sum(-1, keepdim=True).clamp_min(1)
    words_BWD = share_BWL.to(patches_BLD.dtype) @ patches_BLD
    return F.pad(words_BWD, (0, 0, 0, num_patches - words_BWD.shape[1]))


def biaffine(x_BWD: Tensor, y_BUD: Tensor, weights_OXY: Tensor) -> Tensor:
    """[B, W, U, O]: x^T W y for each pair and each of the matrices."""
    half_BOWD = x_BWD[:, None] @ weights_OXY.to(x_BWD.dtype)
    return (half_BOWD @ y_BUD[:, None].transpose(2, 3)).permute(0, 2, 3, 1)


def _with_one(x_BWD: Tensor) -> Tensor:
    """A last feature of 1: it makes the bilinear form hold a linear one too."""
    return F.pad(x_BWD, (0, 1), value=1.0)


def label_loss(logits_BO: Tensor, labels: Tensor, ops: Ops, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Squared error of one output, cross entropy of whole numbers, else binary cross entropy of each output; and the
    count. labels: [B], or [B, O] for labels that do not exclude each other. No output meets another row's label."""
    if logits_BO.shape[1] > 1 and not labels.is_floating_point():
        return _cross_entropy(logits_BO, labels, ops, scale)
    wide_BO = logits_BO.to(torch.promote_types(logits_BO.dtype, torch.float32))
    labels_BO = labels.reshape(wide_BO.shape).to(wide_BO.dtype)
    if logits_BO.shape[1] == 1:
        total = (wide_BO - labels_BO).square().sum()
    else:
        total = F.binary_cross_entropy_with_logits(wide_BO, labels_BO, reduction="sum")
    count = torch.full((), labels_BO.numel(), device=total.device)
    return total * (count.to(total.dtype).reciprocal() if scale is None else scale), count


def _cross_entropy(logits_NV: Tensor, targets_N: Tensor, ops: Ops, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scaled sum and count; the mean without a scale."""
    if scale is None:
        scale = (targets_N != IGNORED).sum().float().reciprocal()
    return ops.cross_entropy(logits_NV, targets_N, scale)


HEADS = {"sequence": SequenceHead, "token": TokenHead, "qa": AnswerHead, "parser": ParserHead}
