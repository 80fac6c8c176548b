"""All patches that some text draws, as ways through a lattice, and what a head says of them.

An automaton reads the columns of a patch from left to right, with one way for each drawing. The lattice is that
automaton unrolled over the columns of one patch, from one state on, with two numbers for each place and each component
of the head: the sum of the probabilities of all ways to it, and the likeliest of them.

    sum      of the last column: the probability of all patches that can be drawn. Going back from there, each of them
             is drawn as often as the head has it (forward filtering, backward sampling)
    likeliest  bounds what a patch can still become, seen from its right end: no more than the likeliest ways of all
             components together, no less than any one of these ways. Ends that can no longer become one of the patches
             asked for are given up (branch and bound), and what is found is the likeliest patches, in order

Most places are so unlikely that no patch that matters goes through them. They are left out, and what they would have
added at most is counted. Where that could change the sum, or the order of the patches asked for, the lattice is built
again with more places, in the end with all.
"""

import math
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from infer.legal_said import Said

_SHARES = (1e-9, 1e-30, 0.0)  # of all probability of a column, below which its places are left out: one after another
_EXACT = 1e-6  # share of the sum that may be missing
_WIDEST = 1 << 15  # ends of patches kept side by side; only a head that knows nothing finds more of them promising


class Automaton(Protocol):
    """Reads columns. States and symbols, the drawings of a column, are numbers."""

    @property
    def symbols(self) -> NDArray[np.bool_]:
        """[S, Y], True = ink, of the symbols so far."""
        ...

    def arcs(self, states_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """[E] each: place in `states`, symbol and next state of all ways on; those of a state differ in symbol."""
        ...


class Way(NamedTuple):
    """A patch: its columns as symbols, the state behind them, and its log-probability in nats."""

    symbols: list[int]
    state: int
    log_probability: float


class _Ends(NamedTuple):
    """Right ends of patches, from some column on. node: [K], their places in it; behind: [K, Z], nats of what is known.
    origin: [K], index of the end, shorter by a column, that each was made from; symbol: [K], of that column."""

    node: NDArray[np.int64]
    behind: NDArray[np.float64]
    origin: NDArray[np.int64]
    symbol: NDArray[np.int64]


class _Column(NamedTuple):
    """The places behind some columns: those that were kept, and the arcs that lead to them.

    state: [N]. sum: [N, Z], in units of exp(unit), [Z]. likeliest: [N, Z, Z], nats: of the likeliest way of each
    component (the first Z), what each component gives it. source, symbol: [E], of arcs: place in the column before, and
    what is drawn; to place n lead those from begin[n] to end[n].
    """

    state: NDArray[np.int64]
    sum: NDArray[np.float64]
    unit: NDArray[np.float64]
    likeliest: NDArray[np.float64]
    source: NDArray[np.int64]
    symbol: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]


class Lattice:
    """The patches of `width` columns that an automaton reads from a state on, under a head."""

    def __init__(self, automaton: Automaton, state: int, said: Said, width: int) -> None:
        self._automaton, self._state, self._said, self._width = automaton, state, said, width
        self._shares = iter(_SHARES)
        self._share = math.inf
        self._build()
        while self._share and not self._log_left_out <= self.log_mass + math.log(_EXACT):
            self._build()

    # ---- forward -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """All columns, with the next smaller share of places left out."""
        self._share = next(self._shares)
        self._log_left_out = -math.inf
        zeros_Z, none = np.zeros_like(self._said.log_weights), np.zeros(0, np.int64)
        zeros_1ZZ = np.zeros((1, len(zeros_Z), len(zeros_Z)))
        start = _Column(np.array([self._state]), np.ones((1, len(zeros_Z))), zeros_Z, zeros_1ZZ, none, none, none, none)
        self._columns = [start]
        self._scores: list[NDArray[np.float64]] = []
        for place in range(self._width):
            self._columns.append(self._next(self._columns[-1], place))
        last = self._columns[-1]
        self.log_mass = _log_sum(self._said.log_weights + last.unit, last.sum.sum(0)) if len(last.state) else -math.inf

    def _next(self, before: _Column, place: int) -> _Column:
        source, symbol, state = self._automaton.arcs(before.state)
        order = np.argsort(state, kind="stable")
        source, symbol, state = source[order], symbol[order], state[order]
        score_SZ = self._said.column(place, self._automaton.symbols)
        self._scores.append(score_SZ)
        begin = np.flatnonzero(np.diff(state, prepend=-1))
        if not len(begin):
            return _Column(state, before.sum[:0], before.unit, before.likeliest[:0], source, symbol, begin, begin)
        # the likeliest symbol of a component is its unit, so that nothing gets too small for a float by being unlikely
        best_Z = score_SZ[symbol].max(0)
        added_EZ = before.sum[source] * np.exp(score_SZ[symbol] - best_Z)
        sum_NZ, unit_Z = np.add.reduceat(added_EZ, begin), before.unit + best_Z
        peak_Z = sum_NZ.max(0)
        peak_Z[peak_Z == 0] = 1
        sum_NZ, unit_Z = sum_NZ / peak_Z, unit_Z + np.log(peak_Z)
        end = np.append(begin[1:], len(state))
        kept = self._kept(sum_NZ, unit_Z)
        likeliest = _likeliest(before, score_SZ, source, symbol, begin, end)[kept]
        return _Column(state[begin[kept]], sum_NZ[kept], unit_Z, likeliest, source, symbol, begin[kept], end[kept])

    def _kept(self, sum_NZ: NDArray[np.float64], unit_Z: NDArray[np.float64]) -> NDArray[np.int64]:
        """The places that are worth keeping; the probability of the others is counted as left out."""
        weight_Z = self._said.log_weights + unit_Z
        highest = float(weight_Z.max())
        total_N = sum_NZ @ np.exp(weight_Z - highest)
        is_kept_N = total_N >= self._share * total_N.sum()
        left_out = float(total_N[~is_kept_N].sum())
        if left_out:
            self._log_left_out = float(np.logaddexp(self._log_left_out, highest + math.log(left_out)))
        return np.flatnonzero(is_kept_N)

    # ---- backward ----------------------------------------------------------------------------------------------------

    def best(self, count: int) -> list[Way]:
        """The likeliest patches, the very likeliest first; fewer where there are no more."""
        found = self._search(count)
        while self._share and (len(found) < count or found[-1].log_probability < self._log_left_out):
            self._build()
            found = self._search(count)
        return found

    def _search(self, count: int) -> list[Way]:
        last = self._columns[-1]
        none = np.zeros(len(last.state), np.int64)
        ends = _Ends(np.arange(len(none)), np.zeros((len(none), len(self._said.log_weights))), none, none)
        stages = [self._promising(ends, last, count)]
        for place in range(self._width, 0, -1):
            column, ends, score_SZ = self._columns[place], stages[-1], self._scores[place - 1]
            counts = column.end[ends.node] - column.begin[ends.node]
            origin = np.repeat(np.arange(len(counts)), counts)
            arc = np.arange(len(origin)) - (counts.cumsum() - counts - column.begin[ends.node])[origin]
            symbol = column.symbol[arc]
            ends = _Ends(column.source[arc], ends.behind[origin] + score_SZ[symbol], origin, symbol)
            stages.append(self._promising(ends, self._columns[place - 1], count))
        log_K = np.logaddexp.reduce(self._said.log_weights + stages[-1].behind, axis=1)
        return [self._way(stages, end, float(log_K[end])) for end in np.argsort(-log_K, kind="stable")[:count].tolist()]

    def _promising(self, ends: _Ends, column: _Column, count: int) -> _Ends:
        """The ends that may still become one of the `count` likeliest patches."""
        weight_Z, likeliest_KZZ = self._said.log_weights, column.likeliest[ends.node]
        most_K = np.logaddexp.reduce(weight_Z + np.diagonal(likeliest_KZZ, 0, 1, 2) + ends.behind, axis=1)
        if len(most_K) <= count:
            return ends
        least_K = np.logaddexp.reduce(weight_Z + likeliest_KZZ + ends.behind[:, None], axis=2).max(1)
        needed = np.partition(least_K, -count)[-count]
        # rounding must not part an end from its own bound
        promising = np.flatnonzero(most_K >= needed - 1e-9)
        if len(promising) > _WIDEST:
            promising = np.sort(np.argsort(-least_K, kind="stable")[:_WIDEST])
        return _Ends(ends.node[promising], ends.behind[promising], ends.origin[promising], ends.symbol[promising])

    def _way(self, stages: list[_Ends], end: int, log_probability: float) -> Way:
        symbols = []
        for ends in stages[:0:-1]:
            symbols.append(int(ends.symbol[end]))
            end = int(ends.origin[end])
        return Way(symbols, int(self._columns[-1].state[stages[0].node[end]]), log_probability)

    def draw(self, random: np.random.Generator) -> Way:
        """One patch, each as often as the head has it among those that can be drawn."""
        last = self._columns[-1]
        weight_Z = self._said.log_weights + last.unit
        share_NZ = last.sum * np.exp(weight_Z - weight_Z.max())
        node, component = divmod(_chosen(share_NZ.ravel(), random), len(weight_Z))
        state, symbols = int(last.state[node]), []
        behind_Z = np.zeros_like(weight_Z)
        for place in range(self._width, 0, -1):
            column, before, score_SZ = self._columns[place], self._columns[place - 1], self._scores[place - 1]
            arcs = slice(column.begin[node], column.end[node])
            source, symbol = column.source[arcs], column.symbol[arcs]
            score_E = score_SZ[symbol, component]
            arc = _chosen(before.sum[source, component] * np.exp(score_E - score_E.max()), random)
            symbols.append(int(symbol[arc]))
            behind_Z = behind_Z + score_SZ[symbols[-1]]
            node = int(source[arc])
        return Way(symbols[::-1], state, float(np.logaddexp.reduce(self._said.log_weights + behind_Z)))


def _likeliest(
    before: _Column,
    score_SZ: NDArray[np.float64],
    source: NDArray[np.int64],
    symbol: NDArray[np.int64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
) -> NDArray[np.float64]:
    """[N, Z, Z]: `_Column.likeliest` of the next column; arcs as there."""
    log_EZ = np.diagonal(before.likeliest, 0, 1, 2)[source] + score_SZ[symbol]
    largest_NZ = np.maximum.reduceat(log_EZ, begin)
    is_largest_EZ = log_EZ == np.repeat(largest_NZ, end - begin, axis=0)
    arc_NZ = np.minimum.reduceat(np.where(is_largest_EZ, np.arange(len(source))[:, None], len(source)), begin)
    component_Z = np.arange(score_SZ.shape[1])
    return before.likeliest[source[arc_NZ], component_Z] + score_SZ[symbol[arc_NZ]]


def _log_sum(log_Z: NDArray[np.float64], factor_Z: NDArray[np.float64]) -> float:
    """log of the sum of exp(log) * factor, some factors zero."""
    highest = float(log_Z.max())
    total = float(np.exp(log_Z - highest) @ factor_Z)
    return highest + math.log(total) if total else -math.inf


def _chosen(share_N: NDArray[np.float64], random: np.random.Generator) -> int:
    """An index, each in proportion to its share."""
    cumulative_N = share_N.cumsum()
    return int(np.searchsorted(cumulative_N, random.random() * cumulative_N[-1], side="right"))
