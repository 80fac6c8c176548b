import pytest
import torch

from pixelcore.shapes import check_shape


def test_sizes_are_found_by_letter():
    assert check_shape(torch.zeros(2, 5), "B T") == {"B": 2, "T": 5}
    assert check_shape(torch.zeros(2, 5), "B T", T=5) == {"B": 2, "T": 5}
    assert check_shape(torch.zeros(()), "") == {}


@pytest.mark.parametrize(
    "shape, letters, sizes", [((2, 5), "B T", {"T": 6}), ((2,), "B T", {}), ((2, 5, 1), "B T", {})]
)
def test_another_rank_or_size_names_both_shapes(shape, letters, sizes):
    with pytest.raises(ValueError, match=r"expected shape \[B T\].*; got \[2"):
        check_shape(torch.zeros(shape), letters, **sizes)
