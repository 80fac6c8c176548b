"""One step of generation as seven functions: what a token, or a patch, costs once a prompt has been read.

A step sends B rows, one of each sequence, through all layers. It does little arithmetic and reads every weight and all
that the cache holds, so what it costs is bytes, and the time between operations. The operations are therefore cut so
that nothing but a few rows passes between them, and everything has a fixed shape: lengths are numbers on the device,
nothing is ever asked of it, and a whole step can be recorded once and replayed.

    residual_BD --+-- norm_qkv ------- q_BHK; keys and values go into the cache ---.
                  |                                                                |
                  +-- attend_project ------------------- residual_BD --------------'        five kernels a layer:
                  +-- norm_glu --------------------------- inner_BF                         attend_project is two
                  +-- project_add ---------------------- residual_BD
    at the end       norm_logits ------------------------ logits_BV
                     sample_token, or next_patch -------- what was chosen, and its residual_BD for the next step

Each function here is the specification of its kernel, in plain PyTorch. It computes what the models of both families
compute for a row behind a cache: RMSNorm, linear maps without a bias, SwiGLU. `STEP_REFERENCE` holds them; another
record of the same signatures may hold kernels.

Weights come in the dtype of the activations, those of norms in any. Sums and statistics are fp32, or fp64 of fp64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcore import ops
from pixelcore.layers import linear
from pixelcore.ops import HeadLayout
from pixelcore.step_sampling import next_patch, sample_token

MOST_ROWS = 64  # sequences of a step; more of them are a matter for kernels that are bound by arithmetic


def norm_qkv(
    residual_BD: Tensor,
    norm_D: Tensor,
    eps: float,
    qkv_OD: Tensor,
    table: Tensor | None,
    lengths_B: Tensor,
    layout: HeadLayout,
    keys_BGCK: Tensor,
    values_BGCK: Tensor,
) -> Tensor:
    """RMSNorm and the packed projection of one row of each sequence; q and k are turned to place lengths_B[b], k and v
    written into the cache at that place. Returns q [B, H, K].

    lengths_B: int32, rows that each sequence holds so far, at least 0. table: fp32 [positions, K / 2, 2] of
    `ops.rope_table`, at least as many positions as the cache has places, or None where the layout turns nothing.
    keys and values [B, G, C, K] are the only arguments that are written. A sequence that holds C rows or more is full:
    nothing is written for it, and its q is that of the last place.
    """
    normed_BD = _norm(residual_BD, norm_D, eps)
    place_B = lengths_B.clamp_max(keys_BGCK.shape[2] - 1).long()
    q_BHK, k_BGK, v_BGK = ops.split_rope(linear(normed_BD, qkv_OD), place_B, table, layout)
    fits_B11 = (lengths_B < keys_BGCK.shape[2])[:, None, None]
    sequence_B = torch.arange(len(place_B), device=place_B.device)
    for cache_BGCK, new_BGK in ((keys_BGCK, k_BGK), (values_BGCK, v_BGK)):
        held_BGK = cache_BGCK[sequence_B, :, place_B]
        cache_BGCK[sequence_B, :, place_B] = torch.where(fits_B11, new_BGK, held_BGK)
    return q_BHK.contiguous()


def attend_project(
    q_BHK: Tensor,
    keys_BGCK: Tensor,
    values_BGCK: Tensor,
    lengths_B: Tensor,
    scale: float,
    out_DO: Tensor,
    residual_BD: Tensor,
) -> Tensor:
    """residual + W_o attention(q), where row b sees the places 0 .. lengths_B[b] of its sequence, the one that was just
    written included; of a full sequence all of them. What stands behind them may be anything.

    lengths_B: as it was given to `norm_qkv`. out_DO: [D, H K]. Query head h reads key/value head h // (H / G).
    """
    num_heads, group = q_BHK.shape[1], q_BHK.shape[1] // keys_BGCK.shape[1]
    hidden_B1C = torch.arange(keys_BGCK.shape[2], device=q_BHK.device) > lengths_B[:, None, None]
    keys_BHCK, values_BHCK = (
        x.masked_fill(hidden_B1C.transpose(1, 2)[:, None], 0).repeat_interleave(group, dim=1)
        for x in (keys_BGCK, values_BGCK)
    )
    wide = _statistics(q_BHK)
    scores_BHC = (keys_BHCK @ q_BHK[..., None])[..., 0].to(wide) * scale
    weights_BHC = scores_BHC.masked_fill(hidden_B1C.expand(-1, num_heads, -1), -math.inf).softmax(-1)
    attended_BHK = (weights_BHC.to(q_BHK.dtype)[:, :, None] @ values_BHCK)[:, :, 0]
    return residual_BD + linear(attended_BHK.flatten(1), out_DO)


def norm_glu(residual_BD: Tensor, norm_D: Tensor, eps: float, gate_up_FD: Tensor) -> Tensor:
    """silu(gate) * up of the normalised rows: [B, F]. gate_up_FD: [2 F, D], the rows of gate before those of up."""
    return ops.glu(linear(_norm(residual_BD, norm_D, eps), gate_up_FD), "silu")


def project_add(inner_BF: Tensor, down_DF: Tensor, residual_BD: Tensor) -> Tensor:
    """residual + W inner."""
    return residual_BD + linear(inner_BF, down_DF)


def norm_logits(residual_BD: Tensor, norm_D: Tensor, eps: float, head_VD: Tensor) -> Tensor:
    """The head's products with the normalised rows, fp32 [B, V] (fp64 of fp64). Of PIXAR a row of the head is a pixel
    of the next patch, or the score of a component."""
    return linear(_norm(residual_BD, norm_D, eps), head_VD).to(_statistics(residual_BD))


@dataclass(frozen=True)
class StepOps:
    """One function for each operation of a step. `STEP_REFERENCE` is this file; another record may hold kernels."""

    norm_qkv: Callable[..., Tensor]
    attend_project: Callable[..., Tensor]
    norm_glu: Callable[..., Tensor]
    project_add: Callable[..., Tensor]
    norm_logits: Callable[..., Tensor]
    sample_token: Callable[..., tuple[Tensor, Tensor, Tensor]]
    next_patch: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


STEP_REFERENCE = StepOps(
    norm_qkv=norm_qkv,
    attend_project=attend_project,
    norm_glu=norm_glu,
    project_add=project_add,
    norm_logits=norm_logits,
    sample_token=sample_token,
    next_patch=next_patch,
)


def _norm(x_BD: Tensor, norm_D: Tensor, eps: float) -> Tensor:
    return ops.add_norm(x_BD, None, norm_D, None, eps)[1]


def _statistics(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
