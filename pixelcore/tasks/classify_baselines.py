"""Classifiers without a neural network: what a model that claims to read must beat.

The most frequent label needs no text at all. Logistic regression on n-grams of one to five characters knows words,
endings and names, and for texts of a known topic that is most of what there is to know. The same on nothing but Latin
letters and digits shows how much of a text in another script is given away by what it shares with all languages:
names, numbers, units.

An n-gram that at least two training texts have counts as 1 + ln(how often), times how rare it is among these texts; the
vector of a text has length 1. L-BFGS goes from zero towards the weights that minimise the loss plus `_DECAY` times half
their squares: a convex problem, so there is no seed.
Source of the weighting: Salton and Buckley, Information Processing and Management 24, 1988.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pixelcore.tasks.examples import TextExample

_LONGEST = 5
_DECAY = 0.03
_STEPS = 50
_MOST_TEXTS = 20_000  # of training, evenly taken: more would take hours and change little
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: spreads over all bits


def predictions(train: Sequence[TextExample], test: Sequence[TextExample]) -> dict[str, list[str] | list[float]]:
    """For each baseline a label for every test example, learned from the training examples."""
    if len(train) > _MOST_TEXTS:
        train = [train[place * len(train) // _MOST_TEXTS] for place in range(_MOST_TEXTS)]
    named = [example.label for example in train]
    if isinstance(named[0], float):
        numbers = [float(label or 0.0) for label in named]
        trivial = {"mean": [float(np.mean(numbers))] * len(test)}
    else:
        often = Counter(map(str, named))
        # of equals the first by name, so that the order of the file does not matter
        trivial = {"majority": [min(often, key=lambda name: (-often[name], name))] * len(test)}
    return trivial | {
        "characters": _learned(train, test, lambda text: text),
        "digits and Latin": _learned(train, test, _latin),
    }


def _latin(text: str) -> str:
    """What of a text is Latin letters without marks, and digits; a space for each stretch of others."""
    kept = "".join(char if char.isascii() and char.isalnum() else " " for char in text)
    return " ".join(kept.split())


def _learned(
    train: Sequence[TextExample], test: Sequence[TextExample], seen: Callable[[str], str]
) -> list[str] | list[float]:
    grams = [_grams(example, seen) for example in (*train, *test)]
    bags = _Bags.weighted(grams, len(train))
    labels = [example.label for example in train]
    if isinstance(labels[0], float):
        numbers = torch.tensor([float(label or 0.0) for label in labels])
        middle = numbers.mean()
        logits_N1 = _fitted(bags, len(train), (numbers - middle)[:, None], 1)
        return (logits_N1[:, 0] + middle).tolist()
    names = sorted({str(label) for label in labels})
    if len(names) == 1:
        return [names[0]] * len(test)
    targets_N = torch.tensor([names.index(str(label)) for label in labels])
    return [names[place] for place in _fitted(bags, len(train), targets_N, len(names)).argmax(1).tolist()]


class _Bags:
    """Sparse rows: places [E] of the entries among the features, weights [E], and where each row begins [N]."""

    def __init__(self, places: NDArray[np.int64], weights: NDArray[np.float32], sizes: NDArray[np.int64]) -> None:
        self.places, self.weights = torch.from_numpy(places), torch.from_numpy(weights)
        self.ends = [0, *np.cumsum(sizes).tolist()]
        self.num_features = int(places.max(initial=0)) + 1

    @staticmethod
    def weighted(grams: Sequence[NDArray[np.uint64]], num_train: int) -> "_Bags":
        """Rows of what the first `num_train` texts hold; n-grams that only others hold are left out."""
        known, in_texts = np.unique(np.concatenate([np.unique(row) for row in grams[:num_train]]), return_counts=True)
        known = known[in_texts > 1] if num_train > 1 else known
        rows = []
        for row in grams:
            found, times = np.unique(row, return_counts=True)
            place = np.minimum(np.searchsorted(known, found), len(known) - 1)
            there = known[place] == found if len(known) else np.zeros(0, bool)
            rows.append((place[there], times[there]))
        spread = np.bincount(np.concatenate([place for place, _ in rows[:num_train]]), minlength=len(known))
        rarity = np.log((1 + num_train) / (1 + spread)) + 1
        weights = []
        for place, times in rows:
            weight = (1 + np.log(times)) * rarity[place]
            weights.append((weight / max(np.sqrt((weight**2).sum()), 1e-12)).astype(np.float32))
        places = np.concatenate([place for place, _ in rows]).astype(np.int64)
        return _Bags(places, np.concatenate(weights), np.array([len(weight) for weight in weights]))

    def times(self, weight_FO: Tensor, first: int, last: int) -> Tensor:
        """[rows, O]: the product of rows first to last - 1 and a matrix of the features."""
        begin, end = self.ends[first], self.ends[last]
        offsets = torch.tensor(self.ends[first:last]) - begin
        return F.embedding_bag(
            self.places[begin:end], weight_FO, offsets, mode="sum", per_sample_weights=self.weights[begin:end]
        )


def _fitted(bags: _Bags, num_train: int, targets: Tensor, num_outputs: int) -> Tensor:
    """The logits of the rows behind the first `num_train`, whose targets are learned: int64 [N] labels, or float
    [N, 1]."""
    weight_FO = torch.zeros(bags.num_features, num_outputs, requires_grad=True)
    bias_O = torch.zeros(num_outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_FO, bias_O], max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits_NO = bags.times(weight_FO, 0, num_train) + bias_O
        if targets.is_floating_point():
            total = (logits_NO - targets).square().sum() / 2
        else:
            total = F.cross_entropy(logits_NO, targets, reduction="sum")
        total = total + _DECAY / 2 * weight_FO.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        return bags.times(weight_FO, num_train, len(bags.ends) - 1) + bias_O


def _grams(example: TextExample, seen: Callable[[str], str]) -> NDArray[np.uint64]:
    """All n-grams of an example as numbers; those of the second text of a pair are others than those of the first."""
    found = []
    for part, text in enumerate((example.text, example.second or "")):
        encoded = f" {seen(text).lower()} ".encode("utf-32-le", "surrogatepass")
        codes = np.frombuffer(encoded, np.uint32).astype(np.uint64)
        number = np.full(len(codes), part + 1, np.uint64) * _MULTIPLIER
        for length in range(1, min(_LONGEST, len(codes)) + 1):
            # each n-gram from the one that is shorter by its last character; 64 bits leave no two alike by chance
            number = (number[: len(codes) - length + 1] ^ codes[length - 1 :]) * _MULTIPLIER
            number ^= number >> np.uint64(29)
            found.append(number)
    return np.concatenate(found)
