"""The peers of decoding: attention of a few new rows over a cache of fixed size, as programs in plain torch do it.

All of them append first and then look at the whole memory of the cache, hiding what stands behind the end of each
sequence, because shapes that grow would be compiled and captured anew with every token (the way of gpt-fast,
github.com/meta-pytorch/gpt-fast). Ours reads up to the end only; the timed caches are full, so the work is the same.
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.workshop.peer_calls import Call, Given
from pixelcore.kv_cache import Chunk


def static_cache(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, keys_BGCK: Tensor, values_BGCK: Tensor, chunk: Chunk, scale: float
) -> Tensor:
    """SDPA with a mask over a static cache."""
    new = _equal(chunk)
    place_BT = chunk.positions.unflatten(0, (len(chunk.new), new)).long()
    q_BHTK = _append(q_NHK, k_NGK, v_NGK, keys_BGCK, values_BGCK, place_BT)
    seen_B1TC = (torch.arange(keys_BGCK.shape[2], device=q_NHK.device) <= place_BT[..., None])[:, None]
    grouped = q_BHTK.shape[1] != keys_BGCK.shape[1]
    out = F.scaled_dot_product_attention(q_BHTK, keys_BGCK, values_BGCK, seen_B1TC, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)


def flex(given: Given) -> Call:
    """FlexAttention's kernel for decoding, compiled; the mask of blocks is made outside of what is timed."""
    module: Any = importlib.import_module("torch.nn.attention.flex_attention")
    chunk, keys, values, q_NHK = (given[name] for name in ("chunk", "keys_BGCK", "values_BGCK", "q_NHK"))
    new, held_B = _equal(chunk), chunk.held_B
    place_BT = chunk.positions.unflatten(0, (len(chunk.new), new)).long()
    grouped = q_NHK.shape[1] != keys.shape[1]

    def seen(b: Tensor, h: Tensor, row: Tensor, place: Tensor) -> Tensor:
        return place <= held_B[b] + row

    sizes = (len(chunk.new), None, new, keys.shape[2])
    blocks = module.create_block_mask(seen, *sizes, device=q_NHK.device)
    fast = torch.compile(module.flex_attention, dynamic=False)

    def call() -> Tensor:
        q_BHTK = _append(q_NHK, given["k_NGK"], given["v_NGK"], keys, values, place_BT)
        out = fast(q_BHTK, keys, values, block_mask=blocks, scale=given["scale"], enable_gqa=grouped)
        return out.transpose(1, 2).flatten(0, 1)

    return call


def _append(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, keys_BGCK: Tensor, values_BGCK: Tensor, place_BT: Tensor
) -> Tensor:
    """Write the new rows into the cache, the queries as a batch."""
    sequence_B1 = torch.arange(len(place_BT), device=place_BT.device)[:, None]
    keys_BGCK[sequence_B1, :, place_BT] = k_NGK.unflatten(0, place_BT.shape)
    values_BGCK[sequence_B1, :, place_BT] = v_NGK.unflatten(0, place_BT.shape)
    return q_NHK.unflatten(0, place_BT.shape).transpose(1, 2)


def _equal(chunk: Chunk) -> int:
    if len(set(chunk.new)) > 1:
        raise RuntimeError("it is a dense call, and these sequences bring different numbers of rows")
    return chunk.new[0]
