"""SQuAD's files: articles of paragraphs, each a context with questions, and answers with the place where they begin.

SQuAD 1 and 2, XQuAD, TyDi QA's gold passages, KorQuAD and JaQuAD are all of this form. Their places are not always
right: some count bytes, or characters before a clean-up that the context went through. An answer that does not stand
where it should is looked for, and the occurrence nearest to that place is taken; one that stands nowhere in the context
can be scored but not learned. How many were either is said.

Source: Rajpurkar et al., arXiv:1606.05250 and arXiv:1806.03822.
"""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from pixelcore.errors import UserError
from pixelcore.tasks.examples import QuestionExample
from pixelcore.tasks.text_files import numbered_lines

NOWHERE = -1  # where an answer begins that is not in the context

_log = logging.getLogger(__name__)


def read_squad(path: Path, empty_is_impossible: bool = False) -> list[QuestionExample]:
    """All questions of a file, .gz too. What has `is_impossible` has no answer; what has no answers is unlabelled, or
    impossible too where an empty list of them says so. Raises UserError with the line, or the place in the tree, of
    what cannot be read, and for a file without questions."""
    text = "\n".join(line for _, line in numbered_lines(path))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as cause:
        raise UserError(f"{path}:{cause.lineno}: no JSON ({cause.msg}): give a file in SQuAD's format") from cause
    if not isinstance(content, dict):
        raise UserError(f"{path}: a {_name(content)}; a file in SQuAD's format is an object with 'data'")
    found: list[QuestionExample] = []
    seen: Counter[str] = Counter()
    for article, where in _items(content, "data", str(path)):
        for paragraph, where_in in _items(article, "paragraphs", where):
            context = _text(paragraph, "context", where_in)
            if not context.strip():
                raise UserError(f"{where_in}: an empty context: leave the paragraph out")
            for question, place in _items(paragraph, "qas", where_in):
                found.append(_question(question, context, place, empty_is_impossible, seen))
    if not found:
        raise UserError(f"{path}: no question in it: give a file in SQuAD's format")
    if seen["answers"]:
        _log.info(
            "%s: %d questions, %d without an answer; of %d answers %.2f %% stood elsewhere in the context and were "
            "moved, %.2f %% do not stand in it at all and cannot be learned",
            path,
            len(found),
            seen["impossible"],
            seen["answers"],
            100 * seen["moved"] / seen["answers"],
            100 * seen["nowhere"] / seen["answers"],
        )
    return found


def place_of(answer: str, context: str, start: int) -> int:
    """Where an answer that is said to begin at `start` does begin: there, else at the nearest occurrence; `NOWHERE`."""
    if answer and start >= 0 and context.startswith(answer, start):
        return start
    places = []
    place = context.find(answer) if answer else NOWHERE
    while place != NOWHERE:
        places.append(place)
        place = context.find(answer, place + 1)
    return min(places, key=lambda place: abs(place - start), default=NOWHERE)


def _question(table: Any, context: str, where: str, empty_is_impossible: bool, seen: Counter[str]) -> QuestionExample:
    question = _text(table, "question", where)
    given = table.get("answers")
    impossible = table.get("is_impossible", empty_is_impossible and given == [])
    if not isinstance(impossible, bool):
        raise UserError(f"{where}: is_impossible = {impossible!r} must be true or false")
    answers: list[tuple[str, int]] = []
    if given is not None and not impossible:
        answers = [_answer(answer, context, place, seen) for answer, place in _items(table, "answers", where)]
    seen["impossible"] += impossible
    identity = table.get("id", where)
    return QuestionExample(
        id=str(identity), question=question, context=context, answers=tuple(answers), is_impossible=impossible
    )


def _answer(table: Any, context: str, where: str, seen: Counter[str]) -> tuple[str, int]:
    """The text without spaces around it, and where it begins."""
    key = "answer_text" if isinstance(table, dict) and "text" not in table and "answer_text" in table else "text"
    text = _text(table, key, where)
    start = table.get("answer_start")
    if type(start) is not int:
        raise UserError(f"{where}: answer_start = {start!r} must be a whole number: correct the file")
    start += len(text) - len(text.lstrip())
    place = place_of(text.strip(), context, start)
    seen["answers"] += 1
    seen["nowhere"] += place == NOWHERE
    seen["moved"] += place not in (NOWHERE, start)
    return text.strip(), place


def _items(table: Any, key: str, where: str) -> list[tuple[Any, str]]:
    """The entries of a list, each with its place in the file."""
    found = table.get(key) if isinstance(table, dict) else None
    if not isinstance(found, list):
        given = ", ".join(map(repr, table)) if isinstance(table, dict) else f"a {_name(table)}"
        raise UserError(f"{where}: no list {key!r} in it, only {given or 'nothing'}: give a file in SQuAD's format")
    separator = "." if "[" in where else ": "
    return [(entry, f"{where}{separator}{key}[{place}]") for place, entry in enumerate(found)]


def _text(table: Any, key: str, where: str) -> str:
    found = table.get(key) if isinstance(table, dict) else None
    if not isinstance(found, str):
        given = ", ".join(map(repr, table)) if isinstance(table, dict) else f"a {_name(table)}"
        raise UserError(f"{where}: no text {key!r} in it, only {given or 'nothing'}: correct the file")
    return found


def _name(value: Any) -> str:
    names = {list: "list", str: "text", bool: "truth value", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), "object")
