"""Reading the original decoder's bundle: a folder with a torch.save archive, JSON tables, a tokenizer, a model card.

Bundles are read the way the original program reads them where it is right (the archive's own metadata is the truth, the
embedding's rows decide the vocabulary, missing fields have defaults, unknown ones are dropped) and more strictly where
it guesses: a tokenizer of another size, a table that contradicts the archive, a path that leads out of the folder and a
damaged file are errors. Archives are opened with weights_only=True, so nothing in them can run.
Source: specs/decoder.md, section 3.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from pixelcore.config import DecoderConfig
from pixelcore.config_io import config_from_dict
from pixelcore.convert.bundle_format import (
    BALANCE_COEFFICIENT,
    LORA,
    MODEL_FILE,
    MOE,
    OPTIONAL,
    REQUIRED,
    TOKENIZER_FILE,
)
from pixelcore.convert.names import TIED_HEAD, optimizer_order, pack, published_shapes
from pixelcore.errors import UserError
from pixelcore.stored import OptimizerState, Stored
from pixelcore.tokenizer import Tokenizer


def read_bundle(
    path: Path, tokenizer: Path | None = None, with_optimizer: bool = False, require_tokenizer: bool = True
) -> Stored:
    """Read a bundle folder, a folder of step_*.pt checkpoints, or one .pt file.

    tokenizer: the tokenizer's file where none stands beside the archive. details of the result: "file" that was read,
    "model_config", "training_config" and "hardware" as stored, "has_rng", and "optimizer_group" where it was read.
    Raises UserError for anything that is missing, damaged, contradictory or of the wrong shape.
    """
    file = path if path.is_file() else _archive_in(path)
    payload = load_archive(file)
    fields = _model_fields(_table(_table(payload, "metadata", file), "model", file), f"{file}: metadata.model")
    folder = file.parent
    _compare_with_json(fields, folder / MODEL_FILE, file)
    state = _state_dict(payload, file)
    config = _config(fields, _embedding_rows(state, fields), f"{file}: metadata.model")
    found = _find_tokenizer(folder, tokenizer, require_tokenizer)
    if found is not None and found.vocab_size != config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {found.vocab_size} pieces and the embedding of {file.name} "
            f"{config.vocab_size} rows; they must be equal: use the tokenizer that this model was trained with"
        )
    training = payload.get("config")
    details: dict[str, object] = {
        "file": file.name,
        "model_config": fields,
        "training_config": training if isinstance(training, dict) else None,
        "hardware": payload["metadata"].get("hardware"),
        "has_rng": payload.get("rng_cpu") is not None,
    }
    optimizer = None
    if with_optimizer and payload.get("optimizer") is not None:
        optimizer = _optimizer_state(payload["optimizer"], config, file)
        group = payload["optimizer"]["param_groups"][0]
        details["optimizer_group"] = {key: value for key, value in group.items() if key != "params"}
    step = payload.get("step")
    return Stored(
        path=path,
        origin="bundle",
        name=str(fields["name"]),
        step=step if isinstance(step, int) else 0,
        config=config,
        weights=pack(state, config, str(file)),
        tokenizer=found,
        optimizer=optimizer,
        details=details,
    )


def _archive_in(folder: Path) -> Path:
    """The archive that a folder means: what its manifest names, else latest.pt, else the last step_*.pt by name."""
    named = None
    manifest = folder / "manifest.json"
    if manifest.exists():
        named = _read_json(manifest).get("latest")
        if named is not None and not _is_plain_name(named):
            raise UserError(
                f"{manifest}: latest = {named!r} must be the name of a file in this folder, without directories: "
                "correct it"
            )
    # a bundle's manifest has to be right; a folder of checkpoints may have been thinned out by hand
    if named is not None and (folder / MODEL_FILE).exists() and not (folder / named).is_file():
        raise UserError(f"{manifest}: latest = {named!r} is not in the folder: put the file there, or correct the name")
    candidates = [folder / name for name in (named, "latest.pt") if name is not None]
    candidates += sorted(folder.glob("step_*.pt"), reverse=True)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(f"{folder}: no checkpoint here; expected latest.pt or step_*.pt: give the folder that holds them")


def _is_plain_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )


def load_archive(file: Path) -> dict[str, Any]:
    """The dict in a torch.save archive, after its checksums; no class in it is ever called. Raises UserError."""
    remedy = "copy it again from its source"
    try:
        # the loader below does not compare checksums, and a flipped bit in a weight is silent
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as cause:
        raise UserError(f"{file}: damaged, cut short, or no torch.save archive: {remedy}") from cause
    except OSError as cause:
        raise UserError(f"{file}: cannot be read ({cause.strerror}): {remedy}") from cause
    if damaged is not None:
        raise UserError(f"{file}: damaged: the checksum of its part {damaged} does not match: {remedy}")
    try:
        payload = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as cause:
        culprit = re.search(r"GLOBAL (\S+)", str(cause))
        if culprit is None:
            raise UserError(f"{file}: damaged, or no torch.save archive of tensors: {remedy}") from cause
        raise UserError(
            f"{file}: holds {culprit.group(1)}, and only tensors and plain values are read, as a pickled class can run "
            "code: save it again as a dict of tensors and plain values"
        ) from cause
    except RuntimeError as cause:
        raise UserError(f"{file}: damaged, or no torch.save archive: {remedy}") from cause
    if not isinstance(payload, dict):
        raise UserError(f"{file}: holds {type(payload).__name__}; a checkpoint is a dict: give the model's own file")
    return payload


def _table(parent: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    table = parent.get(name)
    if not isinstance(table, dict):
        raise UserError(
            f"{file}: {name} is {type(table).__name__} and must be a table: this is not a checkpoint of the original "
            "program; give one that is"
        )
    return table


def _model_fields(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The model table in the published order: defaults for what is missing, unknown fields dropped."""
    missing = [name for name in REQUIRED if name not in raw]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing; the model cannot be built without: restore the file")
    fields = {name: raw[name] for name in REQUIRED} | {name: raw.get(name, OPTIONAL[name]) for name in OPTIONAL}
    for name, defaults in (("moe", MOE), ("lora", LORA)):
        table = raw.get(name)
        if not isinstance(table, Mapping):
            table = {}
        fields[name] = {key: table.get(key, default) for key, default in defaults.items()}
    targets = fields["lora"]["target_modules"]
    if not isinstance(targets, list | tuple):
        raise UserError(f"{where}: lora.target_modules = {targets!r} must be a list of names: restore the file")
    fields["lora"]["target_modules"] = list(targets)
    if type(fields["rope_base"]) not in (int, float):
        raise UserError(f"{where}: rope_base = {fields['rope_base']!r} must be a number: restore the file")
    fields["rope_base"] = int(fields["rope_base"])
    return fields


def _compare_with_json(fields: Mapping[str, Any], path: Path, file: Path) -> None:
    """The table beside the archive is a copy of the archive's; where they differ, one of them belongs elsewhere."""
    if not path.exists():
        return
    other = _model_fields(_read_json(path), str(path))
    for name, value in fields.items():
        if other[name] != value:
            raise UserError(
                f"{path}: {name} = {other[name]!r}, but {file.name} was trained with {value!r}; they must be equal: "
                "correct the table, or restore the pair"
            )


def _config(fields: Mapping[str, Any], num_rows: int, where: str) -> DecoderConfig:
    moe, lora = fields["moe"], fields["lora"]
    data = {name: fields[name] for name in (*REQUIRED, *OPTIONAL) if name not in ("name", "use_moe")}
    data["vocab_size"] = num_rows
    # moe.enabled says nothing: the original program looks at use_moe alone
    data["moe"] = None
    if fields["use_moe"]:
        data["moe"] = {name: moe[name] for name in ("num_experts", "top_k", "expert_interval")}
        data["moe"]["balance_coefficient"] = BALANCE_COEFFICIENT
    data["lora"] = {name: lora[name] for name in LORA if name != "enabled"} if lora["enabled"] else None
    config = config_from_dict("decoder", data, where)
    assert isinstance(config, DecoderConfig)
    return config


def _state_dict(payload: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    state = _table(payload, "model", file)
    strangers = [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if strangers:
        raise UserError(f"{file}: model.{strangers[0]} must be a tensor: restore the file")
    return state


def _embedding_rows(state: Mapping[str, Tensor], fields: Mapping[str, Any]) -> int:
    """The vocabulary that the weights have; the table's number stands only where there is no matrix to count."""
    matrices = (state.get("embed_tokens.weight"), state.get(TIED_HEAD))
    return max((matrix.shape[0] for matrix in matrices if matrix is not None and matrix.dim()), default=0) or int(
        fields["vocab_size"]
    )


def _find_tokenizer(folder: Path, given: Path | None, required: bool) -> Tokenizer | None:
    beside = folder / TOKENIZER_FILE
    own = Tokenizer.load(beside) if beside.exists() else None
    if given is None:
        if own is None and required:
            raise UserError(
                f"{folder}: no {TOKENIZER_FILE} beside the checkpoint, and text cannot be read or written without: add "
                "--tokenizer FILE"
            )
        return own
    other = Tokenizer.load(given)
    if own is not None and own != other:
        raise UserError(f"{given}: not the tokenizer of this model, which is {beside}: leave out --tokenizer")
    return other


def _optimizer_state(raw: Any, config: DecoderConfig, file: Path) -> OptimizerState:
    """AdamW's moments by our names. The original numbers parameters: matrices first, then norm weights.

    An expert without tokens had no gradient there, and its moments may be missing or a few updates behind: missing ones
    are zero, and the number of updates is that of the others.
    """
    order = optimizer_order(config)
    groups = raw.get("param_groups") if isinstance(raw, dict) else None
    state = raw.get("state") if isinstance(raw, dict) else None
    if not isinstance(groups, list) or not isinstance(state, dict):
        raise UserError(f"{file}: optimizer must hold param_groups and state: load the model without its optimizer")
    counts = [len(group["params"]) for group in groups]
    if counts != [len(names) for names in order]:
        raise UserError(
            f"{file}: the optimizer's groups have {counts} parameters; this model has {[len(x) for x in order]} "
            "(matrices, norms): load the model without its optimizer"
        )
    indices = [index for group in groups for index in group["params"]]
    names = [*order[0], *order[1]]
    shapes = published_shapes(config)
    moments: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
    for name, index in zip(names, indices, strict=True):
        for key, tensors in moments.items():
            tensors[name] = state[index][key] if index in state else torch.zeros(shapes[name])
    steps = [int(entry["step"]) for entry in state.values()]
    return OptimizerState(
        firsts=pack(moments["exp_avg"], config, f"{file}: optimizer exp_avg"),
        seconds=pack(moments["exp_avg_sq"], config, f"{file}: optimizer exp_avg_sq"),
        step=max(steps, default=0),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as cause:
        raise UserError(f"{path}: not JSON ({cause}): restore the file") from cause
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a table, not {type(content).__name__}: restore the file")
    return content
