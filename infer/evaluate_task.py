"""How good a fine-tuned model is: its figures, and beside them all that keeps a figure honest.

A figure says little alone. Beside each stand: how many examples it is of and how far it could be off on others (a 95 %
interval over the examples), what no model at all reaches on them (`Task.baselines`, learned from training data), how
much the model was not shown (what was cut, what no font has, labels that training never saw), and what was published
for this data, with its source and version (`published.toml`).
"""

import logging
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.predict import TaskModel, predict, say_losses
from pixelcore.errors import UserError
from pixelcore.tasks.bootstrap import Counts, Sums, intervals
from pixelcore.tasks.examples import TextExample, TreeExample, WordsExample, is_labelled
from pixelcore.tasks.labels import UNSEEN

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figure:
    """A value and its 95 % interval over the examples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Published:
    """A figure that others report. value: as printed, mostly in per cent. note: how it compares to ours."""

    model: str
    figure: str
    value: float
    data: str
    source: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """examples: how many. select: the figure that a run selects on. unseen: labels in the data that training has not
    seen, and that cannot be right. shares: of rows that were cut, of characters that no font has."""

    examples: int
    loss: float
    figures: dict[str, Figure]
    select: str
    unseen: int
    shares: dict[str, float]
    baselines: dict[str, dict[str, float]]
    published: tuple[Published, ...]


@dataclass(frozen=True)
class Clean:
    """What an attack is compared with: the predictions of the clean examples, and the rows that they are of."""

    predictions: list[Any]
    rows: Any
    counts: Counts


def evaluate(
    loaded: TaskModel, examples: Sequence[Any], train: Sequence[Any], paths: Sequence[str]
) -> tuple[Evaluation, Clean]:
    """train: what the baselines learn from; none without. paths: of the examples, by which published figures are found.
    Raises UserError for examples without labels."""
    for example in [*examples, *train]:
        if isinstance(example, TextExample) and example.unlabelled:
            raise UserError(f"{example.unlabelled}; without labels there is nothing to compare with: use predict")
        if not is_labelled(example):
            raise UserError(f"{example.id}: has no label to compare with: give a labelled file, or use predict")
    unseen = sum(loaded.known.index(name) == UNSEEN for example in examples for name in _names(example))
    if unseen:
        _log.warning("%d labels of the data were not in the training data of the model and cannot be right", unseen)
    found, rows = predict(loaded, examples, with_loss=True)
    say_losses(rows)
    if not train:
        _log.info("no baselines: they learn from training data, --train FILE")
    counts = loaded.task.counts(examples, found.predictions, loaded.options)
    assert found.loss is not None
    select = loaded.task.select(loaded.options)
    evaluation = Evaluation(
        examples=len(examples),
        loss=found.loss,
        figures=figures_of(loaded, counts),
        select=select,
        unseen=unseen,
        shares=rows.shares(),
        baselines=loaded.task.baselines(train, examples, loaded.options) if train else {},
        published=published_for(loaded, paths),
    )
    return evaluation, Clean(found.predictions, rows, counts)


def figures_of(loaded: TaskModel, counts: Counts) -> dict[str, Figure]:
    """The task's figures of these examples, with intervals."""
    values = loaded.task.figures(Sums(counts), loaded.options)
    around = intervals(counts, lambda sums: loaded.task.figures(sums, loaded.options))
    return {name: Figure(float(value), *around[name]) for name, value in values.items()}


def _names(example: Any) -> Sequence[str]:
    """The labels of an example that are names of outputs."""
    if isinstance(example, WordsExample):
        return example.labels or ()
    if isinstance(example, TreeExample):
        return example.relations or ()
    if isinstance(example, TextExample) and isinstance(example.label, str):
        return (example.label,)
    return ()


# ------------------------------------------------------------------ what was published


def published_for(loaded: TaskModel, paths: Sequence[str]) -> tuple[Published, ...]:
    """The published figures for this data, where all its files are known to be of one set."""
    layout = str(getattr(loaded.options, "layout", ""))
    figures = loaded.task.figures(Sums(loaded.task.counts([], [], loaded.options)), loaded.options)
    found: list[Published] = []
    for table in _tables():
        if table["task"] != loaded.kind or table["figure"] not in figures:
            continue
        fitting = [
            name for name, mark in table["sets"].items() if all(re.search(mark, _place(layout, path)) for path in paths)
        ]
        for model, values in table["rows"].items() if len(fitting) == 1 else ():
            if fitting[0] in values:
                data = f"{fitting[0]}, {table['version']}, {table['split']}"
                row = (model, table["figure"], values[fitting[0]], data, table["source"], table.get("note", ""))
                found.append(Published(*row))
    return tuple(found)


@cache
def _tables() -> list[dict[str, Any]]:
    """The tables of published.toml, their sets with the expressions by which these are known."""
    with (Path(__file__).parent / "published.toml").open("rb") as file:
        content = tomllib.load(file)
    return [table | {"sets": content["sets"][table["sets"]]} for table in content["table"]]


def _place(layout: str, path: str) -> str:
    return f"{layout} {'/'.join(Path(path).absolute().parts[-5:])}".lower()


# ------------------------------------------------------------------ as text, as JSON


def as_report(found: Evaluation, attacked: Sequence[Any]) -> dict[str, Any]:
    """Plain values, for JSON."""
    report = asdict(found)
    if attacked:
        report["attacks"] = [asdict(one) for one in attacked]
    return report


def as_text(found: Evaluation, attacked: Sequence[Any]) -> list[str]:
    """Lines of a table: figures in per cent, the model first, then what is trivial, then what is published."""
    names = list(found.figures)
    rows = [["this model", *(_with_interval(found.figures[name]) for name in names)]]
    for name, values in found.baselines.items():
        rows.append([name.replace("_", " "), *(f"{100 * values[key]:.2f}" if key in values else "" for key in names)])
    for one in found.published:
        rows.append([one.model, *(f"{one.value:g}" if key == one.figure else "" for key in names)])
    lines = [f"{found.examples} examples, loss {found.loss:.4f}; per cent, 95 % intervals over the examples", ""]
    lines += in_columns([["", *names], *rows])
    if found.published:
        lines.append("")
        lines += dict.fromkeys(
            f"published, {one.figure}: {one.data}; {one.source}{'; ' if one.note else ''}{one.note}"
            for one in found.published
        )
    for one in attacked:
        lines += ["", *one.as_text(found.select)]
    return lines


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, one under another: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def _with_interval(figure: Figure) -> str:
    return f"{100 * figure.value:.2f} [{100 * figure.low:.2f}, {100 * figure.high:.2f}]"


def chosen(counts: Mapping[str, NDArray[Any]], which: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The counts of some of the examples."""
    return {name: column[which] for name, column in counts.items()}
