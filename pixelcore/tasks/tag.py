"""A label for each word: parts of speech from CoNLL-U, named entities from columns.

A word's label stands on its first patch or token, as PIXEL is fine-tuned (specs/pixel.md, section 3.3); other units
have none. Words that did not fit into the row are not trained on, and are wrong in the score: the original drops them
from it, so a tagger that sees half of a sentence would look as good as one that sees all. Their share is a figure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelcore.errors import UserError
from pixelcore.ops import IGNORED
from pixelcore.tasks import columns, conllu, labels, tag_baselines, text_files
from pixelcore.tasks.examples import WordsExample
from pixelcore.tasks.labels import UNSEEN, Labels
from pixelcore.tasks.metrics import OUTSIDE, entities, names_entities, precision_recall_f1, ratio
from pixelcore.tasks.task import Layout

HEAD = "token"
NEEDS_SPANS = False
_COLUMN_FILES = (".iob2", ".conll", ".bio", ".txt")


@dataclass(frozen=True, kw_only=True)
class TagOptions:
    """A label for each word. scores: "words", each by itself, or "entities", which the prefixes B- and I- mark. column:
    of CoNLL-U, where the labels stand, "upos" or "xpos". labels: all there are, in this order; none: those of the
    training data, sorted."""

    kind: ClassVar[str] = "tag"

    scores: str = "words"
    column: str = "upos"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scores not in ("words", "entities"):
            raise ValueError(f'scores = {self.scores!r} must be "words" or "entities"')
        if self.column not in ("upos", "xpos"):
            raise ValueError(f'column = {self.column!r} must be "upos" or "xpos"')


OPTIONS = TagOptions


@dataclass(frozen=True, kw_only=True)
class WordsPrediction:
    """A label for each word, None for one that did not fit into the row."""

    labels: tuple[str | None, ...]


# ------------------------------------------------------------------ data


def find_splits(folder: Path, options: TagOptions) -> dict[str, Path]:
    """CoNLL-U files where words are scored, files of columns where entities are; else the other kind."""
    endings = (".conllu", *_COLUMN_FILES) if options.scores == "words" else (*_COLUMN_FILES, ".conllu")
    return text_files.find_by_name(folder, endings)


def read(path: Path, options: TagOptions) -> list[WordsExample]:
    """The sentences of a file, the format by its ending: .conllu, else columns."""
    if text_files.ending_of(path) != ".conllu":
        return columns.read_columns(path)
    examples = []
    for sentence in conllu.read_sentences(path):
        found = sentence.column(options.column)
        examples.append(
            WordsExample(
                id=sentence.id,
                words=sentence.column("form"),
                labels=None if all(label == "_" for label in found) else found,
                lines=sentence.lines,
            )
        )
    return examples


def drawn(example: WordsExample) -> list[str]:
    """The words one by one: each begins on a unit of its own."""
    return list(example.words)


def stride(options: TagOptions) -> None:
    """A sentence is one row."""
    return None


# ------------------------------------------------------------------ training


def inventory(examples: Sequence[WordsExample], options: TagOptions) -> Labels:
    """The labels of the words. Raises UserError for a sentence without, and for entities
    whose labels are not O, B- and I-."""
    found = []
    for example in examples:
        if example.labels is None:
            raise UserError(f"sentence {example.id}: has no labels to train on: give a labelled file, or leave it out")
        found += [(label, f"sentence {example.id}") for label in example.labels]
    if options.scores == "entities":
        for label, where in found:
            if not names_entities(label):
                raise UserError(
                    f"{where}: label {label!r} is neither O nor B- or I- and a type, and objective.scores = "
                    "'entities': give a file of entities, or --set objective.scores=words"
                )
    return labels.inventory(found, options.labels)


def num_outputs(known: Labels, options: TagOptions) -> int:
    """One for each label."""
    return len(known)


def targets(example: WordsExample, layout: Layout, known: Labels, options: TagOptions) -> dict[str, NDArray[Any]]:
    """labels: int64 [units], the label of each word on its first unit. Labels that training has not seen count not."""
    labels_L = np.full(layout.num_units, IGNORED, np.int64)
    assert layout.word_starts is not None
    for start, label in zip(layout.word_starts[:-1].tolist(), example.labels or ()):
        place = known.index(label)
        labels_L[start] = IGNORED if place == UNSEEN else place
    return {"labels": labels_L}


def num_targets(found: Mapping[str, NDArray[Any]]) -> int:
    """Labelled units."""
    return int((found["labels"] != IGNORED).sum())


def collate(found: Sequence[Mapping[str, NDArray[Any]]], width: int) -> dict[str, Tensor]:
    """Padded rows of labels."""
    labels_BL = torch.full((len(found), width), IGNORED)
    for row, one in enumerate(found):
        labels_BL[row, : len(one["labels"])] = torch.from_numpy(one["labels"])
    return {"labels": labels_BL}


# ------------------------------------------------------------------ what a model says


def decode(
    scores: Mapping[str, NDArray[np.float32]],
    examples: Sequence[WordsExample],
    layouts: Sequence[Layout],
    known: Labels,
    options: TagOptions,
) -> list[WordsPrediction]:
    """The likeliest label at the first unit of each word."""
    likeliest_BL = scores["logits"].argmax(-1)
    predictions = []
    for row, (example, layout) in enumerate(zip(examples, layouts, strict=True)):
        assert layout.word_starts is not None
        found = [known.names[place] for place in likeliest_BL[row, layout.word_starts[:-1]].tolist()]
        lost = len(example.words) - len(found)
        predictions.append(WordsPrediction(labels=(*found, *[None] * lost)))
    return predictions


def join(example: WordsExample, predictions: Sequence[WordsPrediction]) -> WordsPrediction:
    """A sentence is one row."""
    (prediction,) = predictions
    return prediction


def record(example: WordsExample, prediction: WordsPrediction) -> dict[str, Any]:
    """Words, gold labels where there are any, and what was predicted."""
    gold = {} if example.labels is None else {"labels": list(example.labels)}
    return {"id": example.id, "words": list(example.words), **gold, "predicted": list(prediction.labels)}


def lines(example: WordsExample, prediction: WordsPrediction, options: TagOptions) -> list[str]:
    """The example's own CoNLL-U lines with the predicted labels in them, else two columns. A lost word has the label
    "_" there, and O here."""
    is_conllu = any(len(line.split("\t")) == len(conllu.COLUMNS) for line in example.lines)
    if is_conllu:
        return conllu.written(example.lines, {options.column: [label or "_" for label in prediction.labels]})
    return columns.written(example.words, [label or OUTSIDE for label in prediction.labels])


# ------------------------------------------------------------------ how good it is


def select(options: TagOptions) -> str:
    """F1 of entities, else accuracy."""
    return "f1" if options.scores == "entities" else "accuracy"


def counts(
    examples: Sequence[WordsExample], predictions: Sequence[WordsPrediction], options: TagOptions
) -> dict[str, NDArray[Any]]:
    """words, those that are right, those that were lost; of entities how many are right, predicted, and there."""
    names = ("words", "right", "lost")
    if options.scores == "entities":
        names += ("entities_right", "entities_predicted", "entities")
    found_NK = np.zeros((len(examples), len(names)))
    for row_K, example, prediction in zip(found_NK, examples, predictions, strict=True):
        if example.labels is None:
            raise UserError(f"sentence {example.id}: has no labels to compare with: give a labelled file")
        pairs = list(zip(example.labels, prediction.labels, strict=True))
        row_K[0] = len(pairs)
        row_K[1] = sum(gold == found for gold, found in pairs)
        row_K[2] = sum(found is None for _, found in pairs)
        if options.scores == "entities":
            gold, found = entities(example.labels), entities([label or OUTSIDE for label in prediction.labels])
            row_K[3:] = len(gold & found), len(found), len(gold)
    return dict(zip(names, found_NK.T))


def figures(sums: Mapping[str, NDArray[Any]], options: TagOptions) -> dict[str, NDArray[Any]]:
    """accuracy of words and the share that was lost; precision, recall and f1 of entities."""
    found = {"accuracy": ratio(sums["right"], sums["words"]), "lost_words": ratio(sums["lost"], sums["words"])}
    if options.scores == "entities":
        found |= precision_recall_f1(sums["entities_right"], sums["entities_predicted"], sums["entities"])
    return found


def baselines(
    train: Sequence[WordsExample], test: Sequence[WordsExample], options: TagOptions
) -> dict[str, dict[str, float]]:
    """The most frequent label, and the most frequent one of the word, or of its longest known ending."""
    found = {}
    for name, labelled in tag_baselines.taggers(train).items():
        predictions = [WordsPrediction(labels=tuple(map(labelled, example.words))) for example in test]
        sums = {key: column.sum() for key, column in counts(test, predictions, options).items()}
        found[name] = {key: float(value) for key, value in figures(sums, options).items()}
    return found
