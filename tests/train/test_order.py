"""The order of blocks: every block once an epoch, in the shares asked for, the same for ever."""

import numpy as np
import pytest

from pixelcore.errors import UserError
from train.data.order import CYCLE, BlockOrder, permute

GOLDEN_PLAIN = [(0, 855), (0, 753), (0, 303), (0, 573), (0, 206), (0, 42), (0, 227), (0, 107)]
GOLDEN_WEIGHTED = [(0, 8), (1, 7), (1, 75), (1, 69), (0, 4), (1, 55), (1, 29), (1, 31)]


def taken(order: BlockOrder, start: int, count: int) -> list[tuple[int, int]]:
    sources, blocks = order.take(start, count)
    return list(zip(sources.tolist(), blocks.tolist()))


def test_the_order_never_changes():
    assert taken(BlockOrder(0, [1000]), 0, 8) == GOLDEN_PLAIN
    assert taken(BlockOrder(7, [10, 100], [0.25, 0.75]), 5000, 8) == GOLDEN_WEIGHTED


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1023, 1025])
def test_permute_is_a_bijection_for_every_key(size: int):
    for key in range(20):
        result = permute(np.full(size, key, np.uint64), np.arange(size), size)
        assert sorted(result.tolist()) == list(range(size))


def test_permute_is_uniform_over_keys():
    keys = np.arange(20_000, dtype=np.uint64)
    for number in range(5):
        counts = np.bincount(permute(keys, np.full(20_000, number), 10), minlength=10)
        assert np.sum((counts - 2000) ** 2 / 2000) < 30  # chi-squared with 9 degrees of freedom: p = 0.0004


def test_neighbours_in_the_order_are_unrelated():
    order = np.array([block for _, block in taken(BlockOrder(3, [10_000]), 0, 10_000)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.03


def test_each_epoch_visits_every_block_of_all_sources_once_in_another_order():
    order = BlockOrder(1, [3, 0, 7])
    everything = [(0, block) for block in range(3)] + [(2, block) for block in range(7)]
    epochs = [taken(order, epoch * 10, 10) for epoch in range(5)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_any_position_is_found_alone(weights: list[float] | None):
    order = BlockOrder(5, [11, 30, 4], weights)
    whole = taken(order, 0, 3000)
    assert [order[position] for position in range(0, 3000, 97)] == whole[::97]
    assert taken(order, 1000, 1100) == whole[1000:2100]
    assert taken(order, 1024, 0) == []
    assert taken(BlockOrder(5, [11, 30, 4], weights), 0, 3000) == whole
    assert taken(BlockOrder(6, [11, 30, 4], weights), 0, 3000) != whole
    assert taken(order, 10**12, 3) == [order[10**12], order[10**12 + 1], order[10**12 + 2]]
    assert taken(BlockOrder(-1, [5]), 0, 5) != taken(BlockOrder(1, [5]), 0, 5)


def test_weights_set_the_shares_and_each_source_has_its_own_epochs():
    order = BlockOrder(2, [50, 7, 9, 3], [3, 1, 1e-9, 0])
    sequence = taken(order, 0, 4 * CYCLE)
    drawn = [[block for source, block in sequence if source == number] for number in range(4)]
    assert [len(blocks) for blocks in drawn] == [4 * 767, 4 * 256, 4 * 1, 0]
    for number, size in enumerate([50, 7]):
        epochs = [drawn[number][start : start + size] for start in range(0, len(drawn[number]) - size, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    first, second = sequence[:CYCLE], sequence[CYCLE : 2 * CYCLE]
    assert [source for source, _ in first] != [source for source, _ in second]


@pytest.mark.parametrize(("weights", "message"), [
    ([1.0], "has 1 numbers for 2 sources"),
    ([0.0, 0.0], "at least one is positive"),
    ([-1.0, 2.0], "not negative"),
    ([float("nan"), 1.0], "finite"),
    ([1.0, 1.0], "source 2 has no block"),
])  # fmt: skip
def test_impossible_weights_are_refused(weights: list[float], message: str):
    with pytest.raises(UserError, match=message):
        BlockOrder(0, [5, 0], weights)


def test_more_sources_than_slots_are_refused():
    with pytest.raises(UserError, match="at most 1024"):
        BlockOrder(0, [1] * 1025, [1.0] * 1025)
    assert BlockOrder(0, [1] * 1024, [1.0] * 1023 + [1e6])[0][0] < 1024
