"""A shadow is used while it is its weight's newest value, and never after."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pixelcore.layers import Linear, linear
from pixelcore.shadows import cast, keep_shadow, renewed_shadow, shadow_is_written


def make() -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))


def uses_shadow(weight: nn.Parameter, shadow: torch.Tensor) -> bool:
    return cast(weight, torch.bfloat16).data_ptr() == shadow.data_ptr()


def test_shadow_is_what_a_cast_gives_and_its_gradient_reaches_the_weight():
    weight = make()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    plain = linear(x, weight)
    wanted = torch.autograd.grad(plain.float().square().sum(), weight)[0]
    shadow = keep_shadow(weight)
    assert uses_shadow(weight, shadow)
    shadowed = linear(x, weight)
    assert torch.equal(shadowed, plain)
    got = torch.autograd.grad(shadowed.float().square().sum(), weight)[0]
    assert got.dtype == torch.float32 and torch.equal(got, wanted)
    assert not shadow.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_dtype_is_cast(dtype: torch.dtype):
    weight = make()
    keep_shadow(weight)
    assert torch.equal(cast(weight, dtype), weight.to(dtype))


def loaded(weight: nn.Parameter) -> None:
    holder = nn.Module()
    holder.weight = weight
    holder.load_state_dict({"weight": torch.ones(6, 4)})


def moved(weight: nn.Parameter) -> None:
    weight.data = weight.data * 2


@pytest.mark.parametrize("change", [lambda weight: weight.detach().mul_(2), loaded, moved])
def test_after_any_change_the_weight_is_cast_until_the_shadow_is_written_again(
    change: Callable[[nn.Parameter], object],
):
    weight = make()
    old = keep_shadow(weight)
    change(weight)
    assert not uses_shadow(weight, old)
    assert torch.equal(cast(weight, torch.bfloat16), weight.bfloat16())
    new = renewed_shadow(weight)
    assert torch.equal(new, weight.bfloat16()) and uses_shadow(weight, new)


def test_who_writes_both_says_so():
    weight = make()
    shadow = keep_shadow(weight)
    with torch.no_grad():
        weight.add_(1)
        shadow.copy_(weight)
    assert not uses_shadow(weight, shadow)
    shadow_is_written(weight)
    assert uses_shadow(weight, shadow) and renewed_shadow(weight) is shadow


def test_shadows_are_no_state():
    layer = Linear(4, 6)
    keep_shadow(layer.weight)
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    assert len(list(layer.parameters())) == 2 and not list(layer.buffers())
