"""The uniform numbers that tokens and patches are drawn with: a function of a seed and of how much was drawn before.

A generator that hands out one number after another has a state, which lives on the host or on one device, and whose
order everything depends on. Here number j of draw `step` of the sequence with seed s is Philox-4x32-10 (see
`pixelcore.dropout_bits`) of

    key = s        counter = (step, j // 4, 0, 0)        number = (word j % 4 + 1/2) / 2^32, never 0 and never 1

So a sequence draws the same on every device, inside a kernel, in a recorded step that is replayed, and whatever else
shares its batch.
"""

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor

from pixelcore.dropout_bits import _philox

_AHEAD = 128  # draws; the host computes their numbers in hardly more time than those of one


def uniforms(seeds_B: Tensor, steps_B: Tensor, num_numbers: int) -> Tensor:
    """The first numbers of draw steps_B[b] of the sequence with seed seeds_B[b]: fp64 [B, num_numbers].

    seeds_B: int64, from 0. steps_B: integers from 0 to 2^32 - 1.
    """
    return _numbers(torch.stack((seeds_B, seeds_B >> 32))[:, :, None], steps_B, num_numbers)


def numbers_of(seed: int, num_numbers: int = 1) -> Iterator[Tensor]:
    """The numbers of one sequence draw by draw, from its first one on: fp64 [num_numbers] each, on the host."""
    for first in count(0, _AHEAD):
        yield from _numbers((seed, seed >> 32), torch.arange(first, first + _AHEAD), num_numbers)


def _numbers(key: Tensor | tuple[int, int], steps_B: Tensor, num_numbers: int) -> Tensor:
    group = torch.arange((num_numbers + 3) // 4, device=steps_B.device)
    words_BG4 = _philox(key, steps_B[:, None], group[None], 0, 0)
    return (words_BG4.flatten(1)[:, :num_numbers].double() + 0.5) * 2.0**-32
