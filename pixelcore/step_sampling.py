"""The last operations of a step: from logits to what is chosen, and to the row that goes into the next step.

    logits ---> rules that shape the distribution ---> a draw ---> id or pixels ---> its row, the next step's input

All of it runs on the device and asks nothing of it, so settings that may change between two replays of a recorded step
are numbers on the device too, and a number that is not finite is told in the result. These functions are the
specification of the kernels; see `pixelcore.step_ops`, whose record holds them. The loops of `infer`, which know the
settings on the host and leave out what is off, are made of the same rules.

A rule of tokens keeps or drops by value: tokens that are equally likely share their fate, and a threshold that can be
found by bisection says all.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelcore import ops
from pixelcore.uniform import uniforms

# ------------------------------------------------------------------ tokens


def sample_token(
    logits_BV: Tensor, seen_BV: Tensor | None, knobs: Tensor, seeds_B: Tensor, steps_B: Tensor, embed_VD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The next token of each sequence: ids int64 [B], its log-probability fp32 [B] under the model's own, unshaped
    distribution, and its row of the embedding, residual [B, D] in the dtype of embed_VD.

    logits_BV: fp32; where one of a row is not finite its id is -1, its log-probability NaN and its residual row 0 of
    the embedding. seen_BV: bool, tokens of the prompt and of the output so far, to which the token drawn is added, the
    only argument that is written; None where no penalty is asked for. knobs: fp32 [5] on the device: temperature,
    top_k, top_p, min_p, repetition penalty, as `infer.sampling.SamplingConfig` has them. seeds_B int64, steps_B int32:
    draw number steps_B[b] of the sequence with seed seeds_B[b].
    """
    temperature, top_k, top_p, min_p, penalty = knobs.unbind()
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    shaped_BV = logits_BV if seen_BV is None else penalise_repetition(logits_BV, seen_BV, penalty)
    likeliest_B = shaped_BV.argmax(-1)
    shaped_BV = with_temperature(shaped_BV, torch.where(temperature > 0, temperature, 1))
    shaped_BV = keep_min_p(keep_top_p(keep_top_k(shaped_BV, top_k), top_p), min_p)
    drawn_B = draw(shaped_BV.softmax(-1, dtype=torch.float64), uniforms(seeds_B, steps_B, 1))
    finite_B = logits_BV.isfinite().all(-1)
    chosen_B = torch.where(temperature > 0, drawn_B, likeliest_B).where(finite_B, 0)
    if seen_BV is not None:
        chosen_B1 = chosen_B[:, None]
        seen_BV.scatter_(1, chosen_B1, seen_BV.gather(1, chosen_B1) | finite_B[:, None])
    nats_B = log_probability(logits_BV, chosen_B).masked_fill(~finite_B, math.nan)
    return chosen_B.where(finite_B, -1), nats_B, embed_VD[chosen_B]


def penalise_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: Tensor | float) -> Tensor:
    """Divide positive and multiply negative logits of the tokens seen. Source: CTRL, arXiv:1909.05858, section 4.1."""
    penalised = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, penalised, logits_BV)


def with_temperature(logits_BV: Tensor, temperature: Tensor | float) -> Tensor:
    """Divided by the temperature; the largest becomes 0 first, so that a tiny temperature cannot overflow."""
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits_BV: Tensor, k: Tensor | int) -> Tensor:
    """-inf for all but the k largest (arXiv:1805.04833). Ties with the k-th stay. 0 keeps all."""
    size = logits_BV.shape[-1]
    if isinstance(k, Tensor):
        last = k.clamp(0, size).long() - 1  # of 0 the one before the first, which is the last one of all
        least_B1 = logits_BV.sort(dim=-1, descending=True).values.index_select(-1, last.remainder(size)[None])
    elif 0 < k < size:
        least_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
    else:
        return logits_BV
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def keep_top_p(logits_BV: Tensor, p: Tensor | float) -> Tensor:
    """-inf outside the nucleus: the fewest likeliest tokens whose probabilities reach p, the one that crosses p
    included, so at least one stays (arXiv:1904.09751). Ties with the last one stay. 1 keeps all."""
    sorted_BV = logits_BV.sort(dim=-1, descending=True).values
    cumulative_BV = sorted_BV.softmax(-1, dtype=torch.float64).cumsum(-1)
    goal = torch.as_tensor(p, dtype=torch.float64, device=logits_BV.device)
    goal_B1 = torch.where(goal < 1, goal, math.inf).expand(len(logits_BV), 1).contiguous()
    last_B1 = torch.searchsorted(cumulative_BV, goal_B1).clamp_max(logits_BV.shape[-1] - 1)
    return logits_BV.masked_fill(logits_BV < sorted_BV.gather(-1, last_B1), -math.inf)


def keep_min_p(logits_BV: Tensor, p: Tensor | float) -> Tensor:
    """-inf for tokens less than p times as likely as the likeliest (arXiv:2407.01082). 0 keeps all."""
    log_p = torch.as_tensor(p, dtype=logits_BV.dtype, device=logits_BV.device).log()
    least_B1 = logits_BV.amax(-1, keepdim=True) + log_p
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def draw(probability_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """One of each row, int64 [B], by inverting the cumulative distribution: the first that the number lies below."""
    cumulative_BV = probability_BV.cumsum(-1)
    # scaled to the sum, which rounding leaves a little off 1: the last one with a probability always ends the search
    found_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
    return found_B1.squeeze(1).clamp_max(probability_BV.shape[1] - 1)  # beyond the last where there is a NaN


def log_probability(logits_BV: Tensor, chosen_B: Tensor) -> Tensor:
    """Of the chosen ones under softmax(logits)."""
    return logits_BV.gather(1, chosen_B[:, None]).squeeze(1) - logits_BV.logsumexp(-1)


# ------------------------------------------------------------------ patches

BLACK = 8, 10  # share of ink, as a fraction, above which a patch ends a strip


def next_patch(
    components_BZA: Tensor,
    scores_BZ: Tensor | None,
    decoding: str,
    stop: bool,
    temperature: Tensor,
    seeds_B: Tensor,
    steps_B: Tensor,
    in_DA: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next patch of each strip: pixels uint8 [B, A] of 0 and 255, its log-probability fp32 [B] at temperature 1,
    whether it is black bool [B], and its row residual [B, D] in the dtype of in_DA.

    components_BZA, scores_BZ: log-odds and scores, fp32, which may be views of one matrix of `norm_logits`; a head
    without components has Z = 1 and no scores. Where one of a row is not finite, its log-probability is NaN. decoding:
    "threshold", "mixture" or "sample", see `infer.write_strip`. stop: a black patch becomes all black, as the end of a
    strip is. temperature: fp32 scalar on the device, above 0. seeds_B, steps_B as in `sample_token`. in_DA: the map
    from a patch to a row, which reads pixels from -1 to 1.
    """
    wide = torch.promote_types(components_BZA.dtype, torch.float32)
    components_BZA = components_BZA.to(wide)
    finite_B = components_BZA.isfinite().flatten(1).all(1)
    if scores_BZ is None:
        log_weights_BZ = components_BZA.new_zeros(components_BZA.shape[:2])
    else:
        finite_B &= scores_BZ.isfinite().all(1)
        log_weights_BZ = scores_BZ.to(wide).log_softmax(1)
    uniform_BA = uniforms(seeds_B, steps_B, numbers_of_patch(components_BZA.shape[2], decoding))
    pixels_BA = decide_patch(components_BZA, log_weights_BZ, decoding, temperature, uniform_BA)
    black_B = is_black(pixels_BA)
    if stop:
        pixels_BA = pixels_BA.masked_fill(black_B[:, None], 0)
    nats_B = patch_log_probability(components_BZA, log_weights_BZ, pixels_BA).masked_fill(~finite_B, math.nan)
    rows_B = torch.arange(len(pixels_BA), device=pixels_BA.device)
    residual_BD = ops.patch_embed(pixels_BA, rows_B, in_DA, None, None, None, None, signed=True)
    return pixels_BA, nats_B, black_B, residual_BD


def numbers_of_patch(num_values: int, decoding: str) -> int:
    """Uniform numbers that a patch is drawn with: the first one for the component, from the fifth on one for each
    pixel."""
    return {"threshold": 0, "mixture": 1, "sample": 4 + num_values}[decoding]


def decide_patch(
    components_BZA: Tensor, log_weights_BZ: Tensor, decoding: str, temperature: Tensor | float, uniform_BA: Tensor
) -> Tensor:
    """The patch of each strip, uint8 [B, A]: 255 is paper. uniform_BA: [B, numbers_of_patch]."""
    if decoding == "threshold":
        component_B = log_weights_BZ.argmax(1)
    else:
        component_B = draw((log_weights_BZ / temperature).softmax(1, dtype=torch.float64), uniform_BA[:, :1])
    odds_BA = components_BZA[torch.arange(len(component_B), device=component_B.device), component_B]
    is_paper_BA = uniform_BA[:, 4:] < (odds_BA / temperature).sigmoid() if decoding == "sample" else odds_BA > 0
    return is_paper_BA.to(torch.uint8) * 255


def is_black(pixels_BA: Tensor) -> Tensor:
    """Bool [B]: nearly no paper, which ends a strip."""
    share, of = BLACK
    return (pixels_BA < 128).sum(1) * of > share * pixels_BA.shape[1]


def patch_log_probability(components_BZA: Tensor, log_weights_BZ: Tensor, pixels_BA: Tensor) -> Tensor:
    """Of these patches at temperature 1: [B], natural."""
    # log p of a pixel: its log-odds are for paper, or against ink
    signed_B1A = torch.where(pixels_BA[:, None] < 128, -1, 1).to(components_BZA.dtype)
    return (log_weights_BZ + F.logsigmoid(components_BZA * signed_B1A).sum(2)).logsumexp(1)
