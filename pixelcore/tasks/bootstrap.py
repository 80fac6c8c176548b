"""How far a figure can be from what it would be on other examples, and whether two sets of runs really differ.

Both questions are answered by drawing with replacement from what there is (Efron, Annals of Statistics 7, 1979). For
one set of predictions the examples are drawn. For a difference there are two reasons why it may be chance: the examples
of the test set, which are the same for both sides and so are drawn once for both, and the seeds of training, which are
drawn for each side on its own. With one run a side, the interval says nothing of seeds. With few seeds it is somewhat
too narrow, because drawing from n values shows (n - 1) / n of their variance.

Most figures are functions of sums of counts, so a draw is the product of a vector, how often each example was drawn,
and a matrix of counts; nothing is scored again. A figure that is no such function, as a correlation of ranks, gets the
columns themselves and that vector (`Sums.each`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelcore.errors import UserError

Counts = Mapping[str, NDArray[Any]]

DRAWS = 2000
_AT_ONCE = 250  # draws held in memory


class Sums(Mapping[str, NDArray[Any]]):
    """Sums of counts over examples, by name, and the counts behind them.

    columns: [N], or [N, R] of R runs. times: [D, N], how often each example is taken in each of D draws; without it
    each once, and sums have no axis of draws.
    """

    def __init__(self, columns: Counts, times: NDArray[Any] | None = None) -> None:
        self.columns, self._times = columns, times

    def __getitem__(self, name: str) -> NDArray[Any]:
        column = self.columns[name]
        return column.sum(0) if self._times is None else self._times @ column

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def each(self, figure: Callable[..., NDArray[Any]], *names: str) -> NDArray[Any]:
        """A figure of whole columns, shaped like the sums. figure: [D] of times [D, N] and the named columns [N]."""
        chosen = [self.columns[name] for name in names]
        times = np.ones((1, len(chosen[0]))) if self._times is None else self._times
        if chosen[0].ndim == 1:
            found = figure(times, *chosen)
        else:
            found = np.stack([figure(times, *of_run) for of_run in zip(*(column.T for column in chosen))], 1)
        return found[0] if self._times is None else found


Figures = Callable[[Sums], Mapping[str, NDArray[Any]]]


def intervals(counts: Counts, figures: Figures, *, seed: int = 0, draws: int = DRAWS) -> dict[str, tuple[float, float]]:
    """95 % intervals of all figures over the examples. counts: [examples] by name."""
    _, size = _shape([counts])
    found: dict[str, list[NDArray[Any]]] = {}
    for times in _drawn_examples(size, seed, draws):
        for name, values in figures(Sums(counts, times)).items():
            found.setdefault(name, []).append(np.broadcast_to(values, len(times)))
    return {name: _middle_95(np.concatenate(values)) for name, values in found.items()}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean figure of one set of runs minus that of another, its 95 % interval, and the share of draws in which it
    was not positive. seeds: runs on each side."""

    difference: float
    low: float
    high: float
    share_not_positive: float
    seeds: tuple[int, int]
    examples: int


def differences(
    ours: Sequence[Counts], theirs: Sequence[Counts], figures: Figures, *, seed: int = 0, draws: int = DRAWS
) -> dict[str, Difference]:
    """How much better each figure is in our runs than in theirs, all of the same test examples.

    ours, theirs: for each run its counts [examples] by name. Raises UserError where the examples are not as many.
    """
    names, size = _shape([*ours, *theirs])
    sides = [{key: np.stack([run[key] for run in runs], 1) for key in names} for runs in (ours, theirs)]
    generator = np.random.default_rng([seed, 1])
    whole = [figures(Sums(side, np.ones((1, size)))) for side in sides]
    means = {name: [float(np.mean(side[name])) for side in whole] for name in whole[0]}
    drawn: dict[str, list[NDArray[Any]]] = {name: [] for name in means}
    for times in _drawn_examples(size, seed, draws):
        of_sides = []
        for side, run_counts in zip(sides, (len(ours), len(theirs)), strict=True):
            runs_DR = generator.integers(run_counts, size=(len(times), run_counts))
            values = figures(Sums(side, times))
            of_sides.append({name: np.take_along_axis(np.asarray(values[name]), runs_DR, 1).mean(1) for name in means})
        for name, found in drawn.items():
            found.append(of_sides[0][name] - of_sides[1][name])
    result = {}
    for name, (one, other) in means.items():
        values = np.concatenate(drawn[name])
        low, high = _middle_95(values)
        result[name] = Difference(
            difference=one - other,
            low=low,
            high=high,
            share_not_positive=float((values <= 0).mean()),
            seeds=(len(ours), len(theirs)),
            examples=size,
        )
    return result


def _drawn_examples(size: int, seed: int, draws: int) -> Iterator[NDArray[np.float64]]:
    """How often each example is drawn: float64 [at most _AT_ONCE, size], `draws` rows in all."""
    generator = np.random.default_rng([seed, 0])
    even = np.full(size, 1 / size)
    for first in range(0, draws, _AT_ONCE):
        yield generator.multinomial(size, even, min(_AT_ONCE, draws - first)).astype(np.float64)


def _middle_95(values: NDArray[Any]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _shape(runs: Sequence[Counts]) -> tuple[list[str], int]:
    names = sorted(runs[0])
    sizes = {len(column) for run in runs for column in run.values()}
    if any(sorted(run) != names for run in runs) or len(sizes) != 1:
        raise UserError(
            f"predictions of {' and '.join(map(str, sorted(sizes)))} examples, scored by {', '.join(names)}: only runs "
            "of the same task on the same file can be compared"
        )
    return names, sizes.pop()
