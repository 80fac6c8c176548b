"""Our export of a model alone: three files without optimizer, run or pickle, for sharing and for inference.

config.json        {"format": "pixelcore", "version", "kind", "name", "step", "model": the configuration,
                    "renderer": how its strips are drawn, or null, "task": what its outputs mean, or null}
model.safetensors  the parameters by our names
tokenizer.model    the tokenizer's bytes, where the model has one
"""

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file

from pixelcore.config import (
    DecoderConfig,
    DecoderTrunkConfig,
    ModelConfig,
    PixarConfig,
    TokenEncoderConfig,
    ViTMAEConfig,
    ViTTaskConfig,
)
from pixelcore.config_io import config_from_dict, config_to_dict
from pixelcore.convert import names, pixar_names, pixel_names
from pixelcore.convert.folder import new_folder
from pixelcore.convert.names import check_tensors
from pixelcore.convert.pixel import with_pooling
from pixelcore.errors import UserError
from pixelcore.models import MODELS
from pixelcore.stored import Stored
from pixelcore.tokenizer import Tokenizer

FORMAT, VERSION = "pixelcore", 1
_KEYS = ("kind", "name", "step", "model")


def write_export(folder: Path, stored: Stored) -> None:
    """Write a new folder, atomically; adapters stay adapters unless the caller merged them (`merge.merge_lora`).

    Raises UserError for a classifier of which only the user knows how it pools, and for tensors that do not fit.
    """
    stored = with_pooling(stored, None)
    check_tensors(stored.weights, packed_shapes(stored.config), str(stored.path))
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kind": stored.config.kind,
        "name": stored.name,
        "step": stored.step,
        "model": config_to_dict(stored.config),
        "renderer": stored.renderer,
        "task": stored.task,
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in stored.weights.items()}
    with new_folder(folder) as new:
        (new / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
        if stored.tokenizer is not None:
            (new / "tokenizer.model").write_bytes(stored.tokenizer.model_bytes)


def read_export(folder: Path) -> Stored:
    """Raises UserError for a file that is missing or damaged, another version, and tensors that do not fit."""
    content = _read_config(folder / "config.json")
    config = config_from_dict(content["kind"], content["model"], f"{folder / 'config.json'}: model")
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: missing, and it holds the weights: copy the whole folder")
    try:
        weights = load_file(path)
    except safetensors.SafetensorError as cause:
        raise UserError(f"{path}: damaged or cut short ({cause}): copy it again") from cause
    check_tensors(weights, packed_shapes(config), str(path))
    tokenizer = None
    if (folder / "tokenizer.model").is_file():
        tokenizer = Tokenizer.load(folder / "tokenizer.model")
        if not isinstance(config, DecoderTrunkConfig | TokenEncoderConfig):
            raise UserError(f"{folder / 'tokenizer.model'}: a {config.kind} model reads no tokens: remove the file")
        if tokenizer.vocab_size != config.vocab_size:
            raise UserError(
                f"{folder / 'tokenizer.model'}: {tokenizer.vocab_size} pieces, but the model has vocab_size = "
                f"{config.vocab_size}; they must be equal: copy the whole folder again"
            )
    return Stored(
        path=folder,
        origin="export",
        name=content["name"],
        step=content["step"],
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        renderer=content.get("renderer"),
        task=content.get("task"),
    )


def packed_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the state dict of a model of any kind."""
    if isinstance(config, DecoderConfig):
        return names.packed_shapes(config)
    if isinstance(config, PixarConfig):
        return pixar_names.packed_shapes(config)
    if isinstance(config, ViTMAEConfig | ViTTaskConfig):
        return pixel_names.packed_shapes(config)
    with torch.device("meta"):  # classifiers that no other program knows
        model = MODELS[config.kind](config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: missing, and it says what the model is: copy the whole folder")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as cause:
        raise UserError(f"{path}: not JSON ({cause}): copy it again") from cause
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f'{path}: not an export of this project, which says "format": "{FORMAT}": give another folder')
    if content.get("version") != VERSION:
        raise UserError(
            f"{path}: export version {content.get('version')!r}; this program reads version {VERSION}: use the release "
            "of pixelcore that wrote it"
        )
    missing = [key for key in _KEYS if key not in content]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing: copy it again")
    if not isinstance(content["name"], str) or type(content["step"]) is not int:
        raise UserError(f"{path}: name must be a text and step a whole number: copy it again")
    return content
