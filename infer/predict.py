"""From a fine-tuned model and a file, or a text, to what the model says of it.

A checkpoint of a fine-tuned model knows all that this takes: its renderer, its task, what its outputs mean, and how
files of the task are read. So a file is read as in training, by its ending, whether it has labels or not; a bare text
becomes an example by being cut at spaces where the task wants words.

What is written follows from the name of the file that it goes to:

    .jsonl    a record for each example: what was given, gold labels where there are any, what was predicted
    .conllu   the file's own lines with the predictions in them, or new ones: words with labels, and trees
    .txt      words and labels in two columns; of texts the identity and the label; of questions the answers
    .json     of questions: answers by the question's id, as SQuAD's official programs take them
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from infer.load import TASK_MODELS, choose_device, choose_dtype, read
from infer.pixels import renderer_of
from infer.task_model import Predicted
from infer.task_model import predict as predict_rows
from infer.task_rows import Inputs, Strips, TaskRows
from infer.task_tokens import Tokens
from kernels import choose_ops
from pixelcore.checkpoint import build_model
from pixelcore.config import DecoderTaskConfig, TokenTaskConfig
from pixelcore.config_io import record_from_dict
from pixelcore.durable import write_file
from pixelcore.errors import UserError
from pixelcore.models import Model
from pixelcore.stored import Stored
from pixelcore.tasks import TASKS, classify
from pixelcore.tasks.conllu import COLUMNS
from pixelcore.tasks.examples import QuestionExample, TextExample, TreeExample, WordsExample
from pixelcore.tasks.labels import Labels
from pixelcore.tasks.task import Task
from render import Renderer

ENDINGS = (".jsonl", ".conllu", ".txt", ".json")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskModel:
    """A fine-tuned model in eval mode, and all that stands beside it: how text becomes rows, its task, the task's
    options, and what its outputs mean."""

    model: Model
    inputs: Inputs
    task: Task
    options: Any
    known: Labels
    stored: Stored
    device: torch.device

    @property
    def kind(self) -> str:
        """The task's name."""
        return self.options.kind

    @property
    def renderer(self) -> Renderer | None:
        """What draws its strips; None where it reads tokens."""
        return self.inputs.renderer if isinstance(self.inputs, Strips) else None

    def rows(self, examples: Sequence[Any]) -> TaskRows:
        """Examples as the model reads them."""
        return TaskRows(self.task, examples, self.inputs, self.known, self.options, cache_bytes=1 << 28)


def load_model(
    path: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    ops: str = "auto",
    fonts: Sequence[str | Path] = (),
    render: Mapping[str, Any] | None = None,
    accept_changed: bool = False,
    objective: Mapping[str, Any] | None = None,
    kind: str | None = None,
) -> TaskModel:
    """Read a fine-tuned model.

    device, dtype, ops, fonts, render, accept_changed: as of `infer.load_pixels`. path: None is the newest run of such a
    model. objective: options of the task to change, as the name of a column. kind: the task that it must be of.
    Raises UserError where something is missing, damaged or does not fit, and for a model that was not fine-tuned.
    """
    chosen_device = choose_device(device)
    chosen_ops = choose_ops(chosen_device, ops)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    stored = read(path, kinds=TASK_MODELS)
    if stored.task is None:
        raise UserError(
            f"{stored.path}: does not say what its outputs mean: fine-tune it here, python -m train --init "
            f"{stored.path} --data FOLDER --preset pixel-base-pos (or another task's)"
        )
    own = stored.task["kind"]
    if kind is not None and own != kind:
        raise UserError(
            f"{stored.path}: a model of the task {own}, and this is {kind}: evaluate {own}, or give another"
        )
    task = TASKS[own]
    options = _options(stored, task, objective or {})
    if isinstance(stored.config, TokenTaskConfig | DecoderTaskConfig):
        if stored.tokenizer is None:
            raise UserError(f"{stored.path}: the tokenizer that the model was trained with is not there: restore it")
        if fonts or render or accept_changed:
            raise UserError(f"{stored.path}: reads tokens and draws nothing: leave --font and --set render.x=v out")
        inputs: Inputs = Tokens(stored.tokenizer, stored.task["max_tokens"])
    else:
        renderer = renderer_of(stored, fonts=fonts, render=render, accept_changed=accept_changed)
        inputs = Strips(renderer, renderer.config.max_patches)
    model = build_model(stored, chosen_device, chosen_dtype, chosen_ops)
    return TaskModel(model, inputs, task, options, Labels(tuple(stored.task["labels"])), stored, chosen_device)


def _options(stored: Stored, task: Task, changes: Mapping[str, Any]) -> Any:
    assert stored.task is not None
    names = [field.name for field in fields(task.OPTIONS)]
    for name in changes:
        if name not in names:
            raise UserError(f"--set objective.{name}: unknown; of {stored.task['kind']} there are {', '.join(names)}")
    where = f"{stored.path}: options of the task" if not changes else "--set objective"
    return record_from_dict(task.OPTIONS, {**stored.task["options"], **changes}, where)


# ------------------------------------------------------------------ examples


def read_files(loaded: TaskModel, paths: Sequence[str | Path]) -> list[Any]:
    """The examples of files of the task, one behind another."""
    return [example for path in paths for example in loaded.task.read(Path(path), loaded.options)]


def text_examples(loaded: TaskModel, texts: Sequence[tuple[str, str]], second: str | None = None) -> list[Any]:
    """Bare texts as examples of the task. texts: each with the name it has in reports. second: the other text of a
    pair, or the context of a question. Raises UserError for an empty text, and where a second one is missing or too
    many."""
    takes_second = loaded.kind == "answer"
    if isinstance(loaded.options, classify.ClassifyOptions):
        takes_second = bool(classify.form_of(loaded.options).second)
    if takes_second and second is None:
        what = "questions need the text that they are about" if loaded.kind == "answer" else "the model reads pairs"
        raise UserError(f"{what}: give --text and --second, or a file with both, --data FILE")
    if second is not None and not takes_second:
        raise UserError(f"--second: this model of the task {loaded.kind} reads single texts: leave it out")
    found = []
    for name, text in texts:
        if not text.strip():
            raise UserError(f"{name} is empty: give at least one character that is not a space")
        found.append(_EXAMPLES[loaded.kind](name, text, second))
    return found


# A bare text of each task. Words are what spaces stand between.
_EXAMPLES: dict[str, Callable[[str, str, str | None], Any]] = {
    "classify": lambda name, text, second: TextExample(id=name, text=text, second=second),
    "tag": lambda name, text, second: WordsExample(id=name, words=tuple(text.split())),
    "parse": lambda name, text, second: TreeExample(id=name, words=tuple(text.split())),
    "answer": lambda name, text, second: QuestionExample(id=name, question=text, context=second or ""),
}


# ------------------------------------------------------------------ predictions


def predict(loaded: TaskModel, examples: Sequence[Any], *, with_loss: bool = False) -> tuple[Predicted, TaskRows]:
    """What the model says of each example, and the rows that it read. with_loss: the examples have labels."""
    rows = loaded.rows(examples)
    return predict_rows(loaded.model, rows, loaded.device, with_loss=with_loss), rows


def say_losses(rows: TaskRows) -> None:
    """Log which share of the examples was cut, and which of the characters no font has."""
    shares = rows.shares()
    _log.info(
        "%d examples in %d rows: %.2f %% of the rows do not show all of their text, no font has %.2f %% of the "
        "characters",
        len(rows.examples),
        len(rows),
        100 * shares["truncated"],
        100 * shares["missing_glyphs"],
    )


def check_ending(out: str | Path, loaded: TaskModel) -> None:
    """Raises UserError where predictions of this task cannot be written so."""
    ending = Path(out).suffix.lower()
    of_words = loaded.kind == "tag" and getattr(loaded.options, "scores", "") == "words"
    fitting = {
        ".jsonl": True,
        ".conllu": of_words or loaded.kind == "parse",
        ".txt": loaded.kind != "parse",
        ".json": loaded.kind == "answer",
    }
    possible = [name for name in ENDINGS if fitting[name]]
    if ending not in possible:
        what = "entities" if loaded.kind == "tag" and not of_words else f"predictions of the task {loaded.kind}"
        raise UserError(f"--out {out}: {what} are written as {', '.join(possible)}: let the name end so")


def written(loaded: TaskModel, examples: Sequence[Any], predictions: Sequence[Any], ending: str) -> str:
    """Predictions in the format of an ending that `check_ending` lets pass."""
    task, options = loaded.task, loaded.options
    pairs = list(zip(examples, predictions, strict=True))
    if ending == ".jsonl":
        lines = [json.dumps(task.record(example, prediction), ensure_ascii=False) for example, prediction in pairs]
    elif ending == ".json":
        answers = {example.id: prediction.text for example, prediction in pairs}
        lines = [json.dumps(answers, ensure_ascii=False, indent=1)]
    else:
        prepared = {".conllu": _in_conllu, ".txt": _without_lines}[ending]
        lines = [line for example, said in pairs for line in task.lines(prepared(example), said, options)]
    return "".join(line + "\n" for line in lines)


def write_predictions(loaded: TaskModel, examples: Sequence[Any], predictions: Sequence[Any], out: str | Path) -> None:
    """Write them, all or nothing."""
    check_ending(out, loaded)
    text = written(loaded, examples, predictions, Path(out).suffix.lower())
    try:
        write_file(Path(out), text.encode())
    except OSError as cause:
        raise UserError(f"--out {out}: cannot be written ({cause.strerror}): choose another place") from cause


def _in_conllu(example: Any) -> Any:
    """With CoNLL-U lines: its own, where it comes from such a file, else new ones."""
    if any(len(line.split("\t")) == len(COLUMNS) for line in example.lines):
        return example
    blanks = "\t".join("_" * (len(COLUMNS) - 2))
    rows = [f"{number}\t{word}\t{blanks}" for number, word in enumerate(example.words, start=1)]
    return replace(example, lines=(f"# sent_id = {example.id}", *rows))


def _without_lines(example: Any) -> Any:
    """As if it came from no file: words and labels are written in columns."""
    return replace(example, lines=()) if isinstance(example, WordsExample) else example


def about(loaded: TaskModel) -> dict[str, Any]:
    """Which model it is, for JSON."""
    return {
        "model": str(loaded.stored.path),
        "name": loaded.stored.name,
        "step": loaded.stored.step,
        "task": loaded.kind,
        "options": asdict(loaded.options),
        "labels": len(loaded.known),
    }
