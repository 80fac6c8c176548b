"""Random bits that are a function of where they are used, and of nothing else.

Dropout that draws from a generator depends on the order of the draws: pack the batch differently, split it over two
GPUs or recompute an activation, and every mask changes. Here each bit is Philox-4x32-10 (Salmon et al., SC'11, the
counter-based generator of cuRAND and of PyTorch on GPUs) of

    key     = (run seed, step)
    counter = (document, position in the document, feature // 4, site)

and word `feature % 4` of the four that come out decides the feature. A mask can therefore be made again anywhere: in
the backward pass, in a kernel, on another rank, after a resume.

Attention has a hundred times as many weights as a layer has activations, and a kernel makes their bits beside products
that are nearly free: ten rounds for four weights would take longer than the attention. So a weight gets a byte and not
a word, sixteen of one counter, after seven rounds, the fewest that pass the statistical tests of the paper:

    byte of key position j    word (j % 16) // 4 of counter j // 16, bits 8 (j % 4) and the seven above them

The probability of a weight is therefore a multiple of 1/256 (`attention_p`): 0.1 becomes 26/256 = 0.1016. What is kept
is scaled by the probability that is really meant, so its mean is right.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcore.packed import Packed

_LOW = 0xFFFFFFFF
_MULTIPLY_0, _MULTIPLY_1 = 0xD2511F53, 0xCD9E8D57  # the published multipliers
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85  # the key schedule: golden ratio and sqrt(3) - 1
_NUM_ROUNDS = 10
_NUM_ATTENTION_ROUNDS = 7


@dataclass(frozen=True)
class Drop:
    """One use of dropout: drop each element with probability p.

    seed: int64 [2], run seed and step. packed names the document and position of every row. site tells the uses of one
    step apart: the models number them by layer and place; attention adds the head.
    """

    seed: Tensor
    packed: Packed
    site: int
    p: float


def keep_features(drop: Drop, num_features: int) -> Tensor:
    """Bool [N, num_features], True where an activation stays."""
    group = torch.arange((num_features + 3) // 4, device=drop.packed.positions.device)
    words = _philox(drop.seed, drop.packed.documents[:, None], drop.packed.positions[:, None], group[None], drop.site)
    return (words.flatten(1)[:, :num_features]) >= _threshold(drop.p)


def keep_attention(drop: Drop, first: int, length: int, num_heads: int, num_keys: int | None = None) -> Tensor:
    """Bool [heads, length, keys], True where an attention weight of the document at rows first.. stays.

    num_keys: how many of its rows are keys, the first ones; all of them when absent.
    """
    num_keys = length if num_keys is None else num_keys
    rows = slice(first, first + length)
    device = drop.packed.positions.device
    group = torch.arange((num_keys + 15) // 16, device=device)[None, None]
    site = drop.site + (torch.arange(num_heads, device=device)[:, None, None] << 16)
    document, position = drop.packed.documents[rows][None, :, None], drop.packed.positions[rows][None, :, None]
    words = _philox(drop.seed, document, position, group, site, rounds=_NUM_ATTENTION_ROUNDS)
    bytes_of_words = words[..., None] >> torch.arange(0, 32, 8, device=device) & 0xFF
    return bytes_of_words.flatten(2)[..., :num_keys] >= attention_threshold(drop.p)


def attention_threshold(p: float) -> int:
    """A byte below it drops its weight: as near to p as bytes come, but never all, and none only where p is 0."""
    return min(max(round(256 * p), 1), 255) if p else 0


def attention_p(p: float) -> float:
    """The probability with which weights of attention are dropped where p is asked for."""
    return attention_threshold(p) / 256


def _threshold(p: float) -> int:
    return int(p * 2**32)


def _philox(seed: Tensor | tuple[int, int], *counter: Tensor | int, rounds: int = _NUM_ROUNDS) -> Tensor:
    """Four 32-bit words for each counter: int64 [..., 4], values in [0, 2^32)."""
    device = seed.device if isinstance(seed, Tensor) else None
    tensors = [torch.as_tensor(part, device=device).to(torch.int64) & _LOW for part in counter]
    c0, c1, c2, c3 = torch.broadcast_tensors(*tensors)
    k0, k1 = seed[0] & _LOW, seed[1] & _LOW
    for _ in range(rounds):
        # int64 products wrap modulo 2^64, which keeps all 64 bits; the masks undo the sign of the shift and take the
        # low half of c1 and c3, which are not multiplied before they meet a mask
        product_0, product_1 = c0 * _MULTIPLY_0, c2 * _MULTIPLY_1
        c0, c2 = ((product_1 >> 32) ^ c1 ^ k0) & _LOW, ((product_0 >> 32) ^ c3 ^ k1) & _LOW
        c1, c3 = product_1, product_0
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return torch.stack((c0, c1 & _LOW, c2, c3 & _LOW), dim=-1)
