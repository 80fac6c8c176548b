"""How well K Bernoulli patches can stand for more than K known ones: an upper bound of a mixture head's floor.

The best mixture of K components for n patches with known chances is a clustering that no one solves exactly. Found here
is the best of a few: groups are put together two at a time, those first whose union costs least, or begun anew around
patches drawn at random; EM then moves the components until nothing is gained. What comes out can be reached by a head,
so it bounds the floor from above; the entropy of the patches bounds it from below.
"""

import numpy as np
from numpy.typing import NDArray

_RESTARTS = 4
_ROUNDS = 200  # of EM, at most
_GAIN = 1e-7  # bits, below which EM stops
_LEAST = 1e-9  # of a pixel's chance: no component is so sure that it cannot take another patch


def mixture_bits(ink_NA: NDArray[np.bool_], shares_N: NDArray[np.float64], components: int) -> float:
    """Bits of a patch under the best mixture that was found; exact, their entropy, for at most K patches.

    ink_NA: distinct patches; shares_N: how likely each is, sum 1.
    """
    entropy = float(-(shares_N * np.log2(shares_N)).sum())
    if len(shares_N) <= components:
        return entropy
    starts = [_merged(ink_NA, shares_N, components)]
    rng = np.random.default_rng(len(shares_N))
    for _ in range(_RESTARTS):
        chosen = rng.choice(len(shares_N), components, replace=False, p=shares_N)
        starts.append((ink_NA[:, None] != ink_NA[chosen][None]).sum(2).argmin(1))
    ink = ink_NA.astype(np.float64)
    return max(entropy, min(_fitted(ink, shares_N, np.unique(groups, return_inverse=True)[1]) for groups in starts))


def _merged(ink_NA: NDArray[np.bool_], shares_N: NDArray[np.float64], components: int) -> NDArray[np.int64]:
    """The group of each patch, groups put together two at a time."""
    shares, sums = list(shares_N), list(ink_NA * shares_N[:, None])
    members = [[i] for i in range(len(shares_N))]
    costs = [_cost(share, ink) for share, ink in zip(shares, sums, strict=True)]
    while len(members) > components:
        inks = np.array(sums)
        weights = np.array(shares)
        best = (np.inf, 0, 0)
        for i in range(len(members) - 1):
            together = _costs(weights[i] + weights[i + 1 :], inks[i] + inks[i + 1 :])
            added = together - costs[i] - np.array(costs[i + 1 :])
            j = int(added.argmin())
            best = min(best, (float(added[j]), i, i + 1 + j))
        _, i, j = best
        members[i] += members.pop(j)
        shares[i] += shares.pop(j)
        sums[i] = sums[i] + sums.pop(j)
        costs.pop(j)
        costs[i] = _cost(shares[i], sums[i])
    groups = np.zeros(len(shares_N), np.int64)
    for group, found in enumerate(members):
        groups[found] = group
    return groups


def _cost(share: float, ink_A: NDArray[np.float64]) -> float:
    return float(_costs(np.array([share]), ink_A[None])[0])


def _costs(shares_G: NDArray[np.float64], inks_GA: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected bits that groups contribute: which group, and the pixels in it. inks: sums weighted by the shares."""
    ink = np.clip(inks_GA / shares_G[:, None], 1e-300, 1.0)
    paper = np.clip(1 - inks_GA / shares_G[:, None], 1e-300, 1.0)
    pixels = -(ink * np.log2(ink) + paper * np.log2(paper)).sum(1)
    return shares_G * (pixels - np.log2(shares_G))


def _fitted(ink_NA: NDArray[np.float64], shares_N: NDArray[np.float64], groups_N: NDArray[np.int64]) -> float:
    """Bits after EM from these groups."""
    belongs_NK = np.eye(groups_N.max() + 1)[groups_N]
    bits = np.inf
    for _ in range(_ROUNDS):
        weighted_NK = belongs_NK * shares_N[:, None]
        weight_K = np.maximum(weighted_NK.sum(0), 1e-300)
        chance_KA = np.clip((weighted_NK.T @ ink_NA) / weight_K[:, None], _LEAST, 1 - _LEAST)
        log_NK = ink_NA @ np.log(chance_KA).T + (1 - ink_NA) @ np.log1p(-chance_KA).T + np.log(weight_K)
        top_N1 = log_NK.max(1, keepdims=True)
        each_NK = np.exp(log_NK - top_N1)
        total_N1 = each_NK.sum(1, keepdims=True)
        now = float(-(shares_N * (np.log(total_N1) + top_N1)[:, 0]).sum() / np.log(2))
        if now > bits - _GAIN:
            return min(bits, now)
        bits = now
        belongs_NK = each_NK / total_N1
    return bits
