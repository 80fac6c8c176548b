"""The choice of a step, whose settings the device alone knows, is the choice that the loops of `infer` make."""

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from infer.sampling import SamplingConfig, choose, next_token_probabilities
from infer.write_strip import WriteConfig, write
from pixelcore.step_sampling import is_black, next_patch, sample_token
from pixelcore.uniform import numbers_of
from tests.infer.tiny_pixar import bernoulli, pixar

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
TOGETHER = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.4}
RULES = [
    {"temperature": 0.0},
    {"temperature": 1.7},
    {"top_k": 3},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"repetition_penalty": 2.0},
    TOGETHER,
]


def knobs(config: SamplingConfig) -> torch.Tensor:
    return torch.tensor(
        [config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty], dtype=torch.float32
    )


@pytest.mark.parametrize("rule", RULES, ids=[" ".join(rule) for rule in RULES])
def test_tokens_are_drawn_as_the_loop_draws_them_and_as_often_as_they_are_likely(rule: dict[str, Any]):
    count, step = 4000, 3
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(1, 12, generator=generator) * 2).round() / 2  # some are equal
    seen = torch.arange(12)[None] % 3 == 0
    config = SamplingConfig(**OFF | rule)
    given = (logits.expand(count, -1), seen.repeat(count, 1), knobs(config), torch.arange(count))
    own = given[1].clone()
    embed = torch.arange(24.0).view(12, 2)
    ids, log_probability, residual = sample_token(
        given[0], own, *given[2:], torch.full((count,), step, dtype=torch.int32), embed
    )
    assert torch.equal(residual, embed[ids])
    assert torch.equal(own, given[1] | torch.nn.functional.one_hot(ids, 12).bool())
    numbers = [islice(numbers_of(seed), step, None) for seed in range(20)]
    chosen, nats = choose(logits.expand(20, -1), given[1][:20], config, numbers)
    assert ids[:20].tolist() == chosen and log_probability[:20].tolist() == pytest.approx(nats)
    expected = count * next_token_probabilities(logits, seen, config)[0]
    counts, likely = ids.bincount(minlength=12), expected > 0
    assert counts[~likely].sum() == 0
    # chi square of at most 11 degrees of freedom: passed by 99.9 %
    assert float(((counts - expected)[likely] ** 2 / expected[likely]).sum()) < 31.3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_is_told_by_its_id_and_no_other_row_knows(bad: float, temperature: float):
    logits = torch.arange(10.0).view(2, 5)
    logits[1, 2] = bad
    seen = torch.zeros(2, 5, dtype=torch.bool)
    config = SamplingConfig(temperature=temperature)
    given = (knobs(config), torch.arange(2), torch.zeros(2, dtype=torch.int32), torch.eye(5))
    ids, log_probability, residual = sample_token(logits, seen, *given)
    alone = sample_token(logits[:1], None, given[0], given[1][:1], given[2][:1], given[3])
    assert ids[1] == -1 and log_probability[1].isnan() and torch.equal(residual[1], given[3][0])
    assert ids[0] == alone[0] and log_probability[0] == alone[1] and seen[0].sum() == 1 and not seen[1].any()


@pytest.mark.parametrize(
    "head, decode", [("bernoulli", "threshold"), ("bernoulli", "sample"), ("mixture", "mixture"), ("mixture", "sample")]
)
def test_patches_are_drawn_as_the_loop_draws_them(head: str, decode: str):
    model = pixar() if head == "mixture" else bernoulli()
    config = WriteConfig(decode=decode, seed=3, max_patches=3, temperature=1.0 if decode == "threshold" else 0.7)
    empty = np.zeros((0, model.config.patch_values), np.uint8)
    written = write(model, [empty] * 4, config)
    cache = model.new_cache(4)
    unread, lengths = torch.zeros(0, model.config.patch_values, dtype=torch.uint8), [0] * 4
    nats = torch.zeros(4)
    with torch.no_grad():
        for step in range(3):
            out = model.read(unread, lengths, cache, last_only=True)
            rest = (torch.tensor(config.temperature), torch.arange(3, 7), torch.full((4,), step, dtype=torch.int32))
            weight = model.in_proj.flat_weight(model.config.patch_values)
            unread, log_probability, black, row = next_patch(out.components, out.scores, decode, True, *rest, weight)
            nats, lengths = nats + log_probability, [1] * 4
            torch.testing.assert_close(row, (unread.float() / 127.5 - 1) @ weight.T)
            assert not black.any()
            for index, one in enumerate(written):
                assert np.array_equal(one.patches[step], unread[index].numpy())
    assert nats.tolist() == pytest.approx([one.log_probability for one in written], rel=1e-5)


def test_more_than_eight_tenths_of_ink_are_black_and_become_all_of_it_where_strips_end():
    odds = torch.full((2, 1, 20), -1.0)
    odds[0, 0, :4], odds[1, 0, :3] = 1, 1
    rest = (torch.tensor(1.0), torch.arange(2), torch.zeros(2, dtype=torch.int32), torch.ones(3, 20))
    for stop in (False, True):
        pixels, _, black, row = next_patch(odds, None, "threshold", stop, *rest)
        assert black.tolist() == [False, True] == is_black(pixels).tolist()
        assert (pixels == 255).sum(1).tolist() == [4, 0 if stop else 3]
        assert row[:, 0].tolist() == [-12, -20 if stop else -14]
    odds[1, 0, 5] = math.nan
    assert next_patch(odds, None, "threshold", True, *rest)[1].isnan().tolist() == [False, True]
