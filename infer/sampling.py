"""From logits to the next token: the rules that shape a distribution, and the draw.

A language model gives every token of the vocabulary some probability, and most of that tail is noise. Each rule here
removes or flattens part of it; they apply in the order of `next_token_probabilities`: repetition penalty, temperature,
top-k, top-p, min-p. A rule that is off is the identity.

Every sequence draws one uniform number for each token. The number depends on the seed and on how many tokens were drawn
before (`pixelcore.uniform`), so the same seed gives the same draws on every device and whatever else shares the batch.
It is turned into a token by inverting the cumulative distribution in fp64.

The rules are those of `pixelcore.step_sampling`, which specifies the same choice for settings that are known to the
device alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcore.errors import UserError
from pixelcore.step_sampling import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_probability,
    penalise_repetition,
    with_temperature,
)


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
    logits_BV = keep_top_k(with_temperature(logits_BV, config.temperature), config.top_k)
    if config.top_p < 1:
        logits_BV = keep_top_p(logits_BV, config.top_p)
    if config.min_p > 0:
        logits_BV = keep_min_p(logits_BV, config.min_p)
    return logits_BV.softmax(-1, dtype=torch.float64)


def choose(
    logits_BV: Tensor, seen_BV: Tensor | None, config: SamplingConfig, numbers: Sequence[Iterator[Tensor]]
) -> tuple[list[int], list[float]]:
    """The next token of each row and its log-probability under the model's own, unshaped distribution.

    numbers: `pixelcore.uniform.numbers_of` each row's seed; the next one is taken unless the temperature is 0.

    Raises UserError when a logit is not finite: a model that computed NaN has no likeliest token.
    """
    if not bool(logits_BV.isfinite().all()):
        bad = [index for index, fine in enumerate(logits_BV.isfinite().all(-1).tolist()) if not fine]
        raise UserError(no_numbers(bad[0]))
    logits_BV = logits_BV.float()
    if config.temperature == 0:
        shaped_BV = logits_BV
        if config.repetition_penalty != 1:
            assert seen_BV is not None
            shaped_BV = penalise_repetition(logits_BV, seen_BV, config.repetition_penalty)
        chosen_B = shaped_BV.argmax(-1)
    else:
        uniform_B1 = torch.stack([next(one) for one in numbers]).to(logits_BV.device)
        chosen_B = draw(next_token_probabilities(logits_BV, seen_BV, config), uniform_B1)
    return chosen_B.tolist(), log_probability(logits_BV, chosen_B).tolist()


def no_numbers(sequence: int) -> str:
    """What to say of a sequence of the batch whose logits are not finite."""
    return (
        f"the model gave NaN or infinite logits for sequence {sequence} of the batch: its weights are damaged or the "
        "dtype is too narrow; check the training's loss, or use --dtype float32"
    )
