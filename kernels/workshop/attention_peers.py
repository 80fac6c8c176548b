"""The peers of attention: how each library is asked for it, on packed rows and on a padded batch.

Every ratio is taken twice. A packed peer reads the very rows that we read, so what differs is the kernel. A padded peer
gets a batch as long as its longest document (`own_layout.py`), which is how models without packed rows call it, so what
differs is the kernel and the packing.

    packed    FlashAttention-2     `varlen_attn` of torch; with dropout the operation below it, which it hides
              cuDNN                the operation that torch has for nested tensors; cuDNN's own frontend
              FlashAttention-4     where it is installed; it has no dropout
              FlexAttention        compiled, with a block mask of the documents that is made before; no dropout
    padded    SDPA                 each backend forced, and torch's own choice; keys of padding are hidden by a mask, of
                                   causal models by the rule

Grouped queries read their key/value head where a peer can; only "efficient" needs keys and values repeated, inside
what is timed. What a library cannot do it says in a RuntimeError, or we in its name.
"""

import importlib
import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.workshop.own_layout import OwnLayout, Padding
from kernels.workshop.peer_calls import Call, Given, split_rope
from pixelcore import ops
from pixelcore.packed import Packed

_QKV = ("q_NHK", "k_NGK", "v_NGK")


def library(given: Given) -> Call:
    """What the reference record runs in models: SDPA, one call for each run of documents of one length."""
    return lambda: ops.attention(**given)[0]


# ------------------------------------------------------------------ packed


def flash_2(given: Given) -> Call:
    """FlashAttention-2 on packed rows."""
    q, k, v = _qkv(given)
    call = _flash_2(given, q.shape[-1], q.shape[1] != k.shape[1])
    return lambda: call(q, k, v)


def _flash_2(given: Given, head_size: int, grouped: bool) -> Callable[..., Tensor]:
    """`varlen_attn` (since torch 2.10) has no dropout; what it calls has, and a gradient."""
    packed, causal, scale = given["packed"], _is_causal(given), given["scale"]
    where = (packed.offsets, packed.offsets, packed.max_length, packed.max_length)
    if given.get("drop") is not None:
        operation, p = torch.ops.aten._flash_attention_forward, given["drop"].p
        return lambda q, k, v: operation(q, k, v, *where, p, causal, False, scale=scale)[0]
    varlen = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    options = _options_of(varlen, causal, scale, head_size, grouped)
    return lambda q, k, v: varlen(q, k, v, *where, **options)


def _options_of(
    varlen: Callable[..., Any], causal: bool, scale: float, head_size: int, grouped: bool
) -> dict[str, Any]:
    """`varlen_attn` says causality by `is_causal` in torch 2.10 and by a window from 2.11 on, when it also learned of
    scales; it asks about grouped queries from 2.12 on and took them before."""
    known = inspect.signature(varlen).parameters
    options: dict[str, Any] = {}
    if "scale" in known:
        options["scale"] = scale
    elif not math.isclose(scale, head_size**-0.5):
        raise RuntimeError("varlen_attn has no scale in this version")
    if "window_size" in known:
        options["window_size"] = (-1, 0) if causal else (-1, -1)
    else:
        options["is_causal"] = causal
    if "enable_gqa" in known:
        options["enable_gqa"] = grouped
    return options


def flash_4(given: Given) -> Call:
    """FlashAttention-4, which is written in CuTe and runs on Hopper too."""
    _without_dropout(given, "FlashAttention-4")
    (q, k, v), packed = _qkv(given), given["packed"]
    function = importlib.import_module("flash_attn.cute").flash_attn_varlen_func
    options = {
        "cu_seqlens_q": packed.offsets,
        "cu_seqlens_k": packed.offsets,
        "max_seqlen_q": packed.max_length,
        "max_seqlen_k": packed.max_length,
        "softmax_scale": given["scale"],
        "causal": _is_causal(given),
    }
    known = inspect.signature(function).parameters
    options = {name: value for name, value in options.items() if name in known}

    def call() -> Tensor:
        found = function(q, k, v, **options)
        return found[0] if isinstance(found, tuple) else found  # with the log-sum-exp in some versions

    return call


# Before this version the backward pass on packed rows takes the head size for the longest document and writes past the
# end of a buffer of its own (github.com/pytorch/pytorch/pull/186142), which ends the process for everyone after it.
_CUDNN_BACKWARD = (2, 14)


def packed_cudnn_has_backward(version: str = torch.__version__) -> bool:
    return tuple(int(part) for part in version.split(".")[:2]) >= _CUDNN_BACKWARD


def cudnn(given: Given) -> Call:
    """cuDNN through torch's operation for nested tensors, which takes packed rows and offsets as they are."""
    (q, k, v), packed, causal = _qkv(given), given["packed"], _is_causal(given)
    where = (packed.offsets, packed.offsets, packed.max_length, packed.max_length)
    p = 0.0 if given.get("drop") is None else given["drop"].p
    operation = torch.ops.aten._cudnn_attention_forward
    return lambda: operation(q, k, v, None, *where, True, p, causal, False, scale=given["scale"])[0]


def flex(given: Given) -> Call:
    """FlexAttention, compiled for this shape. All documents are one long sequence whose mask has blocks; the mask is
    made here, outside of what is timed, though a training step would have to make one for every batch."""
    _without_dropout(given, "FlexAttention")
    module: Any = importlib.import_module("torch.nn.attention.flex_attention")
    q, k, v = (given[name].transpose(0, 1)[None] for name in _QKV)
    num_rows, device = q.shape[2], q.device
    make_blocks = module.create_block_mask
    if device.type == "cuda":  # pragma: gpu
        make_blocks = torch.compile(make_blocks)  # else the mask of all pairs is written out: ten billion of them
    blocks = make_blocks(sees(given["packed"], given["rule"]), None, None, num_rows, num_rows, device=device)
    fast, options = torch.compile(module.flex_attention, dynamic=False), {"enable_gqa": q.shape[1] != k.shape[1]}
    return lambda: fast(q, k, v, block_mask=blocks, scale=given["scale"], **options)[0].transpose(0, 1)


def sees(packed: Packed, rule: str) -> Callable[..., Tensor]:
    """Which row sees which, as FlexAttention asks it: by batch, head, row of the query, row of the key."""
    lengths_M = packed.offsets.diff().long()
    document_N = torch.repeat_interleave(torch.arange(len(lengths_M), device=lengths_M.device), lengths_M)
    place_N = torch.arange(len(document_N), device=lengths_M.device) - packed.offsets.long()[document_N]
    shown_N = lengths_M[document_N]
    if packed.visible is not None and rule != "real_fake":
        shown_N = torch.tensor(packed.visible, device=lengths_M.device)[document_N]
    reach_N = packed.reach

    def full(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (document_N[q] == document_N[k]) & (place_N[k] < shown_N[k])

    def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return full(b, h, q, k) & (k <= q)

    def real_fake(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert reach_N is not None
        return full(b, h, q, k) & ((place_N[k] <= reach_N[q]) | (k == q))

    return {"full": full, "causal": causal, "real_fake": real_fake}[rule]


# ------------------------------------------------------------------ padded


def padded(backend: SDPBackend | None) -> Callable[[Given], OwnLayout]:
    """SDPA on a padded batch with one backend, or with the one that torch chooses."""

    def make(given: Given) -> OwnLayout:
        packed, causal = given["packed"], _is_causal(given)
        padding = Padding.of(packed)
        q, k, v = leaves = [padding.leaf(given[name]) for name in _QKV]
        mask = None
        if not causal and min(packed.lengths) < packed.max_length:  # what stands behind a row no causal rule shows it
            lengths_B111 = packed.offsets.diff()[:, None, None, None]
            mask = torch.arange(packed.max_length, device=q.device) < lengths_B111
        p = 0.0 if given.get("drop") is None else given["drop"].p
        options: dict[str, Any] = {"dropout_p": p, "is_causal": causal, "scale": given["scale"]}
        call = dense(backend, q.shape[1] // k.shape[1])
        return OwnLayout(lambda: call(q, k, v, mask, **options), leaves, padding.lay, padding.rows)

    return make


def dense(backend: SDPBackend | None, group: int) -> Callable[..., Tensor]:
    """SDPA with a backend; groups of query heads without repeated keys where the backend can."""
    repeats = group > 1 and backend == SDPBackend.EFFICIENT_ATTENTION

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        if repeats:
            k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        with nullcontext() if backend is None else sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=group > 1 and not repeats, **options)

    return call


# ------------------------------------------------------------------ with rotation, see composites.py


def rope_cudnn(turn: Callable[..., tuple[Tensor, ...]]) -> Callable[[Given], Call]:
    """Divide and turn a projection by `turn`, then cuDNN's SDPA. Documents of one length are a batch as they stand."""
    return lambda given: _rope_then(turn, dense(SDPBackend.CUDNN_ATTENTION, _group(given)), given)


def rope_compiled(given: Given) -> Call:
    """The same as one compiled function, so that the rotation is fused with what it can be fused with."""
    call = _rope_then(split_rope, dense(None, _group(given)), given)
    fast = torch.compile(call, mode="max-autotune-no-cudagraphs", dynamic=False)

    def forced() -> Tensor:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):  # what it becomes is settled when it is traced
            return fast()

    return forced


def rope_flash_2(turn: Callable[..., tuple[Tensor, ...]]) -> Callable[[Given], Call]:
    """The same with packed FlashAttention-2."""

    def make(given: Given) -> Call:
        attend = _flash_2(given, given["layout"].head_size, _group(given) > 1)
        return lambda: attend(*_turned(turn, given))

    return make


def _rope_then(turn: Callable[..., tuple[Tensor, ...]], attend: Callable[..., Tensor], given: Given) -> Call:
    packed, causal = given["packed"], _is_causal(given)
    if min(packed.lengths) < packed.max_length:
        raise RuntimeError("it is a dense call, and these documents differ in length")
    shape = (len(packed.lengths), packed.max_length)

    def call() -> Tensor:
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in _turned(turn, given))
        return attend(q, k, v, None, is_causal=causal, scale=given["scale"]).transpose(1, 2).flatten(0, 1)

    return call


def _turned(turn: Callable[..., tuple[Tensor, ...]], given: Given) -> tuple[Tensor, ...]:
    return turn(given["qkv_NO"], given["positions_N"], given["table"], given["layout"])


def _group(given: Given) -> int:
    return given["layout"].num_heads // given["layout"].num_key_value_heads


# ------------------------------------------------------------------ what a library cannot do


def _qkv(given: Given) -> tuple[Tensor, ...]:
    return tuple(given[name] for name in _QKV)


def _is_causal(given: Given) -> bool:
    """Of a rule that libraries know; RuntimeError of others."""
    if given["rule"] not in ("full", "causal"):
        raise RuntimeError(f"it has no rule {given['rule']!r}")
    if given["packed"].visible is not None:
        raise RuntimeError("it has no rows that look and are not looked at")
    return given["rule"] == "causal"


def _without_dropout(given: Given, name: str) -> None:
    if given.get("drop") is not None:
        raise RuntimeError(f"{name} has no dropout")
