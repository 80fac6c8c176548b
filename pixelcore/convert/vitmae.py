"""A model of strips as transformers' ViT-MAE, for programs that read that: the same architecture over square pictures.

What coincides: the blocks, the two position tables, CLS and mask token, the order of the values in a patch (row,
column, channel), the loss and its normalised target. So the tensors go out as they are, under the names that
transformers' published ViT-MAE folders have, which are PIXEL's.

What differs, and is the caller's to mind:
  - The picture. A strip of g * g patches is there a square of g patches a side, filled row by row: patch i of the strip
    is in row i // g and column i % g. A count of patches that is no square cannot be expressed.
  - Its length. That model knows no attention mask: padding is read and scored, and shorter strips must be padded.
  - The masks. That model draws its own, hiding the share mask_ratio of all patches; `noise` decides which.
  - The decoder's last norm adds layer_norm_eps there and 1e-5 in ours, which changes logits in the sixth digit.
Sources: specs/pixel.md, sections 2.2 to 2.8; the ViTMAEConfig documentation of transformers.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pixelcore.config import ViTMAEConfig
from pixelcore.convert.folder import new_folder
from pixelcore.convert.pixel import published_config
from pixelcore.convert.pixel_names import unpack
from pixelcore.errors import UserError
from pixelcore.stored import Stored


def write_vitmae(folder: Path, stored: Stored) -> None:
    """Write a new folder that `ViTMAEForPreTraining.from_pretrained` loads, atomically.

    Raises UserError for a model without a pixel decoder, and for a number of patches that makes no square.
    """
    config = stored.config
    if not isinstance(config, ViTMAEConfig):
        raise UserError(f"{stored.path}: a {config.kind} model, and the ViT-MAE layout is for vit_mae models alone")
    content = vitmae_config(config)
    read = stored.details.get("config")  # of a published folder: it says what share it was trained to hide
    if stored.origin == "pixel" and isinstance(read, Mapping) and "mask_ratio" in read:
        content["mask_ratio"] = read["mask_ratio"]
    tensors = unpack(stored.weights, config, str(stored.path))
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with new_folder(folder) as new:
        (new / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})


def vitmae_config(config: ViTMAEConfig) -> dict[str, Any]:
    """The fields of ViTMAEConfig. Raises UserError where the patches make no square picture."""
    side = math.isqrt(config.num_patches)
    if side * side != config.num_patches:
        raise UserError(
            f"num_patches = {config.num_patches}, and a ViT-MAE picture is a square of patches: export a model of "
            f"{side**2} or {(side + 1) ** 2} patches, or use --to pixel"
        )
    published = published_config(config)
    del published["interpolate_pos_encoding"]
    return published | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "image_size": side * config.patch_size,
    }
