"""Is a kernel right? Its error against the truth, beside the error of the plain formula in the same dtype.

The truth is the reference on the same numbers in fp64. How far a correct program may be from it depends on the dtype
and on how often it rounds, so the yardstick is the reference itself in the kernel's dtype: an error of twice the
reference's, and one rounding of the largest value, is allowed, and nothing is tuned by hand. That accepts a kernel that
rounds in another order and rejects one that lacks a factor, in every dtype.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kernels.workshop.cases import Case, Draw, Kernel
from pixelcore.dropout_bits import Drop


@dataclass(frozen=True)
class Finding:
    """One comparison. what: the output or gradient; error and budget in its own units."""

    kernel: str
    case: str
    dtype: str
    what: str
    error: float
    budget: float
    where: tuple[int, ...]

    @property
    def passed(self) -> bool:
        return self.error <= self.budget

    def __str__(self) -> str:
        sign = "<=" if self.passed else ">"
        place = "" if self.passed else f" at {list(self.where)}"
        return (
            f"{self.kernel}, {self.case}, {self.dtype}, {self.what}: error {self.error:.2e} {sign} "
            f"budget {self.budget:.2e}{place}"
        )


def check_case(kernel: Kernel, case: Case, dtype: torch.dtype, device: torch.device, seed: int = 0) -> list[Finding]:
    """Compare every output and every gradient of one case."""
    draw = Draw(dtype, device, torch.Generator().manual_seed(seed))
    given = kernel.arguments(case, draw)
    names = (kernel.__name__.rsplit(".", 1)[-1], case.name, str(dtype).removeprefix("torch."))
    truth = _results(kernel.reference, widened(given), seed)
    yardstick = _results(kernel.reference, fresh(given), seed)
    ours = _results(kernel.fused, fresh(given), seed)
    assert ours.keys() == truth.keys(), (ours.keys(), truth.keys())
    return [_compare(names, what, ours[what], yardstick[what], truth[what]) for what in truth]


def fresh(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same numbers as leaves of their own."""
    return _each(given, lambda x: x.detach().clone().requires_grad_(x.requires_grad))


def widened(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same numbers in fp64, whole numbers as they are."""
    return _each(given, lambda x: x.detach().double() if x.is_floating_point() else x, keep_gradient=True)


def _each(given: Mapping[str, Any], change: Callable[[Tensor], Tensor], keep_gradient: bool = False) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            changed[name] = change(value)
            if keep_gradient and value.requires_grad:
                changed[name].requires_grad_()
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            changed[name] = [change(x) for x in value]
        else:
            changed[name] = replace(value) if isinstance(value, Drop) else value
    return changed


def _results(function: Callable[..., Any], given: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Every output and, where there is something to differentiate, the gradients for random gradients of the outputs.

    The gradient of a scalar is one: losses are written finished, and their `scale` is the factor.
    """
    outputs = function(**given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = {f"output {index}": x for index, x in enumerate(outputs) if x is not None}
    leaves = {name: x for name, x in given.items() if isinstance(x, Tensor) and x.requires_grad}
    if leaves:
        generator = torch.Generator().manual_seed(seed + 1)
        reached = [x for x in outputs if x is not None and x.requires_grad]
        upstream = [_upstream(x, generator) for x in reached]
        gradients = torch.autograd.grad(reached, list(leaves.values()), upstream)
        results |= {f"gradient of {name}": x for name, x in zip(leaves, gradients, strict=True)}
    return {what: x.detach() for what, x in results.items()}


def _upstream(x: Tensor, generator: torch.Generator) -> Tensor:
    if x.dim() == 0:
        return torch.ones_like(x)
    return torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x.device, x.dtype)


def _compare(names: tuple[str, str, str], what: str, ours: Tensor, yardstick: Tensor, truth: Tensor) -> Finding:
    if ours.shape != truth.shape or ours.dtype != yardstick.dtype:
        found, wanted = (f"{list(x.shape)} {x.dtype}" for x in (ours, yardstick))
        raise ValueError(f"{names[0]}, {names[1]}, {what}: it is {found}, and the reference's is {wanted}")
    if ours.numel() == 0:
        return Finding(*names, what, 0.0, 0.0, ())
    if not ours.is_floating_point():
        difference = (ours != yardstick).double()
        budget = 0.0
    else:
        difference = (ours.double() - truth.double()).abs().nan_to_num(nan=torch.inf)
        rounding = torch.finfo(ours.dtype).eps * truth.abs().max()
        budget = float(2 * (yardstick.double() - truth).abs().max() + rounding)
    index = int(difference.argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), ours.shape))
    return Finding(*names, what, float(difference.max()), budget, where)


def check_kernel(kernel: Kernel, dtypes: Iterator[torch.dtype] | tuple[torch.dtype, ...], device: torch.device):
    """All findings of all cases of one kernel."""
    for dtype in dtypes:
        for case in kernel.CASES:
            yield from check_case(kernel, case, dtype, device)
