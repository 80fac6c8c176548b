"""Published PIXEL folders: config.json, the weights, and how their strips were drawn, in and out.

A folder comes from a program that fills in what its files leave out, so reading one means knowing its classes: which
head belongs to which name in `architectures`, and what the configuration means where it is silent. Two things the
configuration gets wrong or never says. Fine-tuning cuts the position table and may leave `image_size` behind: the
stored rows win. And a classifier's pooling was an argument of the command that trained it: CLS shows, because it has a
map of its own, but mean and max have the same tensors, and only the user knows.

Writing a folder that was read gives its tensors back bit for bit, its configuration word for word, the tensors that
nothing reads included. Sources: specs/pixel.md, sections 1.1, 2.1, 2.8 and 3.
"""

import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from pixelcore.config import ViTMAEConfig, ViTTaskConfig
from pixelcore.config_io import config_from_dict
from pixelcore.convert import text_renderer
from pixelcore.convert.folder import new_folder
from pixelcore.convert.merge import merge_lora
from pixelcore.convert.pixel_names import POOLER, POSITIONS, SEED, pack, unpack
from pixelcore.convert.published import PICKLED, read_json, read_tensors, weights_file, write_json, write_tensors
from pixelcore.errors import UserError
from pixelcore.stored import Stored

PRETRAINING = "pretraining"
_TASK_OF = {
    "PIXELForPreTraining": PRETRAINING,
    "ViTMAEForPreTraining": PRETRAINING,
    "PIXELForSequenceClassification": "sequence",
    "PIXELForTokenClassification": "token",
    "PIXELForQuestionAnswering": "qa",
    "PIXELForBiaffineParsing": "parser",
}
# Where config.json names no class: a tensor that only one head has, the rarest first.
_TASK_BY_TENSOR = {
    "decoder.mask_token": PRETRAINING,
    "biaffine_arcs.weight": "parser",
    "qa_outputs.weight": "qa",
    "pooler.linear.weight": "sequence",
    "classifier.weight": "token",
}
_LABELS_OF = {"sequence": "classifier", "token": "classifier", "qa": "qa_outputs", "parser": "biaffine_rels"}
# Our field -> the published one and what its program takes where the file has none.
_FIELDS: dict[str, tuple[str, Any]] = {
    "patch_size": ("patch_size", 16),
    "num_channels": ("num_channels", 3),
    "num_layers": ("num_hidden_layers", 12),
    "hidden_size": ("hidden_size", 768),
    "num_attention_heads": ("num_attention_heads", 12),
    "intermediate_size": ("intermediate_size", 3072),
    "hidden_dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "layer_norm_eps": ("layer_norm_eps", 1e-12),
    "qkv_bias": ("qkv_bias", True),
    "initializer_range": ("initializer_range", 0.02),
    "interpolate_positions": ("interpolate_pos_encoding", False),
}
_DECODER_FIELDS: dict[str, tuple[str, Any]] = {
    "decoder_num_layers": ("decoder_num_hidden_layers", 8),
    "decoder_hidden_size": ("decoder_hidden_size", 512),
    "decoder_num_attention_heads": ("decoder_num_attention_heads", 16),
    "decoder_intermediate_size": ("decoder_intermediate_size", 2048),
    "normalise_pixels": ("norm_pix_loss", True),
}
_MASK_RATIO = 0.25  # of published configurations; ours have it in the objective

_log = logging.getLogger(__name__)


# ------------------------------------------------------------------ reading


def read_pixel(folder: Path) -> Stored:
    """Read a published folder. details of the result: "config", as stored; "text_renderer", as stored or None; "dead",
    the known tensors that nothing reads, by published name; "weights_file"; and, where only the user knows how a
    classifier pools, "poolings", what it can be.

    Raises UserError for what is missing, damaged, not understood or of another shape, naming it.
    """
    path = folder / "config.json"
    raw = read_json(path)
    file = weights_file(folder)
    tensors = read_tensors(file)
    config, poolings = _config(raw, tensors, path)
    weights, dead = pack(tensors, config, str(file))
    renderer = read_json(folder / text_renderer.FILE) if (folder / text_renderer.FILE).is_file() else None
    details: dict[str, object] = {
        "config": raw,
        "text_renderer": renderer,
        "dead": dead,
        "weights_file": file.name,
    }
    if poolings:
        details["poolings"] = poolings
    ours = None if renderer is None else renderer.get(text_renderer.TABLE)
    return Stored(
        path=folder,
        origin="pixel",
        name=folder.resolve().name,
        step=0,
        config=config,
        weights=weights,
        renderer=ours if isinstance(ours, dict) else None,
        details=details,
    )


def with_pooling(stored: Stored, pooling: str | None) -> Stored:
    """The record with the user's word on how a foreign classifier pools; without one it must be known already.

    Raises UserError where it is not known and not given, or where it is given and the model says otherwise.
    """
    poolings = stored.details.get("poolings", ())
    assert isinstance(poolings, tuple)
    if pooling is None:
        if poolings:
            raise UserError(
                f"{stored.path}: a classifier whose files do not say how it pools: give pooling = "
                f"{' or '.join(poolings)}, as it was trained"
            )
        return stored
    config = stored.config
    if not isinstance(config, ViTTaskConfig) or config.task != "sequence":
        raise UserError(f"{stored.path}: pooling = {pooling!r}, but this is no classifier of strips: leave it out")
    if not poolings and pooling != config.pooling:
        raise UserError(f"{stored.path}: pooling = {pooling!r}, but the model says {config.pooling!r}: leave it out")
    if poolings and pooling not in poolings and not (pooling.startswith("pma") and "pma<heads>" in poolings):
        raise UserError(
            f"{stored.path}: pooling = {pooling!r} does not go with its tensors: give {' or '.join(poolings)}"
        )
    try:
        chosen = replace(config, pooling=pooling)
    except ValueError as cause:
        raise UserError(f"{stored.path}: {cause}") from cause
    details = {key: value for key, value in stored.details.items() if key != "poolings"}
    return replace(stored, config=chosen, details=details)


def _config(
    raw: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> tuple[ViTMAEConfig | ViTTaskConfig, tuple[str, ...]]:
    """The configuration, and what a classifier's pooling may be where the files do not say."""
    if raw.get("hidden_act", "gelu") != "gelu":
        raise UserError(f'{path}: hidden_act = {raw["hidden_act"]!r}; only "gelu" is known: give another model')
    task = _task(raw, tensors, path)
    fields = _FIELDS | (_DECODER_FIELDS if task == PRETRAINING else {})
    data = {ours: raw.get(published, default) for ours, (published, default) in fields.items()}
    table = tensors.get(POSITIONS)
    if table is None or table.dim() != 3:
        shape = None if table is None else list(table.shape)
        raise UserError(f"{path.parent}: {POSITIONS} must be there as [1, patches + 1, width]; found {shape}")
    data["num_patches"] = table.shape[1] - 1
    if task == PRETRAINING:
        config = config_from_dict("vit_mae", data, str(path))
        assert isinstance(config, ViTMAEConfig)
        return config, ()
    poolings: tuple[str, ...] = ()
    data |= {"task": task, "num_labels": _num_labels(raw, tensors, task, path), "pooling": "mean", "pooler_norm": True}
    data |= {"mask_heads": False, "pma_padding": "fixed"}  # the original does not mask heads
    if task == "sequence":
        data["pooler_norm"] = "pooler.ln.weight" in tensors
        if f"{POOLER}.weight" in tensors:  # only models that read CLS were built with it
            data |= {"pooling": "cls", "pooler_norm": True}
        elif SEED in tensors:
            data |= {"pooling": "pma1", "pma_padding": "published"}
            poolings = ("pma<heads>",)
        else:
            poolings = ("mean", "max")
    config = config_from_dict("vit_task", data, str(path))
    assert isinstance(config, ViTTaskConfig)
    return config, poolings


def _task(raw: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> str:
    named = raw.get("architectures") or []
    if not isinstance(named, list):
        raise UserError(f"{path}: architectures = {named!r} must be a list of names: restore the file")
    for name in named:
        if name in _TASK_OF:
            return _TASK_OF[name]
    if named:
        raise UserError(f"{path}: architectures = {named}; known are {', '.join(_TASK_OF)}: give one of those models")
    for name, task in _TASK_BY_TENSOR.items():
        if name in tensors:
            return task
    raise UserError(f"{path}: names no architecture, and the tensors have no head that is known: give a whole model")


def _num_labels(raw: Mapping[str, Any], tensors: Mapping[str, Tensor], task: str, path: Path) -> int:
    """Classes by the head's own rows; the table of labels, where there is one, must have as many."""
    name = f"{_LABELS_OF[task]}.weight"
    if name not in tensors:
        raise UserError(f"{path.parent}: tensor {name} is missing: the head of {raw.get('architectures')} needs it")
    rows = tensors[name].shape[0] if tensors[name].dim() else 0
    labels = raw.get("id2label")
    if isinstance(labels, Mapping) and len(labels) != rows:
        raise UserError(
            f"{path}: id2label has {len(labels)} labels, and {name} {rows} rows; they must be equal: restore the pair"
        )
    return rows


# ------------------------------------------------------------------ writing


def write_pixel(folder: Path, stored: Stored, *, file: str | None = None) -> None:
    """Write a new published folder, atomically. file: `SAFETENSORS` or `PICKLED`; without it what the model was read
    from, else `PICKLED`, which every version of the original program reads.

    Adapters, which the layout does not know, are folded into the weights. Raises UserError for a model that is no ViT,
    or whose tensors do not fit its configuration.
    """
    stored = merge_lora(stored)
    config = stored.config
    if not isinstance(config, ViTMAEConfig | ViTTaskConfig):
        raise UserError(f"{stored.path}: a {config.kind}, and the PIXEL layout is for vit_mae and vit_task models")
    published = stored.origin == "pixel"
    dead = stored.details.get("dead", {}) if published else {}
    raw = stored.details["config"] if published else published_config(config)
    renderer = stored.details.get("text_renderer") if published else _renderer_table(stored)
    assert isinstance(dead, dict) and isinstance(raw, Mapping)
    tensors = unpack(stored.weights, config, str(stored.path)) | dead
    chosen = file or str(stored.details.get("weights_file") or PICKLED)
    with new_folder(folder) as new:
        write_json(new / "config.json", raw)
        write_tensors(new / chosen, tensors)
        if isinstance(renderer, Mapping):
            write_json(new / text_renderer.FILE, renderer)
            _copy_font(stored, renderer, new)


def published_config(config: ViTMAEConfig | ViTTaskConfig) -> dict[str, Any]:
    """The content of config.json for a model of ours."""
    task = config.task if isinstance(config, ViTTaskConfig) else PRETRAINING
    fields = _FIELDS | (_DECODER_FIELDS if task == PRETRAINING else {})
    raw: dict[str, Any] = {
        "architectures": [next(name for name, known in _TASK_OF.items() if known == task)],
        "model_type": "pixel",
        "hidden_act": "gelu",
        "image_size": [config.patch_size, config.patch_size * config.num_patches],
        "mask_ratio": _MASK_RATIO,
        "torch_dtype": "float32",
    }
    raw |= {published: getattr(config, ours) for ours, (published, _) in fields.items()}
    if isinstance(config, ViTTaskConfig):
        names = [f"LABEL_{index}" for index in range(config.num_labels)]
        raw["id2label"] = {str(index): name for index, name in enumerate(names)}
        raw["label2id"] = {name: index for index, name in enumerate(names)}
        if config.pooling.startswith("pma") and config.pma_padding == "fixed":
            _log.warning(
                "pma_padding = fixed: the original program lets padding into the pooled vector, and says something "
                "else of a strip with padding behind it"
            )
        if config.mask_heads:
            _log.warning(
                "mask_heads: the original program scores words that are not there as heads too, and may choose one "
                "where this parser cannot"
            )
    if math.isqrt(config.num_patches) ** 2 != config.num_patches:
        _log.warning(
            "num_patches = %d is no square number, and the original program builds its models on a square grid only",
            config.num_patches,
        )
    return raw


def _renderer_table(stored: Stored) -> dict[str, Any] | None:
    if stored.renderer is None:
        return None
    if not text_renderer.can_say(stored.renderer["config"]):
        _log.warning(
            "%s: the published renderer cannot draw this model's strips; %s holds our own table alone",
            stored.path,
            text_renderer.FILE,
        )
    return text_renderer.published_table(stored.renderer)


def _copy_font(stored: Stored, renderer: Mapping[str, Any], new: Path) -> None:
    """The font stands beside the table that names it, where it is to be had."""
    name = renderer.get("font_file")
    if not isinstance(name, str) or PurePath(name).name != name:
        return
    source = stored.path / name
    if stored.renderer is not None and not source.is_file():
        source = text_renderer.font_file(stored.renderer["config"]) or source
    if source.is_file():
        shutil.copyfile(source, new / name)
    else:
        _log.warning("%s: font %s is not there; put it beside %s", stored.path, name, text_renderer.FILE)
