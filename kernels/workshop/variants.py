"""The same numbers as arguments of another kind, which must not change a result.

A tensor is numbers and where they stand. A kernel that reads them at the wrong place mostly still finds memory of its
own process there, so nothing fails; around every row there is therefore something here that cannot hide.

    rows apart    |  x x x x x  |      each row of a tensor is a piece of a longer one, and what stands between them,
                  |: x x x x x ::|     before the first and behind the last is NaN
    left over     fresh memory is NaN, or the largest whole number: what a kernel leaves unwritten shows
    poison        where a kernel's file says that the op must not look, there is NaN
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic
from torch import Tensor

_memory: Any = torch.utils.deterministic  # a module that is an object with a property, which types do not know
_BEFORE, _BEHIND = 8, 5  # elements around each row; together they leave no row at a round address


def fresh(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same numbers as leaves of their own."""
    return changed(given, lambda x: x.detach().clone())


def widened(given: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The same numbers in fp64, whole numbers as they are."""
    return changed(given, lambda x: x.detach().to(dtype) if x.is_floating_point() else x)


def rows_apart(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same numbers, rows of all tensors apart."""
    return changed(given, apart)


def changed(given: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The arguments with every tensor changed, and lists of tensors; what was differentiated stays so."""

    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value).requires_grad_(value.requires_grad)
        if isinstance(value, list):
            return [one(x) for x in value]
        return value

    return {name: one(value) for name, value in given.items()}


def apart(x: Tensor) -> Tensor:
    """x with its rows apart; what has no rows is copied."""
    x = x.detach()
    if x.dim() < 2 or x.numel() == 0:
        return x.clone()
    num_rows, width = x.shape[0], x[0].numel()
    buffer = x.new_empty(num_rows + 2, _BEFORE + width + _BEHIND)
    buffer.fill_(torch.nan if x.is_floating_point() else _largest(x.dtype))
    view = buffer[1:-1, _BEFORE : _BEFORE + width].unflatten(1, x.shape[1:])
    return view.copy_(x)


def _largest(dtype: torch.dtype) -> int:
    return 1 if dtype == torch.bool else torch.iinfo(dtype).max


@contextmanager
def left_over_is_nan() -> Iterator[None]:
    """Inside, memory that is allocated and not written holds NaN, or the largest whole number."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _memory.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)  # the switch that the next one needs
    _memory.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")  # whether results repeat is seen by repeating
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        _memory.fill_uninitialized_memory = before[2]


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of an argument by a name for it, those in lists and records too."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list | tuple):
        for index, x in enumerate(value):
            yield from tensors_in(x, f"{name}[{index}]")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name), f"{name}.{field.name}")
