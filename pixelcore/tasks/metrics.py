"""Figures of predictions, each from what can be drawn again for a bootstrap: counts that add up over examples, or
for correlations and means over labels, which are no such sums, the gold and predicted values themselves with how often
each example was drawn.

Entities are found in a sequence of labels as seqeval does it in its default mode, which is that of the conlleval script
of the CoNLL shared tasks: a B- always begins an entity, an I- does where no entity of its type is open, so that files
in which B- is kept for neighbours (IOB1) are read alike. An entity that is found is right if its first word, its last
word and its type are. Source: Tjong Kim Sang and De Meulder, CoNLL-2003; github.com/chakki-works/seqeval.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTSIDE = "O"
_SINGLE, _LAST = "S", "E"


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[Any]:
    """part / whole, 0 where there is nothing to count."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole != 0)


def precision_recall_f1(right: NDArray[Any], predicted: NDArray[Any], gold: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Of things found: the share of the predicted that are right, of the gold that were found, and their harmonic
    mean."""
    return {
        "precision": ratio(right, predicted),
        "recall": ratio(right, gold),
        "f1": ratio(2 * np.asarray(right), np.asarray(predicted) + np.asarray(gold)),
    }


def entities(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first word, last word) of the entities in the labels of a sentence."""
    found = set()
    begin = 0
    before, type_before = OUTSIDE, ""
    for place, label in enumerate([*labels, OUTSIDE]):
        prefix, _, kind = label.partition("-")
        if before != OUTSIDE and _ends(before, type_before, prefix, kind):
            found.add((type_before, begin, place - 1))
        if prefix != OUTSIDE and _begins(before, type_before, prefix, kind):
            begin = place
        before, type_before = prefix, kind
    return found


def _ends(before: str, type_before: str, prefix: str, kind: str) -> bool:
    """Whether the entity that a label belongs to ends before the next label."""
    return before in (_LAST, _SINGLE) or prefix in ("B", _SINGLE, OUTSIDE) or kind != type_before


def _begins(before: str, type_before: str, prefix: str, kind: str) -> bool:
    """Whether a label begins an entity, by the one before it."""
    return prefix in ("B", _SINGLE) or before in (OUTSIDE, _LAST, _SINGLE) or kind != type_before


def names_entities(label: str) -> bool:
    """Whether a label is O, or a prefix and a type."""
    prefix, dash, kind = label.partition("-")
    return label == OUTSIDE or (bool(dash) and bool(kind) and prefix in ("B", "I", _LAST, _SINGLE))


# ------------------------------------------------------------------ of labels and numbers, drawn so often each
#
# times_DN: how often each of N examples is taken in each of D draws; a single row of ones says all of them, once.


def accuracy(times_DN: NDArray[Any], gold_N: NDArray[Any], said_N: NDArray[Any]) -> NDArray[Any]:
    """[D]: the share of labels that are right."""
    return ratio(times_DN @ (gold_N == said_N), times_DN.sum(1))


def f1_of(label: float, times_DN: NDArray[Any], gold_N: NDArray[Any], said_N: NDArray[Any]) -> NDArray[Any]:
    """[D]: F1 of one label, as GLUE scores paraphrases."""
    gold, said = gold_N == label, said_N == label
    return precision_recall_f1(times_DN @ (gold & said), times_DN @ said, times_DN @ gold)["f1"]


def macro_f1(times_DN: NDArray[Any], gold_N: NDArray[Any], said_N: NDArray[Any]) -> NDArray[Any]:
    """[D]: the mean of the F1 of all labels that occur in a draw, as gold or as predicted."""
    right_DK, said_DK, gold_DK = _by_label(times_DN, gold_N, said_N)
    f1_DK = precision_recall_f1(right_DK, said_DK, gold_DK)["f1"]
    return ratio(f1_DK.sum(1), ((said_DK + gold_DK) > 0).sum(1))


def matthews(times_DN: NDArray[Any], gold_N: NDArray[Any], said_N: NDArray[Any]) -> NDArray[Any]:
    """[D]: the correlation of labels, -1 to 1, for any number of them; 0 where one side has a single label. Source:
    Gorodkin, Computational Biology and Chemistry 28, 2004."""
    right_DK, said_DK, gold_DK = _by_label(times_DN, gold_N, said_N)
    whole_D = times_DN.sum(1)
    together = right_DK.sum(1) * whole_D - (said_DK * gold_DK).sum(1)
    spreads = [whole_D**2 - (one_DK**2).sum(1) for one_DK in (said_DK, gold_DK)]
    return ratio(together, np.sqrt(spreads[0] * spreads[1]))


def _by_label(times_DN: NDArray[Any], gold_N: NDArray[Any], said_N: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """[D, K] for the labels that there are: how many are right, predicted, gold."""
    label_K = np.unique(np.concatenate((gold_N, said_N)))
    gold_NK, said_NK = (one_N[:, None] == label_K for one_N in (gold_N, said_N))
    return tuple(times_DN @ one_NK.astype(np.float64) for one_NK in (gold_NK & said_NK, said_NK, gold_NK))


def pearson(times_DN: NDArray[Any], gold_N: NDArray[Any], said_N: NDArray[Any]) -> NDArray[Any]:
    """[D]: the linear correlation, -1 to 1; 0 where one side is constant."""
    return _correlation(times_DN, *(np.broadcast_to(one_N, times_DN.shape) for one_N in (gold_N, said_N)))


def spearman(times_DN: NDArray[Any], gold_N: NDArray[Any], said_N: NDArray[Any]) -> NDArray[Any]:
    """[D]: the linear correlation of ranks; equal values share the mean of their ranks. An example that was drawn
    several times takes several ranks."""
    return _correlation(times_DN, *(_ranks(times_DN, one_N) for one_N in (gold_N, said_N)))


def _ranks(times_DN: NDArray[Any], value_N: NDArray[Any]) -> NDArray[Any]:
    """[D, N]: the rank of each example among all that were drawn, ties shared."""
    _, place_N = np.unique(value_N, return_inverse=True)
    size = int(place_N.max(initial=-1)) + 1
    # how often each value was drawn; the values are in order
    count_DV = np.stack([np.bincount(place_N, row_N, size) for row_N in times_DN])
    return (count_DV.cumsum(1) - (count_DV - 1) / 2)[:, place_N]


def _correlation(times_DN: NDArray[Any], x_DN: NDArray[Any], y_DN: NDArray[Any]) -> NDArray[Any]:
    if not times_DN.shape[1]:
        return np.zeros(len(times_DN))
    whole_D1 = np.maximum(times_DN.sum(1, keepdims=True), 1)
    # as distances from one that was drawn: of a constant side nothing is left then, not even what rounding leaves
    drawn_D1 = (times_DN > 0).argmax(1)[:, None]
    x_DN, y_DN = (one_DN - np.take_along_axis(one_DN, drawn_D1, 1) for one_DN in (x_DN, y_DN))
    x_DN, y_DN = (one_DN - (times_DN * one_DN).sum(1, keepdims=True) / whole_D1 for one_DN in (x_DN, y_DN))
    together_D, x_D, y_D = ((times_DN * product_DN).sum(1) for product_DN in (x_DN * y_DN, x_DN**2, y_DN**2))
    return ratio(together_D, np.sqrt(x_D * y_D))
