"""The best tree over the words of a sentence: one root, every word below it.

A parser scores each pair of a word and a possible head. The best head of each word by itself is a tree only by luck:
two words may choose each other, and several the root. The best tree is found by repairing the choice (Chu and Liu 1965;
Edmonds 1967): take the best head of each node; while there is a cycle, make one node of it. An arc that enters the
cycle from outside breaks it at one of its nodes, so it is worth its score less that of the arc it replaces; an arc that
leaves the cycle is worth its score. When no cycle is left, the nodes are unpacked again, the last one first.

That one word alone hangs on the root is a rule of Universal Dependencies and none of the algorithm. All arcs from the
root are made worse by more than any other choice could gain: what is left of the root's arcs is the fewest there can
be, one, and among trees with one the order is as before (Stanojevic and Cohen, EMNLP 2021, arXiv:2109.06024).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def best_tree(scores_WU: NDArray[np.floating]) -> NDArray[np.int64]:
    """int64 [W], the head of each word in the tree of largest sum: 0 the root, which is the head of one word alone, and
    word j is j + 1. scores_WU: [W, W + 1], finite, of each word every head; that of a word as its own head counts not.
    """
    num_words = len(scores_WU)
    scores_NN = np.full((num_words + 1, num_words + 1), -np.inf)  # of each node, its possible heads
    scores_NN[1:] = scores_WU
    np.fill_diagonal(scores_NN, -np.inf)
    arcs_WU = scores_NN[1:][np.isfinite(scores_NN[1:])]
    if num_words:
        scores_NN[1:, 0] -= 1 + num_words * (arcs_WU.max() - arcs_WU.min())
    joined: list[_Joined] = []
    heads_N = _best_heads(scores_NN)
    while (cycle := _cycle(heads_N)) is not None:
        scores_NN, step = _join(scores_NN, heads_N, cycle)
        joined.append(step)
        heads_N = _best_heads(scores_NN)
    for step in reversed(joined):
        heads_N = _unpack(heads_N, step)
    return heads_N[1:]


def is_tree(heads: Sequence[int | None]) -> bool:
    """Whether the heads of the words of a sentence, 0 the root, are a tree with one root. None is the head of a word
    that has none."""
    if any(head is None or head > len(heads) for head in heads) or list(heads).count(0) != 1:
        return False
    return _cycle(np.array([0, *heads])) is None


@dataclass(frozen=True)
class _Joined:
    """A cycle of which one node was made, the last. outside: the nodes that stay, by their old numbers. inside: those
    of the cycle, and their heads in it. entered: of each node outside, as the head of the cycle, which of `inside` is
    below it. left: of each node outside, as a child of the cycle, which of `inside` is above it."""

    outside: NDArray[np.int64]
    inside: NDArray[np.int64]
    heads: NDArray[np.int64]
    entered: NDArray[np.int64]
    left: NDArray[np.int64]


def _best_heads(scores_NN: NDArray[np.float64]) -> NDArray[np.int64]:
    """The best head of each node; the root, node 0, has itself."""
    heads_N = scores_NN.argmax(1)
    heads_N[0] = 0
    return heads_N


def _cycle(heads_N: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The nodes of a cycle in which the root is not, or None."""
    heads = heads_N.tolist()
    visited = [0] + [-1] * (len(heads) - 1)  # from which node each was reached first
    for start in range(1, len(heads)):
        node = start
        while visited[node] == -1:
            visited[node] = start
            node = heads[node]
        if visited[node] == start:
            cycle = [node]
            while (node := heads[node]) != cycle[0]:
                cycle.append(node)
            return np.array(cycle)
    return None


def _join(
    scores_NN: NDArray[np.float64], heads_N: NDArray[np.int64], inside: NDArray[np.int64]
) -> tuple[NDArray[np.float64], _Joined]:
    """The scores with one node in place of a cycle, and how to get it back."""
    outside = np.setdiff1d(np.arange(len(scores_NN)), inside)  # sorted, so the root stays the first
    heads = heads_N[inside]
    # all of the cycle's own arcs but the one that is replaced
    entering = scores_NN[np.ix_(inside, outside)] - scores_NN[inside, heads][:, None]
    leaving = scores_NN[np.ix_(outside, inside)]
    smaller_NN = np.full((len(outside) + 1, len(outside) + 1), -np.inf)
    smaller_NN[:-1, :-1] = scores_NN[np.ix_(outside, outside)]
    smaller_NN[-1, :-1] = entering.max(0)
    smaller_NN[:-1, -1] = leaving.max(1)
    return smaller_NN, _Joined(outside, inside, heads, entering.argmax(0), leaving.argmax(1))


def _unpack(heads_N: NDArray[np.int64], step: _Joined) -> NDArray[np.int64]:
    """The heads before a cycle was joined: it is kept but for the one arc that enters it."""
    joined = len(heads_N) - 1
    unpacked_N = np.empty(len(step.outside) + len(step.inside), np.int64)
    unpacked_N[step.inside] = step.heads
    above = heads_N[joined]
    unpacked_N[step.inside[step.entered[above]]] = step.outside[above]
    below = heads_N[:-1]
    unpacked_N[step.outside] = np.where(
        below == joined, step.inside[step.left], step.outside[np.minimum(below, joined - 1)]
    )
    return unpacked_N
