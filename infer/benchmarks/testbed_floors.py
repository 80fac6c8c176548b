"""What the best of all models would reach on a world: exact bits per patch, and the floor of each kind of head.

With each sentence on a patch edge, a text of a world is a string of patches whose next one is exactly known. The
sentences that may follow form a tree of patches; below a patch stand those that may come after it, each as likely as
the sentences that pass through it. Of such a tree follow, without a model,

    truth       E[-log2 p(next patch | past)]: what a model that knows the world has
    bernoulli   E[sum over pixels of H2(p(ink of this pixel | past))]: the best that pixels which are independent given
                the past can have. Two patches equally likely that differ in d pixels cost d bits instead of one
    mixture K   a head of K components. Where at most K patches may follow, each has a component, and the floor is the
                truth. Elsewhere the patches must share, and what is given is the best of several attempts: the patches
                put together to K groups, then EM. It lies above the floor, and the truth below it

All are sums of bits over the patches of a text, the end patch included and the first one too, which a start vector
foretells; divided by the expected number of patches they are bits per patch. They are averages over all texts where a
world has few summaries of its past, else over a sample, with its standard error.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer.benchmarks.testbed_drawing import Drawing, Tree
from infer.benchmarks.testbed_mixture import mixture_bits
from infer.benchmarks.testbed_worlds import Chances


@dataclass(frozen=True)
class Bits:
    """Expected bits of what comes next, or of a whole text. patches: how many; open: those where more than one patch
    may follow; mixtures: by number of components."""

    patches: float
    open: float
    truth: float
    bernoulli: float
    mixtures: Mapping[int, float]

    def vector(self) -> NDArray[np.float64]:
        """The same numbers in a row, for sums."""
        return np.array([self.patches, self.open, self.truth, self.bernoulli, *self.mixtures.values()])


class PatchCosts:
    """Bits of what follows a past, tree by tree. components: of the mixtures that are asked for."""

    def __init__(self, components: Sequence[int]) -> None:
        self.components = tuple(components)
        self._mixtures: dict[Hashable, float] = {}

    def of(self, tree: Tree, chances: Chances) -> Bits:
        """Expected bits of one sentence with these chances, patch by patch."""
        mass_E = tree.masses(chances)
        mass_N = tree.nodes(mass_E)
        live = np.flatnonzero(mass_E)
        share_E = mass_E[live] / mass_N[tree.parent_E[live]]
        open_N = np.flatnonzero(np.bincount(tree.parent_E[live]) > 1)
        bernoulli, mixtures = 0.0, dict.fromkeys(self.components, 0.0)
        for node in open_N.tolist():
            here = tree.parent_E[live] == node
            ink_NA, shares = tree.ink_EA[live[here]], share_E[here]
            bernoulli += mass_N[node] * float(entropy(shares @ ink_NA).sum())
            for count in self.components:
                mixtures[count] += mass_N[node] * self._mixture(ink_NA, shares, count)
        return Bits(
            patches=float(mass_E.sum()),
            open=float(mass_N[open_N].sum()),
            truth=float(-(mass_E[live] * np.log2(share_E)).sum()),
            bernoulli=bernoulli,
            mixtures=mixtures,
        )

    def _mixture(self, ink_NA: NDArray[np.bool_], shares_N: NDArray[np.float64], components: int) -> float:
        key = ink_NA.tobytes(), tuple(shares_N.round(9).tolist()), components
        if key not in self._mixtures:
            self._mixtures[key] = mixture_bits(ink_NA, shares_N, components)
        return self._mixtures[key]


def entropy(chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits of a pixel that is ink with this chance."""
    inside = np.clip(chance, 1e-300, 1.0)
    outside = np.clip(1 - chance, 1e-300, 1.0)
    return -(chance * np.log2(inside) + (1 - chance) * np.log2(outside))


@dataclass(frozen=True)
class Floors:
    """Bits per patch of a world. patches: of a text on average; open: the share of them where more than one patch may
    follow. errors: standard errors of truth, bernoulli and mixtures, empty where the averages are exact. texts: how
    many they were taken over, 0 for all. mixtures: by number of components; bounds: those that are upper bounds."""

    patches: float
    open: float
    truth: float
    bernoulli: float
    mixtures: Mapping[int, float]
    bounds: tuple[int, ...]
    errors: tuple[float, ...]
    texts: int


class FloorMaker:
    """Works out floors; what was worked out for one past serves all that have the same continuations."""

    def __init__(self, drawing: Drawing, components: Sequence[int] = ()) -> None:
        self.drawing, self.world, self.components = drawing, drawing.world, tuple(components)
        self._costs = PatchCosts(components)
        self._known: dict[Hashable, Bits] = {}

    def floors(self, texts: int = 500, seed: int = 0, most_pasts: int = 3000) -> Floors:
        """Over all texts, or, of a world with more different pasts of a length than that, over so many texts."""
        exact = self._over_all(most_pasts)
        if exact is not None:
            return self._as_floors(exact, (), 0)
        rows = []
        for sentences in self.world.draw_many(texts, seed):
            rows.append(sum(self.bits(sentences[:place]).vector() for place in range(len(self.world.kinds))))
        rows_TX = np.array(rows)
        mean = rows_TX.mean(0)
        # of a ratio of two averages, by its first derivatives
        ratio = mean[2:] / mean[0]
        spread = (rows_TX[:, 2:] - ratio * rows_TX[:, :1]).std(0, ddof=1) / mean[0] / math.sqrt(texts)
        return self._as_floors(mean, tuple(spread.tolist()), texts)

    def bits(self, before: Sequence[str]) -> Bits:
        """Of the sentence after these."""
        place, chances = len(before), self.world.next(before)
        key = place == 0, place == len(self.world.kinds) - 1, frozenset(chances.items())
        if key not in self._known:
            self._known[key] = self._costs.of(self.drawing.tree(place), chances)
        return self._known[key]

    def _as_floors(self, mean: NDArray[np.float64], errors: tuple[float, ...], texts: int) -> Floors:
        rates = (mean[2:] / mean[0]).tolist()
        mixtures = dict(zip(self.components, rates[2:], strict=True))
        bounds = tuple(count for count, rate in mixtures.items() if rate > rates[0] + 1e-9)
        return Floors(
            patches=float(mean[0]),
            open=float(mean[1] / mean[0]),
            truth=rates[0],
            bernoulli=rates[1],
            mixtures=mixtures,
            bounds=bounds,
            errors=errors,
            texts=texts,
        )

    def _over_all(self, most_pasts: int) -> NDArray[np.float64] | None:
        """Sums of a text averaged over all texts, summary by summary; None where there are too many."""
        ways: dict[Hashable, tuple[float, list[str]]] = {self.world.summary([]): (1.0, [])}
        total = np.zeros(4 + len(self.components))
        for _ in self.world.kinds:
            following: dict[Hashable, tuple[float, list[str]]] = {}
            for chance, said in ways.values():
                total = total + chance * self.bits(said).vector()
                for sentence, share in self.world.next(said).items():
                    longer = [*said, sentence]
                    key = self.world.summary(longer)
                    had = following.get(key, (0.0, longer))
                    following[key] = (had[0] + chance * share, had[1])
                    if len(following) > most_pasts:
                        return None
            ways = following
        return total


def floors_as_text(floors: Floors) -> str:
    """The floors for people."""
    over = "all texts" if not floors.texts else f"{floors.texts:,} texts"
    lines = [
        f"floors over {over}: {floors.patches:.1f} patches a text, {100 * floors.open:.1f} % of them open",
        f"  truth                         {floors.truth:8.4f}{_error(floors, 0)} bits a patch",
        f"  independent pixels            {floors.bernoulli:8.4f}{_error(floors, 1)}",
    ]
    for place, (count, bits) in enumerate(floors.mixtures.items()):
        bound = " at most" if count in floors.bounds else "        "
        lines.append(f"  mixture of {count:<3}       {bound}    {bits:8.4f}{_error(floors, 2 + place)}")
    return "\n".join(lines)


def _error(floors: Floors, place: int) -> str:
    return f" +- {floors.errors[place]:.4f}" if floors.errors else ""
