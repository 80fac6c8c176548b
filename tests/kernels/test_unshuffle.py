"""What the shared tests do not ask of unshuffle: a gradient that is a move, and bad input."""

from typing import Any

import pytest
import torch

from kernels import unshuffle
from kernels.workshop.cases import Case, Draw
from kernels.workshop.variants import left_over_is_nan


def drawn(dtype: torch.dtype = torch.float32, **sizes: Any) -> dict[str, Any]:
    case = Case("", {"R": 9, "N": 5, "D": 20, "L": 4, **sizes})
    return unshuffle.arguments(case, Draw(dtype, torch.device("cpu"), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("num_kept", [5, 9])
def test_the_gradient_of_every_kept_row_is_that_of_its_place(num_kept: int):
    given = drawn(torch.float16, N=num_kept)
    dy_RD = torch.randn(9, 20).to(torch.float16)
    with left_over_is_nan():
        y_RD = unshuffle.fused(**given)
        dkept_ND, dtoken_D = torch.autograd.grad(y_RD, (given["kept_ND"], given["mask_token_D"]), dy_RD)
    restored_R = given["restore_R"] >= 0
    assert torch.equal(dkept_ND, dy_RD[restored_R])
    torch.testing.assert_close(dtoken_D, dy_RD[~restored_R].float().sum(0))


def test_only_what_learns_has_a_gradient():
    given = drawn(learns=True)
    given["kept_ND"].requires_grad_(False)
    given["mask_token_D"].requires_grad_(False)
    (dtable_LD,) = torch.autograd.grad(unshuffle.fused(**given).sum(), given["table_LD"])
    count_L = given["places_R"].bincount(minlength=4)
    assert torch.equal(dtable_LD, count_L[:, None].expand(4, 20).float())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"kept_ND": torch.zeros(5, 20, dtype=torch.int64)}, "kept is int64: it must be one of float64"),
        ({"mask_token_D": torch.zeros(1, 20)}, r"mask_token has the shape \[1, 20\]: it must be \[D\], D = 20"),
        ({"restore_R": torch.zeros(9, dtype=torch.int32)}, "restore is int32: it must be one of int64"),
        ({"table_LD": torch.zeros(4, 21)}, r"table has the shape \[4, 21\]: it must be \[L, D\], D = 20"),
        ({"places_R": torch.zeros(8, dtype=torch.int64)}, r"places has the shape \[8\]: it must be \[R\], R = 9"),
        ({"places_R": torch.zeros(9, dtype=torch.int64, device="meta")}, "places is on meta and kept on cpu"),
    ],
)
def test_bad_input_is_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        unshuffle.fused(**drawn() | wrong)
