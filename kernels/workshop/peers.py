"""Whom the kernels are compared with: for every operation, what a PyTorch user would otherwise run.

Each peer gets a case's arguments, by the names of the reference's parameters, and gives back a call without arguments
that means the same: the same results in the same order, differentiable by the same tensors. What it prepares before,
such as another layout of its inputs, is not timed. The reference itself, run eagerly, is a peer of every kernel and
does not stand here.

Peers from other libraries are timed where they can be imported; where not, the bench names them with the reason.
Whoever draws random bits of its own is marked `random`: it is the same function in distribution, so its numbers cannot
be compared.

    best practice     the library's fused functions in the dtype of the activations
    torch.compile     the same, compiled for this very shape
    Liger, QuACK      kernels in Triton and in CuTe, for transformers of text
    as published      the steps of the original program, where they are not those of the reference
    FlashAttention-2, cuDNN, FlexAttention, SDPA    of attention, packed and padded: see `attention_peers.py`

A kernel that does not stand in the table, as those of a decoding step, is compared with its own reference, compiled.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from kernels.registry import KERNELS
from kernels.workshop import attention_peers, cudnn_frontend, decode_peers, peer_calls
from kernels.workshop.own_layout import OwnLayout
from kernels.workshop.peer_calls import Call, Given
from pixelcore import ops


@dataclass(frozen=True)
class Peer:
    """make: from a case's arguments to a call. needs: a module, or a module:name, without which it is missing.
    overwrites: arguments that a call leaves changed, which are restored before the next one. random: draws bits of its
    own where the case drops. floor: not the operation but a part that nobody can avoid, so it takes no part in the
    verdict. forward_only: it has no backward pass here."""

    name: str
    make: Callable[[Given], Call | OwnLayout]
    needs: str = ""
    overwrites: tuple[str, ...] = ()
    random: bool = False
    floor: bool = False
    forward_only: bool = False


def missing(peer: Peer) -> str | None:
    """Why a peer cannot be timed here, or None."""
    module, _, name = peer.needs.partition(":")
    if not module:
        return None
    try:
        found = importlib.import_module(module)
    except ImportError as cause:
        return f"{module} cannot be imported: {' '.join(str(cause).split())}"
    return None if not name or hasattr(found, name) else f"{module} has no {name} in this version"


def _plain(function: Callable[..., Any]) -> Callable[[Given], Call]:
    return lambda given: lambda: function(**given)


def _compiled(function: Callable[..., Any]) -> Callable[[Given], Call]:
    """For this shape alone, all configurations tried, and no CUDA graph, which our own calls do not get either."""

    def make(given: Given) -> Call:
        fast = torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)
        return lambda: fast(**given)

    return make


def peers_of(name: str, reference: Callable[..., Any]) -> tuple[Peer, ...]:
    """Those of the table, or the compiled reference."""
    return PEERS[name] if name in PEERS else (Peer(_COMPILE, _compiled(reference)),)


def _our_turn(*given: Any) -> Any:
    return KERNELS["split_rope"].fused(*given)


# ------------------------------------------------------------------ the table


_LIGER, _QUACK = "Liger-Kernel", "QuACK"
_COMPILE, _BEST = "torch.compile", "torch, best practice"
_LIGER_OPS = "liger_kernel.ops"
_FLASH_2, _VARLEN = "FlashAttention-2, packed", "torch.nn.attention.varlen:varlen_attn"
_FLEX = "torch.nn.attention.flex_attention:flex_attention"
_PADDED = {  # the name says what is forced
    "SDPA cuDNN, padded": SDPBackend.CUDNN_ATTENTION,
    "SDPA flash, padded": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient, padded": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math, padded": SDPBackend.MATH,
    "SDPA's choice, padded": None,
}

PEERS: dict[str, tuple[Peer, ...]] = {
    "add_norm": (
        Peer(_BEST, _plain(peer_calls.add_norm), random=True),
        Peer(_COMPILE, _compiled(peer_calls.add_norm), random=True),
        Peer(_LIGER, peer_calls.liger_add_norm, _LIGER_OPS, random=True),
        Peer(_QUACK, peer_calls.quack_add_norm, "quack", random=True),
    ),
    "glu": (
        Peer(_COMPILE, _compiled(ops.glu)),
        Peer(_LIGER, peer_calls.liger_glu, f"{_LIGER_OPS}:LigerFusedGateUpSiLUMulFunction"),
    ),
    "gelu": (Peer(_COMPILE, _compiled(ops.gelu)),),
    "split_rope": (
        Peer(_COMPILE, _compiled(peer_calls.split_rope)),
        Peer(_LIGER, peer_calls.liger_split_rope, _LIGER_OPS),
        Peer(_QUACK, peer_calls.quack_split_rope, "quack.rotary"),
    ),
    "dropout": (
        Peer(_BEST, _plain(peer_calls.dropout), random=True),
        Peer(_COMPILE, _compiled(peer_calls.dropout), random=True),
    ),
    "cross_entropy": (
        Peer(_BEST, _plain(peer_calls.cross_entropy)),
        Peer(_COMPILE, _compiled(ops.cross_entropy)),
        Peer(_LIGER, peer_calls.liger_cross_entropy, _LIGER_OPS, overwrites=("logits_NV",)),
        Peer(_QUACK, peer_calls.quack_cross_entropy, "quack"),
    ),
    "patch_embed": (Peer(_COMPILE, _compiled(ops.patch_embed)),),
    "embed_strips": (
        Peer("as published", peer_calls.published_patch_embed),
        Peer(_COMPILE, _compiled(ops.patch_embed)),
    ),
    "unshuffle": (Peer(_COMPILE, _compiled(ops.unshuffle)),),
    "pixel_mse": (Peer(_COMPILE, _compiled(ops.pixel_mse)),),
    "pixel_bce": (Peer(_COMPILE, _compiled(ops.pixel_bce)),),
    "mixture_bce": (Peer(_COMPILE, _compiled(ops.mixture_bce)),),
    "adamw": (),  # the reference is the library's fused AdamW; with clipping and copies, see clip_adamw
    "head_cross_entropy": (
        Peer("its three products", peer_calls.products, floor=True),
        Peer(_BEST, _plain(peer_calls.head_cross_entropy)),
        Peer(_COMPILE, _compiled(peer_calls.head_cross_entropy)),
        Peer("F.linear_cross_entropy", peer_calls.torch_head, "torch.nn.functional:linear_cross_entropy"),
        Peer(_LIGER, peer_calls.liger_head, "liger_kernel.transformers.functional"),
        Peer(_QUACK, peer_calls.quack_head, "quack.linear_cross_entropy"),
    ),
    "attention": (
        Peer(_FLASH_2, attention_peers.flash_2, _VARLEN, random=True),
        *(Peer(name, attention_peers.padded(backend), random=True) for name, backend in _PADDED.items()),
        Peer("SDPA by lengths", attention_peers.library),
        Peer("FlexAttention, packed", attention_peers.flex, _FLEX),
        Peer("FlashAttention-4, packed", attention_peers.flash_4, "flash_attn.cute:flash_attn_varlen_func"),
        Peer("cuDNN frontend, packed", cudnn_frontend.attention, "cudnn:pygraph"),
        Peer(
            "cuDNN, packed",
            attention_peers.cudnn,
            random=True,
            forward_only=not attention_peers.packed_cudnn_has_backward(),
        ),
    ),
    "decode_attention": (
        Peer("SDPA, static cache", _plain(decode_peers.static_cache)),
        Peer("SDPA, static cache, compiled", _compiled(decode_peers.static_cache)),
        Peer("FlexAttention, static cache", decode_peers.flex, _FLEX),
    ),
    "rope_attention": (
        Peer("our RoPE, cuDNN SDPA", attention_peers.rope_cudnn(_our_turn)),
        Peer("RoPE and cuDNN SDPA, compiled", attention_peers.rope_compiled),
        Peer("our RoPE, FlashAttention-2", attention_peers.rope_flash_2(_our_turn), _VARLEN),
    ),
    "clip_adamw": (Peer("torch fused, clip, cast", _plain(peer_calls.clip_adamw)),),
}
