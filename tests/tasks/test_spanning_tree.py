"""The best tree, against all trees there are."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from pixelcore.tasks.spanning_tree import best_tree, is_tree


def _is_tree_by_walking(heads: tuple[int, ...]) -> bool:
    """Each word reaches the root, and one hangs on it."""
    if heads.count(0) != 1:
        return False
    for word in range(1, len(heads) + 1):
        for _ in heads:
            word = heads[word - 1] if word else 0
        if word:
            return False
    return True


def _all_trees(num_words: int) -> Iterator[tuple[int, ...]]:
    return (heads for heads in product(range(num_words + 1), repeat=num_words) if _is_tree_by_walking(heads))


def _total(scores: np.ndarray, heads: np.ndarray | tuple[int, ...]) -> float:
    return float(sum(scores[word, head] for word, head in enumerate(heads)))


def test_trees_are_as_many_as_there_are():
    # rooted labelled trees: n ** (n - 1)
    assert [sum(1 for _ in _all_trees(n)) for n in range(1, 5)] == [1, 2, 9, 64]
    for heads in product(range(4), repeat=3):
        assert is_tree(heads) == _is_tree_by_walking(heads), heads
    assert not is_tree((0, None)) and not is_tree((0, 3)) and not is_tree(())


@pytest.mark.parametrize(("num_words", "trials"), [(1, 3), (2, 40), (3, 150), (4, 150), (5, 40)])
def test_the_best_tree_is_the_best_of_all(num_words: int, trials: int):
    generator = np.random.default_rng(num_words)
    trees = list(_all_trees(num_words))
    places = np.arange(num_words)
    for trial in range(trials):
        scores = generator.normal(size=(num_words, num_words + 1)) * 10.0 ** generator.integers(-2, 4)
        if trial % 3 == 1:
            scores = np.round(scores)  # with equals
        if trial % 3 == 2:
            scores[:, 0] += 50 * np.abs(scores).max()  # every word wants to be the root
        found = best_tree(scores.astype(np.float32))
        assert _is_tree_by_walking(tuple(found.tolist())), (scores, found)
        best = max(scores[places, list(heads)].sum() for heads in trees)
        assert _total(scores, found) == pytest.approx(best, rel=1e-5, abs=1e-4), (scores, found)


def test_cycles_inside_cycles_are_unpacked():
    """Pairs that choose each other, then pairs of pairs: the tree goes through all of them."""
    size = 32
    scores = np.zeros((size, size + 1))
    for word in range(size):
        for level in range(5):
            scores[word, (word ^ (1 << level)) + 1] = 100 - 10 * level
    scores[:, 0] = np.arange(size) / 1000
    found = best_tree(scores)
    assert is_tree(found.tolist()) and found[31] == 0
    # 16 arcs inside pairs, 8 between them, 4, 2, 1, and the root
    assert _total(scores, found) == pytest.approx(16 * 100 + 8 * 90 + 4 * 80 + 2 * 70 + 60 + 0.031)


def test_a_tree_that_stands_is_left_alone_and_long_sentences_take_no_time():
    generator = np.random.default_rng(0)
    heads = np.array([0] + [generator.integers(1, word + 1) for word in range(1, 200)])
    scores = generator.normal(size=(200, 201))
    scores[np.arange(200), heads] += 20
    assert best_tree(scores).tolist() == heads.tolist()
    worst = generator.normal(size=(200, 201))
    assert is_tree(best_tree(worst).tolist())
    assert best_tree(np.zeros((0, 1))).tolist() == []
