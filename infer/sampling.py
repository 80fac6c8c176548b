"""From logits to the next token: the rules that shape a distribution, and the draw.

A language model gives every token of the vocabulary some probability, and most of that tail is noise. Each rule here
removes or flattens part of it; they apply in the order of `next_token_probabilities`: repetition penalty, temperature,
top-k, top-p, min-p. A rule that is off is the identity.

Every sequence draws from its own generator, one uniform number for each token, on the host: the same seed gives the
same draws on every device and whatever else shares the batch. The number is turned into a token by inverting the
cumulative distribution in fp64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcore.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen.

    temperature: 0 takes the likeliest token, and no rule but the repetition penalty has a say; below 1 sharpens, above
        1 flattens. top_k: keep the k likeliest, 0 = all. top_p: keep the fewest likeliest whose probabilities reach
        top_p, 1 = all. min_p: keep those at least min_p times as likely as the likeliest, 0 = all.
    repetition_penalty: above 1 makes tokens of the prompt and of the output less likely, 1 = off.
    seed: sequence i of a call draws with seed + i.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature = {self.temperature} must be 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise UserError(f"top_k = {self.top_k} must be a positive number of tokens, or 0 to keep all")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p} must be above 0 and at most 1 (1 keeps all)")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p = {self.min_p} must be between 0 (keeps all) and 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise UserError(f"repetition_penalty = {self.repetition_penalty} must be a positive number; 1 is off")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed = {self.seed} must be a whole number from 0 to 2^63 - 1")


def penalise_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of the tokens seen. Source: CTRL, arXiv:1909.05858, section 4.1."""
    penalised = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, penalised, logits_BV)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """-inf for all but the k largest (arXiv:1805.04833). Ties with the k-th stay."""
    if k == 0 or k >= logits_BV.shape[-1]:
        return logits_BV
    least = logits_BV.topk(k, dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < least, -math.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """-inf outside the nucleus: the fewest likeliest tokens whose probabilities reach p, the one that crosses p
    included, so at least one stays (arXiv:1904.09751)."""
    if p == 1:
        return logits_BV
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
    probability_BV = sorted_BV.softmax(-1, dtype=torch.float64)
    before_BV = probability_BV.cumsum(-1) - probability_BV
    dropped_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter_(1, order_BV, before_BV >= p)
    return logits_BV.masked_fill(dropped_BV, -math.inf)


def keep_min_p(logits_BV: Tensor, p: float) -> Tensor:
    """-inf for tokens less than p times as likely as the likeliest (arXiv:2407.01082)."""
    if p == 0:
        return logits_BV
    least = logits_BV.amax(-1, keepdim=True) + math.log(p)
    return logits_BV.masked_fill(logits_BV < least, -math.inf)


def next_token_probabilities(logits_BV: Tensor, seen_BV: Tensor | None, config: SamplingConfig) -> Tensor:
    """The distribution that is drawn from, fp64 [B, V]: one-hot when the temperature is 0.

    seen_BV: bool, tokens of the prompt and of the output so far; needed where the repetition penalty is on.
    """
    logits_BV = logits_BV.float()
    if config.repetition_penalty != 1:
        assert seen_BV is not None
        logits_BV = penalise_repetition(logits_BV, seen_BV, config.repetition_penalty)
    if config.temperature == 0:
        chosen_B = logits_BV.argmax(-1)
        return torch.nn.functional.one_hot(chosen_B, logits_BV.shape[-1]).double()
    # the largest becomes 0 first, so that a tiny temperature cannot overflow
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / config.temperature
    logits_BV = keep_top_k(logits_BV, config.top_k)
    logits_BV = keep_top_p(logits_BV, config.top_p)
    logits_BV = keep_min_p(logits_BV, config.min_p)
    return logits_BV.softmax(-1, dtype=torch.float64)


def draw(probability_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token for each row, int64 [B]; row b takes one number from generators[b], which live on the host."""
    uniform_B1 = torch.stack([torch.rand(1, generator=one, dtype=torch.float64) for one in generators])
    cumulative_BV = probability_BV.cumsum(-1)
    # scaled to the sum, which rounding leaves a little off 1: the last token with a probability always ends the search
    target_B1 = uniform_B1.to(cumulative_BV.device) * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(1)


def choose(
    logits_BV: Tensor, seen_BV: Tensor | None, config: SamplingConfig, generators: Sequence[torch.Generator]
) -> tuple[list[int], list[float]]:
    """The next token of each row and its log-probability under the model's own, unshaped distribution.

    Raises UserError when a logit is not finite: a model that computed NaN has no likeliest token.
    """
    if not bool(logits_BV.isfinite().all()):
        bad = [index for index, fine in enumerate(logits_BV.isfinite().all(-1).tolist()) if not fine]
        raise UserError(
            f"the model gave NaN or infinite logits for sequence {bad[0]} of the batch: its weights are damaged or the "
            "dtype is too narrow; check the training's loss, or use --dtype float32"
        )
    logits_BV = logits_BV.float()
    if config.temperature == 0:
        shaped_BV = logits_BV
        if config.repetition_penalty != 1:
            assert seen_BV is not None
            shaped_BV = penalise_repetition(logits_BV, seen_BV, config.repetition_penalty)
        chosen_B = shaped_BV.argmax(-1)
    else:
        chosen_B = draw(next_token_probabilities(logits_BV, seen_BV, config), generators)
    log_probability_B = logits_BV.gather(1, chosen_B[:, None]).squeeze(1) - logits_BV.logsumexp(-1)
    return chosen_B.tolist(), log_probability_B.tolist()
