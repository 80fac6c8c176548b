"""Pixels as they are stored, as the whole numbers that a product takes.

    stored                   number of a pixel          signed, -1 for ink and 1 for paper     the sum is divided by
    a byte, 0 to 255         v                          2 v - 255                              255
    a bit, eight a byte      b                          2 b - 1                                1
    a float in [0, 1]        p                          2 p - 1                                1

A whole number from -255 to 255 that is a byte, or 2 v - 255 of one, is exact in every dtype, bf16 with its eight bits
included: an odd number below 256 has no more. Scaling is left for the fp32 sum.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Stored(NamedTuple):
    """How stored pixels become the numbers of the product: PACKED pixels in each stored number, each pixel v entering
    as FACTOR v + SHIFT, and the sum divided by DIVISOR."""

    PACKED: int
    FACTOR: int
    SHIFT: int
    DIVISOR: int

    @classmethod
    def of(cls, pixels_PB: Tensor, num_values: int, signed: bool) -> "Stored":
        packed = num_values // max(pixels_PB.shape[1], 1)
        paper = 255 if pixels_PB.dtype == torch.uint8 and packed == 1 else 1
        return cls(packed, 1 + signed, -paper * signed, paper)


@triton.jit
def numbers(
    pixels_ptr,
    patch,
    stride,
    first,
    A: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    PACKED: tl.constexpr,
    FACTOR: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """The numbers first to first + WIDTH of these patches. What stands for patch -1 and from A on is finite."""
    stored = first // PACKED + tl.arange(0, WIDTH // PACKED)
    inside = (patch >= 0)[:, None] & (stored < A // PACKED)[None]
    number = tl.load(pixels_ptr + (patch * stride)[:, None] + stored[None], mask=inside, other=0)
    if PACKED > 1:
        place = (PACKED - 1 - tl.arange(0, PACKED)).to(tl.uint8)
        number = tl.reshape((number[:, :, None] >> place[None, None]) & 1, (patch.shape[0], WIDTH))
    return number.to(WIDE) * FACTOR + SHIFT
