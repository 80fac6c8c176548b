"""AdamW around the fused update: which parameters decay, how gradients are clipped, what a skipped step leaves."""

from typing import Any

import pytest
import torch
from torch import nn

from pixelcore.ops import REFERENCE, adamw_formula
from pixelcore.stored import OptimizerState
from train.config import OptimizerConfig
from train.optimizer import AdamW


def make_model() -> nn.Linear:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).reshape(2, 3) / 10)
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    return model


def make(model: nn.Module, **changes: Any) -> AdamW:
    return AdamW(model, OptimizerConfig(**changes), REFERENCE)


def give(model: nn.Module, factor: float = 1.0) -> None:
    for number, parameter in enumerate(model.parameters()):
        values = torch.arange(parameter.numel()).reshape(parameter.shape) - 1.5 + number
        parameter.grad = values * factor


def test_update_is_the_formula_with_decay_on_matrices_alone():
    model, wanted = make_model(), make_model()
    optimizer = make(model, weight_decay=0.5, max_grad_norm=0.0, betas=(0.8, 0.9))
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in wanted.named_parameters()}
    for step in (1, 2, 3):
        give(model, step)
        optimizer.step(0.01)
        give(wanted, step)
        for name, parameter in wanted.named_parameters():
            assert parameter.grad is not None
            decay = 0.5 if name == "weight" else 0.0
            settings: dict[str, Any] = {"learning_rate": 0.01, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": decay}
            adamw_formula(parameter.data, parameter.grad, *moments[name], step, **settings)
    for one, other in zip(model.parameters(), wanted.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert optimizer.num_updates.item() == 3


@pytest.mark.parametrize("limit, clipped", [(1.0, True), (100.0, False), (0.0, False)])
def test_gradient_is_clipped_to_a_global_norm(limit: float, clipped: bool):
    model = make_model()
    give(model)
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    optimizer = make(model, max_grad_norm=limit)
    report = optimizer.step(0.1)
    torch.testing.assert_close(report.grad_norm, norm)
    factor = limit / norm if clipped else 1.0
    for name, first in optimizer.firsts.items():
        torch.testing.assert_close(first, gradients[name] * factor * (1 - 0.9), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_gradient_that_is_not_finite_changes_nothing_and_is_counted(value: float):
    model = make_model()
    optimizer = make(model)
    give(model)
    optimizer.step(0.1)
    before = [
        tensor.clone() for tensor in (*model.parameters(), *optimizer.firsts.values(), *optimizer.seconds.values())
    ]
    give(model)
    assert model.weight.grad is not None
    model.weight.grad[1, 2] = value
    report = optimizer.step(0.1)
    after = [*model.parameters(), *optimizer.firsts.values(), *optimizer.seconds.values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after))
    assert (report.skipped.item(), optimizer.skipped.item(), optimizer.skipped_in_a_row.item()) == (1, 1, 1)
    assert optimizer.num_updates.item() == 1
    give(model)
    optimizer.step(0.1)
    assert (optimizer.skipped.item(), optimizer.skipped_in_a_row.item(), optimizer.num_updates.item()) == (1, 0, 2)


def test_gradients_are_cleared_and_absent_ones_are_zero():
    model = make_model()
    optimizer = make(model, weight_decay=0.0)
    model.weight.grad = torch.ones_like(model.weight)
    before = model.bias.detach().clone()
    optimizer.step(0.1)
    assert torch.equal(model.bias, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_parameters_have_no_moments():
    model = make_model()
    model.bias.requires_grad_(False)
    optimizer = make(model)
    assert list(optimizer.firsts) == ["weight"]
    give(model)
    before = model.bias.clone()
    optimizer.step(0.1)
    assert torch.equal(model.bias, before)


def test_state_goes_out_and_in():
    model, other = make_model(), make_model()
    optimizer, copy = make(model), make(other)
    for _ in range(2):
        give(model)
        optimizer.step(0.1)
    other.load_state_dict(model.state_dict())
    copy.restore(optimizer.gather())
    for one in (model, other):
        give(one)
    optimizer.step(0.1)
    copy.step(0.1)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters()))
    assert copy.num_updates.item() == 3


def test_moments_of_other_parameters_are_refused():
    optimizer = make(make_model())
    state = optimizer.gather()
    state.firsts.pop("bias")
    with pytest.raises(ValueError, match="bias"):
        optimizer.restore(OptimizerState(firsts=state.firsts, seconds=state.seconds, step=1))
