"""Writing the original decoder's bundle: the same files with the same fields in the same order.

The archive holds weights alone unless the moments are asked for: the original's is three times as large for moments
that its program never reads back. Source: specs/decoder.md, section 3.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelcore.accounting import card_number, num_parameters
from pixelcore.convert.bundle_format import (
    BETAS,
    EPS,
    LEARNING_RATE,
    LORA,
    MODEL_FILE,
    MOE,
    OPTIONAL,
    REQUIRED,
    TOKENIZER_FILE,
    TRAINING_FILE,
    VOCABULARY_FILE,
    WEIGHT_DECAY,
)
from pixelcore.convert.folder import new_folder
from pixelcore.convert.names import TIED_HEAD, optimizer_order, unpack
from pixelcore.errors import UserError
from pixelcore.stored import Stored


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
    weights = unpack(stored.weights, stored.decoder_config, where=str(stored.path))
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
        (new / VOCABULARY_FILE).write_bytes(stored.tokenizer.vocab_text().encode())
        _write_json(new / "manifest.json", {"latest": "latest.pt", "step": stored.step})
        _write_json(new / MODEL_FILE, fields)
        if training is not None:
            _write_json(new / TRAINING_FILE, training)
        card = _model_card(stored, fields, training, hardware, optimizer is not None)
        (new / "README.md").write_text(card, encoding="utf-8")


def bundle_fields(stored: Stored) -> dict[str, Any]:
    """The table of pixel_model_config.json for a model, in its published order."""
    config = stored.decoder_config
    if config.rope_base != int(config.rope_base):
        raise UserError(
            f"{stored.path}: rope_base = {config.rope_base} must be a whole number in a bundle: use --to hf"
        )
    known = stored.details.get("model_config") if stored.origin == "bundle" else None
    raw: dict[str, Any] = dict(known) if isinstance(known, Mapping) else {}
    moe, lora = dict(raw.get("moe", MOE)), dict(raw.get("lora", LORA))
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
    values: dict[str, Any] = {name: getattr(config, name) for name in (*REQUIRED[1:], *OPTIONAL) if name != "use_moe"}
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
    if stored.decoder_config.lora is not None and len(state.firsts) < len(stored.weights):
        raise UserError(
            f"{stored.path}: only the adapters were trained, and a bundle's optimizer covers every parameter: leave "
            "out --with-optimizer"
        )
    firsts = unpack(state.firsts, stored.decoder_config, tied_head=False, where=f"{stored.path}: first moments")
    seconds = unpack(state.seconds, stored.decoder_config, tied_head=False, where=f"{stored.path}: second moments")
    order = optimizer_order(stored.decoder_config)
    names = [*order[0], *order[1]]
    firsts, seconds = _contiguous(firsts), _contiguous(seconds)
    step = torch.tensor(float(state.step))
    group = {
        "weight_decay": WEIGHT_DECAY,
        "lr": LEARNING_RATE,
        "betas": BETAS,
        "eps": EPS,
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": True,
        "initial_lr": LEARNING_RATE,
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
    config, name = stored.decoder_config, stored.name
    files = {
        "latest.pt": "weights and AdamW moments" if has_optimizer else "the weights, without optimizer state",
        "manifest.json": "which archive is the newest, and its step",
        TOKENIZER_FILE: "the SentencePiece model",
        VOCABULARY_FILE: "its pieces and scores, to look at",
        MODEL_FILE: "the model's configuration",
    }
    if training is not None:
        files[TRAINING_FILE] = "the settings it was trained with"
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
