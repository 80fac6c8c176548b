"""From a path to a model that is ready to run, with the tokenizer it was trained with.

A model without its tokenizer is useless and with another one it is worse: ids mean other words, and nothing fails. So
the tokenizer that travels inside a checkpoint is always the one used, a different one is refused, and one is asked for
only where a foreign bundle came without.

This file opens decoders; what models of strips need besides, the renderer of their strips, is in `infer/pixels.py`.
"""

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from kernels import choose_ops
from pixelcore.checkpoint import build_model, read_stored
from pixelcore.errors import UserError
from pixelcore.models.decoder import Decoder
from pixelcore.stored import Stored
from pixelcore.tokenizer import Tokenizer

RUNS = Path("runs")
DECODERS = ("decoder",)
PIXEL_MODELS = ("vit_mae", "vit_task")
PIXAR_MODELS = ("pixar",)
TASK_MODELS = ("vit_task", "token_task", "pixar_task", "decoder_task")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model in eval mode, its tokenizer, and the record they were read from."""

    model: Decoder
    tokenizer: Tokenizer
    stored: Stored


def load(
    path: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    ops: str = "auto",
    tokenizer: str | Path | None = None,
) -> Loaded:
    """Read a model and its tokenizer.

    path: a run, checkpoint, export or bundle folder, or a bundle's .pt file; None is the newest run of a decoder under
        `runs/`, whose name is logged. device: "auto" is CUDA where there is one, else the CPU. dtype: of parameters and
        activations; "auto" is bfloat16 on CUDA and float32 elsewhere. ops: "auto", "fused" or "reference".
    tokenizer: the SentencePiece file of a bundle that has none beside it.
    Raises UserError where something is missing, damaged or does not fit, and for a model of strips.
    """
    chosen_device = choose_device(device)  # before gigabytes are read
    chosen_ops = choose_ops(chosen_device, ops)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    stored = read(path, tokenizer=tokenizer, kinds=DECODERS)
    words = tokenizer_of(stored)
    model = build_model(stored, chosen_device, chosen_dtype, chosen_ops)
    assert isinstance(model, Decoder)
    return Loaded(model, words, stored)


def read(
    path: str | Path | Stored | None,
    *,
    tokenizer: str | Path | None = None,
    with_optimizer: bool = False,
    kinds: Collection[str] | None = None,
) -> Stored:
    """What a path holds, without building the model. The tokenizer, where one is given, must be the model's own.

    path: also what was read before, by a caller who had to know the kind of the model first. kinds: of the models that
    will do, as in `MODEL_CONFIGS`; every kind when absent. Raises UserError for another one.
    """
    given = None if tokenizer is None else Path(tokenizer)
    if given is not None and not given.is_file():
        raise UserError(f"--tokenizer {given}: no such file; give the SentencePiece .model file of this model")
    if isinstance(path, Stored):
        stored = path
    else:
        place = newest_run(kinds=kinds) if path is None else Path(path)
        stored = read_stored(place, tokenizer=given, with_optimizer=with_optimizer)
    if kinds is not None and stored.config.kind not in kinds:
        raise UserError(
            f"{stored.path}: a {stored.config.kind} model; {_FOR[stored.config.kind]}, or give another model"
        )
    if given is not None and stored.tokenizer is not None:
        sha256 = Tokenizer.load(given).sha256
        if sha256 != stored.tokenizer.sha256:
            raise UserError(
                f"--tokenizer {given}: SHA-256 {sha256[:12]}... is not that of the model's own tokenizer, "
                f"{stored.tokenizer.sha256[:12]}...; leave --tokenizer out"
            )
    return stored


_FOR = {
    "decoder": "it reads and writes tokens: use generate or evaluate bits-per-byte",
    "vit_mae": "it reads strips: use reconstruct, continue or embed",
    "vit_task": "it reads strips for one task and paints none: use predict, evaluate or embed",
    "token_mlm": "it says which tokens are hidden: fine-tune it, python -m train --init",
    "token_task": "it reads tokens for one task: use predict or evaluate",
    "pixar_task": "it reads strips for one task: use predict or evaluate",
    "decoder_task": "it reads tokens for one task and writes none: use predict or evaluate",
    "pixar": "it writes strips patch by patch: use continue, or evaluate by one of its benchmarks",
}


def tokenizer_of(stored: Stored) -> Tokenizer:
    """The tokenizer of a record; raises UserError if there is none or its ids are not the model's."""
    if stored.tokenizer is None:
        raise UserError(f"{stored.path}: the model comes without a tokenizer; name its .model file: --tokenizer FILE")
    vocab_size = stored.decoder_config.vocab_size
    if stored.tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{stored.path}: the tokenizer has {stored.tokenizer.vocab_size} pieces and the model "
            f"{vocab_size}; they must be equal: name the model's own with --tokenizer FILE"
        )
    return stored.tokenizer


def newest_run(runs: Path = RUNS, kinds: Collection[str] | None = None) -> Path:
    """The run, of a model of these kinds, whose newest checkpoint was written last. Logs its name. Raises UserError if
    there is none."""
    dated = []
    for run in (marks.parent for marks in runs.glob("*/run.json")):
        manifests = {file.stat().st_mtime: file for file in run.glob("checkpoints/step_*/manifest.json")}
        if manifests:
            written = max(manifests)
            dated.append((written, run, manifests[written]))
    for _, run, manifest in sorted(dated, reverse=True):
        if kinds is None or _kind(manifest) in (None, *kinds):
            _log.info("no --model given: using the newest run, %s", run)
            return run
    wanted = "" if kinds is None else f" of a {' or '.join(kinds)} model"
    raise UserError(
        f"no --model given and no run with a checkpoint under {runs}/{wanted}; train one, or give --model PATH"
    )


def _kind(manifest: Path) -> str | None:
    """The kind of model that a manifest names; None for a damaged one, which is opened so that the damage is named."""
    try:
        return json.loads(manifest.read_bytes())["kind"]
    except (ValueError, KeyError, TypeError):
        return None


def choose_device(device: str | torch.device) -> torch.device:
    """The device to run on; raises UserError for one that does not exist here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as cause:
        raise UserError(f"--device {device}: unknown; choose auto, cpu, cuda or cuda:N") from cause
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: unknown; choose auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise UserError(f"--device {device}: {count} CUDA devices are usable here; use --device cpu or auto")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of a name in `DTYPES`, or of "auto"."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: unknown; choose auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]
