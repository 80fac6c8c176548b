"""bf16 copies of fp32 weights: cast once a step, where the optimizer writes them, and not at every use.

A model that computes in bf16 keeps its weights in fp32, or small updates would be lost. Each product then reads a
weight as bf16, and casting it there costs 6 bytes a value each time: in every micro-batch, and again where activations
are recomputed. The optimizer has just had the new value in a register, and writes 2 bytes more (`ops.adamw`). Such a
copy is called the shadow of its weight.

A shadow must never be old. It is used only if the weight's version, which PyTorch counts up at every change in place,
is the one that was noted when the shadow was written, and if the weight still lies where it lay; loading weights,
initialising or editing them makes `cast` cast again. What PyTorch does not count, a change through `.data`, nothing
here does.

Shadows are no parameters and no buffers: no state dict and no checkpoint has them. The rounding is that of a cast, so
results are the same, bit for bit. Under FSDP2 a weight that is looked at is a gathered copy, which has no shadow;
there, MixedPrecisionPolicy casts shards before they are gathered.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_NAME = "_pixelcore_shadow"


@dataclass
class _Shadow:
    values: Tensor
    version: int
    address: int


def keep_shadow(weight: Tensor) -> Tensor:
    """Give a weight a bf16 shadow and return it. Who changes the weight writes the shadow too, and says so by
    `shadow_is_written`."""
    shadow = _Shadow(weight.detach().to(torch.bfloat16), weight._version, weight.data_ptr())
    setattr(weight, _NAME, shadow)
    return shadow.values


def renewed_shadow(weight: Tensor) -> Tensor:
    """The shadow of a weight, brought up to it where the weight was changed by somebody else."""
    shadow: _Shadow = getattr(weight, _NAME)
    return shadow.values if _is_new(weight, shadow) else keep_shadow(weight)


def shadow_is_written(weight: Tensor) -> None:
    """Note that the shadow holds the weight as it is now."""
    shadow: _Shadow = getattr(weight, _NAME)
    shadow.version, shadow.address = weight._version, weight.data_ptr()


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in another dtype, to be differentiated: its shadow where that is what is asked for, else a cast.

    A compiler, which would have to look at versions, gets the cast, and fuses it if it can.
    """
    if dtype == weight.dtype or torch.compiler.is_compiling():
        return weight.to(dtype)
    shadow = getattr(weight, _NAME, None)
    if shadow is None or shadow.values.dtype != dtype or not _is_new(weight, shadow):
        return weight.to(dtype)
    return _Cast.apply(weight, shadow.values)  # pyright: ignore[reportReturnType]


def _is_new(weight: Tensor, shadow: _Shadow) -> bool:
    return weight._version == shadow.version and weight.data_ptr() == shadow.address


class _Cast(torch.autograd.Function):
    """The shadow, whose gradient reaches the weight as that of a cast would."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, shadow: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return shadow.view_as(shadow)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient.to(ctx.dtype), None
