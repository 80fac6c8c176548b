"""Losses whose gradient is finished in the forward pass.

The factor of a loss, 1 / (targets of the whole step), is known before anything is computed: it is the argument `scale`
of each loss. So a kernel that reads the logits for the loss writes their gradient in the same pass, and the backward
pass hands it on without touching it. A factor behind the loss would cost a pass over that gradient, a read and a write
of each value, and for the logits of a language model that is as long as the loss itself.

A gradient that is handed on is right only if what comes from above is 1. That is asserted on the device, without making
the host wait: a wrong factor stops the run at its next synchronisation, and never trains with a wrong gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.arguments import check


class _HandedOn(torch.autograd.Function):
    """The loss of an operation that returns (loss, *gradients of its first num_inputs arguments)."""

    @staticmethod
    def forward(ctx: Any, operation: Any, num_inputs: int, *arguments: Any) -> Tensor:
        loss, *gradients = operation(*arguments)
        ctx.save_for_backward(*gradients)
        ctx.num_others = len(arguments) - num_inputs
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        rule = "the gradient of this loss was finished before it: put factors into its argument scale, none behind it"
        torch._assert_async(upstream == 1, rule)
        return None, None, *ctx.saved_tensors, *[None] * ctx.num_others


class _Multiplied(_HandedOn):
    """The same for any gradient from above, at the price of another pass over the gradients."""

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = [gradient * upstream.to(gradient.dtype) for gradient in ctx.saved_tensors]
        return None, None, *gradients, *[None] * ctx.num_others


def finished(
    with_gradients: Any, alone: Any, inputs: Sequence[Tensor], others: Sequence[Any], factor_follows: bool
) -> Tensor:
    """The loss of `inputs` and `others`, differentiable by the inputs.

    with_gradients: the operation (*inputs, *others) -> (loss, a gradient for each input). alone: the one that returns
    the loss and writes no gradient, for where none is asked for. factor_follows: whether the loss may be multiplied or
    added up with weights afterwards; without it a gradient from above that is not 1 is refused.
    """
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
        return alone(*inputs, *others)
    function = _Multiplied if factor_follows else _HandedOn
    return function.apply(with_gradients, len(inputs), *inputs, *others)  # pyright: ignore[reportReturnType]


def check_scale(scale: Tensor, like: Tensor, num_rows: int | None = None) -> None:
    """Raise ValueError unless scale is a constant on the device, a number or, where num_rows is given, one for each
    row."""
    dtypes = (torch.float32, torch.float64) if like.dtype == torch.float64 else (torch.float32,)
    if num_rows is not None and scale.dim() == 1:
        check("scale", scale, "M", dtypes, M=num_rows)
    else:
        check("scale", scale, "", dtypes)
    if scale.requires_grad:
        raise ValueError("scale requires a gradient: it is a factor that is known beforehand, detach it")


def partial_sums(like: Tensor, num_programs: int) -> Tensor:
    """Where each program writes the sum of its rows' losses."""
    return like.new_empty(num_programs, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)


def total_of(losses: Tensor) -> Tensor:
    """The sum of what the programs wrote, in an order that never changes and in fp64, which costs nothing here."""
    return losses.sum(dtype=torch.float64).to(losses.dtype)
