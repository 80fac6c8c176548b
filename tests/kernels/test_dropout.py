"""What the shared check of kernels does not ask of dropout."""

from dataclasses import replace

import pytest
import torch

from kernels.dropout import fused
from pixelcore.dropout_bits import Drop, keep_features
from pixelcore.packed import Packed

PACKED = Packed.from_lengths([2, 3], documents=[4, 9])


def test_exactly_the_elements_of_the_mask_are_zero():
    drop = Drop(torch.tensor([3, 8]), PACKED, 2, 0.5)
    y = fused(torch.ones(5, 22), drop)
    assert torch.equal(y, keep_features(drop, 22) * 2.0)


def test_a_filler_of_no_rows_has_a_gradient():
    nothing = replace(PACKED, documents=PACKED.documents[:0], positions=PACKED.positions[:0])
    x = torch.zeros(0, 16, requires_grad=True)
    fused(x, Drop(torch.tensor([3, 8]), nothing, 2, 0.5)).sum().backward()
    assert x.grad is not None and x.grad.shape == (0, 16)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"p": 1.0}, "drop.p is 1.0: it must be at least 0 and below 1"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, r"drop.seed has the shape \[3\]"),
    ],
)
def test_bad_use_of_dropout(change, message):
    with pytest.raises(ValueError, match=message):
        fused(torch.ones(5, 8), replace(Drop(torch.tensor([3, 8]), PACKED, 2, 0.5), **change))


def test_names_of_another_number_of_rows():
    with pytest.raises(ValueError, match=r"drop.packed.documents has the shape \[5\]: it must be \[N\], N = 4"):
        fused(torch.ones(4, 8), Drop(torch.tensor([3, 8]), PACKED, 2, 0.5))
