"""Say which tokens of a text are hidden, from those that are not: masked language modelling, PIXEL's task for tokens.

Data are the blocks of tokens that a decoder is trained on; what a block's questions ask for, all tokens of a document
but <s>, is what is read here, so </s> ends a text as the end patch ends a strip, and CLS stands before each piece. Of
each piece a share is chosen, by the rules that choose patches. Of the chosen tokens 80 % are hidden, 10 % become any
token of the vocabulary, and 10 % stay, so that the model cannot be sure of what it sees; the loss asks for all of them.
</s> is never chosen. All of it is a function of the run's seed and of the token's place in the order, as dropout is:
not of ranks, micro-batches or whether the run was resumed. Held-out text meets the same masks in all runs.

Bits per token are of chosen tokens, given the others; they compare runs with the same tokenizer, masks and text.
Source: Devlin et al., arXiv:1810.04805.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pixelcore.accounting_vit import tokens_flops, tokens_training_bytes
from pixelcore.config import TokenMLMConfig
from pixelcore.errors import UserError
from pixelcore.masking import draw_masks, mix_seed
from pixelcore.models.token_encoder import CLS
from pixelcore.ops import IGNORED
from pixelcore.packed import Packed
from pixelcore.stored import Stored
from train.config import MaskedTokensConfig, MaskedTokenSettings
from train.data.batches import Batches
from train.data.blocks import IGNORED_TARGET, Block, Blocks
from train.data.corpus import Corpus, check_own_tokenizer, find_corpus, within_context
from train.data.order import BlockOrder
from train.distributed import Ranks
from train.objective import Loss
from train.report import Reporter

UNIT = "tokens"  # what progress is counted in
CURVE = "loss (nats per chosen token)"

_HIDDEN, _REPLACED = 0.8, 0.1  # of the chosen tokens
_HELD_OUT_SEED = 20181011  # of held-out masks, the same in all runs


# ------------------------------------------------------------------ before the first step


def adopt(settings: MaskedTokenSettings, stored: Stored, init: Path) -> MaskedTokenSettings:
    """The stored architecture and tokenizer, dropout as the run wants it, blocks within its table of positions."""
    assert isinstance(stored.config, TokenMLMConfig)
    check_own_tokenizer(settings.tokenizer, stored, init)
    model = settings.model
    model = replace(stored.config, hidden_dropout=model.hidden_dropout, attention_dropout=model.attention_dropout)
    return replace(settings, model=model, data=within_context(settings.data, model.max_tokens))


def find_data(
    settings: MaskedTokenSettings, ranks: Ranks, stored: Stored | None, own_text: Path | None
) -> tuple[Corpus, MaskedTokenSettings]:
    """Data and tokenizer, and the settings with the vocabulary that the tokenizer really has."""
    data, model = settings.data, settings.model
    if data.block_size > model.max_tokens:
        raise UserError(f"data.block_size = {data.block_size} must not exceed model.max_tokens = {model.max_tokens}")
    corpus = find_corpus(data, settings.tokenizer, model.vocab_size, settings.eval.max_tokens, ranks, stored, own_text)
    return corpus, replace(settings, model=replace(model, vocab_size=corpus.tokenizer.vocab_size))


def num_blocks(settings: MaskedTokenSettings) -> int:
    """Blocks of one step."""
    return settings.data.tokens_per_step // settings.data.block_size


def block_units(settings: MaskedTokenSettings) -> int:
    """Tokens of a block."""
    return settings.data.block_size


def describe_block(settings: MaskedTokenSettings) -> str:
    """A block in words."""
    return f"{settings.data.block_size} tokens"


def block_bytes(settings: MaskedTokenSettings, blocks: int, bytes_per_value: int, recompute: bool) -> float:
    """Estimated peak memory of a training step with micro-batches of so many blocks."""
    return tokens_training_bytes(
        settings.model,
        blocks,
        settings.data.block_size,
        _chosen(settings),
        bytes_per_value=bytes_per_value,
        recompute=recompute,
        weights_kept=settings.model.attention_dropout > 0,
    )


def block_rows(settings: MaskedTokenSettings) -> int:
    """A row for each token, and CLS."""
    return settings.data.block_size + 1


def step_flops(settings: MaskedTokenSettings) -> float:
    """Floating point operations of one optimizer step, were each block one piece."""
    return num_blocks(settings) * tokens_flops(settings.model, settings.data.block_size, _chosen(settings))


def _chosen(settings: MaskedTokenSettings) -> int:
    """Tokens of a block that are chosen."""
    return math.ceil(settings.data.block_size * settings.objective.ratio)


def deal(settings: MaskedTokenSettings, corpus: Corpus, ranks: Ranks) -> tuple["MaskedBatches", "MaskedBatches"]:
    """The training blocks in the order of the seed, and the held-out text as one step of its own."""
    run, data = settings.run, settings.data
    dealing: dict[str, Any] = {
        "objective": settings.objective,
        "vocab_size": settings.model.vocab_size,
        "micro_batch_blocks": run.micro_batch_blocks,
        "rank": ranks.rank,
        "world": ranks.world,
    }
    order = BlockOrder(run.seed, [len(blocks) for blocks in corpus.training], data.weights or None)
    batches = MaskedBatches(corpus.training, order, seed=run.seed, blocks_per_step=num_blocks(settings), **dealing)
    sizes = [len(blocks) for blocks in corpus.held_out]
    held_out = MaskedBatches(
        corpus.held_out, BlockOrder(0, sizes), seed=_HELD_OUT_SEED, blocks_per_step=sum(sizes), **dealing
    )
    return batches, held_out


# ------------------------------------------------------------------ what is hidden


@dataclass(frozen=True)
class MaskedMicroBatch:
    """ids: int64 [N], of each piece CLS and its tokens as the model sees them. packed: the pieces, CLS rows counted.
    scored_rows: int64 [M]; targets: int64 [M], the tokens that stood there."""

    ids: Tensor
    packed: Packed
    scored_rows: Tensor
    targets: Tensor


@dataclass(frozen=True)
class _Piece:
    """ids: a document, or as much of it as a block holds. row: place of the first token in the run's order. seen: what
    the model sees of them. chosen: bool."""

    ids: NDArray[np.int64]
    row: int
    seen: NDArray[np.int64]
    chosen: NDArray[np.bool_]


class MaskedBatches(Batches):
    """The blocks of a run under masks, by step. Each rank draws the masks of the whole step, and so knows how many
    tokens it asks for."""

    def __init__(
        self,
        sources: Sequence[Blocks],
        order: BlockOrder,
        *,
        objective: MaskedTokensConfig,
        vocab_size: int,
        seed: int,
        **dealing: Any,
    ) -> None:
        super().__init__(sources, order, **dealing)
        self.objective, self.vocab_size, self.seed = objective, vocab_size, seed
        self._plan: tuple[int, list[list[_Piece]]] | None = None  # a step, and its pieces by block

    def num_targets(self, step: int) -> int:
        """Chosen tokens of the whole step, over all ranks; at least 1, since it divides."""
        return max(1, sum(int(piece.chosen.sum()) for block in self._pieces(step) for piece in block))

    def micro_batch(self, step: int, index: int, device: torch.device | str) -> MaskedMicroBatch:
        """This rank's micro-batch `index` (0 to per_rank - 1) of a step."""
        slots = self.slots(index)
        pieces = [piece for block in self._pieces(step)[slots.start : slots.stop] for piece in block]
        first_row = step * self.blocks_per_step * self.block_size
        ids, scored, targets, lengths, documents = [], [], [], [], []
        num_rows = 0
        for piece in pieces:
            ids += [[CLS], piece.seen]
            scored.append(num_rows + 1 + np.flatnonzero(piece.chosen))
            targets.append(piece.ids[piece.chosen])
            lengths.append(len(piece.ids) + 1)
            documents.append(piece.row - first_row)
            num_rows += lengths[-1]
        if not pieces:  # this rank has no block left in this step, but the others wait for its gradients
            ids, lengths, documents = [[CLS, 0]], [2], [self.blocks_per_step * self.block_size]
        if not sum(map(len, scored)):
            scored, targets = [np.array([1])], [np.array([IGNORED])]
        return MaskedMicroBatch(
            torch.from_numpy(np.concatenate(ids)).to(device),
            Packed.from_lengths(lengths, documents, device),
            torch.from_numpy(np.concatenate(scored)).to(device),
            torch.from_numpy(np.concatenate(targets)).to(device),
        )

    def _pieces(self, step: int) -> list[list[_Piece]]:
        if self._plan is None or self._plan[0] != step:
            first = step * self.blocks_per_step
            blocks = enumerate(self.read(step, range(self.blocks_per_step)), start=first)
            found = [list(_texts(block, place * self.block_size)) for place, block in blocks]
            masked = iter(self._masked([piece for block in found for piece in block]))
            self._plan = step, [[next(masked) for _ in block] for block in found]
        return self._plan[1]

    def _masked(self, texts: Sequence[tuple[NDArray[np.int64], int]]) -> list[_Piece]:
        """Pieces under masks. A piece of one token has none: nothing would be left to say it from."""
        eos_id = self.sources[0].store.eos_id
        lengths_P = np.array([len(ids) - int(ids[-1] == eos_id) for ids, _ in texts])
        rows_P = np.array([row for _, row in texts])
        long = np.flatnonzero(lengths_P >= 2)
        masks = draw_masks(
            self.objective.rule, lengths_P[long], mix_seed(self.seed, rows_P[long]), self.objective.ratio
        )
        chosen = [np.zeros(len(ids), np.bool_) for ids, _ in texts]
        for place, mask in zip(long.tolist(), masks, strict=True):
            chosen[place][: lengths_P[place]] = mask[: lengths_P[place]]
        return [_Piece(ids, row, self._seen(ids, row, one), one) for (ids, row), one in zip(texts, chosen, strict=True)]

    def _seen(self, ids: NDArray[np.int64], row: int, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """What the model sees in the place of each token. Every row of the order draws one number, whose upper half
        decides what becomes of a chosen token and whose lower half is another one."""
        # another stream than that of the masks: seeds are never negative
        bits = mix_seed(-1 - self.seed, row + np.flatnonzero(chosen)).view(np.uint64)
        fate = (bits >> np.uint64(32)) / 2.0**32
        other = ((bits & np.uint64(2**32 - 1)) * np.uint64(self.vocab_size) >> np.uint64(32)).astype(np.int64)
        seen = ids.copy()
        kept_or_other = np.where(fate < _HIDDEN + _REPLACED, other, ids[chosen])
        seen[chosen] = np.where(fate < _HIDDEN, self.vocab_size, kept_or_other)
        return seen


def _texts(block: Block, row: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """The pieces of a block without <s>, and the place of each in the run's order. Filler is left out."""
    start = 0
    for length in block.lengths:
        ids = block.targets[start : start + length]
        if ids[0] != IGNORED_TARGET:
            yield ids, row + start
        start += length


# ------------------------------------------------------------------ in a step, and after it


def loss(model: nn.Module, batch: MaskedMicroBatch, scale: Tensor, dropout_seed: Tensor | None) -> Loss:
    """The loss of one micro-batch; scale is 1 / (chosen tokens of the whole step)."""
    out = model(
        batch.ids,
        batch.packed,
        scored_rows=batch.scored_rows,
        targets=batch.targets,
        scale=scale,
        dropout_seed=dropout_seed,
    )
    return Loss(out.loss, out.loss.detach(), torch.zeros_like(out.loss))


@torch.no_grad()
def evaluate(model: nn.Module, held_out: MaskedBatches, ranks: Ranks) -> dict[str, float]:
    """loss (nats per chosen token), bits_per_token, and how many chosen tokens are the likeliest ones. Every rank must
    call it."""
    was_training = model.training
    model.eval()
    one = torch.ones((), device=ranks.device)
    totals = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    for index in range(held_out.per_rank):
        batch = held_out.micro_batch(0, index, ranks.device)
        out = model(batch.ids, batch.packed, scored_rows=batch.scored_rows, targets=batch.targets, scale=one)
        right = (out.logits.argmax(1) == batch.targets).sum()
        totals += torch.stack((out.loss.double(), right.double(), out.count.double()))
    model.train(was_training)
    nats, right, count = ranks.sum(totals).tolist()
    return {"loss": nats / count, "bits_per_token": nats / count / math.log(2), "accuracy": right / count}


def say(values: dict[str, float]) -> str:
    """What `evaluate` found, in a line."""
    return (
        f"held-out loss {values['loss']:.4f}, {values['bits_per_token']:.4f} bits per chosen token, "
        f"{100 * values['accuracy']:.2f} % of them right"
    )


def show(
    model: Any, settings: MaskedTokenSettings, corpus: Corpus, held_out: MaskedBatches, reporter: Reporter, step: int
) -> dict[str, float]:
    """Nothing more: the figures say it."""
    return {}
