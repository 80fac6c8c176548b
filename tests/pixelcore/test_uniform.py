"""Uniform numbers depend on the seed and the number of the draw alone, and are uniform."""

from itertools import islice

import torch

from pixelcore.dropout_bits import _philox
from pixelcore.uniform import numbers_of, uniforms


def test_a_number_is_a_word_of_its_counter():
    seed = 5 + (7 << 32)
    (found,) = uniforms(torch.tensor([seed]), torch.tensor([9], dtype=torch.int32), 6).tolist()
    for number, value in enumerate(found):
        word = int(_philox(torch.tensor([5, 7]), 9, number // 4, 0, 0)[number % 4])
        assert value == (word + 0.5) / 2**32


def test_numbers_are_the_same_in_any_batch_and_ahead():
    seeds, steps = torch.tensor([3, 2**63 - 1, 3]), torch.tensor([0, 200, 200])
    together = uniforms(seeds, steps, 5)
    for row in range(3):
        assert torch.equal(uniforms(seeds[row : row + 1], steps[row : row + 1], 2)[0], together[row, :2])
    one_by_one = list(islice(numbers_of(3, 5), 201))
    assert torch.equal(one_by_one[0], together[0]) and torch.equal(one_by_one[200], together[2])
    assert next(numbers_of(3, 0)).shape == (0,)  # of a decoding that draws nothing


def test_numbers_are_uniform_over_draws_seeds_and_within_a_draw():
    draws = uniforms(torch.zeros(4000, dtype=torch.int64), torch.arange(4000), 1)
    seeds = uniforms(torch.arange(4000), torch.zeros(4000, dtype=torch.int64), 1)
    within = uniforms(torch.tensor([0]), torch.tensor([0]), 4000)
    for numbers in (draws, seeds, within):
        counts = torch.histc(numbers.float(), 16, 0, 1)
        assert float(((counts - 250) ** 2 / 250).sum()) < 37.7  # chi square, 15 degrees of freedom: passed by 99.9 %
    both = torch.cat((draws, seeds, within.T)).flatten()
    assert both.min() > 0 and both.max() < 1 and len(both.unique()) > 11_990
