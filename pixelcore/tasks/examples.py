"""What a file of a task comes down to: one frozen record for each example, whatever format it was read from.

Labels are names, not numbers, and may be absent: a text to label has none. `id` says in reports which example is meant.
`lines` of an example are those of the file it comes from, where predictions can be written back into them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TextExample:
    """A text, or a pair, with one label: a name, or a number in regression. group: a part of the data that is reported
    by itself, such as a language. unlabelled: what an error says of a file that has no column of labels."""

    id: str
    text: str
    second: str | None = None
    label: str | float | None = None
    group: str = ""
    unlabelled: str = ""


@dataclass(frozen=True, kw_only=True)
class WordsExample:
    """The words of a sentence, and a label for each."""

    id: str
    words: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TreeExample:
    """The words of a sentence, for each the head it depends on, 0 the root and word j is j + 1, and the relation."""

    id: str
    words: tuple[str, ...]
    heads: tuple[int, ...] | None = None
    relations: tuple[str, ...] | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QuestionExample:
    """A question about a context. answers: texts that are right, each with its first character in the context."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] = ()
    is_impossible: bool = False


Example = TextExample | WordsExample | TreeExample | QuestionExample


def is_labelled(example: Example) -> bool:
    """Whether there is something to learn from, or to compare a prediction with."""
    if isinstance(example, QuestionExample):
        return bool(example.answers) or example.is_impossible
    if isinstance(example, TreeExample):
        return example.heads is not None
    return (example.label if isinstance(example, TextExample) else example.labels) is not None
