"""Every sampling rule against an explicit computation, and the draw against its distribution."""

import math

import pytest
import torch

from infer.sampling import SamplingConfig, choose, next_token_probabilities
from pixelcore.errors import UserError
from pixelcore.step_sampling import draw, keep_min_p, keep_top_k, keep_top_p, penalise_repetition
from pixelcore.uniform import numbers_of, uniforms

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 1.0, -3.0]])
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def _kept(logits: torch.Tensor) -> list[int]:
    return logits[0].isfinite().nonzero().flatten().tolist()


def _logits(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_temperature_divides_the_logits():
    probability = next_token_probabilities(LOGITS, None, SamplingConfig(**{**OFF, "temperature": 0.5}))
    weights = [math.exp(2 * x) for x in LOGITS[0].tolist()]
    assert probability[0].tolist() == pytest.approx([w / sum(weights) for w in weights])


def test_temperature_zero_is_the_likeliest_token_whatever_else_is_set():
    config = SamplingConfig(temperature=0, top_k=3, top_p=0.5, min_p=0.3)
    assert next_token_probabilities(LOGITS, None, config)[0].tolist() == [1, 0, 0, 0, 0]


def test_a_tiny_temperature_does_not_overflow():
    probability = next_token_probabilities(LOGITS * 100, None, SamplingConfig(**{**OFF, "temperature": 1e-30}))
    assert probability[0].tolist() == [1, 0, 0, 0, 0]


def test_top_k_keeps_the_k_largest():
    assert _kept(keep_top_k(LOGITS, 2)) == [0, 3]
    assert _kept(keep_top_k(LOGITS, 1)) == [0]
    assert _kept(keep_top_k(LOGITS, 0)) == _kept(keep_top_k(LOGITS, 99)) == [0, 1, 2, 3, 4]
    for k in (0, 1, 2, 5, 99):  # a number that only the device knows
        assert _kept(keep_top_k(LOGITS, torch.tensor(float(k)))) == _kept(keep_top_k(LOGITS, k))


def test_top_p_keeps_the_token_that_crosses():
    logits = _logits(0.1, 0.4, 0.2, 0.3)
    assert _kept(keep_top_p(logits, 0.05)) == [1]
    assert _kept(keep_top_p(logits, 0.5)) == [1, 3]
    assert _kept(keep_top_p(logits, 0.75)) == [1, 2, 3]
    assert _kept(keep_top_p(logits, 1.0)) == [0, 1, 2, 3]


def test_ties_with_the_last_token_that_stays_stay():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    assert _kept(keep_top_k(logits, 2)) == _kept(keep_top_k(logits, torch.tensor(2.0))) == [1, 2, 3, 4]
    assert _kept(keep_top_p(logits, 0.6)) == [1, 2, 3, 4]


def test_top_p_treats_each_row_alone():
    logits = torch.cat((_logits(0.7, 0.2, 0.1), _logits(0.1, 0.45, 0.45)))
    assert keep_top_p(logits, 0.6).isfinite().tolist() == [[True, False, False], [False, True, True]]


def test_min_p_keeps_what_is_likely_beside_the_likeliest():
    assert _kept(keep_min_p(_logits(0.5, 0.26, 0.2, 0.04), 0.5)) == [0, 1]
    assert _kept(keep_min_p(_logits(0.5, 0.26, 0.2, 0.04), 0.0)) == [0, 1, 2, 3]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens():
    seen = torch.tensor([[True, True, False, False, False]])
    assert penalise_repetition(LOGITS, seen, 2.0)[0].tolist() == [1.0, -2.0, 0.5, 1.0, -3.0]


def test_rules_apply_in_their_order():
    config = SamplingConfig(temperature=0.5, top_k=4, top_p=0.9, min_p=0.1, repetition_penalty=1.5, seed=0)
    seen = torch.tensor([[True, False, False, False, True]])
    logits = penalise_repetition(LOGITS, seen, 1.5) / 0.5
    expected = keep_min_p(keep_top_p(keep_top_k(logits, 4), 0.9), 0.1).softmax(-1)
    torch.testing.assert_close(next_token_probabilities(LOGITS, seen, config), expected.double(), atol=1e-7, rtol=1e-6)


def test_draws_follow_the_distribution():
    probability = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05], dtype=torch.float64)
    trials = 20_000
    drawn = draw(probability.expand(trials, -1), uniforms(torch.full((trials,), 1), torch.arange(trials), 1))
    counts = drawn.bincount(minlength=5).double()
    assert counts[1] == 0
    likely = probability > 0
    chi_square = ((counts - trials * probability)[likely] ** 2 / (trials * probability[likely])).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


def test_a_draw_never_ends_on_a_token_without_probability():
    probability = torch.tensor([[0.1, 0.2, 0.7, 0.0, 0.0]], dtype=torch.float64)
    number_B1 = uniforms(torch.arange(500), torch.zeros(500, dtype=torch.int64), 1)
    number_B1[:2, 0] = torch.tensor([2.0**-33, 1 - 2.0**-33], dtype=torch.float64)
    assert int(draw(probability.expand(500, -1), number_B1).max()) <= 2


def test_a_row_draws_by_its_own_seed_and_the_number_of_its_draw_alone():
    logits, config = torch.zeros(3, 500), SamplingConfig(**OFF)
    ahead = [numbers_of(seed) for seed in (4, 5, 6)]
    assert len(set(choose(logits, None, config, ahead)[0])) == 3
    (_, together, _), _ = choose(logits, None, config, ahead)
    alone = numbers_of(5)
    first, second = (choose(logits[:1], None, config, [alone])[0] for _ in range(2))
    assert first != second == [together]


def test_log_probability_is_that_of_the_unshaped_distribution():
    seen = torch.tensor([[True, False, False, False, False]])
    config = SamplingConfig(temperature=0.3, top_k=2, repetition_penalty=3.0)
    (chosen,), (log_probability,) = choose(LOGITS, seen, config, [numbers_of(0)])
    assert log_probability == pytest.approx(LOGITS.log_softmax(-1)[0, chosen].item(), abs=1e-6)


def test_greedy_choice_heeds_the_repetition_penalty():
    seen = torch.tensor([[True, False, False, False, False]])
    config = SamplingConfig(temperature=0, repetition_penalty=3.0)
    assert choose(LOGITS, seen, config, [])[0] == [3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error_that_names_the_sequence(bad, temperature):
    logits = LOGITS.repeat(2, 1)
    logits[1, 2] = bad
    with pytest.raises(UserError, match="sequence 1 of the batch"):
        choose(logits, None, SamplingConfig(temperature=temperature), [numbers_of(0), numbers_of(1)])


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("min_p", -0.5),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_nonsense_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=field):
        SamplingConfig(**{field: value})
