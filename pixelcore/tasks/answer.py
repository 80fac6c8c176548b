"""The answer to a question, as a part of the text that it is asked about: extractive question answering.

A row is the question and as much of the context as fits beside it; a long context takes several rows, windows that
overlap. The model scores for each unit whether the answer begins there, and whether it ends there, and CLS, behind all
units, stands for "not in this window". So a question's answer is the best pair of a first and a last unit over all
windows, and no answer is as likely as the window says that denies it least.

What a window shows is less than the text: `answer_spans.py` says how units become characters again. How many answers
survive that, found by a perfect model, is a figure, `ceiling`.

Source: specs/pixel.md, section 3.5; Devlin et al., arXiv:1810.04805, for windows and no answer.
"""

import logging
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
from pixelcore.tasks import text_files
from pixelcore.tasks.answer_figures import UNITS, exact_match_and_f1, last_word_of_the_likest_sentence, most_frequent
from pixelcore.tasks.answer_spans import Places, trimmed
from pixelcore.tasks.babi_questions import read_questions
from pixelcore.tasks.examples import QuestionExample
from pixelcore.tasks.labels import Labels
from pixelcore.tasks.metrics import ratio
from pixelcore.tasks.squad import NOWHERE, read_squad
from pixelcore.tasks.task import Layout, Windows

HEAD = "qa"
NEEDS_SPANS = True
_CONTEXT = 1  # of the pair that a row shows
_NO_ANSWER = -1  # of a target: CLS, whose place follows from the width of the batch
_TARGETS = ("start_positions", "end_positions")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """An answer from a context. stride: units of a window that the next one shows again. question_max: units that a
    question may take; what is longer is cut. n_best: first and last units that are tried, and answers that are kept.
    max_answer: units of an answer. no_answer: there are questions without one (SQuAD 2), and no answer is said where it
    scores more than the best answer and no_answer_threshold. f1: of "words", or of "characters", for languages without
    spaces, as KorQuAD and JaQuAD do it."""

    kind: ClassVar[str] = "answer"

    stride: int = 160
    question_max: int = 128
    n_best: int = 20
    max_answer: int = 30
    no_answer: bool = False
    no_answer_threshold: float = 0.0
    f1: str = "words"

    def __post_init__(self) -> None:
        if self.stride < 0:
            raise ValueError(f"stride = {self.stride} must not be negative")
        for name in ("question_max", "n_best", "max_answer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.no_answer_threshold and not self.no_answer:
            raise ValueError(f"no_answer_threshold = {self.no_answer_threshold} without no_answer = true: set it too")
        if self.f1 not in UNITS:
            raise ValueError(f"f1 = {self.f1!r} must be one of {list(UNITS)}")


OPTIONS = AnswerOptions


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A text of the context, its first character there, and the sum of the scores of its two units."""

    text: str
    begin: int
    score: float


@dataclass(frozen=True, kw_only=True)
class AnswerPrediction:
    """candidates: the best first. no_answer: the score of there being none, less the threshold; None where there always
    is one. read_back: what a perfect model would have said; None where no window shows the whole of the answer."""

    candidates: tuple[Candidate, ...]
    no_answer: float | None = None
    read_back: str | None = None

    @property
    def text(self) -> str:
        """The answer, "" for none."""
        if not self.candidates or (self.no_answer is not None and self.no_answer > self.candidates[0].score):
            return ""
        return self.candidates[0].text


# ------------------------------------------------------------------ data


def find_splits(folder: Path, options: AnswerOptions) -> dict[str, Path]:
    """SQuAD's .json files, else bAbI's .txt files."""
    return text_files.find_by_name(folder, (".json", ".txt"))


def read(path: Path, options: AnswerOptions) -> list[QuestionExample]:
    """The questions of a file, the format by its ending: .txt is bAbI's, all else SQuAD's."""
    if text_files.ending_of(path) == ".txt":
        return read_questions(path)
    examples = read_squad(path, empty_is_impossible=options.no_answer)
    impossible = [example for example in examples if example.is_impossible]
    if impossible and not options.no_answer:
        raise UserError(
            f"{path}: question {impossible[0].id} and {len(impossible) - 1} others have no answer, and "
            "objective.no_answer = false: --set objective.no_answer=true, or leave them out"
        )
    return examples


def drawn(example: QuestionExample) -> tuple[str, str]:
    """The question, then the context."""
    return example.question, example.context


def stride(options: AnswerOptions) -> Windows:
    """As many windows as the context takes."""
    return Windows(stride=options.stride, first_max=options.question_max)


# ------------------------------------------------------------------ training


def inventory(examples: Sequence[QuestionExample], options: AnswerOptions) -> Labels:
    """The two outputs. Raises UserError for a question without answers, and if none of them can be learned."""
    for example in examples:
        if not example.answers and not example.is_impossible:
            raise UserError(
                f"question {example.id}: has no answer to train on: give labelled data, or --set "
                "objective.no_answer=true if it has none"
            )
    lost = sum(not example.is_impossible and _gold(example) is None for example in examples)
    if lost == len(examples):
        raise UserError(f"none of the {lost} questions has an answer that occurs in its context: correct the answers")
    if lost:
        _log.warning(
            "%d of %d questions (%.2f %%) have no answer that occurs in the context: they are not learned from",
            lost,
            len(examples),
            100 * lost / len(examples),
        )
    return Labels(("start", "end"))


def num_outputs(known: Labels, options: AnswerOptions) -> int:
    """A start and an end."""
    return len(known)


def targets(
    example: QuestionExample, layout: Layout, known: Labels, options: AnswerOptions
) -> dict[str, NDArray[np.int64]]:
    """start_positions, end_positions: int64 scalars, the units of the first answer, `_NO_ANSWER` if the row does not
    show the whole of it. `IGNORED` where there is nothing to learn: the answer is not in the context, or not known."""
    gold = _gold(example)
    if example.is_impossible:
        units = (_NO_ANSWER, _NO_ANSWER)
    elif gold is None:
        units = (IGNORED, IGNORED)
    else:
        units = _places(layout).units_of(gold) or (_NO_ANSWER, _NO_ANSWER)
    return {name: np.array(unit, np.int64) for name, unit in zip(_TARGETS, units)}


def num_targets(found: Mapping[str, NDArray[Any]]) -> int:
    """A start and an end, where they are known."""
    return sum(int(found[name] != IGNORED) for name in _TARGETS)


def collate(found: Sequence[Mapping[str, NDArray[Any]]], width: int) -> dict[str, Tensor]:
    """Places in the padded row; CLS stands behind the padding."""
    columns = {name: torch.tensor([int(one[name]) for one in found]) for name in _TARGETS}
    return {name: column.masked_fill(column == _NO_ANSWER, width) for name, column in columns.items()}


def _gold(example: QuestionExample) -> tuple[int, int] | None:
    """The characters of the first answer that is in the context, without punctuation at its ends: it is seldom on the
    same patch in one text as in another, and scores ignore it."""
    for text, start in example.answers:
        if start != NOWHERE:
            return trimmed(example.context, (start, start + len(text)))
    return None


def _places(layout: Layout) -> Places:
    assert layout.char_spans is not None
    return Places(layout.char_spans, _CONTEXT)


# ------------------------------------------------------------------ what a model says


def decode(
    scores: Mapping[str, NDArray[np.float32]],
    examples: Sequence[QuestionExample],
    layouts: Sequence[Layout],
    known: Labels,
    options: AnswerOptions,
) -> list[AnswerPrediction]:
    """Of each window its n best answers, and how little it denies that there is one."""
    predictions = []
    for start_U, end_U, example, layout in zip(
        scores["start_logits"], scores["end_logits"], examples, layouts, strict=True
    ):
        places = _places(layout)
        gold = _gold(example)
        units = None if gold is None else places.units_of(gold)
        span = None if units is None else places.text_of(units, example.context)
        denied = float(start_U[-1]) + float(end_U[-1]) - options.no_answer_threshold
        predictions.append(
            AnswerPrediction(
                candidates=tuple(_candidates(start_U, end_U, places, example.context, options)),
                no_answer=denied if options.no_answer else None,
                read_back=None if span is None else example.context[slice(*span)],
            )
        )
    return predictions


def _candidates(
    start_U: NDArray[np.float32], end_U: NDArray[np.float32], places: Places, context: str, options: AnswerOptions
) -> list[Candidate]:
    """The best of the likeliest starts with the likeliest ends, each text once."""
    units_K = np.array(sorted(places.spans), np.int64)
    starts_S = units_K[np.argsort(-start_U[units_K], kind="stable")[: options.n_best]]
    ends_E = units_K[np.argsort(-end_U[units_K], kind="stable")[: options.n_best]]
    length_SE = ends_E - starts_S[:, None] + 1
    score_SE = start_U[starts_S].astype(np.float64)[:, None] + end_U[ends_E]
    score_SE[(length_SE < 1) | (length_SE > options.max_answer)] = -np.inf
    found: dict[tuple[int, int], Candidate] = {}
    for place in np.argsort(-score_SE, axis=None, kind="stable").tolist():
        first, last = divmod(place, len(ends_E))
        if len(found) == options.n_best or score_SE[first, last] == -np.inf:
            break
        span = places.text_of((int(starts_S[first]), int(ends_E[last])), context)
        if span is not None and span not in found:
            found[span] = Candidate(text=context[slice(*span)], begin=span[0], score=float(score_SE[first, last]))
    return list(found.values())


def join(example: QuestionExample, predictions: Sequence[AnswerPrediction]) -> AnswerPrediction:
    """The best answers of all windows, and the no answer of the window that denies it least."""
    most = max(len(prediction.candidates) for prediction in predictions)
    found: dict[tuple[int, str], Candidate] = {}
    for candidate in sorted(
        (candidate for prediction in predictions for candidate in prediction.candidates), key=lambda one: -one.score
    ):
        found.setdefault((candidate.begin, candidate.text), candidate)
    denied = [prediction.no_answer for prediction in predictions if prediction.no_answer is not None]
    return AnswerPrediction(
        candidates=tuple(found.values())[:most],
        no_answer=min(denied, default=None),
        read_back=next((one.read_back for one in predictions if one.read_back is not None), None),
    )


def record(example: QuestionExample, prediction: AnswerPrediction) -> dict[str, Any]:
    """The question, right answers where there are any, what was predicted, and the answers that came closest."""
    gold = {"answers": [text for text, _ in example.answers]} if example.answers or example.is_impossible else {}
    denied = {} if prediction.no_answer is None else {"no_answer_score": prediction.no_answer}
    best = [{"text": one.text, "begin": one.begin, "score": one.score} for one in prediction.candidates]
    return {
        "id": example.id,
        "question": example.question,
        "context": example.context,
        **gold,
        "predicted": prediction.text,
        **denied,
        "n_best": best,
    }


def lines(example: QuestionExample, prediction: AnswerPrediction, options: AnswerOptions) -> list[str]:
    """The answer, in one line."""
    return [" ".join(prediction.text.split())]


# ------------------------------------------------------------------ how good it is


def select(options: AnswerOptions) -> str:
    """F1 of answers."""
    return "f1"


def counts(
    examples: Sequence[QuestionExample], predictions: Sequence[AnswerPrediction], options: AnswerOptions
) -> dict[str, NDArray[Any]]:
    """questions, how many are answered exactly, sum of F1, and how many a perfect model would answer exactly; of those
    without an answer how many there are, and how many are left unanswered."""
    names = ("questions", "exact", "f1", "ceiling", "unanswerable", "unanswered")
    found_NK = np.zeros((len(examples), len(names)))
    for row_K, example, prediction in zip(found_NK, examples, predictions, strict=True):
        if not example.answers and not example.is_impossible:
            raise UserError(f"question {example.id}: has no answer to compare with: give labelled data")
        gold = [text for text, _ in example.answers]
        exact, f1 = exact_match_and_f1(prediction.text, gold, options.f1)
        read_back = "" if example.is_impossible else prediction.read_back
        ceiling = 0.0 if read_back is None else exact_match_and_f1(read_back, gold, options.f1)[0]
        impossible = float(example.is_impossible)
        row_K[:] = 1, exact, f1, ceiling, impossible, impossible * (not prediction.text)
    return dict(zip(names, found_NK.T))


def figures(sums: Mapping[str, NDArray[Any]], options: AnswerOptions) -> dict[str, NDArray[Any]]:
    """exact_match, f1, and the ceiling of exact_match; of questions without an answer the share that is left
    unanswered."""
    found = {
        "exact_match": ratio(sums["exact"], sums["questions"]),
        "f1": ratio(sums["f1"], sums["questions"]),
        "ceiling": ratio(sums["ceiling"], sums["questions"]),
    }
    if options.no_answer:
        found["no_answer_accuracy"] = ratio(sums["unanswered"], sums["unanswerable"])
    return found


def baselines(
    train: Sequence[QuestionExample], test: Sequence[QuestionExample], options: AnswerOptions
) -> dict[str, dict[str, float]]:
    """The most frequent answer, the last word of the sentence that is most like the question, and no answer."""
    common = most_frequent(train)
    said = {
        "most frequent answer": [common] * len(test),
        "last word of the sentence most like the question": list(map(last_word_of_the_likest_sentence, test)),
    }
    if options.no_answer:
        said["no answer"] = [""] * len(test)
    found = {}
    for name, texts in said.items():
        predictions = [AnswerPrediction(candidates=(Candidate(text=text, begin=0, score=0.0),)) for text in texts]
        sums = {key: column.sum() for key, column in counts(test, predictions, options).items()}
        values = figures(sums, options)
        del values["ceiling"]  # of what a model is shown
        found[name] = {key: float(value) for key, value in values.items()}
    return found
