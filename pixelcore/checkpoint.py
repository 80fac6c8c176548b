"""The project's checkpoint, and the one function that opens any model folder.

A checkpoint is a folder: `manifest.json` says what it is (format and version, every configuration, the step, the
position in the data, the hashes of all its files and of itself); `model.safetensors` holds fp32 parameters,
`optimizer.safetensors` AdamW's moments, `state.safetensors` the little that is left, `tokenizer.model` the tokenizer's
own bytes. Nothing in it is a pickle. It is written whole or not at all (`durable.py`), and every byte that is read is
checked against the manifest first, so that damage is named and never trained on. A run that trains a second model
against the first keeps that one in files of its own, which loading a model never reads.

Training with adapters saves the adapters alone and where their base is, by path and by hash of its weights.

`read_stored` recognises a folder by its files, in the order of decision 8 of docs/architecture.md, and returns the
same `Stored` record whoever wrote it; `load_model` makes a model of it.
"""

import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixelcore.config_io import config_from_dict
from pixelcore.convert.bundle_reader import read_bundle
from pixelcore.convert.exported import read_export
from pixelcore.convert.pixar import find_pixar, read_pixar
from pixelcore.convert.pixel import read_pixel, with_pooling
from pixelcore.durable import publish, sha256_of_file, temporary_folder, write_file
from pixelcore.errors import UserError
from pixelcore.hub import fetch, is_hub_name
from pixelcore.models import MODELS, Model
from pixelcore.ops import REFERENCE, Ops
from pixelcore.stored import OptimizerState, Stored
from pixelcore.tokenizer import Tokenizer

FORMAT = "pixelcore"
VERSION = 1

_log = logging.getLogger(__name__)


# ------------------------------------------------------------------ writing


def write_checkpoint(
    folder: Path,
    stored: Stored,
    *,
    state: Mapping[str, Tensor],
    manifest: Mapping[str, object],
    base: Mapping[str, str] | None = None,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a checkpoint folder in one step.

    stored.optimizer and stored.tokenizer are written where they are there. manifest: further entries (configurations,
    data position, versions). base: {"path", "sha256"} where stored.weights are adapters of another model's weights.
    others: the tensors of further files, by name: what a run needs to go on and no reader of the model does.
    """
    temporary = temporary_folder(folder)
    save_file(_plain(stored.weights), temporary / "model.safetensors")
    if stored.optimizer is not None:
        save_file(_plain(moments_by_key(stored.optimizer)), temporary / "optimizer.safetensors")
    save_file(_plain(state), temporary / "state.safetensors")
    for name, tensors in (others or {}).items():
        save_file(_plain(tensors), temporary / name)
    if stored.tokenizer is not None:
        write_file(temporary / "tokenizer.model", stored.tokenizer.model_bytes)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kind": stored.config.kind,
        "name": stored.name,
        "step": stored.step,
        "optimizer_step": None if stored.optimizer is None else stored.optimizer.step,
        "model": dataclasses.asdict(stored.config),
        "base": None if base is None else dict(base),
        "renderer": stored.renderer,
        "task": stored.task,
        **manifest,
        "files": {file.name: sha256_of_file(file) for file in sorted(temporary.iterdir())},
    }
    content["sha256"] = _manifest_hash(content)
    write_file(temporary / "manifest.json", json.dumps(content, indent=2, ensure_ascii=False).encode())
    publish(temporary, folder)


def moments_by_key(optimizer: OptimizerState) -> dict[str, Tensor]:
    """AdamW's moments under the keys of optimizer.safetensors: `first.<parameter>`, `second.<parameter>`."""
    firsts = {f"first.{name}": moment for name, moment in optimizer.firsts.items()}
    return firsts | {f"second.{name}": moment for name, moment in optimizer.seconds.items()}


def moments_from_keys(tensors: Mapping[str, Tensor], step: int) -> OptimizerState:
    """The inverse of `moments_by_key`; step: the number of updates."""
    return OptimizerState(
        firsts={key[len("first.") :]: value for key, value in tensors.items() if key.startswith("first.")},
        seconds={key[len("second.") :]: value for key, value in tensors.items() if key.startswith("second.")},
        step=step,
    )


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and fp32 values in the order of the names: the same for every file format."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().cpu().float().contiguous()
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _manifest_hash(content: Mapping[str, object]) -> str:
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------ reading


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    ops: Ops | None = None,
    pooling: str | None = None,
) -> Model:
    """The model in any folder that `read_stored` knows, in eval mode with trainable parameters of `dtype`.

    pooling: how a published classifier was trained to pool, which its files do not say: mean, max or pma<heads>.
    """
    return build_model(read_stored(path), device, dtype, ops, pooling)


def read_stored(path: str | Path, *, tokenizer: Path | None = None, with_optimizer: bool = False) -> Stored:
    """Read a checkpoint, a run (its best checkpoint where it has one, else the newest), an export, a bundle, or a
    published PIXEL or PIXAR folder; a name in place of a path is fetched (`pixelcore.hub`).

    tokenizer: a tokenizer file for a bundle that has none beside it. Raises UserError for a path that is missing,
    damaged, of a newer version or not recognised, naming the files found.
    """
    path = Path(path)
    if not path.exists():
        if is_hub_name(str(path)):
            stored = read_stored(fetch(str(path)), tokenizer=tokenizer, with_optimizer=with_optimizer)
            return dataclasses.replace(stored, name=str(path))
        raise UserError(f"{path}: no such file or folder; --model takes a run, a checkpoint folder or a .pt file")
    if path.is_file():
        if path.suffix == ".pt":
            return read_bundle(path, tokenizer, with_optimizer)
        raise UserError(f"{path}: not a model; --model takes a run, a checkpoint folder or a bundle's .pt file")
    if _json(path / "manifest.json").get("format") == FORMAT:
        return read_checkpoint(path, with_optimizer=with_optimizer)
    if (path / "run.json").exists():
        return read_checkpoint(checkpoint_of_run(path), with_optimizer=with_optimizer)
    if (path / "pixel_model_config.json").exists() or any(path.glob("*.pt")):
        return read_bundle(path, tokenizer, with_optimizer)
    config = _json(path / "config.json")
    if config.get("format") == FORMAT:
        return read_export(path)
    pixar = find_pixar(path)
    if pixar is not None:
        return read_pixar(pixar)
    if config.get("model_type") in ("pixel", "vit_mae"):
        return read_pixel(path)
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:12]) or "nothing"
    kind = f", and config.json says model_type {config['model_type']!r}" if "model_type" in config else ""
    raise UserError(
        f"{path}: no model recognised; found {found}{kind}; expected manifest.json, run.json, a bundle's files, or a "
        "config.json of ours, with model_type pixel or vit_mae, or with PIXAR's patch_len and num_channel"
    )


def checkpoint_of_run(run: Path, which: str | None = None) -> Path:
    """The folder of a run's "best" or "newest" checkpoint; without `which`, the best where the run selects one."""
    marks = _json(run / "run.json")
    chosen = which or ("best" if marks.get("best") else "newest")
    name = marks.get(chosen)
    if not isinstance(name, str):
        raise UserError(f"{run}: the run has no checkpoint yet; resume it: python -m train --resume {run}")
    _log.info("%s: reading its %s checkpoint, %s", run, chosen, name)
    return run / "checkpoints" / name


def read_manifest(folder: Path) -> dict:
    """The checked manifest of a checkpoint folder."""
    path = folder / "manifest.json"
    if not path.exists():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no folder"
        raise UserError(f"{folder}: not a checkpoint: no manifest.json; found {found or 'nothing'}")
    content = _json(path)
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: format is {content.get('format')!r}, not {FORMAT!r}: not a checkpoint of ours")
    if content.get("version") != VERSION:
        raise UserError(
            f"{path}: checkpoint format version {content.get('version')}; this program reads version {VERSION}: use a "
            f"pixelcore release that reads it"
        )
    if content.get("sha256") != _manifest_hash(content):
        raise UserError(f"{path}: damaged: its content does not match its own hash; use another checkpoint of the run")
    return content


def read_checkpoint(folder: Path, *, with_optimizer: bool = False) -> Stored:
    """A checkpoint of ours; adapters are joined with their base, which must still be where and what it was."""
    manifest = read_manifest(folder)
    config = config_from_dict(manifest["kind"], manifest["model"], f"{folder / 'manifest.json'}: model")
    weights = read_tensors(folder, manifest, "model.safetensors")
    if manifest["base"] is not None:
        weights = _with_base(folder, manifest["base"], weights)
    tokenizer = None
    if "tokenizer.model" in manifest["files"]:
        check_file(folder, manifest, "tokenizer.model")
        tokenizer = Tokenizer.load(folder / "tokenizer.model")
    optimizer = None
    if with_optimizer and "optimizer.safetensors" in manifest["files"]:
        moments = read_tensors(folder, manifest, "optimizer.safetensors")
        optimizer = moments_from_keys(moments, manifest["optimizer_step"])
    return Stored(
        path=folder,
        origin="checkpoint",
        name=manifest["name"],
        step=manifest["step"],
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        renderer=manifest.get("renderer"),
        task=manifest.get("task"),
        optimizer=optimizer,
        details=manifest,
    )


def read_tensors(folder: Path, manifest: Mapping[str, dict], name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, after its hash has been checked."""
    path = check_file(folder, manifest, name)
    try:
        return load_file(path)
    except safetensors.SafetensorError as cause:
        raise UserError(f"{path}: not a safetensors file: {cause}") from cause


def check_file(folder: Path, manifest: Mapping[str, dict], name: str) -> Path:
    """The path of a checkpoint's file; raises UserError if it is missing or its bytes are not the manifest's."""
    path = folder / name
    if name not in manifest["files"] or not path.exists():
        raise UserError(f"{path}: missing from the checkpoint; start from another checkpoint of the run, --init")
    if sha256_of_file(path) != manifest["files"][name]:
        raise UserError(f"{path}: damaged: SHA-256 differs from the manifest's; use another checkpoint of the run")
    return path


def _with_base(folder: Path, base: Mapping[str, str], adapters: dict[str, Tensor]) -> dict[str, Tensor]:
    path = Path(base["path"])
    if not path.exists():
        raise UserError(f"{folder}: holds adapters of {path}, which is not there: put the base model back at that path")
    weights = read_stored(path).weights
    if hash_weights(weights) != base["sha256"]:
        raise UserError(f"{folder}: holds adapters of {path}, whose weights have changed since: restore the base model")
    return weights | adapters


def _json(path: Path) -> dict:
    """A JSON object from a file; an absent file reads as {}."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as cause:
        raise UserError(f"{path}: damaged: not JSON ({cause})") from cause
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged: not a JSON object")
    return content


# ------------------------------------------------------------------ models


def build_model(
    stored: Stored,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    ops: Ops | None = None,
    pooling: str | None = None,
) -> Model:
    """The model of a record, in eval mode, its parameters of `dtype` on `device`. pooling: see `load_model`."""
    stored = with_pooling(stored, pooling)
    with torch.device("meta"):
        model = MODELS[stored.config.kind](stored.config, ops or REFERENCE)
    load_weights(model, stored.weights, str(stored.path))
    model.compute_dtype = dtype
    return model.to(device=device, dtype=dtype).eval()


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Give a model its parameters and persistent buffers. Every missing, extra or misshapen tensor is an error that
    names it."""
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise UserError(f"{where}: tensor {name} {list(tensor.shape)} is missing")
        if weights[name].shape != tensor.shape:
            raise UserError(
                f"{where}: tensor {name} has shape {list(weights[name].shape)}; the configuration asks for "
                f"{list(tensor.shape)}"
            )
    extra = sorted(weights.keys() - expected.keys())
    if extra:
        raise UserError(f"{where}: tensor {extra[0]} belongs to no parameter ({len(extra)} such tensors)")
    # a copy where the file's tensors are shared or of another dtype: parameters are fp32 and own their memory
    own = {name: weights[name].to(torch.float32, copy=True) for name in expected}
    model.load_state_dict(own, assign=True)


def library_versions() -> dict[str, str]:
    """What wrote a checkpoint, for the record."""
    return {"python": sys.version.split()[0], "torch": torch.__version__, "safetensors": safetensors.__version__}
