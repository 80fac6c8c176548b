"""What a task is: the questions that training, prediction and evaluation ask, in the order in which they are asked.

A task is a module of pure functions (`tag.py` reads as one example of it from top to bottom). It knows examples,
labels and scores, and neither how text is drawn nor what computes the scores: between them stands `Layout`, which says
what stands where in the units that a model reads. Units are the patches of a strip or the tokens of a text, so a task
runs on encoders of either kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pixelcore.tasks.bootstrap import Sums
from pixelcore.tasks.labels import Labels


@dataclass(frozen=True)
class Layout:
    """Where an example stands in the units of its row.

    num_units: patches or tokens, the end patch counted. word_starts: int32 [words + 1], the first unit of each word
    that is there, then the unit behind the last; words that did not fit are missing at the end. None for texts.
    char_spans: int32 [units, 3], which text (0 or 1), first character, end; -1, -1, -1 for separators. None where the
    task does not ask for them. cut: whether something of the example did not fit.
    """

    num_units: int
    word_starts: NDArray[np.int32] | None = None
    char_spans: NDArray[np.int32] | None = None
    cut: bool = False

    @property
    def num_words(self) -> int:
        """Words that are there."""
        return 0 if self.word_starts is None else len(self.word_starts) - 1


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a long text, or a pair whose second text is long, becomes several rows. stride: units at the end of a row
    that the next one shows again. first_max: units that the first text of a pair may take; what is longer is cut, so
    that the second has room in every row."""

    stride: int
    first_max: int


class Task(Protocol):
    """The functions of a task's module. `options` is always a record of the class `OPTIONS`."""

    @property
    def OPTIONS(self) -> type[Any]:
        """A frozen dataclass with a default for each field, and `kind`: the [objective] table of a run. It is stored in
        the checkpoint, so whatever reads files or scores predictions stands in it."""
        ...

    @property
    def HEAD(self) -> str:
        """`task` of the model's configuration."""
        ...

    @property
    def NEEDS_SPANS(self) -> bool:
        """Whether layouts must have char_spans."""
        ...

    # ---- data

    def find_splits(self, folder: Path, options: Any) -> Mapping[str, Path | tuple[Path, ...]]:
        """The files of a data set's folder: "train", "valid" and "test", as many of them as there are; several for a
        role where a set is divided into them, by language for instance."""
        ...

    def read(self, path: Path, options: Any) -> list[Any]:
        """The examples of a file, at least one. Raises UserError with file and line for what cannot be read."""
        ...

    def drawn(self, example: Any) -> str | tuple[str, str] | list[str]:
        """What a renderer or tokenizer is given: a text, a pair, or words."""
        ...

    def stride(self, options: Any) -> Windows | None:
        """None: an example is one row, and what does not fit is lost. Else it is as many as it takes."""
        ...

    # ---- training

    def inventory(self, examples: Sequence[Any], options: Any) -> Labels:
        """What the outputs of a model that is trained on these examples mean."""
        ...

    def num_outputs(self, known: Labels, options: Any) -> int:
        """`num_labels` of the model's configuration."""
        ...

    def targets(self, example: Any, layout: Layout, known: Labels, options: Any) -> dict[str, NDArray[Any]]:
        """The targets of one row, by the names of the model's arguments."""
        ...

    def num_targets(self, found: Mapping[str, NDArray[Any]]) -> int:
        """How many the loss counts: as the model's `count` says it."""
        ...

    def collate(self, found: Sequence[Mapping[str, NDArray[Any]]], width: int) -> dict[str, Tensor]:
        """The model's keyword arguments besides the units, for rows that are padded to `width` units."""
        ...

    # ---- what a model says

    def decode(
        self,
        scores: Mapping[str, NDArray[np.float32]],
        examples: Sequence[Any],
        layouts: Sequence[Layout],
        known: Labels,
        options: Any,
    ) -> list[Any]:
        """What the scores of a batch predict, one prediction for each row. scores: the fields of `TaskOutput` that are
        there, by name, padded; row b belongs to examples[b] and layouts[b]."""
        ...

    def join(self, example: Any, predictions: Sequence[Any]) -> Any:
        """The prediction of an example from those of its rows, which are several where there is a stride."""
        ...

    def record(self, example: Any, prediction: Any) -> dict[str, Any]:
        """A line of predictions.jsonl: "id", what was given, and "predicted"."""
        ...

    def lines(self, example: Any, prediction: Any, options: Any) -> list[str]:
        """The prediction in the format of the task's files."""
        ...

    # ---- how good it is

    def select(self, options: Any) -> str:
        """The figure that a run selects on; larger is better."""
        ...

    def counts(self, examples: Sequence[Any], predictions: Sequence[Any], options: Any) -> dict[str, NDArray[Any]]:
        """float64 [examples] by name: all that `figures` needs, mostly their sums. Bootstraps resample these. Of no
        examples the names are there, with nothing in them."""
        ...

    def figures(self, sums: Sums, options: Any) -> dict[str, NDArray[Any]]:
        """Figures in [0, 1], correlations in [-1, 1], from sums of counts; sums may have leading axes, and figures then
        have them too. What is no function of sums takes the columns (`Sums.each`)."""
        ...

    def baselines(self, train: Sequence[Any], test: Sequence[Any], options: Any) -> dict[str, dict[str, float]]:
        """The figures on `test` of what is trivial, by name."""
        ...


def score(task: Task, examples: Sequence[Any], predictions: Sequence[Any], options: Any) -> dict[str, float]:
    """The figures of predictions, gold labels beside them."""
    found = task.figures(Sums(task.counts(examples, predictions, options)), options)
    return {name: float(value) for name, value in found.items()}
