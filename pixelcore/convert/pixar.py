"""Published PIXAR folders: a Llama configuration with four more fields, and the weights, in and out.

The original saves the model into `backbone/`, beside the state of its optimizer; a folder is recognised by the fields
patch_len and num_channel of its config.json, there or one level up. How strips were drawn is not in it.

Colour is the one thing read with care: the original takes pixels from -1 to 1 in and compares what comes out with
pixels from 0 to 1. Its weights learned that, so they are read as `values = "published"`, and a colour model of the
consistent range, trained here, has no place in this layout. Sources: specs/pixar.md, sections 2.1, 2.4 and 2.6.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixelcore.config import PixarConfig
from pixelcore.config_io import config_from_dict
from pixelcore.convert.folder import new_folder
from pixelcore.convert.pixar_names import pack, unpack
from pixelcore.convert.published import PICKLED, read_json, read_tensors, weights_file, write_json, write_tensors
from pixelcore.errors import UserError
from pixelcore.stored import Stored

BACKBONE = "backbone"
# Our field -> the published one and what its program takes where the file has none; None where it must be there.
_FIELDS: dict[str, tuple[str, Any]] = {
    "num_layers": ("num_hidden_layers", None),
    "hidden_size": ("hidden_size", None),
    "num_attention_heads": ("num_attention_heads", None),
    "intermediate_size": ("intermediate_size", None),
    "patch_height": ("patch_size", 8),
    "patch_length": ("patch_len", None),
    "num_channels": ("num_channel", None),
    "max_patches": ("max_position_embeddings", 2048),
    "rope_base": ("rope_theta", 10000.0),
    "rms_norm_eps": ("rms_norm_eps", 1e-6),
}
# What the layers do without; a file that asks for it is of another model.
_FIXED: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "rope_scaling": None}


# ------------------------------------------------------------------ reading


def find_pixar(folder: Path) -> Path | None:
    """The folder of a published model: this one, or its `backbone`; None where neither is one. Raises UserError for a
    config.json that is damaged."""
    for place in (folder, folder / BACKBONE):
        path = place / "config.json"
        if path.is_file() and {"patch_len", "num_channel"} <= read_json(path).keys():
            return place
    return None


def read_pixar(folder: Path) -> Stored:
    """Read a published folder. details of the result: "config", as stored, and "weights_file".

    Raises UserError for what is missing, damaged, not understood or of another shape, naming it.
    """
    path = folder / "config.json"
    raw = read_json(path)
    config = _config(raw, path)
    file = weights_file(folder)
    name = folder.resolve()
    return Stored(
        path=folder,
        origin="pixar",
        name=name.parent.name if name.name == BACKBONE else name.name,
        step=0,
        config=config,
        weights=pack(read_tensors(file), config, str(file)),
        details={"config": raw, "weights_file": file.name},
    )


def _config(raw: Mapping[str, Any], path: Path) -> PixarConfig:
    for field, expected in _FIXED.items():
        if raw.get(field, expected) != expected:
            raise UserError(f"{path}: {field} = {raw[field]!r}; only {expected!r} is known: give another model")
    heads = raw.get("num_attention_heads")
    if raw.get("num_key_value_heads") not in (None, heads):
        raise UserError(
            f"{path}: num_key_value_heads = {raw['num_key_value_heads']!r} and num_attention_heads = {heads!r}; they "
            "must be equal: give another model"
        )
    absent = [published for published, default in _FIELDS.values() if default is None and published not in raw]
    if absent:
        raise UserError(f"{path}: {', '.join(absent)} missing, which the shape of the model depends on: copy it again")
    binary = raw.get("binary", raw["num_channel"] == 1)
    data = {ours: raw.get(published, default) for ours, (published, default) in _FIELDS.items()}
    data |= {"head": "bernoulli", "values": "consistent"} if binary else {"head": "regression", "values": "published"}
    config = config_from_dict("pixar", data | {"num_components": 1, "start_vector": False}, str(path))
    assert isinstance(config, PixarConfig)
    return config


# ------------------------------------------------------------------ writing


def write_pixar(folder: Path, stored: Stored, *, file: str | None = None) -> None:
    """Write a new folder that the original program loads as a backbone, atomically. file: SAFETENSORS or PICKLED of
    `convert.published`; without it what the model was read from, else PICKLED, which the original reads.

    Raises UserError for a model that is no PIXAR, has no place in the layout, or does not fit its configuration.
    """
    config = stored.config
    if not isinstance(config, PixarConfig):
        raise UserError(f"{stored.path}: a {config.kind} model, and the PIXAR layout is for pixar models alone")
    _check_has_place(config, stored.path)
    raw = stored.details["config"] if stored.origin == "pixar" else published_config(config)
    assert isinstance(raw, Mapping)
    tensors = unpack(stored.weights, config, str(stored.path))
    with new_folder(folder) as new:
        write_json(new / "config.json", raw)
        write_tensors(new / (file or str(stored.details.get("weights_file", PICKLED))), tensors)


def _check_has_place(config: PixarConfig, path: Path) -> None:
    strange = {
        'head = "mixture"': config.head == "mixture",
        "start_vector = true": config.start_vector,
        'values = "consistent" of a regression': config.head == "regression" and config.values == "consistent",
    }
    for setting, there in strange.items():
        if there:
            raise UserError(f"{path}: {setting} has no place in the published layout: export it as safetensors")


def published_config(config: PixarConfig) -> dict[str, Any]:
    """The content of config.json for a model of ours."""
    return {
        "model_type": "llama",
        **_FIXED,
        "num_key_value_heads": config.num_attention_heads,
        "binary": config.head == "bernoulli",
        "torch_dtype": "float32",
        **{published: getattr(config, ours) for ours, (published, _) in _FIELDS.items()},
    }
