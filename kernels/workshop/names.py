"""Kernels by the names that a user gives."""

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pixelcore.errors import UserError

if TYPE_CHECKING:
    from kernels.workshop.cases import Kernel


def named(names: Sequence[str]) -> "dict[str, Kernel]":
    """The kernels of these names, all of them where there is none. Raises UserError for a name that is not known."""
    from kernels.registry import KERNELS  # here: it imports every kernel, and Triton

    for name in names:
        if name not in KERNELS:
            raise UserError(f"{name}: no such kernel{nearest(name, KERNELS)}; choose {', '.join(KERNELS)}")
    return {name: KERNELS[name] for name in names or KERNELS}


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where one of the known names is close, nothing otherwise."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
