"""The tables of a run that fine-tunes on a task, besides those that every run has.

What the task itself can be told, how its files are read and what is scored, is the task's own record
(`pixelcore/tasks/`): it is the [objective] table, and a checkpoint keeps it.
"""

from dataclasses import dataclass

from pixelcore.tasks.answer import AnswerOptions
from pixelcore.tasks.classify import ClassifyOptions
from pixelcore.tasks.parse import ParseOptions
from pixelcore.tasks.tag import TagOptions

TaskOptions = ClassifyOptions | TagOptions | ParseOptions | AnswerOptions
TASK_OPTIONS = {options.kind: options for options in (ClassifyOptions, TagOptions, ParseOptions, AnswerOptions)}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class TaskDataConfig:
    """Which files. paths: the folder of a data set, in which train, dev and test files are found by their names; or
    files to train on. valid, test: files in place of the folder's own. valid_examples: without a dev file, hold out so
    many of the training examples, evenly taken.

    max_patches: of a strip (or tokens of a text), end patch included; what is longer is cut. cut_positions: the model
    keeps the first max_patches of its positions, as in the original; else all of them. rows_per_step: of one optimizer
    step over all ranks. cache_megabytes: of drawn rows that are kept.
    """

    paths: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    valid_examples: int = 0
    max_patches: int = 256
    cut_positions: bool = False
    rows_per_step: int = 64
    cache_megabytes: int = 1024

    def __post_init__(self) -> None:
        _require(self.max_patches >= 2, f"max_patches = {self.max_patches} must be at least 2: one, and the end patch")
        _require(self.rows_per_step > 0, f"rows_per_step = {self.rows_per_step} must be positive")
        for name in ("valid_examples", "cache_megabytes"):
            _require(getattr(self, name) >= 0, f"{name} = {getattr(self, name)} must not be negative")
        _require(
            not (self.valid and self.valid_examples),
            f"valid_examples = {self.valid_examples} with valid = {list(self.valid)}: leave one of them out",
        )


@dataclass(frozen=True, kw_only=True)
class TaskEvalConfig:
    """Score the dev file every `every` steps and at the end. select: the figure by which the best checkpoint is kept,
    "" for the task's own, "loss" for the lowest loss. patience: stop after so many scores in a row without a better
    one; 0: never."""

    every: int = 500
    select: str = ""
    patience: int = 5

    def __post_init__(self) -> None:
        _require(self.every > 0, f"every = {self.every} must be positive")
        _require(self.patience >= 0, f"patience = {self.patience} must not be negative")
