"""What the shared tests do not ask of patch_embed: gradients that nobody asks for, bits, and bad input."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import patch_embed
from kernels.workshop.cases import Case, Draw
from kernels.workshop.variants import left_over_is_nan


def drawn(dtype: torch.dtype = torch.float32, **sizes: Any) -> dict[str, Any]:
    case = Case("", {**patch_embed.SMALL.sizes, "N": 9, "P": 4, "D": 6, "A": 10, "L": 5, **sizes})
    return patch_embed.arguments(case, Draw(dtype, torch.device("cpu"), torch.Generator().manual_seed(0)))


def learning(given: dict[str, Any]) -> dict[str, Tensor]:
    return {name: x for name, x in given.items() if isinstance(x, Tensor) and x.requires_grad}


def test_what_nobody_asks_for_has_no_gradient():
    given = drawn()
    leaves = learning(given)
    for name in ("weight_DA", "bias_D", "cls_D", "table_LD"):
        leaves[name].requires_grad_(False)
    (dpixels_PA,) = torch.autograd.grad(patch_embed.fused(**given).sum(), leaves["pixels_PA"])
    reads_P1 = (given["rows_N"][:, None] == torch.arange(4)).sum(0)[:, None]
    torch.testing.assert_close(dpixels_PA, 2 * reads_P1 * given["weight_DA"].sum(0))


@pytest.mark.parametrize("signed", [False, True])
def test_bits_are_black_and_white_bytes(signed: bool):
    given = drawn(pixels="bytes", A=24, signed=signed)
    bits_PA = given["pixels_PA"] > 127
    packed_PB = torch.from_numpy(np.packbits(bits_PA.numpy(), axis=1))
    results = []
    for pixels_PB in (packed_PB, bits_PA.to(torch.uint8) * 255):
        changed: dict[str, Any] = given | {"pixels_PA": pixels_PB}
        y_ND = patch_embed.fused(**changed)
        results.append((y_ND, *torch.autograd.grad(y_ND.square().sum(), given["weight_DA"])))
    for of_bits, of_bytes in zip(*results, strict=True):
        torch.testing.assert_close(of_bits, of_bytes)


def test_no_patch_is_read_where_every_row_is_cls():
    given = drawn(pixels="bytes")
    given |= {"pixels_PA": given["pixels_PA"][:0], "rows_N": torch.full((9,), -1)}
    with left_over_is_nan():
        y_ND = patch_embed.fused(**given)
        dweight_DA, dbias_D = torch.autograd.grad(y_ND.sum(), (given["weight_DA"], given["bias_D"]))
    torch.testing.assert_close(y_ND, given["cls_D"] + given["table_LD"][given["places_N"]])
    assert not dweight_DA.any()
    assert not dbias_D.any()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"pixels_PA": torch.zeros(4, 5)}, "pixels is 5 x float32 a patch: it must be the weight's 10 values"),
        ({"pixels_PA": torch.zeros(4, 2, dtype=torch.uint8)}, "pixels is 2 x uint8 a patch"),
        ({"pixels_PA": torch.zeros(4, 10, dtype=torch.int32)}, "pixels is int32: it must be one of uint8, float64"),
        ({"rows_N": torch.zeros(9, dtype=torch.int32)}, "rows is int32: it must be one of int64"),
        ({"weight_DA": torch.zeros(6)}, r"weight has the shape \[6\]: it must be \[D, A\]"),
        ({"bias_D": torch.zeros(5)}, r"bias has the shape \[5\]: it must be \[D\], D = 6"),
        ({"cls_D": torch.zeros(1, 6)}, r"cls has the shape \[1, 6\]"),
        ({"table_LD": torch.zeros(5, 7)}, r"table has the shape \[5, 7\]: it must be \[L, D\], D = 6"),
        ({"places_N": torch.zeros(8, dtype=torch.int64)}, r"places has the shape \[8\]: it must be \[N\], N = 9"),
        ({"places_N": None}, "table is given and places is None: they belong together"),
        ({"table_LD": None}, "table is None and places is given: they belong together"),
        ({"rows_N": torch.zeros(9, dtype=torch.int64, device="meta")}, "rows is on meta and weight on cpu"),
    ],
)
def test_bad_input_is_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        patch_embed.fused(**drawn() | wrong)
