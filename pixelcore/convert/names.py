"""The names of the original decoder bundle and ours: the same numbers, stacked differently.

The published state dict has one tensor for each linear map of each layer and expert. Ours stacks the maps that read the
same input (q, k, v; gate, up) by rows, and the experts of a layer along a leading dimension. `places` writes the
correspondence down once; packing, unpacking, checking, the optimizer's numbering and merging adapters all walk over it.
AdamW's moments have the shapes of their parameters, so the same functions carry them.
Source: specs/decoder.md, sections 3.1 and 3.2.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcore.config import DecoderConfig
from pixelcore.errors import UserError

TIED_HEAD = "lm_head.weight"  # in a tied state dict: a second name of the embedding
_EMBEDDING = "embed_tokens.weight"
_MOST_NAMED = 6  # tensors that one error message names


@dataclass(frozen=True)
class Place:
    """Where a published tensor lives: the next shape[0] rows of `ours`, of its expert if it has one."""

    published: str
    ours: str
    shape: tuple[int, ...]
    expert: int | None = None


def places(config: DecoderConfig) -> Iterator[Place]:
    """Every published tensor in the published order; the second name of a tied embedding is left out."""
    width, hidden = config.hidden_size, config.intermediate_size
    key_rows = config.num_key_value_heads * config.head_size
    yield Place(_EMBEDDING, "embed.weight", (config.vocab_size, width))
    for index in range(config.num_layers):
        layer = f"layers.{index}"
        yield Place(f"{layer}.norm1.weight", f"{layer}.norm1.weight", (width,))
        attention = f"{layer}.attention"
        for part, rows in (("q_proj", width), ("k_proj", key_rows), ("v_proj", key_rows)):
            yield from _linear(config, attention, part, f"{attention}.qkv", (rows, width))
        yield from _linear(config, attention, "o_proj", f"{attention}.out", (width, width))
        yield Place(f"{layer}.norm2.weight", f"{layer}.norm2.weight", (width,))
        forward = f"{layer}.feed_forward"
        experts: list[tuple[str, int | None]] = [(forward, None)]
        if config.moe is not None and config.is_moe_layer(index):
            yield Place(f"{forward}.router.weight", f"{forward}.router.weight", (config.moe.num_experts, width))
            experts = [(f"{forward}.experts.{expert}", expert) for expert in range(config.moe.num_experts)]
        for published, expert in experts:
            for part in ("gate_proj", "up_proj"):
                yield from _linear(config, published, part, f"{forward}.gate_up", (hidden, width), expert)
            yield from _linear(config, published, "down_proj", f"{forward}.down", (width, hidden), expert)
    yield Place("norm.weight", "norm.weight", (width,))
    if not config.tie_word_embeddings:
        yield Place(TIED_HEAD, "head.weight", (config.vocab_size, width))


def _linear(
    config: DecoderConfig, owner: str, part: str, ours: str, shape: tuple[int, int], expert: int | None = None
) -> Iterator[Place]:
    if config.lora is None or part not in config.lora.target_modules:
        yield Place(f"{owner}.{part}.weight", f"{ours}.weight", shape, expert)
        return
    rows, columns = shape
    adapter, rank = f"{ours}.adapters.{part}", config.lora.rank
    yield Place(f"{owner}.{part}.lora_a", f"{adapter}.down", (rank, columns), expert)
    yield Place(f"{owner}.{part}.lora_b", f"{adapter}.up", (rows, rank), expert)
    yield Place(f"{owner}.{part}.base_layer.weight", f"{ours}.weight", shape, expert)


def published_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the published state dict, without the second name of a tied embedding."""
    return {place.published: place.shape for place in places(config)}


def packed_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of our state dict, which is what `Decoder(config).state_dict()` has."""
    shapes = {}
    for ours, by_expert in _grouped(config).items():
        group = next(iter(by_expert.values()))
        stacked = (sum(place.shape[0] for place in group), *group[0].shape[1:])
        shapes[ours] = stacked if None in by_expert else (len(by_expert), *stacked)
    return shapes


def pack(published: Mapping[str, Tensor], config: DecoderConfig, where: str = "checkpoint") -> dict[str, Tensor]:
    """Published tensors, weights or moments, as ours; maps that are not stacked keep their storage.

    A tied head may be there under both names, then with equal values, or under the embedding's alone.
    where: what an error calls the source. Raises UserError naming every missing, extra or misshapen tensor.
    """
    published = dict(published)
    if config.tie_word_embeddings and TIED_HEAD in published:
        head, embedding = published.pop(TIED_HEAD), published.get(_EMBEDDING)
        if embedding is not None and not torch.equal(head, embedding):
            raise UserError(
                f"{where}: {TIED_HEAD} {_shape(head)} and {_EMBEDDING} {_shape(embedding)} must be one tensor, because "
                "tie_word_embeddings is true; they differ: set it to false in the configuration, or restore the file"
            )
    check_tensors(published, published_shapes(config), where)
    packed = {}
    for ours, by_expert in _grouped(config).items():
        stacks = [_stack([published[place.published] for place in group]) for group in by_expert.values()]
        packed[ours] = stacks[0] if None in by_expert else torch.stack(stacks)
    return packed


def unpack(
    ours: Mapping[str, Tensor], config: DecoderConfig, *, tied_head: bool = True, where: str = "model"
) -> dict[str, Tensor]:
    """Our tensors as published ones, in the published order, as views.

    tied_head: name a tied embedding twice, as a state dict does; moments have it once.
    Raises UserError naming every missing, extra or misshapen tensor.
    """
    check_tensors(ours, packed_shapes(config), where)
    published: dict[str, Tensor] = {}
    for name, by_expert in _grouped(config).items():
        for expert, group in by_expert.items():
            stack = ours[name] if expert is None else ours[name][expert]
            pieces = stack.split([place.shape[0] for place in group])
            published.update({place.published: piece for place, piece in zip(group, pieces, strict=True)})
    ordered = {place.published: published[place.published] for place in places(config)}
    if config.tie_word_embeddings and tied_head:
        ordered[TIED_HEAD] = ordered[_EMBEDDING]
    return ordered


def optimizer_order(config: DecoderConfig) -> tuple[list[str], list[str]]:
    """Published names in the order of the original optimizer's numbers: matrices, which decay, then norm weights."""
    shapes = published_shapes(config)
    return [name for name in shapes if len(shapes[name]) > 1], [name for name in shapes if len(shapes[name]) == 1]


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raises UserError naming every tensor that is missing, extra or misshapen, each with both shapes."""
    problems = [
        f"{name} is missing (expected shape {list(shape)}, found none)"
        if name not in found
        else f"{name} has shape {_shape(found[name])} (expected {list(shape)})"
        for name, shape in expected.items()
        if name not in found or tuple(found[name].shape) != shape
    ]
    problems += [
        f"{name} is extra (expected none, found shape {_shape(tensor)})"
        for name, tensor in found.items()
        if name not in expected
    ]
    if problems:
        more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise UserError(
            f"{where}: {'; '.join(problems[:_MOST_NAMED])}{more}: the tensors must be those of the configuration; "
            "restore the file, or correct the configuration"
        )


def _grouped(config: DecoderConfig) -> dict[str, dict[int | None, list[Place]]]:
    """Our name -> expert -> its places in the order of their rows."""
    groups: dict[str, dict[int | None, list[Place]]] = {}
    for place in places(config):
        groups.setdefault(place.ours, {}).setdefault(place.expert, []).append(place)
    return groups


def _stack(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
