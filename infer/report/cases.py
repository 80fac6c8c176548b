"""Examples with what was right and what was said, where on the strip, and how sure the model was.

The errors to look at first are those that the model was most sure of: they are mistakes in the data, or something that
it has never understood. So cases are in this order: those with an error, by how sure the model was of the worst one;
then the others, the least sure first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infer.predict import TaskModel
from infer.relevancy import Score
from infer.task_model import scores_of
from infer.task_rows import Row, TaskRows
from pixelcore.tasks.answer import AnswerPrediction
from pixelcore.tasks.answer_spans import Places
from pixelcore.tasks.examples import is_labelled

LOST = "(cut off)"  # what is said of a word that did not fit


@dataclass(frozen=True)
class Label:
    """Words on patches first to end - 1. right: None where nothing says so. sure: from 0 to 1, of what was said."""

    first: int
    end: int
    text: str
    right: bool | None = None
    sure: float | None = None


@dataclass(frozen=True)
class Output:
    """A number that the model computed, to be explained: what it is called, which one, and the patches whose rows it
    was computed from, none for CLS. first, end: the patches that it is about."""

    name: str
    score: Score
    patches: tuple[int, ...]
    first: int
    end: int


@dataclass(frozen=True)
class Case:
    """gold and said: on the strip of `number`, of the rows that were read. wrong: whether something is. sure: of the
    worst error, else of what the model was least sure of. pairs: (gold, said) of each label, for the confusion.
    outputs: those to explain, the most telling first. note: what stands above the strip."""

    id: str
    number: int
    note: str
    gold: tuple[Label, ...]
    said: tuple[Label, ...]
    wrong: bool
    sure: float
    pairs: tuple[tuple[str, str], ...]
    outputs: tuple[Output, ...]


@torch.no_grad()
def cases_of(loaded: TaskModel, examples: Sequence[Any]) -> tuple[list[Case], list[Any], TaskRows]:
    """The cases in their order, the predictions in that of the examples, and the rows."""
    rows = loaded.rows(examples)
    task, options = loaded.task, loaded.options
    of_example: dict[int, list[tuple[int, Any, Mapping[str, NDArray[np.float32]]]]] = {}
    for number, (place, _) in enumerate(rows.places):
        scores = scores_of(loaded.model(**arguments_of(loaded, rows, number)))
        decoded = task.decode(scores, [examples[place]], [rows.row(number).layout], loaded.known, options)
        of_example.setdefault(place, []).append((number, decoded[0], scores))
    cases, predictions = [], []
    for place, example in enumerate(examples):
        found = of_example[place]
        joined = task.join(example, [one for _, one, _ in found])
        number, _, scores = max(found, key=lambda one: _fits(one[1], joined))
        predictions.append(joined)
        cases.append(_CASES[loaded.kind](loaded, example, joined, number, rows.row(number), scores))
    return sorted(cases, key=lambda case: (not case.wrong, -case.sure if case.wrong else case.sure)), predictions, rows


def arguments_of(loaded: TaskModel, rows: TaskRows, number: int) -> dict[str, Tensor]:
    """What the model is called with for one row."""
    head: Any = loaded.model.head  # pyright: ignore[reportAttributeAccessIssue]
    given = rows.batch([number], [rows.targets(number)], head.needs)
    return {name: tensor.to(loaded.device) for name, tensor in given.items()}


def _fits(prediction: Any, joined: Any) -> bool:
    """Whether the window of this prediction is the one that the answer comes from."""
    if not isinstance(prediction, AnswerPrediction) or not joined.candidates:
        return True
    return joined.candidates[0] in prediction.candidates


def _case(example: Any, number: int, note: str, said: Sequence[Label], rest: Mapping[str, Any]) -> Case:
    errors = [label.sure or 0.0 for label in said if label.right is False]
    sure = max(errors) if errors else min((label.sure or 0.0 for label in said), default=0.0)
    return Case(id=example.id, number=number, note=note, said=tuple(said), wrong=bool(errors), sure=sure, **rest)


def _telling(said: Sequence[Label], outputs: Sequence[Output]) -> tuple[Output, ...]:
    """Errors first, the surest first; then what the model was least sure of."""
    pairs = list(zip(said, outputs, strict=True))
    pairs.sort(key=lambda pair: (pair[0].right is not False, (pair[0].sure or 0.0) * (1 if pair[0].right else -1)))
    return tuple(output for _, output in pairs)


# ------------------------------------------------------------------ of each task


def _tagged(
    loaded: TaskModel, example: Any, prediction: Any, number: int, row: Row, scores: Mapping[str, NDArray[np.float32]]
) -> Case:
    starts = _starts(row)
    likely_LO = _softmax(scores["logits"][0])
    gold, said, outputs = [], [], []
    for place, (first, end) in enumerate(pairwise(starts)):
        label = prediction.labels[place]
        right = None if example.labels is None else example.labels[place] == label
        output = loaded.known.index(label)
        if example.labels is not None:
            gold.append(Label(first, end, example.labels[place]))
        said.append(Label(first, end, label, right, float(likely_LO[first, output])))
        name = f"{label} of {example.words[place]!r}"
        outputs.append(Output(name, _at("logits", first, output), (first,), first, end))
    pairs = zip(example.labels or (), (label or LOST for label in prediction.labels))
    rest = {"gold": tuple(gold), "pairs": tuple(pairs), "outputs": _telling(said, outputs)}
    return _case(example, number, _words_note(example, starts), said, rest)


def _parsed(
    loaded: TaskModel, example: Any, prediction: Any, number: int, row: Row, scores: Mapping[str, NDArray[np.float32]]
) -> Case:
    starts = _starts(row)
    num_words = len(starts) - 1
    gold, said, outputs = [], [], []
    for place, (first, end) in enumerate(pairwise(starts)):
        head, relation = prediction.heads[place], prediction.relations[place]
        right = None
        if example.heads is not None:
            gold.append(Label(first, end, f"{example.heads[place]} {example.relations[place]}"))
            right = (example.heads[place], example.relations[place]) == (head, relation)
        at = 0 if head is None else head
        likely = _softmax(scores["arc_logits"][0, place, : num_words + 1])[at]
        if head is not None:
            likely *= _softmax(scores["rel_logits"][0, place, at])[loaded.known.index(relation)]
        text = "no head" if head is None else f"{head} {relation}"
        said.append(Label(first, end, text, right, float(likely)))
        name = f"head of {example.words[place]!r}: {'root' if not at else repr(example.words[at - 1])}"
        outputs.append(Output(name, _at("arc_logits", place, at), tuple(range(first, end)), first, end))
    pairs = zip(example.relations or (), (relation or LOST for relation in prediction.relations))
    rest = {"gold": tuple(gold), "pairs": tuple(pairs), "outputs": _telling(said, outputs)}
    return _case(example, number, _words_note(example, starts), said, rest)


def _classified(
    loaded: TaskModel, example: Any, prediction: Any, number: int, row: Row, scores: Mapping[str, NDArray[np.float32]]
) -> Case:
    end = row.layout.num_units
    is_number = isinstance(prediction.label, float)
    text = f"{prediction.label:.3f}" if isinstance(prediction.label, float) else str(prediction.label)
    output = 0 if is_number else loaded.known.index(str(prediction.label))
    right, sure, gold = None, prediction.probability, ()
    if example.label is not None:
        gold = (Label(0, end, str(example.label)),)
        right = None if is_number else str(example.label) == str(prediction.label)
        # of a number the distance says what is worth a look
        sure = -abs(float(example.label) - float(prediction.label)) if is_number else sure
    pooling = getattr(loaded.stored.config, "pooling", "")
    patches = () if pooling == "cls" else tuple(range(end))
    note = example.text if example.second is None else f"{example.text}  |  {example.second}"
    pairs = () if example.label is None else ((str(example.label), text),)
    outputs = (Output(text, _at("logits", output), patches, 0, end),)
    said = [Label(0, end, text, right, sure)]
    return _case(example, number, note, said, {"gold": gold, "pairs": pairs, "outputs": outputs})


def _answered(
    loaded: TaskModel, example: Any, prediction: Any, number: int, row: Row, scores: Mapping[str, NDArray[np.float32]]
) -> Case:
    assert row.layout.char_spans is not None
    places = Places(row.layout.char_spans, 1)
    counted = loaded.task.counts([example], [prediction], loaded.options) if is_labelled(example) else None
    right = None if counted is None else bool(counted["exact"][0])
    gold = []
    for text, start in example.answers:
        units = places.units_of((start, start + len(text))) if start >= 0 else None
        if units is not None:
            gold.append(Label(units[0], units[1] + 1, text))
    end = row.layout.num_units
    begins_L, ends_L = (_softmax(scores[name][0]) for name in ("start_logits", "end_logits"))
    best = prediction.candidates[0] if prediction.text else None
    units = None if best is None else places.units_of((best.begin, best.begin + len(best.text)))
    if best is None or units is None:
        sure = float(begins_L[-1] * ends_L[-1])
        said = [Label(0, end, prediction.text or "no answer", right, sure)]
        outputs: tuple[Output, ...] = ()
    else:
        first, last = units
        said = [Label(first, last + 1, best.text, right, float(begins_L[first] * ends_L[last]))]
        outputs = (Output(f"answer {best.text!r}", _span(first, last), tuple({first, last}), first, last + 1),)
    wanted = ", ".join(dict.fromkeys(text for text, _ in example.answers)) or "none"
    note = f"{example.question}  |  answer: {prediction.text or 'none'}" + (
        f"; right: {wanted}" if right is False else ""
    )
    rest = {"gold": tuple(dict.fromkeys(gold)), "pairs": (), "outputs": outputs}
    return _case(example, number, note, said, rest)


_CASES: dict[str, Callable[..., Case]] = {
    "classify": _classified,
    "tag": _tagged,
    "parse": _parsed,
    "answer": _answered,
}


def _starts(row: Row) -> list[int]:
    assert row.layout.word_starts is not None
    return row.layout.word_starts.tolist()


def _words_note(example: Any, starts: Sequence[int]) -> str:
    lost = len(example.words) - (len(starts) - 1)
    return " ".join(example.words) + (f"  ({lost} words cut off)" if lost else "")


def _at(name: str, *place: int) -> Score:
    return lambda output: getattr(output, name)[0][place]


def _span(first: int, last: int) -> Score:
    def score(output: Any) -> Tensor:
        return output.start_logits[0, first] + output.end_logits[0, last]

    return score


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    odds = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)
