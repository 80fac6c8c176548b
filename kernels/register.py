"""How a kernel becomes an operation that PyTorch knows.

`torch.compile` and CUDA graphs must see a kernel as one operation: its schema, what it runs, and the shapes that come
out of it without running. Forward and backward are registered as two functional operations, and an
`autograd.Function` outside them says that the one is the derivative of the other. `torch.library.custom_op` with
`register_autograd` says the same in fewer lines and costs the host about twice as long per call, which is what small
models wait for.

The same implementation serves CUDA devices and the CPU, where Triton's interpreter runs it.
"""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("pixelcore", "FRAGMENT")  # its operations live as long as this object
REGISTERED: list[str] = []  # names of all operations of the kernels that were imported


def register(module: str, name: str, signature: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register an operation and return it.

    module: `__name__` of the kernel's file, whose last part begins the operation's name. signature: as in
    "(Tensor x, float eps) -> Tensor". run: allocates the results and launches. fake: the same results, allocated only;
    their strides must be those that run gives.
    """
    qualified = f"{module.rsplit('.', 1)[-1]}_{name}"
    _LIBRARY.define(f"{qualified}{signature}", tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CUDA", "CPU"):
        _LIBRARY.impl(qualified, run, key)
    torch.library.register_fake(f"pixelcore::{qualified}", fake, lib=_LIBRARY)
    REGISTERED.append(f"pixelcore::{qualified}")
    return getattr(torch.ops.pixelcore, qualified).default
