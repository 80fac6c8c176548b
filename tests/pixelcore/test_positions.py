"""The table of positions against its formula written out, and what long strips do with it."""

import math

import pytest
import torch
import torch.nn.functional as F

from pixelcore.errors import UserError
from pixelcore.positions import sincos_table, stretch


def expected_row(place: int, side: int, width: int) -> list[float]:
    """One row by the words of the specification."""
    row = []
    for grid in (place % side, place // side):
        angles = [grid / 10000 ** (j / (width / 4)) for j in range(width // 4)]
        row += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return row


@pytest.mark.parametrize("num_patches, side", [(529, 23), (1, 1), (50, 7), (15, 3)])
def test_the_first_half_is_the_column_of_a_square_grid_and_the_second_its_row(num_patches, side):
    table = sincos_table(num_patches, 16)
    assert (table.shape, table.dtype) == ((num_patches + 1, 16), torch.float32)
    assert not table[0].any()
    expected = torch.tensor([expected_row(place, side, 16) for place in range(num_patches)])
    torch.testing.assert_close(table[1:], expected, rtol=0, atol=1e-7)


def test_a_width_that_cannot_hold_sines_and_cosines_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_table(9, 6)


def test_strips_that_fit_use_the_first_rows():
    table, places = sincos_table(9, 8), torch.tensor([0, 1, 2, 0, 1])
    same = stretch(table, places, [3, 2], [4, 1], allowed=False)
    assert same[0] is table and same[1] is places


def test_a_longer_strip_is_refused_with_both_numbers():
    with pytest.raises(UserError, match="a strip of 10 patches is longer than the model's num_patches = 9: cut it"):
        stretch(sincos_table(9, 8), torch.arange(11), [11], [10], allowed=False)


def test_a_longer_strip_reads_a_stretched_grid_and_its_neighbours_do_not():
    table = sincos_table(9, 8)
    places = torch.tensor([0, 2, 3, 0, 1, 10, 0, 9])  # strips of 9, 10 and 17 patches, some rows of each
    grown, used = stretch(table, places, [3, 3, 2], [9, 10, 17], allowed=True)
    grid = table[1:].T.reshape(1, 8, 3, 3)
    four, five = (F.interpolate(grid, (side, side), mode="bicubic")[0].flatten(1).T for side in (4, 5))
    expected = torch.stack([table[0], table[2], table[3], table[0], four[0], four[9], table[0], five[8]])
    assert torch.equal(grown[used], expected)
    alone, its_places = stretch(table, places[3:6], [3], [10], allowed=True)
    assert torch.equal(alone[its_places], expected[3:6])


def test_a_stretched_grid_passes_gradients_to_the_table():
    table = sincos_table(4, 4).double().requires_grad_()
    places = torch.tensor([0, 1, 5])
    assert torch.autograd.gradcheck(
        lambda table: torch.Tensor.__getitem__(*stretch(table, places, [3], [5], allowed=True)), (table,)
    )
