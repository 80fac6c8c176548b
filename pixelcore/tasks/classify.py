"""A label, or a number, for a text or for a pair of them: GLUE, SNLI and XNLI, SIB-200, any table with named columns.

How the files are read stands in `classify_files.py`. In regression the one output is compared with the label row by
row. PIXAR's program compares each prediction with every label of the batch, a broadcast that pulls all predictions to
the mean of the batch (specs/pixar.md, section 5.1).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelcore.errors import UserError
from pixelcore.ops import IGNORED
from pixelcore.tasks import classify_baselines, labels, metrics
from pixelcore.tasks.bootstrap import Sums
from pixelcore.tasks.classify_files import ClassifyOptions, form_of
from pixelcore.tasks.classify_files import find_splits as find_splits
from pixelcore.tasks.classify_files import read as read
from pixelcore.tasks.examples import TextExample
from pixelcore.tasks.labels import UNSEEN, Labels
from pixelcore.tasks.task import Layout

OPTIONS = ClassifyOptions
HEAD = "sequence"
NEEDS_SPANS = False

_IN_GROUP = "in:"  # a column of counts says who belongs to the group


@dataclass(frozen=True, kw_only=True)
class TextPrediction:
    """A label and how sure the model is of it, from 0 to 1; or a number, and nothing of the kind."""

    label: str | float
    probability: float | None = None


# ------------------------------------------------------------------ data, besides the reading


def drawn(example: TextExample) -> str | tuple[str, str]:
    """The text, or both of a pair."""
    return example.text if example.second is None else (example.text, example.second)


def stride(options: ClassifyOptions) -> None:
    """A text is one row."""
    return None


# ------------------------------------------------------------------ training


def inventory(examples: Sequence[TextExample], options: ClassifyOptions) -> Labels:
    """The labels of the texts; none in regression. Raises UserError for examples without, and for a single label, of
    which there is nothing to learn."""
    form = form_of(options)
    for example in examples:
        if example.unlabelled:
            raise UserError(f"{example.unlabelled}; without labels there is nothing to train on")
        if example.label is None:
            raise UserError(
                f"example {example.id}: has no label to train on; labels stand in column "
                f"{' or '.join(map(repr, form.label))}: give a labelled file"
                + (", or --set objective.label=NAME" if options.layout == "columns" else "")
            )
    if form.regression:
        return Labels(())
    found = [(str(example.label), f"example {example.id}") for example in examples]
    known = labels.inventory(found, form.labels)
    if len(known) == 1:
        raise UserError(f"all training examples have the label {known.names[0]!r}: there is nothing to learn")
    return known


def num_outputs(known: Labels, options: ClassifyOptions) -> int:
    """One for each label, a single one in regression."""
    return max(len(known), 1)


def targets(example: TextExample, layout: Layout, known: Labels, options: ClassifyOptions) -> dict[str, NDArray[Any]]:
    """labels: int64 scalar, or float32 in regression. A label that training has not seen does not count."""
    if form_of(options).regression:
        return {"labels": np.array(math.nan if example.label is None else example.label, np.float32)}
    place = UNSEEN if example.label is None else known.index(str(example.label))
    return {"labels": np.array(IGNORED if place == UNSEEN else place, np.int64)}


def num_targets(found: Mapping[str, NDArray[Any]]) -> int:
    """Whether the example counts."""
    return int(found["labels"] != IGNORED)


def collate(found: Sequence[Mapping[str, NDArray[Any]]], width: int) -> dict[str, Tensor]:
    """labels: [B]."""
    return {"labels": torch.from_numpy(np.stack([one["labels"] for one in found]))}


# ------------------------------------------------------------------ what a model says


def decode(
    scores: Mapping[str, NDArray[np.float32]],
    examples: Sequence[TextExample],
    layouts: Sequence[Layout],
    known: Labels,
    options: ClassifyOptions,
) -> list[TextPrediction]:
    """The likeliest label, or the number."""
    logits_BO = scores["logits"].astype(np.float64)
    if form_of(options).regression:
        return [TextPrediction(label=value) for value in logits_BO[:, 0].tolist()]
    odds_BO = np.exp(logits_BO - logits_BO.max(1, keepdims=True))
    sure_B = (odds_BO.max(1) / odds_BO.sum(1)).tolist()
    return [
        TextPrediction(label=known.names[place], probability=sure)
        for place, sure in zip(logits_BO.argmax(1).tolist(), sure_B, strict=True)
    ]


def join(example: TextExample, predictions: Sequence[TextPrediction]) -> TextPrediction:
    """A text is one row."""
    (prediction,) = predictions
    return prediction


def record(example: TextExample, prediction: TextPrediction) -> dict[str, Any]:
    """The text or both, what is known of it, and what was predicted."""
    found: dict[str, Any] = {"id": example.id, "text": example.text}
    for name in ("second", "label"):
        if getattr(example, name) is not None:
            found[name] = getattr(example, name)
    if example.group:
        found["group"] = example.group
    found["predicted"] = prediction.label
    return found if prediction.probability is None else found | {"probability": prediction.probability}


def lines(example: TextExample, prediction: TextPrediction, options: ClassifyOptions) -> list[str]:
    """The identity and the prediction, as GLUE's test site takes them."""
    return [f"{example.id}\t{prediction.label}"]


# ------------------------------------------------------------------ how good it is


def select(options: ClassifyOptions) -> str:
    """The first of the figures."""
    return form_of(options).metrics[0]


def counts(
    examples: Sequence[TextExample], predictions: Sequence[TextPrediction], options: ClassifyOptions
) -> dict[str, NDArray[Any]]:
    """gold and predicted: numbers, or of labels their places in a list in which the positive one is the first; where
    there are several groups, for each of them who belongs to it."""
    form = form_of(options)
    for example in examples:
        if example.label is None:
            raise UserError(f"example {example.id}: has no label to compare with: give a labelled file")
    pairs = [(example.label, one.label) for example, one in zip(examples, predictions, strict=True)]
    if not form.regression:
        names = sorted({str(label) for pair in pairs for label in pair} - {form.positive})
        place = {name: float(number) for number, name in enumerate([form.positive, *names])}
        pairs = [(place[str(gold)], place[str(said)]) for gold, said in pairs]
    found_N2 = np.array(pairs, np.float64).reshape(len(pairs), 2)
    found = {"gold": found_N2[:, 0], "predicted": found_N2[:, 1]}
    groups = sorted({example.group for example in examples})
    if len(groups) > 1:
        for group in groups:
            found[_IN_GROUP + group] = np.array([float(example.group == group) for example in examples])
    return found


_OF_COLUMNS = {
    "accuracy": metrics.accuracy,
    "f1": partial(metrics.f1_of, 0),
    "macro_f1": metrics.macro_f1,
    "matthews": metrics.matthews,
    "pearson": metrics.pearson,
    "spearman": metrics.spearman,
}


def figures(sums: Sums, options: ClassifyOptions) -> dict[str, NDArray[Any]]:
    """Each figure over all examples; where there are groups, of each group and the mean of these."""
    groups = [name for name in sums if name.startswith(_IN_GROUP)]
    found: dict[str, NDArray[Any]] = {}
    for name in form_of(options).metrics:
        figure = _OF_COLUMNS[name]
        found[name] = sums.each(figure, "gold", "predicted")
        of_groups = {
            f"{name}_{group.removeprefix(_IN_GROUP)}": sums.each(
                lambda times_DN, gold_N, said_N, in_N, figure=figure: figure(times_DN * in_N, gold_N, said_N),
                *("gold", "predicted", group),
            )
            for group in groups
        }
        if of_groups:
            found[f"{name}_mean"] = np.mean(list(of_groups.values()), axis=0)
            found |= of_groups
    return found


def baselines(
    train: Sequence[TextExample], test: Sequence[TextExample], options: ClassifyOptions
) -> dict[str, dict[str, float]]:
    """The most frequent label or the mean number, and what n-grams of characters say."""
    found = {}
    for name, said in classify_baselines.predictions(train, test).items():
        sums = Sums(counts(test, [TextPrediction(label=label) for label in said], options))
        found[name] = {key: float(value) for key, value in figures(sums, options).items()}
    return found
