"""The split and the rotation beyond what every kernel is asked: bad input, gradients as attention hands them over."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.split_rope import fused
from pixelcore.ops import HeadLayout, rope_table

LAYOUT = HeadLayout(num_heads=4, num_key_value_heads=2, head_size=6)
HALVES = HeadLayout(num_heads=4, num_key_value_heads=2, head_size=6, rotation="half")


def given(**changed: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    good = {
        "qkv_NO": torch.randn(5, 48),
        "positions_N": torch.tensor([3, 0, 1, 9, 2]),
        "table": rope_table(6, 100.0, 10),
        "layout": LAYOUT,
    }
    return good | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qkv_NO": torch.zeros(5, 40)}, r"qkv has the shape \[5, 40\]: it must be \[N, O\], O = 48"),
        ({"positions_N": torch.zeros(4, dtype=torch.int64)}, r"positions has the shape \[4\]"),
        ({"positions_N": torch.zeros(5)}, "positions is float32: it must be one of int32, int64"),
        ({"table": rope_table(8, 100.0, 10)}, r"table has the shape \[10, 4, 2\]"),
        ({"table": None}, "table = None"),
        ({"layout": HeadLayout(4, 2, 6, "quarter")}, "rotation = 'quarter'"),
        ({"layout": HeadLayout(8, 4, 3)}, "head_size = 3: .* must be even"),
    ],
)
def test_bad_input_is_named(changed: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        fused(**given(**changed))


def test_without_rotation_there_are_views_of_the_projection():
    qkv = torch.randn(5, 48)
    parts = fused(qkv, torch.zeros(5, dtype=torch.int32), None, HeadLayout(4, 2, 6, "none"))
    assert [x.data_ptr() - qkv.data_ptr() for x in parts] == [0, 4 * 24, 4 * 36]


def test_gradients_of_views_that_stand_side_by_side_are_not_copied():
    qkv = torch.randn(5, 48, requires_grad=True)
    parts = fused(qkv, torch.zeros(5, dtype=torch.int32), None, HeadLayout(4, 2, 6, "none"))
    wanted = torch.randn(5, 48)
    side_by_side = wanted.unflatten(1, (8, 6)).split((4, 2, 2), dim=1)
    apart = tuple(x.clone() for x in side_by_side)
    mixed = (*side_by_side[:2], apart[2])
    exchanged = torch.cat((wanted[:, :24], wanted[:, 36:], wanted[:, 24:36]), dim=1).unflatten(1, (8, 6))
    turned = (exchanged[:, :4], exchanged[:, 6:], exchanged[:, 4:6])
    for upstream in (side_by_side, apart, mixed, turned):
        (dqkv,) = torch.autograd.grad(parts, qkv, upstream, retain_graph=True)
        assert torch.equal(dqkv, wanted)
        assert (dqkv.data_ptr() == wanted.data_ptr()) == (upstream is side_by_side)


@pytest.mark.parametrize("layout", [LAYOUT, HALVES])
def test_gradients_are_read_where_attention_leaves_them(layout: HeadLayout):
    qkv = given()["qkv_NO"].requires_grad_()
    outputs = fused(**given(qkv_NO=qkv, layout=layout))
    assert all(x.is_contiguous() for x in outputs)
    together = [torch.randn_like(x) for x in outputs]
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in together]
    columns_first = [x.permute(2, 0, 1).contiguous().permute(1, 2, 0) for x in together]
    first, *others = (
        torch.autograd.grad(outputs, qkv, upstream, retain_graph=True)[0]
        for upstream in (together, heads_first, columns_first)
    )
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("layout", [LAYOUT, HALVES])
def test_positions_of_either_width_turn_the_same_way_and_keep_lengths(layout: HeadLayout):
    qkv: Tensor = given()["qkv_NO"]
    narrow = given()["positions_N"].to(torch.int32)
    q, k, v = fused(**given(layout=layout))
    for x, y in zip((q, k, v), fused(**given(positions_N=narrow, layout=layout)), strict=True):
        assert torch.equal(x, y)
    turned = torch.cat((q, k, v), dim=1).flatten(1)
    assert torch.equal(turned[1], qkv[1])  # position zero
    assert torch.equal(v.flatten(1), qkv[:, 36:])
    torch.testing.assert_close(turned.square().sum(1), qkv.square().sum(1))


def test_the_angle_is_the_position_times_the_frequency():
    one = torch.tensor([[1.0, 0.0]])
    layout = HeadLayout(num_heads=1, num_key_value_heads=1, head_size=2)
    q, _, v = fused(one.repeat(1, 3), torch.tensor([7]), rope_table(2, 100.0, 8), layout)
    torch.testing.assert_close(q[0, 0], torch.tensor([math.cos(7), math.sin(7)]))
    assert torch.equal(v[0, 0], one[0])
