"""Run by test_addresses.py in a process of its own, which may crash: kernels on rows that are 2^30 elements apart.

`python -m tests.kernels.far_rows NAME...` compares each kernel with itself on rows that are close together, and prints
its name. `python -m tests.kernels.far_rows short` runs a kernel whose addresses are int32: the third row begins at
2^31, which such a number takes for -2^31.

The memory is reserved and not touched: only the pages with rows in them exist.
"""

import mmap
import sys
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.registry import KERNELS
from kernels.workshop.cases import Draw, Kernel
from kernels.workshop.sanitize import small
from kernels.workshop.variants import changed, fresh

APART = 2**30
_NO_RESERVE = 0x4000  # Linux: promise no memory for what is not touched


def far(x: Tensor) -> Tensor:
    """The same numbers, rows far apart."""
    x = x.detach()
    if x.dim() < 2 or x.numel() == 0:
        return x.clone()
    size = ((x.shape[0] - 1) * APART + x[0].numel()) * x.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    inner = x[0].contiguous().stride()
    return torch.frombuffer(memory, dtype=x.dtype).as_strided(x.shape, (APART, *inner)).copy_(x)


def results(kernel: Kernel, given: dict[str, Any], upstream: Any) -> list[Tensor]:
    """Outputs and gradients; upstream makes an output's gradient from one that is drawn."""
    outputs = kernel.fused(**given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    reached = [x for x in outputs if x is not None and x.requires_grad]
    leaves = [x for x in given.values() if isinstance(x, Tensor) and x.requires_grad]
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(x.shape, generator=generator).to(x.dtype) if x.dim() else torch.ones_like(x) for x in reached]
    gradients = torch.autograd.grad(reached, leaves, [upstream(dy) for dy in drawn]) if leaves else ()
    return [x.detach() for x in (*outputs, *gradients) if x is not None]


def compare(name: str) -> None:
    kernel = KERNELS[name]
    given = kernel.arguments(small(kernel), Draw(torch.float16, torch.device("cpu"), torch.Generator().manual_seed(0)))
    near = results(kernel, fresh(given), lambda dy: dy)
    for index, (x, wanted) in enumerate(zip(results(kernel, changed(given, far), far), near, strict=True)):
        assert torch.equal(x, wanted), f"{name}, result {index}"


@triton.jit
def _short_kernel(x_ptr, y_ptr, stride, COLUMNS: tl.constexpr):
    row = tl.program_id(0)  # int32, and so is its product with the stride
    column = tl.arange(0, COLUMNS)
    tl.store(y_ptr + row * COLUMNS + column, tl.load(x_ptr + row * stride + column))


def short() -> None:
    x = far(torch.randn(3, 16))
    y = torch.empty(3, 16)
    _short_kernel[(3,)](x, y, x.stride(0), COLUMNS=16)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    if sys.argv[1:] == ["short"]:
        short()
    for name in sys.argv[1:]:
        print(name, flush=True)
        compare(name)
