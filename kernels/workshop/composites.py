"""What is timed beside single kernels: pieces of a training step in which a kernel stands with library calls.

Some peers fuse across the border of an operation. A library that folds the head's product into the cross-entropy, or a
loop that clips, steps and casts in three sweeps, can only be compared with the same piece of ours. A composite has the
names of a kernel's file, so the bench treats both alike; `PARTS` are the kernels in it, which must be right.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.registry import KERNELS
from kernels.workshop.attention_composites import Attention, DecodeAttention, RopeAttention
from kernels.workshop.cases import Case, Cost, Draw
from pixelcore import ops, step_ops

_LIMIT = 1.0  # of the gradient's norm


@dataclass(frozen=True)
class HeadCrossEntropy:
    """The output layer of a language model and its loss: three matrix products and what the loss adds to them."""

    __name__ = "head_cross_entropy"
    PARTS = ("cross_entropy",)
    CASES = ()
    TIMED = (Case("100m, 32 x 1024, vocabulary 16k", {"N": 32_768, "D": 768, "V": 16_000}),)

    @staticmethod
    def reference(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return ops.cross_entropy(F.linear(hidden_ND, weight_VD), targets_N, scale)

    @staticmethod
    def fused(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return _kernel("cross_entropy").fused(F.linear(hidden_ND, weight_VD), targets_N, scale)

    @staticmethod
    def arguments(case: Case, draw: Draw) -> dict[str, Any]:
        return {
            "hidden_ND": draw.normal(case["N"], case["D"], grad=True),
            "weight_VD": draw.normal(case["V"], case["D"], scale=case["D"] ** -0.5, grad=True),
            "targets_N": draw.integers(0, case["V"], case["N"]),
            "scale": torch.tensor(1 / case["N"], device=draw.device),
        }

    @staticmethod
    def cost(case: Case, size: int) -> Cost:
        """The loss reads the logits and writes their gradient in the forward pass."""
        hidden, weight, logits = (case[a] * case[b] * size for a, b in ("ND", "VD", "NV"))
        product = 2 * case["N"] * case["V"] * case["D"]
        return Cost(
            forward_bytes=hidden + weight + 3 * logits,
            backward_bytes=2 * (hidden + weight + logits),
            forward_flops=product,
            backward_flops=2 * product,
        )


@dataclass(frozen=True)
class EmbedStrips:
    """Patch embedding as PIXEL's encoder meets it: strips of patches, some of each kept, CLS before them. The kernel
    takes any rows in any order; the published chain takes strips only."""

    __name__ = "embed_strips"
    PARTS = ("patch_embed",)
    CASES = ()
    TIMED = (Case("pixel-base encoder, 256 x 397 of 529", {"M": 256, "L": 529, "kept": 396, "D": 768, "A": 256}),)

    @staticmethod
    def reference(**given: Any) -> Tensor:
        return ops.patch_embed(**given)

    @staticmethod
    def fused(**given: Any) -> Tensor:
        return _kernel("patch_embed").fused(**given)

    @staticmethod
    def arguments(case: Case, draw: Draw) -> dict[str, Any]:
        strips, length, width, num_values = (case[name] for name in "MLDA")
        kept = draw.normal(strips, length, dtype=torch.float32).argsort(1)[:, : case["kept"]].sort(1).values
        first = torch.full((strips, 1), -1, dtype=torch.int64, device=draw.device)
        rows = torch.cat((first, kept + length * torch.arange(strips, device=draw.device)[:, None]), 1)
        return {
            "pixels_PA": draw.bytes(strips * length, num_values),
            "rows_N": rows.flatten(),
            "weight_DA": draw.normal(width, num_values, scale=num_values**-0.5, grad=True),
            "bias_D": draw.parameter(width),
            "cls_D": draw.parameter(width),
            "table_LD": draw.parameter(length + 1, width).requires_grad_(False),
            "places_N": torch.cat((torch.zeros_like(first), kept + 1), 1).flatten(),
        }

    @staticmethod
    def cost(case: Case, size: int) -> Cost:
        """Bytes of the patches that stay, and rows; weight, table and numbers of rows are small."""
        patches, rows = case["M"] * case["kept"], case["M"] * (case["kept"] + 1)
        moved, product = patches * case["A"] + rows * case["D"] * size, 2 * patches * case["A"] * case["D"]
        return Cost(forward_bytes=moved, backward_bytes=moved, forward_flops=product, backward_flops=product)


@dataclass(frozen=True)
class AdamW:
    """The optimizer's update in place, as it runs. What the kernel's file calls `fused` works on copies, so that it can
    be compared; the copies would be timed too."""

    __name__ = "adamw"
    PARTS = ("adamw",)
    CASES = ()

    @property
    def TIMED(self) -> tuple[Case, ...]:
        return tuple(_kernel("adamw").TIMED)

    @staticmethod
    def reference(**given: Any) -> None:
        ops.adamw(**given)

    @staticmethod
    def fused(**given: Any) -> None:
        _kernel("adamw").adamw(**given)

    @staticmethod
    def arguments(case: Case, draw: Draw) -> dict[str, Any]:
        given = _kernel("adamw").arguments(case, draw)
        scalars = {name: torch.tensor(value, device=draw.device) for name, value in given["scalars"].items()}
        lists = ("parameters", "gradients", "firsts", "seconds", "shadows")
        return {name: given[name] for name in lists} | scalars | given["recipe"]

    @staticmethod
    def cost(case: Case, size: int) -> Cost:
        return _kernel("adamw").cost(case, size)


@dataclass(frozen=True)
class ClipAdamW(AdamW):
    """The whole update after the backward pass: norm of the gradients, clipping, AdamW, and bf16 copies of the
    parameters. The factor for clipping stays on the device, and the kernel multiplies by it as it reads."""

    __name__ = "clip_adamw"

    @staticmethod
    def reference(limit: float, **given: Any) -> None:
        ops.adamw(**_clipped(limit, **given))

    @staticmethod
    def fused(limit: float, **given: Any) -> None:
        _kernel("adamw").adamw(**_clipped(limit, **given))

    @staticmethod
    def arguments(case: Case, draw: Draw) -> dict[str, Any]:
        given = AdamW.arguments(case, draw)
        return {name: x for name, x in given.items() if name not in ("clip", "found_inf")} | {"limit": _LIMIT}

    @staticmethod
    def cost(case: Case, size: int) -> Cost:
        """The gradients once more, as their norm must be known first."""
        update = _kernel("adamw").cost(case, size).forward_bytes
        return Cost(forward_bytes=update + update * 4 // (30 if case.get("shadows") else 28), backward_bytes=0)


@dataclass(frozen=True)
class StepNormQkv:
    """A step's write into the cache, in place and without the copies of the check. It writes the same every time, so
    nothing has to be as it was before."""

    __name__ = "step_norm_qkv"
    PARTS = ("step_norm_qkv",)
    CASES = ()

    @property
    def TIMED(self) -> tuple[Case, ...]:
        return tuple(_kernel("step_norm_qkv").TIMED)

    @staticmethod
    def reference(**given: Any) -> Tensor:
        return step_ops.norm_qkv(**given)

    @staticmethod
    def fused(**given: Any) -> Tensor:
        return _kernel("step_norm_qkv").norm_qkv(**given)

    @staticmethod
    def arguments(case: Case, draw: Draw) -> dict[str, Any]:
        return _kernel("step_norm_qkv").arguments(case, draw)

    @staticmethod
    def cost(case: Case, size: int) -> Cost:
        return _kernel("step_norm_qkv").cost(case, size)


def _clipped(limit: float, **given: Any) -> dict[str, Any]:
    norm = torch.nn.utils.get_total_norm(given["gradients"])
    clip = (limit / (norm + 1e-6)).clamp(max=1.0)
    return given | {"clip": clip, "found_inf": (~torch.isfinite(norm)).float()}


def _kernel(name: str) -> Any:
    return KERNELS[name]


COMPOSITES: dict[str, Any] = {
    "adamw": AdamW(),  # in place of the kernel's own
    "embed_strips": EmbedStrips(),
    "head_cross_entropy": HeadCrossEntropy(),
    "clip_adamw": ClipAdamW(),
    "step_norm_qkv": StepNormQkv(),  # in place of the kernel's own
    "attention": Attention(),  # in place of the kernel's own
    "decode_attention": DecodeAttention(),  # in place of the kernel's own
    "rope_attention": RopeAttention(),
}

# What an operation leaves changed beside its results, and must find as it was before: without it the gradients shrink
# with every call until they are zero, and zeros are faster than numbers.
IN_PLACE: dict[str, tuple[str, ...]] = {"adamw": ("gradients",), "clip_adamw": ("gradients",)}
