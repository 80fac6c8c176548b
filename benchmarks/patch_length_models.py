"""The models that benchmarks/patch_length.py compares, and the rows that they are all trained on and asked about.

The text is cut into rows once, by the widest patch. The text of such a row leaves room for that patch at its end, so
the row fits every other patch length in as many pixels. Models of strips are trained on these rows as documents of one
row each; decoders of tokens too, several of them in a block, so that a row is cut only where two blocks meet.

What may not change between two calls for one folder is kept there (`plan`): text, rows, components of mixtures, and the
budget of each size in floating point operations.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.token_partners import partner, row_flops, vocabulary_for
from infer.benchmarks.text_rows import cut_rows
from pixelcore.config import DecoderConfig, PixarConfig
from pixelcore.documents import find_files, read_documents
from pixelcore.durable import write_file, write_json
from pixelcore.errors import UserError
from pixelcore.tokenizer import Tokenizer, byte_tokenizer
from render import RenderConfig, Renderer
from train.sizing import measure_matmul_flops

PATCH_LENGTHS = (1, 2, 3, 5)
HEIGHT = 8
WIDEST = HEIGHT * max(PATCH_LENGTHS)
# layers, width, heads, feed-forward, learning rate; tiny is that of presets/pixar-tiny.toml
SIZES = {
    "smoke": (2, 32, 2, 64, 2e-3),
    "1m": (5, 128, 4, 336, 2e-3),
    "tiny": (4, 192, 3, 512, 2e-3),
    "3m": (7, 192, 6, 512, 2e-3),
    "10m": (8, 320, 10, 848, 1.5e-3),
    "30m": (10, 512, 8, 1360, 1e-3),
}
ROWS_PER_BLOCK = 8  # of tokens
SHARE_OF_MATRIX_PRODUCT = 0.4  # of its speed that a step of such a model reaches


@dataclass(frozen=True)
class Arm:
    """A model of one size. lengths: of the training rows, in patches or tokens that are predicted. rows_per_step: of
    tokens, as many as its whole blocks hold. changes: what its run changes in its preset."""

    name: str
    config: PixarConfig | DecoderConfig
    lengths: list[int]
    rows_per_step: float
    steps: int
    preset: str
    changes: dict[str, Any]


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """What may not change between two calls for one folder, with the FLOPs of each size. Raises UserError where it
    has."""
    budget = {name: getattr(options, name) for name in ("flops", "steps", "minutes") if getattr(options, name)}
    names = ("data", "held_out", "components", "width", "rows_per_step", "rate")
    wanted = json.loads(json.dumps({name: getattr(options, name) for name in names} | {"budget": budget}))
    file = options.runs / "plan.json"
    flops: dict[str, float] = {}
    if file.exists():
        found = json.loads(file.read_text())
        flops = found.pop("flops")
        for name, value in wanted.items():
            if found[name] != value:
                raise UserError(
                    f"--runs {options.runs}: its runs were made with {name} = {found[name]}, not {value}: choose "
                    "another folder, or the same settings"
                )
    options.runs.mkdir(parents=True, exist_ok=True)
    for size in options.sizes:
        if size not in flops:
            flops[size] = flops_of(size, options)
    write_json(file, wanted | {"flops": flops})
    return wanted | {"flops": flops}


def flops_of(size: str, options: argparse.Namespace) -> float:
    """The budget of every model of a size."""
    if options.flops is not None:
        return options.flops
    if options.minutes is not None:
        return options.minutes * 60 * SHARE_OF_MATRIX_PRODUCT * measure_matmul_flops()
    config = pixar_of(2, size, options)
    lengths = patches_of(2, rows_of(options, "training"))
    return options.steps * options.rows_per_step * row_flops(config, lengths)


def rows_of(options: argparse.Namespace, role: str) -> list[str]:
    """The rows of a text, cut by the widest patch: they fit any other, too."""
    file = options.runs / f"{role}.jsonl"
    if not file.exists():
        held_out = [found for path in options.held_out for found in find_files(path)]
        files = [found for path in options.data for found in find_files(path)] if role == "training" else held_out
        if role == "training":  # a folder may hold both
            files = [found for found in files if found.resolve() not in {other.resolve() for other in held_out}]
        if not files:
            raise UserError("--data: every file of it is held out: name others with --held-out")
        texts = [text for found in files for text in read_documents(found)]
        print(f"cutting the {role} text into rows: {len(files)} files", file=sys.stderr)
        rows = cut_rows(texts, renderer_of(max(PATCH_LENGTHS)), options.width // WIDEST).texts
        write_file(file, "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows).encode())
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def renderer_of(patch_length: int) -> Renderer:
    return Renderer(RenderConfig.named("pixar", patch_width=HEIGHT * patch_length, max_patches=1 << 16))


# ------------------------------------------------------------------ models


def arm_of(name: str, size: str, rows: Sequence[str], flops: float, options: argparse.Namespace) -> Arm:
    """The model of a name, with the steps that this budget pays for."""
    kind, _, length = name.partition("-")
    if kind in ("pixels", "mixture"):
        config = pixar_of(int(length), size, options, options.components if kind == "mixture" else 1)
        lengths = patches_of(int(length), rows)
        in_step = options.rows_per_step
        steps = steps_for(flops, config, lengths, in_step)
        return Arm(name, config, lengths, in_step, steps, "pixar-tiny", pixel_changes(config, in_step))
    tokenizer = tokenizer_of(name, rows, options)
    lengths = [len(ids) + 1 for ids in tokenizer.encode_batch(list(rows))]
    length_of_row = statistics.fmean(lengths)
    block = max(max(lengths), math.ceil(ROWS_PER_BLOCK * length_of_row))
    blocks = max(1, round(options.rows_per_step * length_of_row / block))
    config = partner(pixar_of(2, size, options), tokenizer.vocab_size, block)
    in_step = blocks * block / length_of_row
    changes = model_changes(config) | {
        "tokenizer.kind": "bytes" if kind == "bytes" else "bpe",
        "tokenizer.path": "" if kind == "bytes" else str((options.runs / f"{name}.model").absolute()),
        "data.block_size": block,
        "data.tokens_per_step": blocks * block,
        "eval.prompts": [],
        "eval.max_tokens": 20_000,
        "run.micro_batch_blocks": 1,
    }
    return Arm(name, config, lengths, in_step, steps_for(flops, config, lengths, in_step), "demo", changes)


def pixar_of(patch_length: int, size: str, options: argparse.Namespace, components: int = 1) -> PixarConfig:
    layers, width, heads, intermediate, _ = SIZES[size]
    # rows were cut by the widest patch, so the text of one leaves room for that patch
    most = math.ceil((options.width - WIDEST) / (HEIGHT * patch_length)) + 1
    return PixarConfig(
        num_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        patch_height=HEIGHT,
        patch_length=patch_length,
        max_patches=most,
        head="bernoulli" if components == 1 else "mixture",
        num_components=components,
        start_vector=True,
    )


def patches_of(patch_length: int, rows: Sequence[str]) -> list[int]:
    renderer = renderer_of(patch_length)
    return [renderer(row).num_patches for row in rows]


def tokenizer_of(name: str, rows: Sequence[str], options: argparse.Namespace) -> Tokenizer:
    """The bytes, or a vocabulary with as many characters a token as the patches hold, kept beside the runs."""
    if name == "bytes":
        return byte_tokenizer()
    file = options.runs / f"{name}.model"
    if not file.exists():
        wanted = sum(map(len, rows)) / sum(patches_of(int(name.removeprefix("bpe-")), rows))
        print(f"looking for the vocabulary of {name}: {wanted:.2f} characters a token", file=sys.stderr)
        try:
            found = vocabulary_for(rows, wanted)
        except ValueError as cause:
            raise UserError(f"--models {name}: {cause}: leave it out") from cause
        write_file(file, found.tokenizer.model_bytes)
    return Tokenizer.load(file)


def steps_for(flops: float, config: PixarConfig | DecoderConfig, lengths: list[int], rows_per_step: float) -> int:
    return max(1, round(flops / (rows_per_step * row_flops(config, lengths))))


def pixel_changes(config: PixarConfig, rows: int) -> dict[str, Any]:
    return model_changes(config) | {
        "render.patch_width": config.patch_width,
        "data.row_patches": config.max_patches,
        "data.min_patches": 2,
        "data.rows_per_step": rows,
        "eval.max_rows": 64,
        "eval.picture_rows": 0,
        "eval.words": 0,
        "run.micro_batch_blocks": min(rows, ROWS_PER_BLOCK),
    }


def model_changes(config: PixarConfig | DecoderConfig) -> dict[str, Any]:
    """Every field of the model that its record is made from."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {f"model.{name}": value for name, value in values.items() if value is not None}
