"""The original decoder's bundle: a folder with a torch.save archive, two JSON tables, a tokenizer and a model card.

Bundles are read the way the original program reads them where it is right (the archive's own metadata is the truth, the
embedding's rows decide the vocabulary, missing fields have defaults, unknown ones are dropped) and more strictly where
it guesses: a tokenizer of another size, a table that contradicts the archive, a path that leads out of the folder and a
damaged file are errors. Archives are opened with weights_only=True, so nothing in them can run.

Writing gives the same files. The archive holds weights alone unless the moments are asked for: the original's is three
times as large for moments that its program never reads back. Source: specs/decoder.md, section 3.
"""

import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from pixelcore.accounting import card_number, num_parameters
from pixelcore.config import LORA_TARGETS, DecoderConfig
from pixelcore.config_io import config_from_dict
from pixelcore.convert.folder import new_folder
from pixelcore.convert.names import TIED_HEAD, optimizer_order, pack, published_shapes, unpack
from pixelcore.errors import UserError
from pixelcore.stored import OptimizerState, Stored
from pixelcore.tokenizer import Tokenizer

TOKENIZER_FILE = "pixel_tokenizer.model"
_VOCABULARY_FILE = "pixel_tokenizer.vocab"
_MODEL_FILE = "pixel_model_config.json"
_TRAINING_FILE = "pixel_training_config.json"
_REQUIRED = (
    "name",
    "vocab_size",
    "context_length",
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
_OPTIONAL = {
    "rope_base": 500000,
    "tie_word_embeddings": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "use_moe": False,
}
_MOE = {"enabled": False, "num_experts": 4, "top_k": 2, "expert_interval": 4}
_LORA = {"enabled": False, "rank": 8, "alpha": 16, "dropout": 0.05, "target_modules": list(LORA_TARGETS)}
_BALANCE_COEFFICIENT = 1.0  # the format has no field for it: the original adds the balance loss as it is
_BETAS, _EPS, _WEIGHT_DECAY, _LEARNING_RATE = (0.9, 0.95), 1e-8, 0.1, 3e-4  # the original recipe


# ------------------------------------------------------------------ reading


def read_bundle(
    path: Path, tokenizer: Path | None = None, with_optimizer: bool = False, require_tokenizer: bool = True
) -> Stored:
    """Read a bundle folder, a folder of step_*.pt checkpoints, or one .pt file.

    tokenizer: the tokenizer's file where none stands beside the archive. details of the result: "file" that was read,
    "model_config", "training_config" and "hardware" as stored, "has_rng", and "optimizer_group" where it was read.
    Raises UserError for anything that is missing, damaged, contradictory or of the wrong shape.
    """
    file = path if path.is_file() else _archive_in(path)
    payload = _load_archive(file)
    fields = _model_fields(_table(_table(payload, "metadata", file), "model", file), f"{file}: metadata.model")
    folder = file.parent
    _compare_with_json(fields, folder / _MODEL_FILE, file)
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
    if named is not None and (folder / _MODEL_FILE).exists() and not (folder / named).is_file():
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


def _load_archive(file: Path) -> dict[str, Any]:
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
        raise UserError(f"{file}: holds {type(payload).__name__}; a bundle's archive holds a dict: give latest.pt")
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
    missing = [name for name in _REQUIRED if name not in raw]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing; the model cannot be built without: restore the file")
    fields = {name: raw[name] for name in _REQUIRED} | {name: raw.get(name, _OPTIONAL[name]) for name in _OPTIONAL}
    for name, defaults in (("moe", _MOE), ("lora", _LORA)):
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
    data = {name: fields[name] for name in (*_REQUIRED, *_OPTIONAL) if name not in ("name", "use_moe")}
    data["vocab_size"] = num_rows
    # moe.enabled says nothing: the original program looks at use_moe alone
    data["moe"] = None
    if fields["use_moe"]:
        data["moe"] = {name: moe[name] for name in ("num_experts", "top_k", "expert_interval")}
        data["moe"]["balance_coefficient"] = _BALANCE_COEFFICIENT
    data["lora"] = {name: lora[name] for name in _LORA if name != "enabled"} if lora["enabled"] else None
    return config_from_dict("decoder", data, where)


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


# ------------------------------------------------------------------ writing


def write_bundle(
    folder: Path, stored: Stored, with_optimizer: bool = False, training: Mapping[str, Any] | None = None
) -> None:
    """Write the original's files into a new folder, atomically.

    training: the table of pixel_training_config.json; without it that of the bundle the model came from, if any, else
    the file is left out, as the original does. Raises UserError where the format cannot say what the model is, and for
    a folder that is not empty.
    """
    if stored.tokenizer is None:
        raise UserError(f"{stored.path}: this model has no tokenizer, and a bundle contains one: add --tokenizer FILE")
    known = stored.details if stored.origin == "bundle" else {}
    if training is None and isinstance(known.get("training_config"), Mapping):
        training = known["training_config"]  # type: ignore[assignment]
    fields = bundle_fields(stored)
    hardware = known.get("hardware") or _unknown_hardware(stored)
    assert isinstance(hardware, dict)
    optimizer = _optimizer_table(stored, known) if with_optimizer else None
    weights = unpack(stored.weights, stored.config, where=str(stored.path))
    payload = {
        "step": stored.step,
        "model": OrderedDict(_contiguous(weights)),
        "optimizer": optimizer,
        "scaler": {},
        "config": None if training is None else dict(training),
        "metadata": {
            "model": fields | {"lora": fields["lora"] | {"target_modules": tuple(fields["lora"]["target_modules"])}},
            "hardware": hardware,
        },
        # the original's reader sets the global generator from this, so it has to be a state; a fresh one says nothing
        "rng_cpu": torch.Generator().manual_seed(0).get_state(),
        "rng_cuda": None,
    }
    with new_folder(folder) as new:
        torch.save(payload, new / "latest.pt")
        (new / TOKENIZER_FILE).write_bytes(stored.tokenizer.model_bytes)
        (new / _VOCABULARY_FILE).write_bytes(stored.tokenizer.vocab_text().encode())
        _write_json(new / "manifest.json", {"latest": "latest.pt", "step": stored.step})
        _write_json(new / _MODEL_FILE, fields)
        if training is not None:
            _write_json(new / _TRAINING_FILE, training)
        card = _model_card(stored, fields, training, hardware, optimizer is not None)
        (new / "README.md").write_text(card, encoding="utf-8")


def bundle_fields(stored: Stored) -> dict[str, Any]:
    """The table of pixel_model_config.json for a model, in its published order."""
    config = stored.config
    if config.rope_base != int(config.rope_base):
        raise UserError(
            f"{stored.path}: rope_base = {config.rope_base} must be a whole number in a bundle: use --to hf"
        )
    known = stored.details.get("model_config") if stored.origin == "bundle" else None
    raw: dict[str, Any] = dict(known) if isinstance(known, Mapping) else {}
    moe, lora = dict(raw.get("moe", _MOE)), dict(raw.get("lora", _LORA))
    if config.moe is not None:
        moe |= {"num_experts": config.moe.num_experts, "top_k": config.moe.top_k}
        moe |= {"expert_interval": config.moe.expert_interval}
        if not raw.get("use_moe"):
            moe["enabled"] = True
    lora["enabled"] = config.lora is not None
    if config.lora is not None:
        alpha = config.lora.alpha
        lora |= {"rank": config.lora.rank, "alpha": int(alpha) if alpha == int(alpha) else alpha}
        lora |= {"dropout": config.lora.dropout, "target_modules": list(config.lora.target_modules)}
    values: dict[str, Any] = {name: getattr(config, name) for name in (*_REQUIRED[1:], *_OPTIONAL) if name != "use_moe"}
    values |= {"rope_base": int(config.rope_base), "use_moe": config.moe is not None, "moe": moe, "lora": lora}
    return {"name": stored.name} | values


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with storage of its own (a slice would save the whole stack), and one storage under both names of a
    tied embedding."""
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tied = name == TIED_HEAD and tensor is tensors["embed_tokens.weight"]
        own[name] = (
            own["embed_tokens.weight"] if tied else tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        )
    return own


def _optimizer_table(stored: Stored, known: Mapping[str, object]) -> dict[str, Any]:
    state = stored.optimizer
    if state is None:
        raise UserError(f"{stored.path}: no optimizer state was stored with this model: leave out --with-optimizer")
    if stored.config.lora is not None and len(state.firsts) < len(stored.weights):
        raise UserError(
            f"{stored.path}: only the adapters were trained, and a bundle's optimizer covers every parameter: leave "
            "out --with-optimizer"
        )
    firsts = unpack(state.firsts, stored.config, tied_head=False, where=f"{stored.path}: first moments")
    seconds = unpack(state.seconds, stored.config, tied_head=False, where=f"{stored.path}: second moments")
    order = optimizer_order(stored.config)
    names = [*order[0], *order[1]]
    firsts, seconds = _contiguous(firsts), _contiguous(seconds)
    step = torch.tensor(float(state.step))
    group = {
        "weight_decay": _WEIGHT_DECAY,
        "lr": _LEARNING_RATE,
        "betas": _BETAS,
        "eps": _EPS,
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": True,
        "initial_lr": _LEARNING_RATE,
    }
    stored_group = known.get("optimizer_group")
    if isinstance(stored_group, Mapping):
        group |= stored_group
    num_matrices = len(order[0])
    return {
        "state": {
            index: {"step": step.clone(), "exp_avg": firsts[name], "exp_avg_sq": seconds[name]}
            for index, name in enumerate(names)
        },
        "param_groups": [
            group | {"params": list(range(num_matrices))},
            group | {"weight_decay": 0.0, "params": list(range(num_matrices, len(names)))},
        ],
    }


def _unknown_hardware(stored: Stored) -> dict[str, Any]:
    """The hardware table of a model that was not trained by the original program, which alone fills it in."""
    dtype = next(iter(stored.weights.values())).dtype
    return {
        "device": "unknown",
        "device_index": -1,
        "dtype": str(dtype),
        "gpu_count": 0,
        "total_ram_gb": 0.0,
        "total_vram_gb": 0.0,
        "supports_flash_attention": False,
        "supports_bitsandbytes": False,
        "distributed": False,
        "gradient_checkpointing": False,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="ascii")


def _model_card(
    stored: Stored,
    fields: Mapping[str, Any],
    training: Mapping[str, Any] | None,
    hardware: Mapping[str, Any],
    has_optimizer: bool,
) -> str:
    config, name = stored.config, stored.name
    files = {
        "latest.pt": "weights and AdamW moments" if has_optimizer else "the weights, without optimizer state",
        "manifest.json": "which archive is the newest, and its step",
        TOKENIZER_FILE: "the SentencePiece model",
        _VOCABULARY_FILE: "its pieces and scores, to look at",
        _MODEL_FILE: "the model's configuration",
    }
    if training is not None:
        files[_TRAINING_FILE] = "the settings it was trained with"
    snapshot = {"Optimizer steps": stored.step}
    for label, key in (
        ("Size preset", "size"),
        ("Sequence length", "sequence_length"),
        ("Batch size", "batch_size"),
        ("Gradient accumulation", "grad_accumulation_steps"),
    ):
        if training is not None and key in training:
            snapshot[label] = training[key]
    architecture = {
        "Parameters, counted": f"{num_parameters(config):,}",
        "Parameters by the original card's formula (no norms, experts, adapters)": f"~{card_number(config):,}",
        "Vocab size": config.vocab_size,
        "Context length": config.context_length,
        "Layers": config.num_layers,
        "Hidden size": config.hidden_size,
        "Attention heads": config.num_attention_heads,
        "Key/value heads": config.num_key_value_heads,
        "Intermediate size": config.intermediate_size,
        "RoPE base": fields["rope_base"],
        "Uses MoE": fields["use_moe"],
    }
    if config.lora is not None:
        architecture["LoRA rank"] = config.lora.rank
    runtime = {key: hardware.get(key) for key in ("device", "gpu_count", "dtype")}
    return f"""---
# license and language: state yours here before you publish; the export does not know them
library_name: pixel
pipeline_tag: text-generation
tags:
- pixel
- causal-lm
- local-llm
- pytorch
---

# {name}

## What This Model Is

A language model that continues text one token at a time: a decoder-only transformer with grouped-query attention,
rotary positions and SwiGLU layers, in the bundle format of the PIXEL decoder.

## Architecture

{_bullets(architecture)}

## Included Files

{_bullets({f"`{file}`": text for file, text in files.items()}, quoted=False)}

## Training Snapshot

{_bullets(snapshot)}

## Runtime Snapshot

{_bullets({"Device": runtime["device"], "GPU count": runtime["gpu_count"], "Dtype": runtime["dtype"]})}

## Usage With PIXEL

With pixelcore installed, from the folder that holds this one:

```bash
python -m infer --model {name}/latest.pt --prompt "Hello from PIXEL"
```

The tokenizer has to be the one in this bundle; another one gives other ids and is refused.

## Limitations

- Nobody has tuned this model to follow instructions, unless its author says so.
- It knows what its training text contained and is wrong about much else; check what it writes.
- Transformers cannot load this layout; `python -m infer export --to hf` writes one that it can.

## Export Provenance

- Written by pixelcore from a {stored.origin} named `{stored.path.name}`
- Tokenizer SHA-256: `{stored.tokenizer.sha256 if stored.tokenizer else "none"}`
"""


def _bullets(rows: Mapping[str, object], quoted: bool = True) -> str:
    return "\n".join(f"- {label}: `{value}`" if quoted else f"- {label}: {value}" for label, value in rows.items())
