"""The kernels as plain functions of tensors, for use without pixelcore's models.

Each does what the function of the same name in `pixelcore.ops` specifies, in one pass over memory forward and one
backward, on CUDA tensors (or on a CPU under TRITON_INTERPRET=1), and is differentiable in eager mode and under
torch.compile. Letters name sizes: N rows, D and F widths, V vocabulary, P patches of A values, M predictions.

    from kernels.functional import add_norm, cross_entropy
    total, normed = add_norm(x, branch, weight)                    # x + branch, and RMSNorm of it
    loss, count = cross_entropy(logits, targets)                   # the mean; the gradient is written in the same pass

What differs from the record of the models: losses may be multiplied by anything afterwards, which costs another pass
over their gradient where it happens; dropout names its rows by plain tensors; layouts are numbers.

Those of a decoding step (`pixelcore.step_ops`: norm_qkv, attend_project, norm_glu, project_add, norm_logits) are the
record's own: B rows, at most 64, nothing to differentiate, and norm_qkv writes into the cache.

Activations are bf16, fp16, fp32 or fp64, parameters as a rule fp32. Everything that does not fit raises ValueError.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import record
from kernels.adamw import adamw
from kernels.step_attend_project import fused as attend_project
from kernels.step_norm_glu import fused as norm_glu
from kernels.step_norm_logits import fused as norm_logits
from kernels.step_norm_qkv import norm_qkv
from kernels.step_project_add import fused as project_add
from pixelcore.dropout_bits import Drop
from pixelcore.kv_cache import Chunk, LayerCache
from pixelcore.ops import IGNORED, HeadLayout
from pixelcore.packed import Packed

__all__ = [
    "adamw",
    "add_norm",
    "attend_project",
    "attention",
    "cross_entropy",
    "decode_attention",
    "dropout",
    "gelu",
    "glu",
    "mixture_bce",
    "norm_glu",
    "norm_logits",
    "norm_qkv",
    "patch_embed",
    "pixel_bce",
    "pixel_mse",
    "project_add",
    "split_rope",
    "unshuffle",
]


def add_norm(
    x_ND: Tensor,
    delta_ND: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None = None,
    eps: float = 1e-6,
    *,
    delta_bias_D: Tensor | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    documents_N: Tensor | None = None,
    positions_N: Tensor | None = None,
    site: int = 0,
) -> tuple[Tensor, Tensor]:
    """(x + dropout(delta + delta_bias), norm of it): LayerNorm with a bias, RMSNorm without. delta None: x passes.

    p, seed and what follows: dropout of the branch, as in `dropout`; none where p is 0.
    """
    drop = _drop(len(x_ND), p, seed, documents_N, positions_N, site)
    return record.FUSED.add_norm(x_ND, delta_ND, weight_D, bias_D, eps, drop, delta_bias_D)


def split_rope(
    qkv_NO: Tensor,
    positions_N: Tensor,
    table: Tensor | None,
    num_heads: int,
    num_key_value_heads: int,
    head_size: int,
    rotation: str = "interleaved",
) -> tuple[Tensor, Tensor, Tensor]:
    """Divide a packed projection [N, (H + 2 G) K] into q [N, H, K], k and v [N, G, K], and turn q and k.

    positions: int32 or int64, rows of the table fp32 [positions, K / 2, 2] of `pixelcore.ops.rope_table`. rotation:
    "interleaved" turns the features (2j, 2j + 1), "half" (j, j + K / 2), "none" nothing, without a table.
    """
    layout = HeadLayout(num_heads, num_key_value_heads, head_size, rotation)
    return record.FUSED.split_rope(qkv_NO, positions_N, table, layout)


def attention(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    offsets: Tensor,
    rule: str = "causal",
    scale: float | None = None,
    *,
    visible: tuple[int, ...] | None = None,
    reach_N: Tensor | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention inside each document, and the natural log-sum-exp fp32 [N, H]; H is a multiple of G.

    offsets: int32 [M + 1] on the device, the first row of each document and N at the end. rule: "full", "causal" or
    "real_fake", where a row sees the rows up to its reach and itself. scale: 1 / sqrt(K) when absent. visible: of each
    document only so many rows, the first ones, are looked at. p, seed, site: dropout of the weights, as in `dropout`;
    a document is named by its first row.
    """
    num_rows = q_NHK.shape[0]
    row_N = torch.arange(num_rows, dtype=torch.int32, device=offsets.device)
    document_N = torch.searchsorted(offsets[1:], row_N, right=True).clamp_max(len(offsets) - 2)
    first_N = offsets[document_N]
    packed = Packed(offsets, row_N - first_N, first_N.long(), 0, (), visible, reach_N)
    drop = _drop(num_rows, p, seed, packed.documents, packed.positions, site)
    scale = q_NHK.shape[2] ** -0.5 if scale is None else scale
    return record.FUSED.attention(q_NHK, k_NGK, v_NGK, packed, rule, scale, drop)  # pyright: ignore[reportReturnType]


def glu(gate_up_NF: Tensor) -> Tensor:
    """SwiGLU of a packed projection [N, 2 F]: silu(gate) * up."""
    return record.FUSED.glu(gate_up_NF, "silu")


def gelu(x_NF: Tensor, bias_F: Tensor) -> Tensor:
    """The exact GELU of x + bias; the gradient of the bias is summed up in the same pass."""
    return record.FUSED.gelu(x_NF, bias_F)


def dropout(
    x_NF: Tensor,
    p: float,
    seed: Tensor,
    documents_N: Tensor | None = None,
    positions_N: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """Zero each element with probability p and scale the rest by 1 / (1 - p).

    Which ones follows from nothing but seed (int64 [2], for example run and step), the row's document (int64, 0 when
    absent) and position in it (int32, the number of the row when absent), the feature, and site, which tells the uses
    of one step apart: `pixelcore.dropout_bits`.
    """
    drop = _drop(len(x_NF), p, seed, documents_N, positions_N, site)
    return x_NF.clone() if drop is None else record.FUSED.dropout(x_NF, drop)


def _drop(
    num_rows: int, p: float, seed: Tensor | None, documents_N: Tensor | None, positions_N: Tensor | None, site: int
) -> Drop | None:
    if p == 0:
        return None
    if seed is None:
        raise ValueError(f"p = {p} and seed is None: dropout needs a seed, int64 [2] on the device")
    if documents_N is None:
        documents_N = torch.zeros(num_rows, dtype=torch.int64, device=seed.device)
    if positions_N is None:
        positions_N = torch.arange(num_rows, dtype=torch.int32, device=seed.device)
    # what dropout reads of a batch's structure is the names of its rows
    return Drop(seed, Packed(positions_N[:0], positions_N, documents_N, 0, ()), site, p)


def cross_entropy(
    logits_NV: Tensor, targets_N: Tensor, scale: Tensor | None = None, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sum of scale * (-log softmax(logits)[target] + z_loss * lse^2) over the rows whose target is not -100, and their
    number. scale: a scalar on the device; 1 / their number when absent, so that the sum is the mean."""
    if scale is None:
        scale = (targets_N != IGNORED).sum().clamp_min(1).to(_wide(logits_NV)).reciprocal()
    return record.FUSED.cross_entropy(logits_NV, targets_N, scale, z_loss, factor_follows=True)


def pixel_mse(
    prediction_MO: Tensor, pixels_PA: Tensor, scored_M: Tensor, normalise: bool, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over the predictions of scale * mean squared distance to patch scored_M[m], and their number.

    pixels: in [0, 1], or uint8 that means value / 255. normalise: by mean and deviation of each patch. scale: a scalar
    on the device; 1 / M when absent.
    """
    scale = _one_over(len(scored_M), prediction_MO) if scale is None else scale
    return record.FUSED.pixel_mse(prediction_MO, pixels_PA, scored_M, normalise, scale, factor_follows=True)


def pixel_bce(
    logits_MA: Tensor, pixels_PA: Tensor, targets_M: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over the predictions of scale * -log p(patch targets_M[m]) / A, each pixel being paper with the chance
    sigmoid(logit), and their number.

    pixels: 0 for ink, 1 or 255 for paper; or uint8 [P, A / 8], eight pixels a byte (numpy.packbits). scale: a scalar on
    the device or [M]; 1 / M when absent.
    """
    scale = _one_over(len(targets_M), logits_MA) if scale is None else scale
    return record.FUSED.pixel_bce(logits_MA, pixels_PA, targets_M, scale, factor_follows=True)


def mixture_bce(
    logits_MZA: Tensor, scores_MZ: Tensor, pixels_PA: Tensor, targets_M: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Like `pixel_bce` for a mixture of Z components, weighed by softmax(scores), one for a whole patch."""
    scale = _one_over(len(targets_M), logits_MZA) if scale is None else scale
    return record.FUSED.mixture_bce(logits_MZA, scores_MZ, pixels_PA, targets_M, scale, factor_follows=True)


def _one_over(count: int, like: Tensor) -> Tensor:
    return torch.full((), 1 / max(count, 1), dtype=_wide(like), device=like.device)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def patch_embed(
    pixels_PA: Tensor,
    rows_N: Tensor,
    weight_DA: Tensor,
    bias_D: Tensor | None = None,
    cls_D: Tensor | None = None,
    table_LD: Tensor | None = None,
    places_N: Tensor | None = None,
    signed: bool = False,
) -> Tensor:
    """Row n: the projection of patch rows_N[n], or the CLS vector where that is -1, plus row places_N[n] of the table.

    pixels: in [0, 1], or uint8 that means value / 255, or uint8 [P, A / 8], eight pixels a byte. signed: pixels p enter
    as 2 p - 1.
    """
    return record.FUSED.patch_embed(pixels_PA, rows_N, weight_DA, bias_D, cls_D, table_LD, places_N, signed)


def unshuffle(kept_ND: Tensor, mask_token_D: Tensor, restore_R: Tensor, table_LD: Tensor, places_R: Tensor) -> Tensor:
    """Row r: row restore_R[r] of what was kept, or the mask token where that is -1, plus row places_R[r] of the
    table. Each row that was kept is restored once."""
    return record.FUSED.unshuffle(kept_ND, mask_token_D, restore_R, table_LD, places_R)


def decode_attention(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    keys_BGCK: Tensor,
    values_BGCK: Tensor,
    held: Sequence[int],
    new: Sequence[int] | None = None,
    scale: float | None = None,
) -> Tensor:
    """Write k and v of new tokens into a cache and attend, causally, to all that each sequence then holds.

    keys, values: of C places for each sequence, of which the first held[b] are taken; the next new[b] are written. Rows
    are the new tokens of the sequences end to end, one of each when `new` is absent. scale: 1 / sqrt(K) when absent.
    There is no gradient.
    """
    chunk = Chunk.of(held, [1] * len(held) if new is None else new, q_NHK.device)
    cache = LayerCache(keys_BGCK, values_BGCK, chunk)
    return record.FUSED.decode_attention(q_NHK, k_NGK, v_NGK, cache, q_NHK.shape[2] ** -0.5 if scale is None else scale)
