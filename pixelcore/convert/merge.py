"""Low-rank adapters folded into the weights of a model at rest: the same function without them.

Which rows of a stacked weight an adapter changes is known to the layer that has both, so the model itself is asked,
built without memory; a decoder, an encoder and a classifier on either are one case. The sum is taken in fp32, or fp64,
and rounded to the weight's dtype.
"""

from dataclasses import replace

import torch

from pixelcore.config import DecoderTrunkConfig, HeadConfig, LoRAConfig, ModelConfig, PixarTaskConfig
from pixelcore.convert.names import check_tensors
from pixelcore.layers import ExpertLinear, PackedLinear
from pixelcore.models import MODELS
from pixelcore.stored import Stored

_ADAPTABLE = DecoderTrunkConfig | HeadConfig | PixarTaskConfig


def adapters_of(config: ModelConfig) -> LoRAConfig | None:
    """The adapters of a model; None where it has none, or can have none."""
    return config.lora if isinstance(config, _ADAPTABLE) else None


def merge_lora(stored: Stored) -> Stored:
    """W + up @ down * alpha / rank for every map with an adapter; a model without adapters comes back as it is.

    An optimizer's state does not survive, since its parameters are gone. Raises UserError for tensors that do not fit
    the configuration.
    """
    config = stored.config
    if not isinstance(config, _ADAPTABLE) or config.lora is None:
        return stored
    with torch.device("meta"):
        model = MODELS[config.kind](config)
    check_tensors(
        stored.weights, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, str(stored.path)
    )
    merged = {name: tensor for name, tensor in stored.weights.items() if ".adapters." not in name}
    for owner, layer in model.named_modules():
        if not isinstance(layer, PackedLinear | ExpertLinear) or not layer.adapters:
            continue
        weight = merged[f"{owner}.weight"].clone()  # the caller's tensors are never written
        for part, rows in zip(layer.parts, weight.split(list(layer.parts.values()), dim=-2), strict=True):
            if part in layer.adapters:
                wide = rows.double() if rows.dtype.itemsize == 8 else rows.float()
                up, down = (stored.weights[f"{owner}.adapters.{part}.{end}"].to(wide.dtype) for end in ("up", "down"))
                rows.copy_(wide + up @ down * layer.lora_scale)
        merged[f"{owner}.weight"] = weight
    return replace(stored, config=replace(config, lora=None), weights=merged, optimizer=None)
