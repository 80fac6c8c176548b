"""The names of published PIXAR checkpoints and ours: the same numbers, stacked differently.

The published state dict is that of a Llama without its embedding, whose linear maps stand alone, and of two
convolutions. Ours stacks the maps that read the same input. A mixture's scores and the start vector have no published
counterpart; they keep the names they have here. Source: specs/pixar.md, section 2.6.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcore.config import PixarConfig
from pixelcore.convert.names import check_tensors


@dataclass(frozen=True)
class Place:
    """Where a published tensor lives: the next shape[0] rows of `ours`."""

    published: str
    ours: str
    shape: tuple[int, ...]


def places(config: PixarConfig) -> Iterator[Place]:
    """Every tensor under its published name, in the order in which the model runs."""
    width, hidden = config.hidden_size, config.intermediate_size
    pixels = (config.patch_height, config.patch_width)
    yield _same("in_proj.weight", (width, config.num_channels, *pixels))
    if config.start_vector:
        yield _same("start", (width,))
    for index in range(config.num_layers):
        layer = f"layers.{index}"
        yield Place(f"{layer}.input_layernorm.weight", f"{layer}.norm1.weight", (width,))
        for part in ("q_proj", "k_proj", "v_proj"):
            yield Place(f"{layer}.self_attn.{part}.weight", f"{layer}.qkv.weight", (width, width))
        yield Place(f"{layer}.self_attn.o_proj.weight", f"{layer}.out.weight", (width, width))
        yield Place(f"{layer}.post_attention_layernorm.weight", f"{layer}.norm2.weight", (width,))
        for part in ("gate_proj", "up_proj"):
            yield Place(f"{layer}.mlp.{part}.weight", f"{layer}.gate_up.weight", (hidden, width))
        yield Place(f"{layer}.mlp.down_proj.weight", f"{layer}.down.weight", (width, hidden))
    yield _same("norm.weight", (width,))
    yield _same("out_proj.weight", (width, config.num_components * config.num_channels, *pixels))
    if config.head == "mixture":
        yield _same("score.weight", (config.num_components, width))


def _same(name: str, shape: tuple[int, ...]) -> Place:
    return Place(name, name, shape)


def packed_shapes(config: PixarConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of our state dict."""
    return {
        ours: (sum(place.shape[0] for place in group), *group[0].shape[1:]) for ours, group in _grouped(config).items()
    }


def pack(published: Mapping[str, Tensor], config: PixarConfig, where: str) -> dict[str, Tensor]:
    """Published tensors as ours. where: what an error calls the source.

    Raises UserError naming every missing, extra or misshapen tensor.
    """
    check_tensors(published, {place.published: place.shape for place in places(config)}, where)
    packed = {}
    for ours, group in _grouped(config).items():
        pieces = [published[place.published] for place in group]
        packed[ours] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return packed


def unpack(ours: Mapping[str, Tensor], config: PixarConfig, where: str = "model") -> dict[str, Tensor]:
    """Our tensors as published ones, as views. Raises UserError naming every missing, extra or misshapen tensor."""
    check_tensors(ours, packed_shapes(config), where)
    published = {}
    for name, group in _grouped(config).items():
        pieces = ours[name].split([place.shape[0] for place in group])
        published |= {place.published: piece for place, piece in zip(group, pieces, strict=True)}
    return published


def _grouped(config: PixarConfig) -> dict[str, list[Place]]:
    """Our name -> its places in the order of their rows."""
    groups: dict[str, list[Place]] = {}
    for place in places(config):
        groups.setdefault(place.ours, []).append(place)
    return groups
