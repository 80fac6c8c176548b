"""The primitives that every model is written in, and `Ops`, the only seam between models and kernels.

Each function here is the specification of an operation at the granularity of a fused kernel: what one pass over memory
can do together is one function. A model calls `self.ops.name(...)`; `REFERENCE` holds the functions of this file, and a
fused record holds kernels with the same signatures, so that kernels replace functions and never models.

The first part is the textbook: normalisation, rotary positions and attention as formulas, used by the tests as the
truth. The second part is what models call; it uses the library's own kernels where they compute the same thing faster.

Precision: linear maps run in the dtype of the activations; statistics and sums are taken in fp32, or in fp64 when the
input is fp64, so that gradients can be checked numerically.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelcore.dropout_bits import Drop, attention_p, keep_attention, keep_features
from pixelcore.kv_cache import Chunk, LayerCache
from pixelcore.packed import Packed

IGNORED = -100  # the target of a row that no loss counts
_LEAST_VARIANCE = 1e-6  # of a patch, added before it divides: paper has none


@dataclass(frozen=True)
class HeadLayout:
    """How the columns of a packed q, k, v projection divide into heads, and how positions enter.

    The columns are q [H, K], then k [G, K], then v [G, K]. Query head h reads key/value head h // (H / G).
    rotation: "interleaved" turns the pairs (2j, 2j + 1), "half" the pairs (j, j + K / 2); "none" leaves positions to
    the model.
    """

    num_heads: int
    num_key_value_heads: int
    head_size: int
    rotation: str = "interleaved"


# ------------------------------------------------------------------ the textbook


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, statistics in fp32 (arXiv:1910.07467)."""
    wide = x_ND.to(_statistics(x_ND))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * weight_D.to(wide.dtype)).to(x_ND.dtype)


def rotate_interleaved(x_NHK: Tensor, cos_NK: Tensor, sin_NK: Tensor) -> Tensor:
    """Turn each pair (2j, 2j + 1) of features by its angle: (a cos - b sin, a sin + b cos) (arXiv:2104.09864).

    cos_NK and sin_NK are fp32 [N, K / 2], shared by the heads.
    """
    pair = x_NHK.to(cos_NK.dtype).unflatten(-1, (-1, 2))
    first, second = pair.unbind(-1)
    cos, sin = cos_NK[:, None], sin_NK[:, None]
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return turned.flatten(-2).to(x_NHK.dtype)


def rotate_half(x_NHK: Tensor, cos_NK: Tensor, sin_NK: Tensor) -> Tensor:
    """Turn each pair (j, j + K / 2) of features by its angle: the same rotation for weights whose features stand in
    another order. cos_NK and sin_NK as in `rotate_interleaved`."""
    first, second = x_NHK.to(cos_NK.dtype).chunk(2, dim=-1)
    cos, sin = cos_NK[:, None], sin_NK[:, None]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x_NHK.dtype)


def rope_table(head_size: int, base: float, num_positions: int) -> Tensor:
    """fp32 [positions, K / 2, 2]: cosine and sine of position * base^(-2j / K)."""
    frequency = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float()


def softmax_attention(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, packed: Packed, rule: str, scale: float, drop: Drop | None = None
) -> tuple[Tensor, Tensor]:
    """Attention as its formula: softmax(scale * q k^T + rule) v in each document, and the log-sum-exp fp32 [N, H].

    Keys and values are the rows of the document that `packed.visible` names, its first ones; of the rule "real_fake"
    all of them. Where it names none, a row sees nothing: its output is zero and its log-sum-exp -inf.
    """
    outputs, log_sums = [], []
    group = q_NHK.shape[1] // k_NGK.shape[1]
    first = 0
    shown = packed.lengths if packed.visible is None or rule == "real_fake" else packed.visible
    for length, visible in zip(packed.lengths, shown, strict=True):
        rows, keys = slice(first, first + length), slice(first, first + visible)
        q_HTK = q_NHK[rows].transpose(0, 1)
        k_HSK, v_HSK = (x[keys].repeat_interleave(group, dim=1).transpose(0, 1) for x in (k_NGK, v_NGK))
        scores_HTS = (q_HTK @ k_HSK.transpose(1, 2)).to(_statistics(q_NHK)) * scale
        if rule == "real_fake":
            visible_TS = _reachable(packed, rows, length)[0]
        else:
            visible_TS = _visible(rule, length, length, q_NHK.device)[:, :visible]
        scores_HTS = scores_HTS.masked_fill(~visible_TS, -math.inf)
        weights_HTS = scores_HTS.softmax(-1)
        if drop is not None:
            keep_HTS = keep_attention(drop, first, length, q_NHK.shape[1], visible)
            weights_HTS = weights_HTS * keep_HTS / (1 - attention_p(drop.p))
        outputs.append((weights_HTS.to(v_HSK.dtype) @ v_HSK).transpose(0, 1))
        log_sums.append(scores_HTS.logsumexp(-1).transpose(0, 1))
        first += length
    return torch.cat(outputs), torch.cat(log_sums)


def adamw_formula(
    parameter: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: float,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One AdamW update of one tensor, in place (arXiv:1711.05101, algorithm 2). step counts from 1."""
    parameter.mul_(1 - learning_rate * weight_decay)
    first.lerp_(gradient, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    denominator = (second / (1 - betas[1] ** step)).sqrt_().add_(eps)
    parameter.addcdiv_(first, denominator, value=-learning_rate / (1 - betas[0] ** step))


# ------------------------------------------------------------------ what models call


def add_norm(
    x_ND: Tensor,
    delta_ND: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    drop: Drop | None = None,
    delta_bias_D: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and normalise the sum: (x + dropout(delta + delta_bias), norm of it).

    LayerNorm with a bias, RMSNorm without. delta None: x passes unchanged. delta_bias is that of the linear map that
    delta comes from: its gradient is a column sum of what this pass writes anyway.
    """
    if delta_ND is not None:
        if delta_bias_D is not None:
            delta_ND = delta_ND + delta_bias_D.to(delta_ND.dtype)
        x_ND = x_ND + (delta_ND if drop is None else dropout(delta_ND, drop))
    else:
        assert delta_bias_D is None, "a bias of no branch"
    wide = x_ND.to(_statistics(x_ND))
    if bias_D is None:
        normed = F.rms_norm(wide, weight_D.shape, weight_D.to(wide.dtype), eps)
    else:
        normed = F.layer_norm(wide, weight_D.shape, weight_D.to(wide.dtype), bias_D.to(wide.dtype), eps)
    return x_ND, normed.to(x_ND.dtype)


def split_rope(
    qkv_NO: Tensor, positions_N: Tensor, table: Tensor | None, layout: HeadLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """Divide a packed projection into q [N, H, K], k and v [N, G, K], and turn q and k by their positions.

    table: fp32 [positions, K / 2, 2] of `rope_table`, or None when rotation is "none".
    """
    columns = (layout.num_heads, layout.num_key_value_heads, layout.num_key_value_heads)
    q_NHK, k_NGK, v_NGK = qkv_NO.unflatten(-1, (sum(columns), layout.head_size)).split(columns, dim=1)
    if layout.rotation == "none":
        return q_NHK, k_NGK, v_NGK
    assert layout.rotation in ("interleaved", "half") and table is not None
    if layout.rotation == "half":
        cos_NK, sin_NK = table[positions_N].to(_statistics(qkv_NO)).unbind(-1)
        return rotate_half(q_NHK, cos_NK, sin_NK), rotate_half(k_NGK, cos_NK, sin_NK), v_NGK
    # a pair (a, b) turned by an angle is the complex product (a + ib)(cos + i sin): one pass over memory
    turn_N1J = torch.view_as_complex(table)[positions_N][:, None]
    return _turn(q_NHK, turn_N1J), _turn(k_NGK, turn_N1J), v_NGK


def _turn(x_NHK: Tensor, turn_N1J: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x_NHK.to(_statistics(x_NHK)).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn_N1J).flatten(-2).to(x_NHK.dtype)


def attention(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, packed: Packed, rule: str, scale: float, drop: Drop | None = None
) -> tuple[Tensor, Tensor | None]:
    """Attention inside each document. Returns the output [N, H, K] and the log-sum-exp [N, H].

    rule: "full"; "causal"; or "real_fake", where a row sees the rows up to `packed.reach` and itself, nothing else: the
    rows up to `packed.visible` are real and must reach exactly to themselves, those behind them are fakes. Rows beyond
    `packed.visible` look and are not looked at, by others.

    The log-sum-exp serves backward passes written by hand; the library keeps its own, so it is None here unless
    dropout forces the formula. `softmax_attention` is the specification of both.
    """
    if drop is not None:
        return softmax_attention(q_NHK, k_NGK, v_NGK, packed, rule, scale, drop)
    outputs = []
    for first, count, length, visible in packed.equal_runs():
        rows = slice(first, first + count * length)
        q, k, v = (x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (q_NHK, k_NGK, v_NGK))
        grouped = q.shape[1] != k.shape[1]
        if rule == "real_fake":
            out = _real_fake_attention(q, k, v, packed, first, visible, scale, grouped)
        else:
            seen_k, seen_v = (x[:, :, :visible] if visible < length else x for x in (k, v))
            out = F.scaled_dot_product_attention(
                q, seen_k, seen_v, is_causal=_is_causal(rule), scale=scale, enable_gqa=grouped
            )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), None


def _real_fake_attention(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, first: int, visible: int, scale: float, grouped: bool
) -> Tensor:
    """One run of documents of one length, [documents, heads, length, K], of which `visible` rows each are real.

    Among themselves real rows are causal; only for the few fakes is there a mask of pairs.
    """
    count, _, length, _ = q.shape
    q_real, k_real, v_real = (x[:, :, :visible] for x in (q, k, v))
    real = F.scaled_dot_product_attention(q_real, k_real, v_real, is_causal=True, scale=scale, enable_gqa=grouped)
    if visible == length:
        return real
    mask = _reachable(packed, slice(first, first + count * length), length)[:, None, visible:]
    fake = F.scaled_dot_product_attention(q[:, :, visible:], k, v, mask, scale=scale, enable_gqa=grouped)
    return torch.cat((real, fake), dim=2)


def glu(gate_up_NF: Tensor, kind: str) -> Tensor:
    """Gated linear unit of a packed [gate, up] projection: act(gate) * up, act "silu" (SwiGLU, arXiv:2002.05202)."""
    assert kind == "silu", kind
    gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
    return F.silu(gate_NF) * up_NF


def gelu(x_NF: Tensor, bias_F: Tensor) -> Tensor:
    """z * Phi(z) of z = x + bias, Phi the normal distribution itself and not its tanh shape (arXiv:1606.08415)."""
    return F.gelu(x_NF + bias_F.to(x_NF.dtype))


def dropout(x_NF: Tensor, drop: Drop) -> Tensor:
    """Zero each element with probability p and scale the rest by 1 / (1 - p), by the bits of `dropout_bits`."""
    return x_NF * keep_features(drop, x_NF.shape[-1]).to(x_NF.dtype) / (1 - drop.p)


def cross_entropy(logits_NV: Tensor, targets_N: Tensor, scale: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sum of scale * (-log softmax(logits)[target] + z_loss * lse^2) over the rows whose target is not `IGNORED`, and
    their number.

    scale: a scalar on the device, 1 / (targets of the whole step). It is known before the forward pass, so a kernel can
    write the gradient while it reads the logits; and the sums of all micro-batches and ranks add up to the mean.
    z_loss: keeps lse, the log-sum-exp of a row, near 0, of which the likelihood does not depend (arXiv:2204.02311).
    """
    wide = logits_NV.to(_statistics(logits_NV))
    total = F.cross_entropy(wide, targets_N, ignore_index=IGNORED, reduction="sum")
    if z_loss:
        total = total + z_loss * wide.logsumexp(1).square().where(targets_N != IGNORED, 0).sum()
    return total * scale, (targets_N != IGNORED).sum()


def patch_embed(
    pixels_PA: Tensor,
    rows_N: Tensor,
    weight_DA: Tensor,
    bias_D: Tensor | None,
    cls_D: Tensor | None,
    table_LD: Tensor | None,
    places_N: Tensor | None,
    signed: bool = False,
) -> Tensor:
    """Row n: the projection of patch rows_N[n], or the CLS vector where that is -1, plus row places_N[n] of the table.

    pixels: in [0, 1], or uint8 that means value / 255, eight pixels a byte where a patch is that short (`_unpacked`).
    signed: pixels p enter as 2 p - 1. bias, cls (every row is then a patch) and table, with its places, may be None.

    The result has the dtype of the weight, in which the product runs: a whole number from -255 to 255 is exact in every
    dtype where it is a byte, or 2 v - 255 of one, so it is scaled after the product and never rounded before it.
    """
    wide, num_values, is_whole = _statistics(weight_DA), weight_DA.shape[1], pixels_PA.dtype == torch.uint8
    values_NA = _unpacked(pixels_PA[rows_N.clamp_min(0)], num_values)
    if signed:
        values_NA = values_NA.to(torch.int16) * 2 - 255 if is_whole else values_NA * 2 - 1
    row_ND = F.linear(values_NA.to(weight_DA.dtype), weight_DA).to(wide)
    if is_whole:
        row_ND = row_ND / 255
    if bias_D is not None:
        row_ND = row_ND + bias_D.to(wide)
    if cls_D is not None:
        row_ND = torch.where(rows_N[:, None] < 0, cls_D.to(wide), row_ND)
    if table_LD is not None:
        row_ND = row_ND + table_LD.to(wide)[places_N]
    return row_ND.to(weight_DA.dtype)


def unshuffle(kept_ND: Tensor, mask_token_D: Tensor, restore_R: Tensor, table_LD: Tensor, places_R: Tensor) -> Tensor:
    """Row r: row restore_R[r] of what was kept, or the mask token where that is -1, plus row places_R[r] of the
    table. Each row that was kept is restored once."""
    hidden_R1 = restore_R[:, None] < 0
    rows_RD = torch.where(hidden_R1, mask_token_D.to(kept_ND.dtype), kept_ND[restore_R.clamp_min(0)])
    return rows_RD + table_LD.to(kept_ND.dtype)[places_R]


def pixel_mse(
    prediction_MO: Tensor, pixels_PA: Tensor, scored_M: Tensor, normalise: bool, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum over the predictions of scale * mean squared distance to patch scored_M[m], and their number.

    pixels: in [0, 1], or uint8 that means value / 255; grey where a patch has fewer values than a prediction: each
    value then stands for its O / A channels. normalise: the target is (t - mean) / sqrt(var + 1e-6) of its patch, the
    variance unbiased over all O values. scale: a scalar on the device, 1 / (scored patches of the whole step).
    Source: specs/pixel.md, section 2.6.
    """
    wide = _statistics(prediction_MO)
    target_MA = _targets(pixels_PA, scored_M, wide, pixels_PA.shape[1])
    target_MO = target_MA.repeat_interleave(prediction_MO.shape[1] // pixels_PA.shape[1], dim=1)
    if normalise:
        centred_MO = target_MO - target_MO.mean(1, keepdim=True)  # by hand: var_mean warns where no patch is scored
        variance_M1 = centred_MO.square().sum(1, keepdim=True) / (centred_MO.shape[1] - 1)
        target_MO = centred_MO / torch.sqrt(variance_M1 + _LEAST_VARIANCE)
    total = (prediction_MO.to(wide) - target_MO).square().mean(1).sum()
    return total * scale, torch.full((), len(scored_M), device=scored_M.device)


def pixel_bce(logits_MA: Tensor, pixels_PA: Tensor, targets_M: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the predictions of scale * -log p(patch targets_M[m]) / A, and their number, where each pixel is paper
    with the chance sigmoid(logit) and independent of the others.

    pixels: 1 or 255 for paper, 0 for ink; float in [0, 1], or uint8 that means value / 255, or uint8 [P, A / 8] that
    holds 8 pixels a byte, the first in the highest bit, 1 for paper (numpy.packbits). scale: a scalar on the device,
    1 / (targets of the whole step), or one of them for each prediction, [M]. The result counts in nats a pixel: times
    A / ln 2 it is bits a patch. Source: specs/pixar.md, section 2.4.
    """
    wide = _statistics(logits_MA)
    target_MA = _targets(pixels_PA, targets_M, wide, logits_MA.shape[1])
    nats_M = F.binary_cross_entropy_with_logits(logits_MA.to(wide), target_MA, reduction="none").mean(1)
    return (nats_M * scale).sum(), torch.full((), len(targets_M), device=targets_M.device)


def mixture_bce(
    logits_MZA: Tensor, scores_MZ: Tensor, pixels_PA: Tensor, targets_M: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Like `pixel_bce` for a mixture: p(patch) = sum over z of softmax(scores)[z] * product over its pixels of the
    chance by logits[z]. One component is drawn for a whole patch, so its pixels depend on each other."""
    wide = _statistics(logits_MZA)
    target_MZA = _targets(pixels_PA, targets_M, wide, logits_MZA.shape[2])[:, None].expand(logits_MZA.shape)
    log_MZ = -F.binary_cross_entropy_with_logits(logits_MZA.to(wide), target_MZA, reduction="none").sum(2)
    nats_M = -(scores_MZ.to(wide).log_softmax(1) + log_MZ).logsumexp(1) / logits_MZA.shape[2]
    return (nats_M * scale).sum(), torch.full((), len(targets_M), device=targets_M.device)


def _targets(pixels_PA: Tensor, targets_M: Tensor, wide: torch.dtype, num_values: int) -> Tensor:
    """Patches as what a loss compares with: in [0, 1], wide, and of num_values values."""
    target_MA = _unpacked(pixels_PA[targets_M], num_values).to(wide)
    return target_MA / 255 if pixels_PA.dtype == torch.uint8 else target_MA


def _unpacked(pixels_PB: Tensor, num_values: int) -> Tensor:
    """Patches of num_values values each, [.., num_values]: where a patch is num_values / 8 bytes its pixels are bits, 1
    for paper, and become 0 and 255; other patches are returned as they are.

    The first of eight pixels is the highest bit of its byte, as numpy.packbits writes it.
    """
    if pixels_PB.dtype != torch.uint8 or 8 * pixels_PB.shape[-1] != num_values:
        return pixels_PB
    place_8 = torch.arange(7, -1, -1, dtype=torch.uint8, device=pixels_PB.device)
    return (pixels_PB[..., None] >> place_8 & 1).flatten(-2) * 255


def decode_attention(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cache: LayerCache, scale: float) -> Tensor:
    """Append k and v of the new tokens to the cache and attend, causally, to all that each sequence holds.

    Rows are the new tokens of each sequence of the cache end to end, as `cache.chunk` says. Chunks of any length give
    what one pass over the whole sequence gives.
    """
    cache.append(k_NGK, v_NGK)
    assert cache.chunk is not None
    grouped = q_NHK.shape[1] != k_NGK.shape[1]
    if max(cache.chunk.new) == 1:
        return _next_row_attention(q_NHK, cache, cache.chunk, scale, grouped)
    outputs, first = [], 0
    for sequence, (held, new) in enumerate(zip(cache.chunk.held, cache.chunk.new, strict=True)):
        q_HTK = q_NHK[first : first + new].transpose(0, 1)[None]
        keys, values = (x[sequence, :, : held + new][None] for x in (cache.keys, cache.values))
        # one new token sees everything; with nothing held the library's causal rule fits; else the diagonal is shifted
        mask = _visible("causal", new, held + new, q_NHK.device) if held and new > 1 else None
        out = F.scaled_dot_product_attention(
            q_HTK, keys, values, mask, is_causal=not held and new > 1, scale=scale, enable_gqa=grouped
        )
        outputs.append(out[0].transpose(0, 1))
        first += new
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _next_row_attention(q_BHK: Tensor, cache: LayerCache, chunk: Chunk, scale: float, grouped: bool) -> Tensor:
    """One new token for each sequence, which sees all that its sequence holds: one dense batch, in which what stands
    behind the end of a shorter sequence is hidden."""
    longest = max(chunk.held) + 1
    visible_B11S = None
    if min(chunk.held) + 1 < longest:
        place_S = torch.arange(longest, device=q_BHK.device)
        visible_B11S = (place_S <= chunk.held_B[:, None])[:, None, None]
    keys, values = (x[:, :, :longest] for x in (cache.keys, cache.values))
    out_BH1K = F.scaled_dot_product_attention(
        q_BHK[:, :, None], keys, values, visible_B11S, scale=scale, enable_gqa=grouped
    )
    return out_BH1K[:, :, 0]


def adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    step: Tensor,
    learning_rate: Tensor,
    clip: Tensor,
    found_inf: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    shadows: list[Tensor] | None = None,
) -> None:
    """AdamW on lists of tensors, in place, with gradients multiplied by clip. Parameters and moments stay as they are
    where found_inf is 1. What the gradients hold afterwards is not specified.

    step (counted from 1), learning_rate, clip and found_inf are fp32 scalars on the device, so that no update waits
    for the host. shadows: bf16 copies of the parameters, kept up with them. `adamw_formula` is the specification; this
    is the library's fused kernel, which leaves gradients multiplied.
    """
    if not parameters:
        return
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
        grad_scale=clip.reciprocal(),  # the kernel divides by it
        found_inf=found_inf,
    )
    if shadows is not None:
        for shadow, parameter in zip(shadows, parameters, strict=True):
            shadow.copy_(parameter)


@dataclass(frozen=True)
class Ops:
    """One function for each operation. `REFERENCE` is this file; another record may hold kernels."""

    add_norm: Callable[..., tuple[Tensor, Tensor]]
    split_rope: Callable[..., tuple[Tensor, Tensor, Tensor]]
    attention: Callable[..., tuple[Tensor, Tensor | None]]
    glu: Callable[..., Tensor]
    gelu: Callable[..., Tensor]
    dropout: Callable[..., Tensor]
    cross_entropy: Callable[..., tuple[Tensor, Tensor]]
    patch_embed: Callable[..., Tensor]
    unshuffle: Callable[..., Tensor]
    pixel_mse: Callable[..., tuple[Tensor, Tensor]]
    pixel_bce: Callable[..., tuple[Tensor, Tensor]]
    mixture_bce: Callable[..., tuple[Tensor, Tensor]]
    decode_attention: Callable[..., Tensor]
    adamw: Callable[..., None]


REFERENCE = Ops(
    add_norm=add_norm,
    split_rope=split_rope,
    attention=attention,
    glu=glu,
    gelu=gelu,
    dropout=dropout,
    cross_entropy=cross_entropy,
    patch_embed=patch_embed,
    unshuffle=unshuffle,
    pixel_mse=pixel_mse,
    pixel_bce=pixel_bce,
    mixture_bce=mixture_bce,
    decode_attention=decode_attention,
    adamw=adamw,
)


def _statistics(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _is_causal(rule: str) -> bool:
    assert rule in ("full", "causal"), rule
    return rule == "causal"


def _visible(rule: str, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """Bool [queries, keys]: the queries are the last of the keys' positions."""
    visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return visible.tril(num_keys - num_queries) if _is_causal(rule) else visible


def _reachable(packed: Packed, rows: slice, length: int) -> Tensor:
    """Bool [documents, queries, keys] of documents of one length: the rule "real_fake"."""
    assert packed.reach is not None, "the rule real_fake needs a reach for each row"
    place_T = torch.arange(length, device=packed.reach.device)
    return (place_T <= packed.reach[rows].view(-1, length, 1)) | (place_T == place_T[:, None])
