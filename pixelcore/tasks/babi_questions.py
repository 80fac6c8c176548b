"""bAbI's files read as questions about a text: the story so far is the context, and the answer is a word of it.

    1 Mary moved to the bathroom.
    2 John went to the hallway.
    3 Where is Mary?<tab>bathroom<tab>1

A numbered line is a statement, or a question with its answer and the numbers of the statements that it follows from; a
story begins at number 1. The answer is taken where it stands in the last of these statements. What cannot be answered
with a word of the story, such as yes, two, or a list, is left out and counted: ten of the twenty tasks are kept whole,
four in part.

Source: Weston et al., arXiv:1502.05698.
"""

import logging
import re
from pathlib import Path

from pixelcore.errors import UserError
from pixelcore.tasks.examples import QuestionExample
from pixelcore.tasks.text_files import numbered_lines

_LINE = re.compile(r"(\d+) ([^\t]+)(?:\t([^\t]*)(?:\t([\d ]*))?)?")

_log = logging.getLogger(__name__)


def read_questions(path: Path) -> list[QuestionExample]:
    """The questions of a file whose answer is a word of a statement that it follows from; of any statement, where the
    file does not say which. Raises UserError with the line of what cannot be read, and for a file without questions."""
    found: list[QuestionExample] = []
    told: dict[int, str] = {}  # the statements of a story, by number
    left_out = 0
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip(" "))
        if match is None:
            raise UserError(f"{path}:{number}: {line[:40]!r} is no line of a story: it needs a number and a sentence")
        place, text = int(match[1]), match[2].strip()
        if place == 1:
            told = {}
        elif told and place <= max(told):
            raise UserError(f"{path}:{number}: number {place} after {max(told)}: numbers rise, and a story begins at 1")
        if match[3] is None:
            told[place] = text
            continue
        facts = [int(fact) for fact in (match[4] or "").split()]
        strangers = [fact for fact in facts if fact not in told]
        if strangers:
            raise UserError(
                f"{path}:{number}: statement {strangers[0]} is not in the story before it: correct the line"
            )
        start = _last_place(match[3].strip(), told, facts or list(told))
        if start is None:
            left_out += 1
            continue
        context = " ".join(told.values())
        answer = context[start : start + len(match[3].strip())]
        found.append(
            QuestionExample(id=f"{path.name}:{number}", question=text, context=context, answers=((answer, start),))
        )
    if not found:
        raise UserError(
            f"{path}: no question that a word of its story answers ({left_out} others): take a task such as qa1"
        )
    _log.info(
        "%s: %d questions; %d others (%.1f %%), whose answer is no word of the story, are left out",
        path,
        len(found),
        left_out,
        100 * left_out / (len(found) + left_out),
    )
    return found


def _last_place(answer: str, told: dict[int, str], facts: list[int]) -> int | None:
    """Where the answer begins in the context, in the last of the facts that has it as a word."""
    if not answer:
        return None
    word = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)", re.IGNORECASE)
    for fact in sorted(facts, reverse=True):
        matches = list(word.finditer(told[fact]))
        if matches:
            before = sum(len(text) + 1 for number, text in told.items() if number < fact)
            return before + matches[-1].start()
    return None
