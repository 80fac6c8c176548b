"""The forms in which sets of labelled texts are handed on: names of columns, labels, and what is scored.

A set is known by its columns. Those that come both as TSV (from the makers) and as JSONL (from a hub, labels as
numbers) have two names for a column; the first that is there is taken. A hub writes -1, and SNLI -, where there is no
label: annotators did not agree, or it is the secret test set.
Sources: gluebenchmark.com; nyu.edu/projects/bowman/xnli; github.com/dadelani/sib-200; specs/pixel.md, sections 5 and 6.
"""

from dataclasses import dataclass, field

FIGURES = ("accuracy", "f1", "macro_f1", "matthews")
FIGURES_OF_NUMBERS = ("pearson", "spearman")
NO_LABEL = ("-1", "-", "")


@dataclass(frozen=True, kw_only=True)
class Form:
    """text, second, label, group, identity: possible names of these columns. labels: all there are, in the order of the
    numbers that stand for them; none: those of the training data. renamed: labels by other names for them.

    header: columns of a TSV file without a header line. quoted: whether TSV has fields in quotes. tokenised: whether
    the texts are tokens with spaces between them. bad_lines: whether the files are known to have damaged lines, which
    are left out and counted. group_of: what a file's examples are a group of, where no column says so: "folder" its
    folder, "language" or "match" a word of its name. positive: the label whose F1 is meant. metrics: the first is what
    a run selects on.
    """

    text: tuple[str, ...]
    second: tuple[str, ...] = ()
    label: tuple[str, ...] = ("label",)
    group: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    quoted: bool = False
    tokenised: bool = False
    bad_lines: bool = False
    group_of: str = ""
    regression: bool = False
    positive: str = ""
    metrics: tuple[str, ...] = ("accuracy",)


_YES_NO = ("0", "1")
_TWO = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")
_PREMISE, _HYPOTHESIS = ("premise", "sentence1"), ("hypothesis", "sentence2", "hypo")

GLUE = {
    "cola": Form(
        text=("sentence",),
        header=("source", "label", "star", "sentence"),  # of train and dev; test has one of its own
        labels=_YES_NO,
        metrics=("matthews",),
    ),
    "sst2": Form(text=("sentence",), labels=_YES_NO),
    "mrpc": Form(
        text=("sentence1", "#1 String"),
        second=("sentence2", "#2 String"),
        label=("label", "Quality"),
        labels=_YES_NO,
        tokenised=True,
        positive="1",
        metrics=("f1", "accuracy"),
    ),
    "stsb": Form(
        text=("sentence1",),
        second=("sentence2",),
        label=("label", "score"),
        regression=True,
        metrics=("spearman", "pearson"),
    ),
    "qqp": Form(
        text=("question1",),
        second=("question2",),
        label=("label", "is_duplicate"),
        labels=_YES_NO,
        bad_lines=True,
        positive="1",
        metrics=("f1", "accuracy"),
    ),
    "mnli": Form(text=_PREMISE, second=_HYPOTHESIS, label=("gold_label", "label"), labels=_THREE, group_of="match"),
    "qnli": Form(text=("question",), second=("sentence",), labels=_TWO),
    "rte": Form(text=("sentence1",), second=("sentence2",), labels=_TWO),
    "wnli": Form(text=("sentence1",), second=("sentence2",), labels=_YES_NO),
}

FORMS = {f"glue:{name}": form for name, form in GLUE.items()} | {
    "snli": Form(text=_PREMISE, second=_HYPOTHESIS, label=("gold_label", "label"), labels=_THREE),
    "xnli": Form(
        text=_PREMISE,
        second=_HYPOTHESIS,
        label=("gold_label", "label"),
        group=("language",),
        labels=_THREE,
        renamed={"contradictory": "contradiction"},  # of the translated training files
        group_of="language",
    ),
    "sib200": Form(
        text=("text",),
        label=("category",),
        identity=("index_id",),
        quoted=True,
        group_of="folder",
        metrics=("macro_f1", "accuracy"),
    ),
}
