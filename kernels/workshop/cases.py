"""What the workshop and a kernel's file say to each other.

A kernel's file holds, under these names, all that check, inspect and bench need:

    reference        the specification, from pixelcore.ops
    fused            the kernel, with the same signature
    CASES            small shapes that are checked, chosen for their edges
    SMALL            optional: the case for finite differences, compilation and compute-sanitizer, else the second one
    TIMED            shapes of the real models, most valuable first: timed on a GPU, inspected without one
    arguments        a case's arguments by name, drawn at random; tensors that are differentiated require a gradient
    cost             the fewest bytes that must move, and the useful operations
    poison           optional: the same arguments with NaN where the op must not look
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import triton.language as tl
from torch import Tensor

from pixelcore.dropout_bits import Drop
from pixelcore.packed import Packed


@dataclass(frozen=True)
class Case:
    """A shape: what it is called, and its sizes and choices by name, read as case["N"]."""

    name: str
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.sizes[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.sizes.get(name, default)


@dataclass(frozen=True)
class Cost:
    """What a call must do at least, by counting: each input read once, each output written once."""

    forward_bytes: int
    backward_bytes: int
    forward_flops: int = 0
    backward_flops: int = 0


@dataclass(frozen=True)
class Draw:
    """Draws a case's arguments: on which device, in which dtype the activations are, from which generator (a CPU's, so
    that every device gets the same numbers)."""

    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator

    def normal(
        self, *shape: int, scale: float = 1.0, shift: float = 0.0, grad: bool = False, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Normal numbers in the dtype of the activations, or in `dtype`; parameters are torch.float32 in every case but
        that of fp64, see `parameter`."""
        x = torch.randn(*shape, generator=self.generator, dtype=torch.float32) * scale + shift
        return x.to(self.device, dtype or self.dtype).requires_grad_(grad)

    def parameter(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """Normal numbers as parameters are kept: fp32, or fp64 where the activations are; differentiated."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        return self.normal(*shape, scale=scale, shift=shift, grad=True, dtype=dtype)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """From low to high - 1."""
        return torch.randint(low, high, shape, generator=self.generator).to(self.device, dtype)

    def bytes(self, *shape: int) -> Tensor:
        """Grey values, 0 to 255."""
        return self.integers(0, 256, *shape, dtype=torch.uint8)

    def packed(self, lengths: Sequence[int]) -> Packed:
        """Documents of these lengths, named by numbers far apart."""
        return Packed.from_lengths(lengths, [7 + 1000 * index for index in range(len(lengths))], device=self.device)

    def drop(self, lengths: Sequence[int], p: float, site: int = 5) -> Drop:
        """Dropout over the rows of these documents."""
        return Drop(torch.tensor([11, 3], device=self.device), self.packed(lengths), site, p)


class Kernel(Protocol):
    """A kernel's file, as the workshop sees it."""

    __name__: str
    reference: Callable[..., Any]
    fused: Callable[..., Any]
    arguments: Callable[[Case, Draw], dict[str, Any]]
    cost: Callable[[Case, int], Cost]

    @property
    def CASES(self) -> Sequence[Case]: ...

    @property
    def TIMED(self) -> Sequence[Case]: ...


def wide(x: Tensor) -> Any:
    """The dtype of statistics and sums: fp32, or fp64 for fp64, so that gradients can be checked numerically."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32
