"""The peer of a training step: what a PyTorch user has at hand to make the same model fast.

The record `peer_record` keeps the reference's functions where a library has nothing better, and takes the library's own
elsewhere; the model is then compiled as a whole. Which attention is best depends on the batch, so it is timed on it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from kernels.workshop import attention_peers, peer_calls
from kernels.workshop.contest import attempt
from kernels.workshop.timing import CudaClock, HostClock, Step, measure
from pixelcore.dropout_bits import Drop
from pixelcore.ops import REFERENCE, Ops
from pixelcore.packed import Packed

_SECONDS = 0.1  # of each attention in each of two passes


def peer_record(attend: Callable[..., Tensor]) -> Ops:
    """The reference's functions where a library has nothing better, else the library's own in the dtype of the
    activations; dropout by the library's bits."""

    def attention(
        q: Tensor, k: Tensor, v: Tensor, packed: Packed, rule: str, scale: float, drop: Drop | None = None
    ) -> tuple[Tensor, None]:
        return attend(q, k, v, packed, rule, scale, drop), None

    return replace(
        REFERENCE,
        add_norm=peer_calls.add_norm,
        split_rope=peer_calls.split_rope,
        dropout=peer_calls.dropout,
        cross_entropy=peer_calls.cross_entropy,
        attention=attention,
    )


def flash_2(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, rule: str, scale: float, drop: Drop | None = None
) -> Tensor:  # pragma: gpu
    """Packed FlashAttention-2, by the operation under `varlen_attn`, which a compiler can trace and which drops."""
    where = (packed.offsets, packed.offsets, packed.max_length, packed.max_length)
    p = 0.0 if drop is None else drop.p
    return torch.ops.aten._flash_attention_forward(q, k, v, *where, p, rule == "causal", False, scale=scale)[0]


def dense_cudnn(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, rule: str, scale: float, drop: Drop | None = None
) -> Tensor:  # pragma: gpu
    """cuDNN's SDPA, where all documents are of one length."""
    count, rest = divmod(q.shape[0], packed.max_length)
    if rest or count != packed.offsets.shape[0] - 1:
        raise RuntimeError("documents differ in length")
    q, k, v = (x.unflatten(0, (count, packed.max_length)).transpose(1, 2) for x in (q, k, v))
    p = 0.0 if drop is None else drop.p
    call = attention_peers.dense(SDPBackend.CUDNN_ATTENTION, q.shape[1] // k.shape[1])
    out = call(q, k, v, None, dropout_p=p, is_causal=rule == "causal", scale=scale)
    return out.transpose(1, 2).flatten(0, 1)


def by_lengths(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, rule: str, scale: float, drop: Drop | None = None
) -> Tensor:
    """What the reference record runs: SDPA for each run of documents of one length."""
    return REFERENCE.attention(q, k, v, packed, rule, scale, drop)[0]


ATTENTIONS: dict[str, Callable[..., Tensor]] = {
    "FlashAttention-2, packed": flash_2,
    "cuDNN SDPA": dense_cudnn,
    "SDPA by lengths": by_lengths,
}


@dataclass(frozen=True)
class Heads:
    """What attention of a model runs over. p: its rate of dropout."""

    packed: Packed
    num_heads: int
    num_groups: int
    head_size: int
    rule: str
    p: float


def best_attention(
    heads: Sequence[Heads], device: torch.device, dtype: torch.dtype
) -> tuple[str, Callable[..., Tensor]]:
    """The fastest, forward and backward, over all structures of a batch; those that fail are left out and named."""
    clock = CudaClock(device) if device.type == "cuda" else HostClock()
    found: dict[str, float] = {}
    for name, attend in ATTENTIONS.items():
        times, failed = attempt(
            lambda attend=attend: measure([_step(attend, shape, device, dtype) for shape in heads], clock, _SECONDS)
        )
        if failed is None:
            found[name] = sum(x.median_ms for x in times)
        else:
            print(f"{name}: {failed}", file=sys.stderr)
    name = min(found, key=lambda name: found[name])
    return name, ATTENTIONS[name]


def _step(attend: Callable[..., Tensor], heads: Heads, device: torch.device, dtype: torch.dtype) -> Step:
    rows = heads.packed.positions.shape[0]
    q, k, v = (
        torch.randn(rows, count, heads.head_size, device=device).to(dtype).requires_grad_()
        for count in (heads.num_heads, heads.num_groups, heads.num_groups)
    )
    drop = Drop(torch.tensor([1, 2], device=device), heads.packed, 0, heads.p) if heads.p else None

    def call(_: Any) -> Any:
        out = attend(q, k, v, heads.packed, heads.rule, heads.head_size**-0.5, drop)
        return torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    return Step(lambda: None, call)
