"""What all contestants of a case share: its arguments, drawn on the device, and the gradients that come from above."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.workshop.cases import Draw
from kernels.workshop.own_layout import OwnLayout


@dataclass(frozen=True)
class OnDevice(Draw):
    """Draws on the device: hundreds of millions of numbers from a CPU would take longer than all that is timed."""

    def _source(self) -> torch.Generator:
        seed = int(torch.randint(2**40, (), generator=self.generator))
        return torch.Generator(self.device).manual_seed(seed)

    def normal(
        self, *shape: int, scale: float = 1.0, shift: float = 0.0, grad: bool = False, dtype: torch.dtype | None = None
    ) -> Tensor:
        x = torch.randn(*shape, generator=self._source(), device=self.device) * scale + shift
        return x.to(dtype or self.dtype).requires_grad_(grad)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(low, high, shape, generator=self._source(), device=self.device).to(dtype)


class Arena:
    """The arguments of a case, which of them are differentiated, and the gradients that arrive from above.

    renewed: of an operation that works in place, the arguments that every call must find as they were; its other lists
    of tensors are its results. dtype: in which gradients from above are rounded.
    """

    def __init__(self, given: dict[str, Any], renewed: Sequence[str], dtype: torch.dtype) -> None:
        self.given, self.renewed, self.dtype = given, tuple(renewed), dtype
        self.differentiated = {name: x for name, x in given.items() if isinstance(x, Tensor) and x.requires_grad}
        self.leaves = list(self.differentiated.values())
        lists = [name for name, x in given.items() if isinstance(x, list) and x and isinstance(x[0], Tensor)]
        self.written = tuple(name for name in lists if name not in renewed) if renewed else ()
        self.dirty: set[str] = set()
        self._saved: dict[str, Any] = {}
        self._above: dict[Any, Tensor] = {}
        self.save((*self.written, *self.renewed))

    def save(self, names: Iterable[str]) -> None:
        for name in names:
            x = self.given[name]
            if name not in self._saved:
                self._saved[name] = [y.clone() for y in x] if isinstance(x, list) else x.detach().clone()

    @torch.no_grad()
    def clean(self) -> None:
        """Restore what was overwritten since."""
        for name in self.dirty:
            x = self.given[name]
            if isinstance(x, list):
                torch._foreach_copy_(x, self._saved[name])
            else:
                x.copy_(self._saved[name])
        self.dirty.clear()

    def gradients(self, outputs: Any, own: OwnLayout | None = None) -> tuple[Tensor, ...]:
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        reached = [(index, x) for index, x in enumerate(tensors) if x is not None and x.requires_grad]
        above = [self._from_above(index, x, own) for index, x in reached]
        return torch.autograd.grad([x for _, x in reached], self.leaves if own is None else own.leaves, above)

    def _from_above(self, index: int, x: Tensor, own: OwnLayout | None = None) -> Tensor:
        """Normal numbers, the same for everyone; one for a scalar, as losses are finished and their `scale` is the
        factor."""
        if own is not None:
            if index not in own.above:
                own.above[index] = own.lay(self._from_above(index, own.rows(x.detach())))
            return own.above[index]
        key = (index, x.shape, x.dtype)
        if key not in self._above:
            generator = torch.Generator(x.device).manual_seed(index + 1)
            drawn = torch.randn(x.shape, generator=generator, device=x.device) if x.dim() else torch.ones_like(x)
            self._above[key] = drawn.to(self.dtype).to(x.dtype)
        return self._above[key]
