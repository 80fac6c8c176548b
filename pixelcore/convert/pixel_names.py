"""The names of published PIXEL checkpoints and ours: the same numbers, stacked differently.

The published state dict has query, key and value as three maps; ours stacks them by rows. Tables and tokens there carry
a leading axis of one, for the batch; ours do not. `places` writes the correspondence down once, for the encoder, the
decoder of pretraining and the head of every task; packing, unpacking and checking walk over it.

Fine-tuned models were published with maps that no forward pass of theirs reads, left over from the classes that theirs
were derived from. `dead_shapes` lists them: they are accepted and carried along, and everything else must fit exactly.
Source: specs/pixel.md, sections 2.8 and 3.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcore.config import ViTConfig, ViTMAEConfig, ViTTaskConfig
from pixelcore.convert.names import check_tensors

POSITIONS = "vit.embeddings.position_embeddings"
SEED = "pooler.pooling.pooler.S"  # of pooling by attention
POOLER = "vit.pooler.dense"  # the tanh pooler on CLS


@dataclass(frozen=True)
class Place:
    """Where a published tensor lives: the next ours_shape[0] rows of `ours`."""

    published: str
    ours: str
    shape: tuple[int, ...]
    ours_shape: tuple[int, ...]


def places(config: ViTMAEConfig | ViTTaskConfig) -> Iterator[Place]:
    """Every tensor that the model reads, under its published name, in the order in which it runs."""
    yield from _encoder(config)
    if isinstance(config, ViTMAEConfig):
        yield from _decoder(config)
    else:
        yield from _HEADS[config.task](config)


def _encoder(config: ViTConfig) -> Iterator[Place]:
    width, patch = config.hidden_size, config.patch_size
    yield _flat("vit.embeddings.cls_token", "encoder.cls_token", (1, width))
    yield _flat(POSITIONS, "encoder.positions", (config.num_patches + 1, width))
    projection = "vit.embeddings.patch_embeddings.projection"
    yield _same(f"{projection}.weight", "encoder.patch.weight", (width, config.num_channels, patch, patch))
    yield _same(f"{projection}.bias", "encoder.patch.bias", (width,))
    for index in range(config.num_layers):
        ours = f"encoder.blocks.{index}"
        yield from _block(f"vit.encoder.layer.{index}", ours, width, config.intermediate_size, config.qkv_bias)
    yield from _norm("vit.layernorm", "encoder.norm", width)


def _decoder(config: ViTMAEConfig) -> Iterator[Place]:
    width = config.decoder_hidden_size
    yield _flat("decoder.mask_token", "decoder.mask_token", (1, width))
    yield _flat("decoder.decoder_pos_embed", "decoder.positions", (config.num_patches + 1, width))
    yield from _linear("decoder.decoder_embed", "decoder.embed", width, config.hidden_size)
    for index in range(config.decoder_num_layers):
        published, ours = f"decoder.decoder_layers.{index}", f"decoder.blocks.{index}"
        yield from _block(published, ours, width, config.decoder_intermediate_size, config.qkv_bias)
    yield from _norm("decoder.decoder_norm", "decoder.norm", width)
    yield from _linear("decoder.decoder_pred", "decoder.predict", config.patch_values, width)


def _block(published: str, ours: str, width: int, hidden: int, qkv_bias: bool) -> Iterator[Place]:
    yield from _norm(f"{published}.layernorm_before", f"{ours}.norm1", width)
    for part in ("query", "key", "value"):
        yield from _linear(f"{published}.attention.attention.{part}", f"{ours}.qkv", width, width, bias=qkv_bias)
    yield from _linear(f"{published}.attention.output.dense", f"{ours}.out", width, width)
    yield from _norm(f"{published}.layernorm_after", f"{ours}.norm2", width)
    yield from _linear(f"{published}.intermediate.dense", f"{ours}.up", hidden, width)
    yield from _linear(f"{published}.output.dense", f"{ours}.down", width, hidden)


def _sequence(config: ViTTaskConfig) -> Iterator[Place]:
    width = config.hidden_size
    if config.pooling == "cls":
        yield from _linear(POOLER, "head.pool", width, width)
    if config.pooling in ("mean", "max"):
        yield from _linear("pooler.linear", "head.linear", width, width)
    if config.pooling != "cls" and config.pooler_norm:
        yield from _norm("pooler.ln", "head.norm", width)
    if config.pooling.startswith("pma"):
        yield _same(SEED, "head.attention.seed", (1, 1, width))
        for part in ("q", "k", "v", "o"):
            yield from _linear(SEED.replace(".S", f".mab.fc_{part}"), f"head.attention.{part}", width, width)
    yield from _linear("classifier", "head.classifier", config.num_labels, width)


def _token(config: ViTTaskConfig) -> Iterator[Place]:
    yield from _linear("classifier", "head.classifier", config.num_labels, config.hidden_size)


def _answer(config: ViTTaskConfig) -> Iterator[Place]:
    yield from _linear("qa_outputs", "head.classifier", config.num_labels, config.hidden_size)


def _parser(config: ViTTaskConfig) -> Iterator[Place]:
    width = config.hidden_size
    yield from _linear(POOLER, "head.pool", width, width)
    yield _same("biaffine_arcs.weight", "head.arcs", (1, width + 1, width))
    yield _same("biaffine_rels.weight", "head.relations", (config.num_labels, width + 1, width + 1))


_HEADS = {"sequence": _sequence, "token": _token, "qa": _answer, "parser": _parser}


def _same(published: str, ours: str, shape: tuple[int, ...]) -> Place:
    return Place(published, ours, shape, shape)


def _flat(published: str, ours: str, shape: tuple[int, ...]) -> Place:
    return Place(published, ours, (1, *shape), shape)


def _linear(published: str, ours: str, rows: int, columns: int, *, bias: bool = True) -> Iterator[Place]:
    yield _same(f"{published}.weight", f"{ours}.weight", (rows, columns))
    if bias:
        yield _same(f"{published}.bias", f"{ours}.bias", (rows,))


def _norm(published: str, ours: str, width: int) -> Iterator[Place]:
    yield _same(f"{published}.weight", f"{ours}.weight", (width,))
    yield _same(f"{published}.bias", f"{ours}.bias", (width,))


def dead_shapes(config: ViTMAEConfig | ViTTaskConfig) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of what a published model of this kind may hold besides, and never reads."""
    if isinstance(config, ViTMAEConfig):
        return {}
    width, dead = config.hidden_size, []
    if config.task in ("qa", "parser"):
        dead += _linear("classifier", "", config.num_labels, width)
    if config.task == "sequence" and config.pooling not in ("mean", "max"):
        dead += _linear("pooler.linear", "", width, width)
    if config.task == "sequence" and (config.pooling == "cls" or not config.pooler_norm):
        dead += _norm("pooler.ln", "", width)
    return {place.published: place.shape for place in dead}


def packed_shapes(config: ViTMAEConfig | ViTTaskConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of our state dict, buffers included."""
    return {
        ours: (sum(place.ours_shape[0] for place in group), *group[0].ours_shape[1:])
        for ours, group in _grouped(config).items()
    }


def pack(
    published: Mapping[str, Tensor], config: ViTMAEConfig | ViTTaskConfig, where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Published tensors as ours, and the known dead ones among them by their published names.

    where: what an error calls the source. Raises UserError naming every missing, extra or misshapen tensor.
    """
    dead = {name: shape for name, shape in dead_shapes(config).items() if name in published}
    check_tensors(published, {place.published: place.shape for place in places(config)} | dead, where)
    packed = {}
    for ours, group in _grouped(config).items():
        pieces = [published[place.published].reshape(place.ours_shape) for place in group]
        packed[ours] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return packed, {name: published[name] for name in dead}


def unpack(ours: Mapping[str, Tensor], config: ViTMAEConfig | ViTTaskConfig, where: str = "model") -> dict[str, Tensor]:
    """Our tensors as published ones, as views. Raises UserError naming every missing, extra or misshapen tensor."""
    check_tensors(ours, packed_shapes(config), where)
    published = {}
    for name, group in _grouped(config).items():
        pieces = ours[name].split([place.ours_shape[0] for place in group])
        published |= {place.published: piece.reshape(place.shape) for place, piece in zip(group, pieces, strict=True)}
    return published


def _grouped(config: ViTMAEConfig | ViTTaskConfig) -> dict[str, list[Place]]:
    """Our name -> its places in the order of their rows."""
    groups: dict[str, list[Place]] = {}
    for place in places(config):
        groups.setdefault(place.ours, []).append(place)
    return groups
