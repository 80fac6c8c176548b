"""How well a model predicts a text, in bits per character: the one measure that pixels and tokens share.

A model of strips says how likely each patch is, given those before it. Minus log2 of the product, over the patches of
a text's strip and its end patch, is the length to which the model and an arithmetic coder would compress the *picture*
of the text; a decoder of tokens gives the same for its tokens and </s>. Where the picture says one text and no other,
both are lengths of the same message and, over the characters of the text, compare with each other. So the share of the
strips that a reader reads back exactly stands beside the figure: what is below 1 is said in letters and not in pixels.

Everything after the start vector counts, the end patch included. A model without a start vector says nothing about its
first patch, so its figure leaves that patch out while its characters count: it is too low, by about a word in each row,
and compares only with models of the same kind. The result says so.

Both kinds of model read the same rows (infer/benchmarks/text_rows.py), each for itself, without context from another
row. A tokenizer may spell a text in several ways, and only the one it chooses counts: what the decoder gives to the
others is lost to it, as what the pixel model gives to pictures of no text is to that one.

What is chance and what is not, the interval tells: of the ratio, by the rows' own scatter, rows taken as independent.
Baselines, for scale, on the rows, each with a line end: uniform bytes, the entropy of the characters of this very text,
and xz. Source: specs/pixar.md, section 9, which names the measure; the original has none without a reader of pictures.
"""

import lzma
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from infer.pixels import draw_within
from pixelcore.errors import UserError
from pixelcore.models.decoder import Decoder
from pixelcore.models.pixar import Pixar, PixarOutput
from pixelcore.packed import Packed
from pixelcore.tokenizer import Tokenizer
from render import Reader, Renderer

UNITS_PER_PASS = 2048  # patches or tokens
READ_ROWS = 32
_ANY_WIDTH = 1 << 30  # patches that no text has
_Z = 1.959964  # of the normal distribution, 95 % between -z and z
AFTER_START = "every patch, the end patch included"
AFTER_FIRST = (
    "every patch but the first of a row: the model has no start vector. Too low, and not to be compared with models "
    "that say everything"
)
TOKENS = "every token, </s> included"
_Row = TypeVar("_Row", bound=NDArray)  # of a strip, or of ids


@dataclass(frozen=True)
class RowBits:
    """bits_R, units_R: of each row, -log2 of what was scored of it, and how many patches or tokens that was."""

    bits_R: NDArray[np.float64]
    units_R: NDArray[np.int64]
    unit: str
    counted: str


@dataclass(frozen=True, kw_only=True)
class BitsPerCharacter:
    """unit: "patch" or "token"; units: of the rows, those scored. counted: what of a row is scored, in words;
    comparable: whether that is all of it. low, high: 95 % interval of the bits per character, absent for a single row.
    read_back: the share, 0 to 1, of num_read rows whose strip is read as exactly their text; absent where none was
    read. uniform, order_0, xz: bits per character of the baselines on the same rows."""

    bits_per_character: float
    low: float | None
    high: float | None
    bits_per_byte: float
    bits_per_unit: float
    units_per_character: float
    unit: str
    counted: str
    comparable: bool
    num_rows: int
    num_characters: int
    num_bytes: int
    num_units: int
    read_back: float | None
    num_read: int
    uniform: float
    order_0: float
    xz: float


def measured(rows: Sequence[str], scored: RowBits, read_back: tuple[int, int] = (0, 0)) -> BitsPerCharacter:
    """The result for rows that were scored. read_back: rows read back exactly, and rows read.

    Raises UserError for bits that are not finite.
    """
    characters_R = np.array([len(row) for row in rows], np.int64)
    num_characters, num_units = int(characters_R.sum()), int(scored.units_R.sum())
    num_bytes = sum(len(row.encode()) for row in rows)
    total = float(scored.bits_R.sum())
    if not math.isfinite(total):
        raise UserError(
            f"the bits are {total}: the weights are damaged or the dtype is too narrow; use --dtype float32"
        )
    ratio, half = ratio_interval(scored.bits_R, characters_R)
    exact, num_read = read_back
    return BitsPerCharacter(
        bits_per_character=ratio,
        low=None if half is None else ratio - half,
        high=None if half is None else ratio + half,
        bits_per_byte=total / num_bytes,
        bits_per_unit=total / num_units,
        units_per_character=num_units / num_characters,
        unit=scored.unit,
        counted=scored.counted,
        comparable=scored.counted != AFTER_FIRST,
        num_rows=len(rows),
        num_characters=num_characters,
        num_bytes=num_bytes,
        num_units=num_units,
        read_back=exact / num_read if num_read else None,
        num_read=num_read,
        **baselines(rows),
    )


def ratio_interval(bits_R: NDArray, characters_R: NDArray) -> tuple[float, float | None]:
    """The ratio of both sums, and half the width of its 95 % interval, from how far each row is off its share; of a
    single row there is none."""
    count, total = len(bits_R), float(characters_R.sum())
    ratio = float(bits_R.sum()) / total
    if count < 2:
        return ratio, None
    squares = float(((bits_R - ratio * characters_R) ** 2).sum())
    return ratio, _Z * math.sqrt(squares * count / (count - 1)) / total


def baselines(rows: Sequence[str]) -> dict[str, float]:
    """uniform, order_0 and xz in bits per character: of the rows, each with a line end, which is coded and not counted
    as a character, like an end patch."""
    text = "\n".join([*rows, ""])
    counts, num_characters = Counter(text), len(text) - len(rows)
    entropy = -sum(n * math.log2(n / len(text)) for n in counts.values())
    compressed = 8 * len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    bits = {"uniform": 8 * len(text.encode()), "order_0": entropy, "xz": compressed}
    return {name: value / num_characters for name, value in bits.items()}


# ------------------------------------------------------------------ strips


@torch.inference_mode()
def bits_of_strips(model: Pixar, renderer: Renderer, rows: Sequence[str], progress: bool = False) -> RowBits:
    """-log2 p(strip) of each row. Raises UserError for a row that the model cannot read whole, for a model whose head
    gives no likelihood, and for strips that are not black and white, of which it would be none."""
    if model.config.head == "regression":
        raise UserError(
            "the model's head is a regression, which gives values and no likelihood: bits per character are measured "
            'of the heads "bernoulli" and "mixture"'
        )
    if renderer.config.color != "binary":
        raise UserError(
            f"strips in {renderer.config.color}: a likelihood of pixels is one of black and white ones: train on, or "
            "--set, render.color=binary"
        )
    device, before = model.norm.weight.device, int(model.config.start_vector)
    bits, units = [], []
    for strips in _passes(_patches(model, renderer, rows, progress)):
        # nothing follows the last patch of a strip, so it is a target and not read
        read_PA = torch.from_numpy(np.concatenate([strip_LA[:-1] for strip_LA in strips])).to(device)
        said_PA = torch.from_numpy(np.concatenate([strip_LA[1 - before :] for strip_LA in strips])).to(device)
        out = model.read(read_PA, [len(strip_LA) - 1 for strip_LA in strips])
        counts = [len(strip_LA) - 1 + before for strip_LA in strips]
        bits += _sums(patch_nats(out, said_PA), counts)
        units += counts
    return RowBits(np.array(bits), np.array(units), "patch", AFTER_START if before else AFTER_FIRST)


def patch_nats(out: PixarOutput, pixels_MA: Tensor) -> Tensor:
    """[M]: -log p(patch) of each prediction, in nats. pixels_MA: uint8, 0 for ink and 255 for paper."""
    odds_MZA = out.components.float()
    paper_MZA = (pixels_MA[:, None] > 127).float().expand_as(odds_MZA)
    log_MZ = -F.binary_cross_entropy_with_logits(odds_MZA, paper_MZA, reduction="none").sum(2)
    if out.scores is not None:
        log_MZ = log_MZ + out.scores.float().log_softmax(1)
    return -log_MZ.logsumexp(1)


def _patches(model: Pixar, renderer: Renderer, rows: Sequence[str], progress: bool) -> Iterator[NDArray[np.uint8]]:
    for number, row in enumerate(tqdm(rows, desc="evaluate", unit="row", disable=not progress), 1):
        strip = draw_within(renderer, model.config.max_patches, row, f"row {number}")
        yield strip.patches.reshape(strip.num_patches, -1)


def read_back(renderer: Renderer, rows: Sequence[str], count: int = READ_ROWS) -> tuple[int, int]:
    """Of `count` rows, evenly taken, or of all where there are fewer: how many a reader reads off their strip exactly,
    and how many were read. The reader knows which characters occur in the rows."""
    if not count:
        return 0, 0
    sample = evenly(rows, count)
    reader = Reader(renderer.config, alphabet="".join(sorted(set("".join(rows)))), sample=sample)
    exact = sum(reader(renderer(row, _ANY_WIDTH).pixels).text == row for row in sample)
    return exact, len(sample)


def evenly(rows: Sequence[str], count: int) -> list[str]:
    """At most so many of the rows, from all over them."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round()
    return [rows[int(place)] for place in places]


# ------------------------------------------------------------------ tokens


@torch.inference_mode()
def bits_of_tokens(model: Decoder, tokenizer: Tokenizer, rows: Sequence[str], progress: bool = False) -> RowBits:
    """-log2 p(tokens and </s>) of each row, after <s>. Raises UserError for a row that is longer than the context, and
    for a tokenizer that marks neither."""
    if tokenizer.bos_id < 0 or tokenizer.eos_id < 0:
        raise UserError(
            "the tokenizer has no <s> or no </s>: the first token would have nothing before it, or the end of a row "
            "would be free; measure bits-per-byte instead"
        )
    device = model.head_weight.device
    bits, units = [], []
    for batch in _passes(_ids(model, tokenizer, rows, progress)):
        counts = [len(ids) - 1 for ids in batch]
        read_N = torch.from_numpy(np.concatenate([ids[:-1] for ids in batch])).to(device)
        said_N = torch.from_numpy(np.concatenate([ids[1:] for ids in batch])).to(device)
        logits_NV = model(read_N, Packed.from_lengths(counts, device=device)).logits
        assert logits_NV is not None
        bits += _sums(F.cross_entropy(logits_NV.float(), said_N, reduction="none"), counts)
        units += counts
    return RowBits(np.array(bits), np.array(units), "token", TOKENS)


def _ids(model: Decoder, tokenizer: Tokenizer, rows: Sequence[str], progress: bool) -> Iterator[NDArray[np.int64]]:
    context = model.config.context_length
    for number, row in enumerate(tqdm(rows, desc="evaluate", unit="row", disable=not progress), 1):
        ids = [tokenizer.bos_id, *tokenizer.encode(row), tokenizer.eos_id]
        if len(ids) - 1 > context:
            raise UserError(
                f"row {number} is {len(ids) - 1} tokens, more than the model's context of {context}: every row is read "
                "whole, so cut shorter rows with --row-patches"
            )
        yield np.array(ids, np.int64)


# ------------------------------------------------------------------ both


def _sums(nats_M: Tensor, counts: Sequence[int]) -> list[float]:
    """Bits of each row, from nats of its patches or tokens."""
    return [float(part.sum()) / math.log(2) for part in nats_M.double().cpu().split(list(counts))]


def _passes(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    """Rows gathered until a pass of the model is worth its while."""
    batch: list[_Row] = []
    size = 0
    for row in rows:
        if batch and size + len(row) > UNITS_PER_PASS:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row)
    if batch:
        yield batch


def as_text(result: BitsPerCharacter) -> str:
    """The result for people."""
    unit, units = result.unit, "patches" if result.unit == "patch" else "tokens"
    interval = "" if result.low is None else f"   95 % {result.low:.4f} to {result.high:.4f}"
    lines = [
        f"bits per character   {result.bits_per_character:.4f}{interval}",
        f"bits per byte        {result.bits_per_byte:.4f}",
        f"bits per {unit:12}{result.bits_per_unit:.4f}",
        f"{units} a character  {result.units_per_character:.4f}, characters a {unit} "
        f"{1 / result.units_per_character:.2f}",
        f"counted              {result.counted}",
        f"rows                 {result.num_rows:,}: {result.num_characters:,} characters, {result.num_bytes:,} bytes, "
        f"{result.num_units:,} {units}",
    ]
    if result.read_back is not None:
        lines.append(f"read back exactly    {100 * result.read_back:.1f} % of {result.num_read} rows")
    return "\n".join(
        [
            *lines,
            "baselines in bits per character of the same rows, a line end after each",
            f"  uniform bytes              {result.uniform:.4f}",
            f"  order-0 character entropy  {result.order_0:.4f}",
            f"  xz -9e                     {result.xz:.4f}",
        ]
    )
