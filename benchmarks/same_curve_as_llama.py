"""Proof that the trunk is right: ours and `LlamaForCausalLM` learn the same thing from the same text.

    python -m benchmarks.same_curve_as_llama [--steps N] [--json] [--out FILE] [--picture FILE.png]

Equal logits on one input show that a forward pass is right. A whole training shows more: that every gradient, the
clipping, the optimizer and the schedule are right too, because an error in any of them moves the weights and grows from
step to step. Both models begin with the same weights (the rows of q and k in each library's order of rotary pairs) and
read the same batches of the documentation of Python's standard library, packed as training packs them: rows of several
documents that must not see one another. Ours handles those as packed rows; Llama is given the mask and the positions
written out. Ours updates with its fused AdamW, Llama with PyTorch's plain loop over tensors.

One thread, fp32. The exit status is 1 if the losses of any step differ by more than 1e-4. Needs the extra `parity`, and
`plot` for the picture.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.llama_peer import LlamaOptimizer, as_llama, loss_of_llama
from benchmarks.record import publish, record
from pixelcore.config import DecoderConfig
from pixelcore.convert.llama import from_llama_state
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Decoder
from pixelcore.ops import REFERENCE
from pixelcore.packed import Packed
from train.config import DataConfig, OptimizerConfig, ScheduleConfig, TokenizerConfig
from train.data.batches import Batches, MicroBatch
from train.data.corpus import build_corpus, find_sources, find_tokenizer
from train.data.order import BlockOrder
from train.optimizer import AdamW
from train.schedule import learning_rate_factor

LARGEST_DIFFERENCE = 1e-4
SEED = 0
CONTEXT, VOCABULARY, BLOCKS_PER_STEP = 128, 2048, 8
OPTIMIZER = OptimizerConfig(learning_rate=1e-3)
SCHEDULE = ScheduleConfig(warmup_steps=20)


@dataclass(frozen=True)
class Curves:
    """The loss of every step and the number of documents in its batch; the largest difference of any weight at the
    end (an update is about the learning rate whatever the gradient's size, so where a gradient is all but zero rounding
    decides its direction: this one is told and not judged)."""

    ours: list[float]
    llama: list[float]
    documents: list[int]
    weight_difference: float

    @property
    def differences(self) -> list[float]:
        return [abs(one - other) for one, other in zip(self.ours, self.llama, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    parser.add_argument("--picture", type=Path, help="draw both curves and their difference here")
    options = parser.parse_args()
    torch.set_num_threads(1)

    text = standard_library_text()
    config = model_config(text.vocab_size)
    curves = train_both(config, text, options.steps)
    largest = max(curves.differences)
    result: dict[str, Any] = record(["torch", "transformers"], threads=1) | {
        "what": "loss of the same training in ours and in LlamaForCausalLM",
        "dtype": "float32",
        "shapes": {
            "layers": config.num_layers,
            "width": config.hidden_size,
            "heads": [config.num_attention_heads, config.num_key_value_heads],
            "hidden": config.intermediate_size,
            "vocabulary": config.vocab_size,
            "tokens_per_step": CONTEXT * BLOCKS_PER_STEP,
            "context": CONTEXT,
        },
        "steps": options.steps,
        "largest_difference": largest,
        "allowed": LARGEST_DIFFERENCE,
        "largest_weight_difference": curves.weight_difference,
        "documents": curves.documents,
        "loss": curves.ours,
        "loss_of_llama": curves.llama,
        "differences": curves.differences,
    }
    publish(result, as_table(curves), options.json, options.out)
    if options.picture is not None:
        draw(curves, options.picture)
    if largest > LARGEST_DIFFERENCE:
        print(f"the losses differ by up to {largest:.2e}, more than {LARGEST_DIFFERENCE:.0e}", file=sys.stderr)
        return 1
    return 0


@dataclass(frozen=True)
class Text:
    """Batches of real text and the vocabulary that they are written in."""

    batches: Batches
    vocab_size: int


def standard_library_text() -> Text:
    """The training text of every preset that names none, tokenized and packed as training does it."""
    data = DataConfig(block_size=CONTEXT, tokens_per_step=CONTEXT * BLOCKS_PER_STEP)
    sources, held_out = find_sources(data)
    tokenizer = find_tokenizer(sources, data, TokenizerConfig(training_megabytes=4), VOCABULARY)
    corpus = build_corpus(sources, held_out, tokenizer, data, max_eval_tokens=10_000)
    order = BlockOrder(SEED, [len(blocks) for blocks in corpus.training])
    batches = Batches(corpus.training, order, blocks_per_step=BLOCKS_PER_STEP, micro_batch_blocks=BLOCKS_PER_STEP)
    return Text(batches, tokenizer.vocab_size)


def model_config(vocab_size: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab_size,
        context_length=CONTEXT,
        num_layers=4,
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=352,
    )


def train_both(config: DecoderConfig, text: Text, num_steps: int, schedule_steps: int | None = None) -> Curves:
    """Train both models for `num_steps` of a schedule over `schedule_steps` (the same number when absent)."""
    ours = Decoder(config)
    initialise(ours, SEED)
    llama = as_llama(ours)
    our_optimizer = AdamW(ours, OPTIMIZER, REFERENCE)
    llama_optimizer = LlamaOptimizer(llama, OPTIMIZER, fused=False)
    losses: list[float] = []
    losses_of_llama: list[float] = []
    documents: list[int] = []
    for step in tqdm(range(num_steps), desc="train both", unit="step", disable=None):
        batch = text.batches.micro_batch(step, 0, "cpu")
        factor = learning_rate_factor(SCHEDULE, step, schedule_steps or num_steps)
        scale = torch.tensor(1 / text.batches.num_targets(step))

        loss = ours(batch.ids, batch.packed, targets=batch.targets, scale=scale).loss
        loss.backward()
        our_optimizer.step(OPTIMIZER.learning_rate * factor)

        llama_loss = loss_of_llama(llama, *written_out(batch, CONTEXT))
        llama_loss.backward()
        llama_optimizer.step(OPTIMIZER.learning_rate * factor)

        losses.append(loss.item())
        losses_of_llama.append(llama_loss.item())
        documents.append(len(batch.packed.lengths))
    ends = from_llama_state(config, llama.state_dict())
    apart = max((weight - ends[name]).abs().max().item() for name, weight in ours.state_dict().items())
    return Curves(losses, losses_of_llama, documents, apart)


def written_out(batch: MicroBatch, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packed rows as dense ones: ids and targets [B, T], who may see whom [B, 1, T, T], positions [B, T]."""
    ids_BT, targets_BT, positions_BT, document_BT = (
        rows.unflatten(0, (-1, size))
        for rows in (batch.ids, batch.targets, batch.packed.positions.long(), _document_of_row(batch.packed))
    )
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return ids_BT, targets_BT, (same_BTT & torch.ones(size, size, dtype=torch.bool).tril())[:, None], positions_BT


def _document_of_row(packed: Packed) -> Tensor:
    lengths = torch.tensor(packed.lengths)
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def as_table(curves: Curves) -> str:
    return "\n".join(_rows(curves))


def _rows(curves: Curves) -> Iterator[str]:
    yield f"{'step':>6}{'ours':>12}{'llama':>12}{'difference':>12}{'documents':>11}"
    last = len(curves.ours) - 1
    for step, values in enumerate(zip(curves.ours, curves.llama, curves.differences, curves.documents)):
        if step % max(1, last // 10) == 0 or step == last:
            yield "{:6}{:12.6f}{:12.6f}{:12.1e}{:11}".format(step, *values)
    worst = max(range(last + 1), key=curves.differences.__getitem__)
    yield f"largest difference {curves.differences[worst]:.2e}, at step {worst}; allowed {LARGEST_DIFFERENCE:.0e}"
    yield f"weights at the end differ by {curves.weight_difference:.1e} at most"


def draw(curves: Curves, path: Path) -> None:
    """Both losses, and on a logarithmic scale how far they are apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=80, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(curves.ours, label="ours", linewidth=3, color="tab:orange")
    top.plot(curves.llama, label="LlamaForCausalLM", linewidth=1, color="black")
    top.set_ylabel("loss (nats per token)")
    top.legend()
    visible = [(step, value) for step, value in enumerate(curves.differences) if value]
    bottom.semilogy(*zip(*visible), ".", color="black", label="equal to the last bit where no point is")
    bottom.axhline(LARGEST_DIFFERENCE, color="tab:red", linewidth=1, label="allowed")
    bottom.set_ylabel("difference of the losses")
    bottom.set_xlabel("step")
    bottom.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
