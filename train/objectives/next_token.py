"""Predict each token of a document from those before it: the objective of the decoder.

Data are blocks of tokens (`train/data/blocks.py`), the loss is the cross entropy, and what the model can do is shown by
what it writes after a few prompts. Loss per token depends on the tokenizer; bits per byte does not: the bits it takes
to write the held-out text, document ends included, divided by the bytes of the text. Perplexity is exp(loss).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from infer.generate_tokens import generate
from infer.sampling import SamplingConfig
from pixelcore.accounting import flops_per_token, training_bytes
from pixelcore.config import DecoderConfig
from pixelcore.errors import UserError
from pixelcore.models.decoder import Decoder
from pixelcore.stored import Stored
from train.config import TokenSettings
from train.data.batches import Batches, MicroBatch
from train.data.blocks import Blocks
from train.data.corpus import Corpus, check_own_tokenizer, find_corpus, within_context
from train.data.order import BlockOrder
from train.distributed import Ranks
from train.objective import Loss
from train.report import Reporter

UNIT = "tokens"  # what progress is counted in
CURVE = "loss (nats per token)"


# ------------------------------------------------------------------ before the first step


def adopt(settings: TokenSettings, stored: Stored, init: Path) -> TokenSettings:
    """The stored architecture, adapters and dropout as the run wants them, blocks within its context."""
    assert isinstance(stored.config, DecoderConfig)
    check_own_tokenizer(settings.tokenizer, stored, init)
    model = _with_architecture(settings.model, stored.config)
    return replace(settings, model=model, data=within_context(settings.data, model.context_length))


def _with_architecture(wanted: DecoderConfig, found: DecoderConfig) -> DecoderConfig:
    if found.lora is not None and wanted.lora is not None and found.lora != wanted.lora:
        raise UserError("--init has adapters of another shape than model.lora: export it with --merge first")
    return replace(
        found, lora=wanted.lora or found.lora, dropout=wanted.dropout, attention_dropout=wanted.attention_dropout
    )


def find_data(
    settings: TokenSettings, ranks: Ranks, stored: Stored | None, own_text: Path | None
) -> tuple[Corpus, TokenSettings]:
    """Data and tokenizer, and the settings with the vocabulary that the tokenizer really has."""
    data, model = settings.data, settings.model
    if data.block_size > model.context_length:
        raise UserError(
            f"data.block_size = {data.block_size} must not exceed model.context_length = {model.context_length}"
        )
    corpus = find_corpus(data, settings.tokenizer, model.vocab_size, settings.eval.max_tokens, ranks, stored, own_text)
    return corpus, replace(settings, model=replace(model, vocab_size=corpus.tokenizer.vocab_size))


def num_blocks(settings: TokenSettings) -> int:
    """Blocks of one step."""
    return settings.data.tokens_per_step // settings.data.block_size


def block_units(settings: TokenSettings) -> int:
    """Tokens of a block."""
    return settings.data.block_size


def describe_block(settings: TokenSettings) -> str:
    """A block in words."""
    return f"{settings.data.block_size} tokens"


def block_bytes(settings: TokenSettings, blocks: int, bytes_per_value: int, recompute: bool) -> float:
    """Estimated peak memory of a training step with micro-batches of so many blocks."""
    num_tokens = blocks * settings.data.block_size
    return training_bytes(settings.model, num_tokens, bytes_per_value=bytes_per_value, recompute=recompute)


def block_rows(settings: TokenSettings) -> int:
    """A row for each token."""
    return settings.data.block_size


def step_flops(settings: TokenSettings) -> float:
    """Floating point operations of one optimizer step."""
    return flops_per_token(settings.model, settings.data.block_size) * settings.data.tokens_per_step


@dataclass(frozen=True)
class HeldOut:
    """Held-out blocks, all of them dealt out as one step, and the bytes of text that they hold."""

    batches: Batches
    num_bytes: int


def deal(settings: TokenSettings, corpus: Corpus, ranks: Ranks) -> tuple[Batches, HeldOut]:
    """The training blocks in the order of the seed, and the held-out text as one step of its own."""
    run, data = settings.run, settings.data
    dealing = {"micro_batch_blocks": run.micro_batch_blocks, "rank": ranks.rank, "world": ranks.world}
    order = BlockOrder(run.seed, [len(blocks) for blocks in corpus.training], data.weights or None)
    batches = Batches(corpus.training, order, blocks_per_step=num_blocks(settings), **dealing)
    return batches, _held_out(corpus.held_out, dealing)


def _held_out(blocks: list[Blocks], dealing: dict[str, int]) -> HeldOut:
    sizes = [len(source) for source in blocks]
    batches = Batches(blocks, BlockOrder(0, sizes), blocks_per_step=sum(sizes), **dealing)
    return HeldOut(batches, sum(source.num_text_bytes for source in blocks))


# ------------------------------------------------------------------ in a step, and after it


def loss(model: nn.Module, batch: MicroBatch, scale: Tensor, dropout_seed: Tensor | None) -> Loss:
    """The loss of one micro-batch; scale is 1 / (targets of the whole step)."""
    out = model(batch.ids, batch.packed, targets=batch.targets, scale=scale, dropout_seed=dropout_seed)
    return Loss(out.loss, out.cross_entropy, out.balance * out.count * scale)


@torch.no_grad()
def evaluate(model: nn.Module, held_out: HeldOut, ranks: Ranks) -> dict[str, float]:
    """loss (nats per token), perplexity and bits_per_byte of a model on held-out text. Every rank must call it."""
    was_training = model.training
    model.eval()
    one = torch.ones((), device=ranks.device)
    totals = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    for index in range(held_out.batches.per_rank):
        batch = held_out.batches.micro_batch(0, index, ranks.device)
        out = model(batch.ids, batch.packed, targets=batch.targets, scale=one)
        totals += torch.stack((out.cross_entropy.double(), out.count.double()))
    model.train(was_training)
    nats, count = ranks.sum(totals).tolist()
    loss = nats / count
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / held_out.num_bytes,
    }


def say(values: dict[str, float]) -> str:
    """What `evaluate` found, in a line."""
    return (
        f"held-out loss {values['loss']:.4f}, perplexity {values['perplexity']:.2f}, "
        f"{values['bits_per_byte']:.4f} bits per byte"
    )


def show(
    model: Decoder, settings: TokenSettings, corpus: Corpus, held_out: HeldOut, reporter: Reporter, step: int
) -> dict[str, float]:
    """What the model writes after each prompt."""
    prompts = list(settings.eval.prompts)
    if prompts:
        sampling = SamplingConfig(temperature=0.8, top_p=0.95, seed=settings.run.seed)
        room = max(1, min(settings.eval.sample_tokens, settings.model.context_length // 2))
        written = generate(model, corpus.tokenizer, prompts, sampling, max_tokens=room)
        reporter.sample(step, [(one.prompt, one.text) for one in written])
    return {}
