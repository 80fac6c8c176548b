"""From the files of a set of labelled texts to examples: what a run may be told of them, and how they are read.

What the columns and labels of known sets are called stands in `forms.py`. Several languages or two test sets of one
kind are read together, each a group with figures of its own. Rows that nobody agreed on have no label and are left out,
and a file without any label is one to be predicted.
"""

import logging
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pixelcore.errors import UserError
from pixelcore.tasks import text_files
from pixelcore.tasks.detokenise import WAYS, detokenised
from pixelcore.tasks.examples import TextExample
from pixelcore.tasks.forms import FIGURES, FIGURES_OF_NUMBERS, FORMS, NO_LABEL, Form
from pixelcore.tasks.tables import Row, Table, read_table

_log = logging.getLogger(__name__)

_ENDINGS = (".tsv", ".jsonl", ".csv", ".txt")
_LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")  # of XNLI


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """A label for each text or pair. layout: the set, "glue:cola" for instance, "snli", "xnli", "sib200"; or "columns",
    a table whose columns are named here: text, second ("" for single texts), label, group ("" for none), and regression
    says that labels are numbers. groups: these alone are read, others left out. labels: all there are, in this order;
    none: those of the set, or of the training data, sorted. metrics: figures, the first is what a run selects on; none:
    those of the set. positive: the label whose F1 is meant. detokenise: take spaces of a tokeniser out of the texts,
    "none", "pixel" everywhere, or "tokenised" from sets that hold tokens."""

    kind: ClassVar[str] = "classify"

    layout: str = "columns"
    text: str = "text"
    second: str = ""
    label: str = "label"
    group: str = ""
    groups: tuple[str, ...] = ()
    regression: bool = False
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    positive: str = ""
    detokenise: str = "none"

    def __post_init__(self) -> None:
        if self.layout not in ("columns", *FORMS):
            raise ValueError(f"layout = {self.layout!r} must be one of columns, {', '.join(FORMS)}")
        if self.layout != "columns":
            plain = {"text": "text", "second": "", "label": "label", "group": "", "regression": False}
            changed = [name for name, value in plain.items() if getattr(self, name) != value]
            if changed:
                raise ValueError(
                    f'{changed[0]} = {getattr(self, changed[0])!r} goes with layout = "columns" alone: '
                    f"{self.layout!r} knows its own"
                )
        if self.detokenise not in WAYS:
            raise ValueError(f"detokenise = {self.detokenise!r} must be one of {', '.join(WAYS)}")
        form = form_of(self)
        known = FIGURES_OF_NUMBERS if form.regression else FIGURES
        strangers = [name for name in self.metrics if name not in known]
        if strangers:
            raise ValueError(f"metrics = {list(self.metrics)} may hold {', '.join(known)}, not {strangers[0]!r}")
        if "f1" in form.metrics and not form.positive:
            raise ValueError('metrics with "f1" need positive, the label whose F1 is meant')
        if form.regression and (self.labels or self.positive):
            raise ValueError("labels and positive are names, and regression has numbers: leave them out")


def form_of(options: ClassifyOptions) -> Form:
    """How the set looks, and what is asked of it."""
    if options.layout != "columns":
        form = FORMS[options.layout]
    else:
        form = Form(
            text=(options.text,),
            second=(options.second,) if options.second else (),
            label=(options.label,),
            group=(options.group,) if options.group else (),
            quoted=True,
            regression=options.regression,
            metrics=FIGURES_OF_NUMBERS if options.regression else ("accuracy", "macro_f1"),
        )
    return replace(
        form,
        labels=options.labels or form.labels,
        metrics=options.metrics or form.metrics,
        positive=options.positive or form.positive,
    )


def find_splits(folder: Path, options: ClassifyOptions) -> dict[str, Path | tuple[Path, ...]]:
    """The files of a set. MNLI has two dev files, XNLI and SIB-200 one for each language; GLUE's test files have no
    labels and are no test."""
    form = form_of(options)
    several: dict[str, tuple[Path, ...]]
    if form.group_of == "folder" and folder.is_dir() and not any(folder.glob("train.*")):
        several = _in_folders(folder)
    elif form.group_of:
        several = text_files.find_all_by_name(folder, _ENDINGS)
    else:
        several = {role: (file,) for role, file in text_files.find_by_name(folder, _ENDINGS).items()}
    found = {role: files[0] if len(files) == 1 else files for role, files in several.items()}
    if options.layout.startswith("glue:") and found.pop("test", None):
        _log.info("%s: the test file of GLUE has no labels and is left out: infer predict writes them", folder)
    return found


def _in_folders(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of all folders that hold some: one for each language."""
    found: dict[str, tuple[Path, ...]] = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if any(inner.glob("train.*")):
            for role, file in text_files.find_by_name(inner, _ENDINGS).items():
                found[role] = (*found.get(role, ()), file)
    if not found:
        raise UserError(f"{folder}: neither a train file nor folders of languages that have one: name one with --data")
    return found


def read(path: Path, options: ClassifyOptions) -> list[TextExample]:
    """The examples of a file. Those without a label are left out and counted, unless none has one."""
    form = form_of(options)
    table = read_table(path, header=form.header, quoted=form.quoted, leave_out_bad_lines=form.bad_lines)
    columns = _Columns.of(table, form, options)
    examples = [_example(row, table, columns, form, options) for row in table.rows]
    if options.groups:
        there = sorted({example.group for example in examples})
        examples = [example for example in examples if example.group in options.groups]
        if not examples:
            raise UserError(f"{path}: objective.groups = {list(options.groups)}, and there are only {', '.join(there)}")
    labelled = [example for example in examples if example.label is not None]
    if len(labelled) == len(examples) or not labelled:
        labelled, without = examples, 0
    else:
        without = len(examples) - len(labelled)
    bad = len(table.bad_lines)
    if without or bad:
        share = 100 * (without + bad) / (len(examples) + bad)
        _log.warning("%s: left out %.2f %%: %d without a label, %d damaged lines", path, share, without, bad)
    return labelled


@dataclass(frozen=True)
class _Columns:
    """Which column of a table has what; None where there is none. unlabelled: as of `TextExample`."""

    text: str
    second: str | None
    label: str | None
    group: str | None
    identity: str | None
    unlabelled: str

    @staticmethod
    def of(table: Table, form: Form, options: ClassifyOptions) -> "_Columns":
        def lacking(names: tuple[str, ...], field: str) -> str:
            if options.layout != "columns":
                return f"{table.lacks(names)}: objective.layout = {options.layout!r} asks for it"
            return f"{table.lacks(names)}: name one with --set objective.{field}=NAME"

        def needed(names: tuple[str, ...], field: str) -> str:
            found = table.find(names)
            if found is None:
                raise UserError(lacking(names, field))
            return found

        label = table.find(form.label)
        if label is None:
            _log.info("%s, so these are texts without labels", table.lacks(form.label))
        return _Columns(
            text=needed(form.text, "text"),
            second=needed(form.second, "second") if form.second else None,
            label=label,
            group=needed(form.group, "group") if options.group else table.find(form.group),
            identity=table.find(form.identity),
            unlabelled=lacking(form.label, "label") if label is None else "",
        )


def _example(row: Row, table: Table, columns: _Columns, form: Form, options: ClassifyOptions) -> TextExample:
    where = f"{table.path}:{row.line}"
    texts = []
    for column in (columns.text, columns.second):
        text = "" if column is None else row.fields[column]
        if column is not None and options.layout == "columns" and not text.strip():
            raise UserError(f"{where}: column {column!r} is empty, and there is nothing to read: fill or delete it")
        if options.detokenise == "pixel" or (options.detokenise == "tokenised" and form.tokenised):
            text = detokenised(text, options.detokenise)
        texts.append(text)
    group = row.fields[columns.group] if columns.group else _group_of(table.path, form)
    identity = f"{table.path.name}:{row.line}" if columns.identity is None else row.fields[columns.identity]
    return TextExample(
        id=f"{group}:{identity}" if form.group_of == "folder" else identity,
        text=texts[0],
        second=None if columns.second is None else texts[1],
        label=None if columns.label is None else _label(row.fields[columns.label], form, options, where),
        group=group,
        unlabelled=columns.unlabelled,
    )


def _label(text: str, form: Form, options: ClassifyOptions, where: str) -> str | float | None:
    text = text.strip()
    if form.regression:
        if text in ("", "-"):
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{where}: label {text!r} is no number, and regression needs one: correct the line")
        return value
    if options.layout == "columns":
        if text:
            return text
        raise UserError(f"{where}: the label is empty: fill it in, or take the column away where none is known")
    label = form.renamed.get(text, text)
    if label in NO_LABEL:
        return None
    if label not in form.labels and label.isdecimal() and int(label) < len(form.labels):
        label = form.labels[int(label)]
    if form.labels and label not in form.labels:
        raise UserError(f"{where}: label {text!r} is none of {', '.join(form.labels)}: correct the line")
    return label


def _group_of(path: Path, form: Form) -> str:
    """What the file's place or name says of its examples."""
    if form.group_of == "folder":
        return path.absolute().parent.name
    words = re.split(r"[^a-z]+", path.name.lower())
    if form.group_of == "match":
        return next((word for word in words if word in ("matched", "mismatched")), "")
    if form.group_of == "language":
        return next((word for word in (*words, path.absolute().parent.name) if word in _LANGUAGES), "")
    return ""
