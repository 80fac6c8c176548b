"""From --data to the examples of a task: training, held-out and test examples, and what their labels are called."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pixelcore.durable import sha256_of_file
from pixelcore.errors import UserError
from pixelcore.tasks import TASKS
from pixelcore.tasks.examples import TextExample, WordsExample, is_labelled
from pixelcore.tasks.labels import UNSEEN, Labels
from pixelcore.tasks.task import Task
from pixelcore.tokenizer import Tokenizer, byte_tokenizer, train_tokenizer
from train.config import TokenizerConfig
from train.config_tasks import TaskDataConfig, TaskOptions
from train.objective import Belongings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskFile:
    """A file of examples, and what it is for: "train", "valid" or "test"."""

    role: str
    path: str
    sha256: str


@dataclass(frozen=True)
class TaskCorpus:
    """The examples of a run. renderer: as a checkpoint keeps it; or tokenizer and max_tokens, of a row. overlap: share
    of the held-out examples whose text is that of a training example."""

    task: Task
    options: TaskOptions
    files: tuple[TaskFile, ...]
    training: Sequence[Any]
    held_out: Sequence[Any]
    test: Sequence[Any]
    labels: Labels
    overlap: float
    renderer: dict[str, Any] | None = None
    tokenizer: Tokenizer | None = None
    max_tokens: int = 0
    sources: Sequence[Any] = field(default=())

    @property
    def fingerprint(self) -> str:
        """Differs when the examples, or how they are divided, could differ."""
        parts = [[file.role, file.sha256] for file in self.files]
        parts += [[str(len(self.training)), str(len(self.held_out))]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def splits(self) -> Sequence[TaskFile]:
        """Which file has which role."""
        return self.files

    @property
    def summary(self) -> dict[str, Any]:
        """What was found."""
        sizes = {"training": len(self.training), "held_out": len(self.held_out), "test": len(self.test)}
        return sizes | {"labels": len(self.labels), "overlap": self.overlap}

    @property
    def belongings(self) -> Belongings:
        """What a checkpoint must keep: the renderer or tokenizer, and what the outputs mean."""
        task = {"kind": self.options.kind, "labels": list(self.labels.names), "options": asdict(self.options)}
        if self.tokenizer is not None:
            task["max_tokens"] = self.max_tokens
        return Belongings(tokenizer=self.tokenizer, renderer=self.renderer, task=task)


def read_corpus(data: TaskDataConfig, options: TaskOptions) -> TaskCorpus:
    """Find and read the files. Raises UserError for files that are missing or cannot be read."""
    task = TASKS[options.kind]
    paths = _find_files(data, task, options)
    read = {role: [one for path in found for one in task.read(path, options)] for role, found in paths.items()}
    training = read["train"]
    if not read["valid"] and data.valid_examples:
        training, read["valid"] = _held_out(training, data.valid_examples)
    if not read["valid"]:
        raise UserError(
            f"{paths['train'][0]}: no dev file beside it, and the best checkpoint is found on one: name it with "
            "--valid FILE, or --set data.valid_examples=N holds out N training examples"
        )
    _check_labelled("dev", read["valid"])
    if read["test"] and not any(map(is_labelled, read["test"])):
        _log.warning("%s: has no labels, so there will be no test figures", paths["test"][0])
        read["test"] = []
    _check_labelled("test", read["test"])
    texts = {_text(task, example) for example in training}
    overlap = sum(_text(task, example) in texts for example in read["valid"]) / len(read["valid"])
    files = [TaskFile(role, str(path), sha256_of_file(path)) for role, found in paths.items() for path in found]
    labels = task.inventory(training, options)
    for name, examples in (("dev", read["valid"]), ("test", read["test"])):
        unseen = [label for example in examples for label in _names(example) if labels.index(label) == UNSEEN]
        if unseen and len(labels):
            listed = ", ".join(sorted(set(unseen))[:8])
            _log.warning("%d labels of the %s file cannot be right, training has no %s", len(unseen), name, listed)
    _log.info(
        "%d examples to train on, %d held out (%.1f %% of these stand in the training data), %d to test; %d labels%s",
        len(training),
        len(read["valid"]),
        100 * overlap,
        len(read["test"]),
        len(labels),
        "" if read["test"] else "; no test file: there will be no test figures",
    )
    return TaskCorpus(task, options, tuple(files), training, read["valid"], read["test"], labels, overlap)


def tokenizer_of(corpus: TaskCorpus, config: TokenizerConfig, vocab_size: int) -> Tokenizer:
    """The tokenizer that is named, or that of bytes, else one trained on the training examples."""
    if config.path:
        return Tokenizer.load(config.path)
    if config.kind == "bytes":
        return byte_tokenizer()
    _log.info("training a tokenizer of %d pieces on the training examples", vocab_size)
    texts = (_text(corpus.task, example, between=" ") for example in corpus.training)
    return train_tokenizer(texts, vocab_size, max_bytes=int(config.training_megabytes * 2**20))


def _find_files(data: TaskDataConfig, task: Task, options: TaskOptions) -> dict[str, list[Path]]:
    """The files of each role. What is named replaces what a folder has."""
    if not data.paths:
        raise UserError("a task is learned from labelled files: name the data set's folder, or a file, with --data")
    found: dict[str, list[Path]] = {"train": [], "valid": [], "test": []}
    for path in map(Path, data.paths):
        if not path.exists():
            raise UserError(f"--data {path}: no such file or folder")
        if path.is_file():
            found["train"].append(path)
            continue
        for role, files in task.find_splits(path, options).items():
            found[role] += files if isinstance(files, tuple) else [files]
    for role, named in (("valid", data.valid), ("test", data.test)):
        if named:
            found[role] = [Path(path) for path in named]
    if not found["train"]:
        listed = ", ".join(os.path.basename(path) for paths in found.values() for path in paths)
        raise UserError(
            f"--data {data.paths[0]}: no training file, only {listed}: name the file to train on with --data FILE"
        )
    return found


def _held_out(examples: Sequence[Any], count: int) -> tuple[list[Any], list[Any]]:
    """The rest, and `count` examples taken evenly."""
    if count >= len(examples):
        raise UserError(f"data.valid_examples = {count} must be fewer than the {len(examples)} training examples")
    chosen = {number * len(examples) // count for number in range(count)}
    return (
        [example for number, example in enumerate(examples) if number not in chosen],
        [example for number, example in enumerate(examples) if number in chosen],
    )


def _check_labelled(name: str, examples: Sequence[Any]) -> None:
    for example in examples:
        if isinstance(example, TextExample) and example.unlabelled:
            raise UserError(f"{example.unlabelled}; the {name} file is scored, which takes labels")
        if not is_labelled(example):
            raise UserError(f"{example.id}: has no labels, and the {name} file is scored: give a labelled file")


def _names(example: Any) -> tuple[str, ...]:
    """The labels of an example, where they are names of outputs as they stand in the file."""
    if isinstance(example, WordsExample):
        return example.labels or ()
    if isinstance(example, TextExample) and isinstance(example.label, str):
        return (example.label,)
    return ()


def _text(task: Task, example: Any, between: str = "\n") -> str:
    drawn = task.drawn(example)
    return drawn if isinstance(drawn, str) else between.join(drawn)
