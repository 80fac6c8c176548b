"""How well a model predicts a text, in bits per byte: the one measure that does not depend on the tokenizer.

A token model gives -log p for every token; their sum in bits is the length to which the model and an arithmetic coder
would compress the text, and over the number of UTF-8 bytes it compares with any other compressor. The sum covers the
tokens of each document and its end (</s>); documents do not see one another.

A document longer than the window is read in windows that move on by `stride` tokens; in each only the tokens not scored
before count, the rest is context. The last window is moved back so that it is full and ends with the document, so its
tokens have long contexts too. With a stride as long as the window (the default) every token is read about once, but the
first ones of a window have little context; a stride of half the window gives every token at least half a window and
costs twice as much.

Three baselines stand beside it, for scale: uniform bytes, the entropy of the bytes of this very text, and xz.
"""

import lzma
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from pixelcore.documents import find_files, read_documents
from pixelcore.errors import UserError
from pixelcore.models.decoder import Decoder
from pixelcore.ops import IGNORED
from pixelcore.packed import Packed
from pixelcore.tokenizer import Tokenizer

ROWS_PER_PASS = 2048


@dataclass(frozen=True, kw_only=True)
class BitsPerByte:
    """loss: nats per token. uniform, order_0, xz: bits per byte of the baselines on the same documents."""

    bits_per_byte: float
    loss: float
    perplexity: float
    num_documents: int
    num_bytes: int
    num_tokens: int
    window: int
    stride: int
    uniform: float
    order_0: float
    xz: float


def read_texts(paths: Sequence[str | Path], field: str = "text") -> list[str]:
    """The documents of files, folders and globs, in order."""
    return [document for path in paths for file in find_files(path) for document in read_documents(file, field)]


@torch.inference_mode()
def bits_per_byte(
    model: Decoder,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: bool = False,
) -> BitsPerByte:
    """Score the documents. window: tokens that the model sees at once, the context length when absent. stride: tokens
    by which the window moves on, the window when absent. Raises UserError for sizes that do not fit."""
    context = model.config.context_length
    window = context if window is None else window
    stride = window if stride is None else stride
    if not 1 <= window <= context:
        raise UserError(f"--window {window}: must be from 1 to the model's context, {context}")
    if not 1 <= stride <= window:
        raise UserError(f"--stride {stride}: must be from 1 to the window, {window}")
    if not documents:
        raise UserError("the data has no document with text: nothing to evaluate")
    total, count = 0.0, 0
    for inputs, targets in _passes(_windows(tokenizer, documents, window, stride, progress)):
        packed = Packed.from_lengths([len(ids) for ids in inputs], device=model.head_weight.device)
        flat_inputs, flat_targets = (
            torch.tensor([id for ids in rows for id in ids], device=model.head_weight.device)
            for rows in (inputs, targets)
        )
        one = torch.ones((), device=model.head_weight.device)
        out = model(flat_inputs, packed, targets=flat_targets, scale=one)
        assert out.cross_entropy is not None and out.count is not None
        total += out.cross_entropy.item()
        count += int(out.count)
    if not math.isfinite(total):
        raise UserError(f"the loss is {total}: the weights are damaged or the dtype is too narrow; use --dtype float32")
    num_bytes = sum(len(document.encode()) for document in documents)
    loss = total / count
    return BitsPerByte(
        bits_per_byte=total / math.log(2) / num_bytes,
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        num_documents=len(documents),
        num_bytes=num_bytes,
        num_tokens=count,
        window=window,
        stride=stride,
        uniform=8.0,
        order_0=order_0(documents),
        xz=xz(documents),
    )


def windows(ids: Sequence[int], window: int, stride: int) -> Iterator[tuple[list[int], list[int]]]:
    """Inputs and targets that score every id of a document but the first exactly once; `IGNORED` marks context."""
    num_targets, scored, start = len(ids) - 1, 0, 0
    while scored < num_targets:
        end = min(start + window, num_targets)
        start = max(end - window, 0)
        targets = [IGNORED] * (scored - start) + list(ids[scored + 1 : end + 1])
        yield list(ids[start:end]), targets
        scored, start = end, start + stride


def _windows(
    tokenizer: Tokenizer, documents: Sequence[str], window: int, stride: int, progress: bool
) -> Iterator[tuple[list[int], list[int]]]:
    begin = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
    end = [tokenizer.eos_id] if tokenizer.eos_id >= 0 else []
    for document in tqdm(documents, desc="evaluate", unit="doc", disable=not progress):
        yield from windows(begin + tokenizer.encode(document) + end, window, stride)


def _passes(
    source: Iterable[tuple[list[int], list[int]]],
) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """Windows gathered until a pass of the model is worth its while."""
    inputs: list[list[int]] = []
    targets: list[list[int]] = []
    rows = 0
    for window_inputs, window_targets in source:
        if inputs and rows + len(window_inputs) > ROWS_PER_PASS:
            yield inputs, targets
            inputs, targets, rows = [], [], 0
        inputs.append(window_inputs)
        targets.append(window_targets)
        rows += len(window_inputs)
    if inputs:
        yield inputs, targets


def order_0(documents: Sequence[str]) -> float:
    """The entropy of the bytes of these documents: what a table of byte frequencies, fitted on this text and not paid
    for, reaches."""
    counts: Counter[int] = Counter()
    for document in documents:
        counts.update(document.encode())
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def xz(documents: Sequence[str]) -> float:
    """Bits per byte of `xz -9e` on the documents, a blank line between two of them, its own headers included."""
    text = "\n\n".join(documents).encode()
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / sum(len(text.encode()) for text in documents)


def as_text(result: BitsPerByte) -> str:
    """The result for people."""
    return "\n".join(
        [
            f"bits per byte   {result.bits_per_byte:.4f}",
            f"loss            {result.loss:.4f} nats per token",
            f"perplexity      {result.perplexity:.2f}",
            f"documents       {result.num_documents:,}",
            f"text            {result.num_bytes:,} bytes, {result.num_tokens:,} tokens",
            f"window, stride  {result.window}, {result.stride}",
            "baselines in bits per byte on the same text",
            f"  uniform bytes          {result.uniform:.4f}",
            f"  order-0 byte entropy   {result.order_0:.4f}",
            f"  xz -9e                 {result.xz:.4f}",
        ]
    )
