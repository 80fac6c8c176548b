"""The calls of the peers: how each library is asked for what our kernels compute.

Each function stands in `peers.py` under its operation. Those in plain torch have the parameters of the reference; those
of other libraries take a case's arguments by name and give a call without any, after they have prepared, outside the
measurement, what their users would have at hand. What a library cannot do it says in a RuntimeError.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelcore import ops
from pixelcore.dropout_bits import Drop
from pixelcore.ops import IGNORED, HeadLayout

Given = Mapping[str, Any]
Call = Callable[[], Any]


# ------------------------------------------------------------------ add_norm


def add_norm(
    x_ND: Tensor,
    delta_ND: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    drop: Drop | None = None,
    delta_bias_D: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if delta_ND is not None:
        x_ND = x_ND + _branch(delta_ND, delta_bias_D, drop)
    if bias_D is None:
        return x_ND, F.rms_norm(x_ND, weight_D.shape, weight_D.to(x_ND.dtype), eps)
    return x_ND, F.layer_norm(x_ND, weight_D.shape, weight_D.to(x_ND.dtype), bias_D.to(x_ND.dtype), eps)


def _branch(delta_ND: Tensor, delta_bias_D: Tensor | None, drop: Drop | None) -> Tensor:
    if delta_bias_D is not None:
        delta_ND = delta_ND + delta_bias_D.to(delta_ND.dtype)
    return delta_ND if drop is None else F.dropout(delta_ND, drop.p)


def liger_add_norm(given: Given) -> Call:
    liger = importlib.import_module("liger_kernel.ops")
    x_ND, weight_D, bias_D, eps = (given[name] for name in ("x_ND", "weight_D", "bias_D", "eps"))
    delta_ND, delta_bias_D, drop = given["delta_ND"], given.get("delta_bias_D"), given.get("drop")

    def call() -> tuple[Tensor, Tensor]:
        if bias_D is None and delta_ND is not None:
            branch_ND = _branch(delta_ND, delta_bias_D, drop)
            normed, total = liger.LigerFusedAddRMSNormFunction.apply(
                branch_ND, x_ND, weight_D, eps, 0.0, "llama", False
            )
            return total, normed
        total = x_ND if delta_ND is None else x_ND + _branch(delta_ND, delta_bias_D, drop)
        if bias_D is None:
            return total, liger.LigerRMSNormFunction.apply(total, weight_D, eps, 0.0, "llama", False)
        return total, liger.LigerLayerNormFunction.apply(total, weight_D, bias_D, eps)

    return call


def quack_add_norm(given: Given) -> Call:
    quack = importlib.import_module("quack")
    if given["bias_D"] is not None:
        raise RuntimeError("QuACK differentiates RMSNorm, not LayerNorm")
    x_ND, weight_D, eps, delta_ND = (given[name] for name in ("x_ND", "weight_D", "eps", "delta_ND"))

    def call() -> tuple[Tensor, Tensor]:
        if delta_ND is None:
            return x_ND, quack.rmsnorm(x_ND, weight_D, eps=eps)
        branch_ND = _branch(delta_ND, given.get("delta_bias_D"), given.get("drop"))
        normed, total = quack.rmsnorm(branch_ND, weight_D, residual=x_ND, eps=eps, prenorm=True)
        return total, normed

    return call


# ------------------------------------------------------------------ projections of rows: glu, gelu, split_rope, dropout


def liger_glu(given: Given) -> Call:
    liger = importlib.import_module("liger_kernel.ops")
    return lambda: liger.LigerFusedGateUpSiLUMulFunction.apply(given["gate_up_NF"], False)


def split_rope(
    qkv_NO: Tensor, positions_N: Tensor, table: Tensor | None, layout: HeadLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """The textbook's rotation, in real numbers: what `torch.compile` fuses best, as it leaves complex ones alone."""
    heads = (layout.num_heads, layout.num_key_value_heads, layout.num_key_value_heads)
    q_NHK, k_NGK, v_NGK = qkv_NO.unflatten(-1, (sum(heads), layout.head_size)).split(heads, dim=1)
    if layout.rotation == "none" or table is None:
        return q_NHK, k_NGK, v_NGK
    turn = ops.rotate_half if layout.rotation == "half" else ops.rotate_interleaved
    cos_NK, sin_NK = table[positions_N].unbind(-1)
    return turn(q_NHK, cos_NK, sin_NK), turn(k_NGK, cos_NK, sin_NK), v_NGK


def liger_split_rope(given: Given) -> Call:
    liger = importlib.import_module("liger_kernel.ops")
    layout: HeadLayout = given["layout"]
    if layout.rotation != "half":
        raise RuntimeError(f"Liger-Kernel turns pairs of halves, and this case is {layout.rotation}")
    cos_1NK, sin_1NK = (torch.cat((x, x), -1)[None] for x in given["table"][given["positions_N"]].unbind(-1))

    def call() -> tuple[Tensor, ...]:
        q_NHK, k_NGK, v_NGK = _heads(given["qkv_NO"], layout)
        seen = (x[None].transpose(1, 2) for x in (q_NHK, k_NGK))
        turned = liger.LigerRopeFunction.apply(*seen, cos_1NK, sin_1NK)
        return *(x.transpose(1, 2)[0] for x in turned), v_NGK

    return call


def quack_split_rope(given: Given) -> Call:
    rotary = importlib.import_module("quack.rotary")
    layout: HeadLayout = given["layout"]
    if layout.rotation == "none":
        raise RuntimeError("this case has no rotation")
    cos_NK, sin_NK = (x.contiguous() for x in given["table"][given["positions_N"]].unbind(-1))
    interleaved = layout.rotation == "interleaved"

    def call() -> tuple[Tensor, ...]:
        q_NHK, k_NGK, v_NGK = _heads(given["qkv_NO"], layout)
        turned = (rotary.apply_rotary_emb(x[None], cos_NK, sin_NK, interleaved)[0] for x in (q_NHK, k_NGK))
        return *turned, v_NGK

    return call


def _heads(qkv_NO: Tensor, layout: HeadLayout) -> tuple[Tensor, ...]:
    heads = (layout.num_heads, layout.num_key_value_heads, layout.num_key_value_heads)
    return qkv_NO.unflatten(-1, (sum(heads), layout.head_size)).split(heads, dim=1)


def dropout(x_NF: Tensor, drop: Drop) -> Tensor:
    return F.dropout(x_NF, drop.p)


# ------------------------------------------------------------------ cross_entropy


def cross_entropy(logits_NV: Tensor, targets_N: Tensor, scale: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """In the dtype of the logits, without a wide copy of them."""
    total = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum")
    counted_N = targets_N != IGNORED
    if z_loss:
        total = total + z_loss * (logits_NV.logsumexp(-1).square() * counted_N).sum()
    return total * scale, counted_N.sum()


def is_mean(given: Given) -> bool:
    """Whether the case's scale makes a mean, which libraries give without a further pass over the gradient."""
    count = int((given["targets_N"] != IGNORED).sum())
    return math.isclose(float(given["scale"]) * count, 1.0, rel_tol=1e-3)


def liger_cross_entropy(given: Given) -> Call:
    liger = importlib.import_module("liger_kernel.ops")
    logits_NV, targets_N, scale = (given[name] for name in ("logits_NV", "targets_N", "scale"))
    mean, z_loss = is_mean(given), given.get("z_loss", 0.0)

    def call() -> tuple[Tensor, Tensor]:
        options = (None, IGNORED, z_loss, 0.0, "mean" if mean else "sum", None, False, False, False)
        total = liger.LigerCrossEntropyFunction.apply(logits_NV, targets_N, *options)[0]
        return total if mean else total * scale, (targets_N != IGNORED).sum()

    return call


def quack_cross_entropy(given: Given) -> Call:
    quack = importlib.import_module("quack")
    if given.get("z_loss", 0.0):
        raise RuntimeError("QuACK's cross-entropy has no z-loss")
    logits_NV, targets_N, scale = (given[name] for name in ("logits_NV", "targets_N", "scale"))

    def call() -> tuple[Tensor, Tensor]:
        total = quack.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum")
        return total * scale, (targets_N != IGNORED).sum()

    return call


# ------------------------------------------------------------------ patch_embed


def published_patch_embed(given: Given) -> Call:
    """PIXEL's embedding as its authors wrote it: images are fp32 and have three equal channels, a convolution projects
    every patch, positions are added to all of them, and only then those that stay are gathered and CLS set before
    (specs/pixel.md, section 2). The images are made ready outside, as its loader does. Takes strips, see `EmbedStrips`.
    """
    pixels_PA, rows_N, weight_DA = given["pixels_PA"], given["rows_N"], given["weight_DA"]
    bias_D, cls_D, table_LD = given["bias_D"], given["cls_D"], given["table_LD"]
    side, length = math.isqrt(pixels_PA.shape[1]), table_LD.shape[0] - 1
    strips = pixels_PA.shape[0] // length
    grey_BLYX = (pixels_PA.float() / 255).unflatten(0, (strips, length)).unflatten(2, (side, side))
    image_BCYX = grey_BLYX.transpose(1, 2).flatten(2)[:, None].repeat(1, 3, 1, 1)
    kept_BL = rows_N.unflatten(0, (strips, -1))[:, 1:] % length

    def call() -> Tensor:
        kernel = (weight_DA / 3).unflatten(1, (1, side, side)).expand(-1, 3, -1, -1)
        embedded = F.conv2d(image_BCYX.to(weight_DA.dtype), kernel, bias_D.to(weight_DA.dtype), stride=side)
        placed_BLD = embedded.flatten(2).transpose(1, 2) + table_LD[1:].to(weight_DA.dtype)
        shown_BLD = placed_BLD.gather(1, kept_BL[..., None].expand(-1, -1, placed_BLD.shape[2]))
        first_B1D = (cls_D + table_LD[0]).to(weight_DA.dtype).expand(strips, 1, -1)
        return torch.cat((first_B1D, shown_BLD), dim=1).flatten(0, 1)

    return call


# ------------------------------------------------------------------ composites, see composites.py


def head_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return cross_entropy(F.linear(hidden_ND, weight_VD), targets_N, scale)


def products(given: Given) -> Call:
    """The head's product, and with its backward pass the two others: what is left if the loss costs nothing."""
    return lambda: F.linear(given["hidden_ND"], given["weight_VD"])


def liger_head(given: Given) -> Call:
    functional = importlib.import_module("liger_kernel.transformers.functional")
    hidden_ND, weight_VD, targets_N, scale = (given[name] for name in _HEAD)
    mean = is_mean(given)

    def call() -> tuple[Tensor, Tensor]:
        reduction = "mean" if mean else "sum"
        total = functional.liger_fused_linear_cross_entropy(hidden_ND, weight_VD, targets_N, reduction=reduction)
        return total if mean else total * scale, (targets_N != IGNORED).sum()

    return call


def quack_head(given: Given) -> Call:
    module = importlib.import_module("quack.linear_cross_entropy")
    hidden_ND, weight_VD, targets_N, scale = (given[name] for name in _HEAD)
    mean = is_mean(given)

    def call() -> tuple[Tensor, Tensor]:
        reduction = "mean" if mean else "sum"
        total = module.chunked_linear_cross_entropy(hidden_ND, weight_VD, targets_N, reduction=reduction)
        return total if mean else total * scale, (targets_N != IGNORED).sum()

    return call


def torch_head(given: Given) -> Call:
    hidden_ND, weight_VD, targets_N, scale = (given[name] for name in _HEAD)
    together: Any = F.linear_cross_entropy  # pyright: ignore[reportAttributeAccessIssue]

    def call() -> tuple[Tensor, Tensor]:
        return together(hidden_ND, weight_VD, targets_N, reduction="sum") * scale, (targets_N != IGNORED).sum()

    return call


_HEAD = ("hidden_ND", "weight_VD", "targets_N", "scale")


def clip_adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    step: Tensor,
    learning_rate: Tensor,
    shadows: list[Tensor],
    limit: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """What a training loop in plain PyTorch does: `clip_grad_norm_`, the fused AdamW, and a copy in another dtype."""
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    torch._fused_adamw_(
        parameters,
        gradients,
        firsts,
        seconds,
        [],
        [step] * len(parameters),
        lr=learning_rate,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=None,
    )
    torch._foreach_copy_(shadows, parameters)
