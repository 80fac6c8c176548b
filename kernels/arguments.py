"""What every kernel asks of its arguments, before anything is launched.

A kernel trusts the sizes it is given: a wrong one reads another tensor's memory and nobody notices. So each function
here raises a ValueError that names the argument, its value and the rule.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.launch import INTERPRETED, is_recording

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check(name: str, x: Tensor, letters: str, dtypes: Sequence[torch.dtype] = FLOATS, **sizes: int) -> None:
    """Raise ValueError unless x is where kernels run, of one of these dtypes, and of the shape that `letters` names, as
    in "N F"; sizes fixes letters to values."""
    runs = x.is_cuda or (x.device.type == "cpu" and (INTERPRETED or is_recording())) or x.device.type == "meta"
    if not runs:
        raise ValueError(f"{name} is on {x.device}: kernels run on CUDA devices, or on a CPU under TRITON_INTERPRET=1")
    if x.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} is {str(x.dtype).removeprefix('torch.')}: it must be one of {names}")
    wanted = letters.split()
    fixed = [(letter, sizes[letter]) for letter in wanted if letter in sizes]
    if x.dim() != len(wanted) or any(x.shape[wanted.index(letter)] != size for letter, size in fixed):
        rule = "".join(f", {letter} = {size}" for letter, size in fixed)
        raise ValueError(f"{name} has the shape {list(x.shape)}: it must be [{', '.join(wanted)}]{rule}")


def check_together(**tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors that are given are on one device."""
    given = {name: x for name, x in tensors.items() if x is not None}
    (first, x), *others = given.items()
    for name, other in others:
        if other.device != x.device:
            raise ValueError(f"{name} is on {other.device} and {first} on {x.device}: they must be on one device")


def check_limit(name: str, value: int, limit: int) -> None:
    """Raise ValueError where a size is beyond what a kernel holds."""
    if value > limit:
        raise ValueError(f"{name} = {value}: this kernel goes to {limit}")


def rows(x: Tensor) -> Tensor:
    """x as a kernel reads it: neighbours in a row stand side by side, rows may be any distance apart. Anything else,
    such as the gradient of a sum, whose values are all one, is copied."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def aligned(x: Tensor) -> Tensor:
    """x [N, heads, K] as the kernels of attention read it: the heads of a row stand side by side, and where the sizes
    allow it every row begins at a multiple of 16 bytes, so that a thread moves 16 bytes at once. A piece of a packed
    projection is such a tensor as it is; anything else is copied. For real tensors only: a fake one has no address."""
    side_by_side = x.stride(2) == 1 and x.stride(1) == x.shape[2]
    if side_by_side and x.data_ptr() % 16 == 0 and (x.stride(0) * x.element_size() % 16 == 0 or x.is_contiguous()):
        return x
    return x.clone(memory_format=torch.contiguous_format)
