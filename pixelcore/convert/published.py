"""The files of a folder that another program published: config.json beside the weights, in one of two formats.

Newer folders hold a safetensors file, older ones a pickle, which is read as an archive of tensors and never executed.
Both are written, because a folder is for the program that will read it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixelcore.convert.bundle_reader import load_archive
from pixelcore.errors import UserError

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


def read_json(path: Path) -> dict[str, Any]:
    """A table. Raises UserError for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as cause:
        raise UserError(f"{path}: not JSON ({cause}): copy it again") from cause
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a table, not {type(content).__name__}: copy it again")
    return content


def weights_file(folder: Path) -> Path:
    """The file of weights, the newer format first. Raises UserError where there is none."""
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12])
    raise UserError(f"{folder}: no weights: neither {SAFETENSORS} nor {PICKLED}; found {found}: copy the whole folder")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A state dict of either format, in the dtypes of the file. Raises UserError for a damaged one."""
    if file.name == SAFETENSORS:
        try:
            return load_file(file)
        except safetensors.SafetensorError as cause:
            raise UserError(f"{file}: damaged or cut short ({cause}): copy it again") from cause
    tensors = load_archive(file)
    strangers = [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if strangers:
        raise UserError(
            f"{file}: {strangers[0]} is no tensor, and a state dict holds nothing else: give the model's file"
        )
    return tensors


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a table for programs and people."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a state dict in the format that the file's name stands for."""
    # own memory for each: what is stacked here are views of one tensor, and neither format stores views as such
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    if file.name == SAFETENSORS:
        save_file(own, file, metadata={"format": "pt"})
    else:
        torch.save(own, file)
