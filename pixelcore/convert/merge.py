"""Low-rank adapters folded into the weights of a model at rest: the same function without them."""

from dataclasses import replace

from torch import Tensor

from pixelcore.convert.names import check_tensors, packed_shapes, places
from pixelcore.stored import Stored


def merge_lora(stored: Stored) -> Stored:
    """W + up @ down * alpha / rank for every map with an adapter; a model without adapters comes back as it is.

    The sum is taken in fp32, or fp64, and rounded to the weight's dtype. An optimizer's state does not survive, since
    its parameters are gone.
    """
    lora = stored.decoder_config.lora
    if lora is None:
        return stored
    check_tensors(stored.weights, packed_shapes(stored.decoder_config), str(stored.path))
    merged = {name: tensor for name, tensor in stored.weights.items() if ".adapters." not in name}
    next_row: dict[tuple[str, int | None], int] = {}
    owned: set[str] = set()
    for place in places(stored.decoder_config):
        if ".adapters." in place.ours:
            continue
        first = next_row.get((place.ours, place.expert), 0)
        next_row[place.ours, place.expert] = first + place.shape[0]
        if not place.published.endswith(".base_layer.weight"):
            continue
        if place.ours not in owned:  # copied once: the caller's tensors are never written
            merged[place.ours] = merged[place.ours].clone()
            owned.add(place.ours)
        part = place.published.removesuffix(".base_layer.weight").rpartition(".")[2]
        adapter = f"{place.ours.removesuffix('.weight')}.adapters.{part}"
        down, up = (_of_expert(stored.weights[f"{adapter}.{end}"], place.expert) for end in ("down", "up"))
        rows = _of_expert(merged[place.ours], place.expert)[first : first + place.shape[0]]
        wide = rows.double() if rows.dtype.itemsize == 8 else rows.float()
        rows.copy_(wide + up.to(wide.dtype) @ down.to(wide.dtype) * (lora.alpha / lora.rank))
    return replace(stored, config=replace(stored.decoder_config, lora=None), weights=merged, optimizer=None)


def _of_expert(tensor: Tensor, expert: int | None) -> Tensor:
    return tensor if expert is None else tensor[expert]
