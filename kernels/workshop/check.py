"""Is a kernel right? Its error against the truth, beside the error of the plain formula in the same dtype.

The truth is the reference on the same numbers in fp64. How far a correct program may be from it depends on the dtype
and on how often it rounds, so the yardstick is the reference itself in the kernel's dtype: an error of twice the
reference's, and one rounding of the largest value, is allowed, and nothing is tuned by hand. That accepts a kernel that
rounds in another order and rejects one that lacks a factor, in every dtype.

    given ---> reference in fp64 ------> truth -------.-------------.
          ---> reference in the dtype -> yardstick ---+-- budget    |
          ---> fused ------------------> ours --------|-------------+-- error <= budget?
          ---> fused, other addresses -> ours again --'-- equal, bit for bit?

Gradients are taken in several directions of the same call: for random gradients of the outputs, for those of a sum (all
one, and expanded: every stride is zero), and where there are several outputs also for the last one alone. `variants.py`
has what must not change a result, and what fills memory that a kernel forgets to write. Variants change where numbers
stand and not the numbers, so they are run in the narrowest dtype only; all of them at once, and one at a time only
where that differs, to name the one that matters.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.workshop.cases import Case, Draw, Kernel
from kernels.workshop.variants import apart, fresh, left_over_is_nan, rows_apart, tensors_in, widened

_COPIES_OF_TRUTH = 16  # how many times its arguments a reference in fp64 takes, gradients and intermediates included


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

    @property
    def share(self) -> float:
        """Error as a share of the budget."""
        return self.error / self.budget if self.budget else (0.0 if self.passed else math.inf)

    def __str__(self) -> str:
        sign = "<=" if self.passed else ">"
        place = "" if self.passed else f" at {list(self.where)}"
        return (
            f"{self.kernel}, {self.case}, {self.dtype}, {self.what}: error {self.error:.2e} {sign} "
            f"budget {self.budget:.2e}{place}"
        )


def red_findings(kernel: Kernel, dtypes: Sequence[torch.dtype], device: torch.device, seed: int = 0) -> list[Finding]:
    """The broken budgets of a kernel; a kernel that has any is not timed."""
    return [finding for finding in check_kernel(kernel, dtypes, device, seed) if not finding.passed]


def check_kernel(
    kernel: Kernel, dtypes: Sequence[torch.dtype], device: torch.device, seed: int = 0
) -> Iterator[Finding]:
    """All findings of one kernel: of its cases, and on a GPU of the real shapes."""
    for dtype in dtypes:
        for case in cases_on(kernel, device):
            yield from findings(kernel, case, dtype, device, seed, variants=dtype == narrowest(dtypes))


def narrowest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The one that is checked with variants; the first, of equals."""
    return min(dtypes, key=lambda dtype: dtype.itemsize)


def cases_on(kernel: Kernel, device: torch.device) -> Sequence[Case]:
    """What is checked on a device."""
    return [*kernel.CASES, *kernel.TIMED] if device.type == "cuda" else kernel.CASES


def check_case(kernel: Kernel, case: Case, dtype: torch.dtype, device: torch.device, seed: int = 0) -> list[Finding]:
    """Compare every output and every gradient of one case, and of its variants."""
    return list(findings(kernel, case, dtype, device, seed))


def findings(
    kernel: Kernel, case: Case, dtype: torch.dtype, device: torch.device, seed: int = 0, variants: bool = True
) -> Iterator[Finding]:
    """The same one by one, so that a caller can stop at the first broken budget."""
    given = kernel.arguments(case, Draw(dtype, device, torch.Generator().manual_seed(seed)))
    names = (kernel.__name__.rsplit(".", 1)[-1], case.name, str(dtype).removeprefix("torch."))
    reference = _Call(kernel.reference, fresh(given))
    directions = _directions(reference, torch.Generator().manual_seed(seed + 1))
    yardstick = reference.results(directions)
    truth = _Call(kernel.reference, widened(given, _dtype_of_truth(given, device))).results(directions)

    kept = fresh(given)
    with left_over_is_nan():
        call = _Call(kernel.fused, given)
        _same_kind(names, call.outputs, reference.outputs)
        ours = call.results(directions)
    for what in truth:
        yield _within_budget(names, what, ours[what], yardstick[what], truth[what])
    yield _unwritten(names, given, kept)
    if variants:
        yield from _variants(kernel, names, kept, directions, ours)


# ------------------------------------------------------------------ one call, several directions


class _Call:
    """What a function returned, and the gradients for any gradients of its outputs."""

    def __init__(self, function: Callable[..., Any], given: Mapping[str, Any]):
        outputs = function(**given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        self.outputs = {f"output {index}": x for index, x in enumerate(outputs) if x is not None}
        self.leaves = {name: x for name, x in given.items() if isinstance(x, Tensor) and x.requires_grad}

    def differentiable(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.outputs.items() if x.requires_grad} if self.leaves else {}

    def results(self, directions: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Outputs and gradients by name; a gradient that does not exist is zero.

        directions: under what each adds to a gradient's name, the gradients of the outputs by their names.
        """
        results = {name: x.detach() for name, x in self.outputs.items()}
        for label, upstream in directions.items():
            reached = [self.outputs[name] for name in upstream]
            given = [dy.to(x.dtype) for dy, x in zip(upstream.values(), reached, strict=True)]
            leaves = list(self.leaves.values())
            gradients = torch.autograd.grad(reached, leaves, given, retain_graph=True, allow_unused=True)
            for name, leaf, gradient in zip(self.leaves, leaves, gradients, strict=True):
                gradient = torch.zeros_like(leaf) if gradient is None else gradient
                results[f"gradient of {name}{label}"] = gradient.detach()
        return results


def _directions(call: _Call, generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    """The gradient of a scalar is one: losses are written finished, and their `scale` is the factor."""
    reached = call.differentiable()
    if not reached:
        return {}
    random = {name: _normal(x, generator) if x.dim() else torch.ones_like(x) for name, x in reached.items()}
    directions = {"": random}
    summed = {name: torch.ones((), dtype=x.dtype, device=x.device).expand(x.shape) for name, x in reached.items()}
    if any(x.dim() for x in reached.values()):
        directions[", of a sum"] = summed
    if len(reached) > 1:
        last = list(reached)[-1]
        directions[f", of {last} alone"] = {last: summed[last]}
    return directions


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x.device, x.dtype)


def _dtype_of_truth(given: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """fp64; fp32 for a real shape that would not fit the device in fp64."""
    if device.type == "cpu":
        return torch.float64
    elements = sum(x.numel() for name, value in given.items() for _, x in tensors_in(value, name))  # pragma: gpu
    fits = 8 * elements * _COPIES_OF_TRUTH < torch.cuda.mem_get_info(device)[0]  # pragma: gpu
    return torch.float64 if fits else torch.float32  # pragma: gpu


# ------------------------------------------------------------------ comparisons


def _same_kind(names: tuple[str, str, str], outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless there are as many outputs as the reference has, of the same shapes and dtypes, and the
    same of them carry a gradient."""

    def kinds(outputs: Mapping[str, Tensor]) -> dict[str, str]:
        return {
            name: f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}{' with a gradient' * x.requires_grad}"
            for name, x in outputs.items()
        }

    if kinds(outputs) != kinds(wanted):
        raise ValueError(f"{', '.join(names)}: outputs are {kinds(outputs)}, and the reference's {kinds(wanted)}")


def _within_budget(names: tuple[str, str, str], what: str, ours: Tensor, yardstick: Tensor, truth: Tensor) -> Finding:
    if not ours.is_floating_point():
        return _equal(names, what, ours, yardstick)
    if ours.numel() == 0:
        return Finding(*names, what, 0.0, 0.0, ())
    wide = torch.promote_types(truth.dtype, torch.float32)
    infinite = truth == -torch.inf  # the log-sum-exp of nothing, and nothing else will do
    wrong = infinite & (ours != truth)
    yardstick, truth = yardstick.to(wide).masked_fill(infinite, 0), truth.masked_fill(infinite, 0)
    rounding = torch.finfo(ours.dtype).eps * truth.abs().max()
    budget = float(2 * (yardstick - truth).abs().max() + rounding)
    assert math.isfinite(budget), f"{names}, {what}: the reference itself is not finite; choose other numbers"
    difference = (ours.to(wide).masked_fill(infinite, 0) - truth).abs().nan_to_num(nan=torch.inf)
    difference = difference.masked_fill(wrong, torch.inf)
    return Finding(*names, what, float(difference.max()), budget, _place(difference))


def _equal(names: tuple[str, str, str], what: str, ours: Tensor, wanted: Tensor) -> Finding:
    """Equal bit for bit: NaN is NaN, and the error is infinite where only one of two is."""
    different = (ours != wanted) & ~((ours != ours) & (wanted != wanted))
    if not different.any():
        return Finding(*names, what, 0.0, 0.0, ())
    distance = (ours.double() - wanted.double()).abs().nan_to_num(nan=torch.inf) * different
    distance = distance.nan_to_num(nan=0.0, posinf=torch.inf)  # 0 * inf
    return Finding(*names, what, float(distance.max()), 0.0, _place(distance))


def _place(difference: Tensor) -> tuple[int, ...]:
    index = torch.tensor(int(difference.argmax()))
    return tuple(int(i) for i in torch.unravel_index(index, difference.shape))


def _unwritten(names: tuple[str, str, str], given: Mapping[str, Any], kept: Mapping[str, Any]) -> Finding:
    """Inputs hold what they held; the first that does not is named."""
    for name in given:
        for (place, x), (_, before) in zip(tensors_in(given[name], name), tensors_in(kept[name], name), strict=True):
            finding = _equal(names, f"{place}, an input, which is written", x.detach(), before.detach())
            if not finding.passed:
                return finding
    return Finding(*names, "inputs", 0.0, 0.0, ())


def _variants(
    kernel: Kernel,
    names: tuple[str, str, str],
    given: Mapping[str, Any],
    directions: Mapping[str, Mapping[str, Tensor]],
    ours: Mapping[str, Tensor],
) -> Iterator[Finding]:
    """Outputs and gradients of the first direction, equal bit for bit under all changes at once."""
    poison: Callable[[dict[str, Any]], dict[str, Any]] = getattr(kernel, "poison", lambda given: given)

    def run(change: Callable[[dict[str, Any]], dict[str, Any]], label: str) -> list[Finding]:
        first = {"": {name: apart(dy) for name, dy in directions[""].items()}} if directions else {}
        with left_over_is_nan():
            again = _Call(kernel.fused, change(fresh(given))).results(first)
        return [_equal(names, f"{what}, {label}", again[what], ours[what]) for what in again]

    together = run(lambda given: rows_apart(poison(given)), "rows apart and NaN between them")
    if all(finding.passed for finding in together):
        yield from together
        return
    alone = {"run again": lambda given: given, "rows apart": rows_apart, "NaN where it must not look": poison}
    found = [finding for label, change in alone.items() for finding in run(change, label)]
    yield from found if any(not finding.passed for finding in found) else together
