"""bAbI task 1, written: a story of persons that move between places, and at its end the question where one of them is.

The prompt is the whole story in one line. After each question stand a separator, "|", and its answer, so that the
earlier questions of a story show what is wanted; after the last one the separator stands alone, and the model writes 5
patches. The word it writes has to be the place. Stories come from a generator of ours that tells them as the published
ones are told (infer/benchmarks/stories.py), 10,000 of them and the same for a seed; or from a file of the published
data, where each story gives its last question, of any task that is answered in one word.

Figures of this task need their baselines. One of six places at random is right in 16.7 %, and the last place that was
mentioned, which takes no reading at all, in about 48 %: more than twice of what has been published for models of
pixels (19.6 %). A model that gets less has not understood where anybody is.

Source: specs/pixar.md, section 5.3; Weston et al., arXiv:1502.05698.
"""

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infer.benchmarks.answers import WIDTH, Answers, ReadsWords, aligned, answer, as_lines, plain
from infer.benchmarks.content_words import words_of
from infer.benchmarks.intervals import Share, share_of
from infer.benchmarks.lambada import ceiling, read_text
from infer.benchmarks.next_word import WordItem
from infer.benchmarks.stories import story
from infer.write_strip import WriteConfig
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar
from render import Renderer

COUNT = 10_000
NEW_PATCHES = 5
SEPARATOR = "|"
_LINE = re.compile(r"(\d+) ([^\t]+)(?:\t([^\t]*)(?:\t.*)?)?")


@dataclass(frozen=True)
class Story:
    """lines: in order, each with its answer, None of a statement. The last one is the question that is asked."""

    lines: tuple[tuple[str, str | None], ...]

    @property
    def item(self) -> WordItem:
        """The prompt and the answer."""
        parts = []
        for text, said in self.lines:
            parts += [text] if said is None else [text, SEPARATOR, said]
        return WordItem(" ".join(parts[:-1]), parts[-1])

    @property
    def statements(self) -> str:
        """What was told before the last question, without questions and answers."""
        return " ".join(text for text, said in self.lines if said is None)


@dataclass(frozen=True, kw_only=True)
class Babi:
    """source: where the stories come from. ceiling: share of answers that the first reader reads off their drawings.
    places: how many different answers there are. baselines: shares of the same items."""

    source: str
    count: int
    places: int
    ceiling: Share
    answers: Answers
    baselines: dict[str, Share]


def generated(count: int, seed: int) -> list[Story]:
    """Stories of task 1 from our generator: the same for the same seed, and the first ones of a longer list."""
    if count < 1:
        raise UserError(f"--count {count}: must be at least 1")
    found = []
    for index in range(count):
        turns = story(random.Random(f"{seed} {index}"))
        found.append(Story(tuple((turn.text, turn.answer) for turn in turns)))
    return found


def read_stories(file: str | Path) -> list[Story]:
    """The stories of a file of the published data, each up to its last question.

    Raises UserError for a file that cannot be read or holds no story, for lines of another form, and for a task whose
    answers are not single words.
    """
    found: list[Story] = []
    lines: list[tuple[str, str | None]] = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"--data {file}, line {number}"
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UserError(f"{where}: is no line of a story: it needs a number, a space and a sentence")
        said = None if match[3] is None else match[3].strip()
        if said is not None and not said.isalpha():
            raise UserError(f"{where}: the answer {said!r} is not one word: take a task with answers of one word")
        if match[1] == "1":
            found += _told(lines)
            lines = []
        lines.append((match[2].strip(), said))
    found += _told(lines)
    if not found:
        raise UserError(f"--data {file}: has no story with a question: give a file such as qa1_..._test.txt")
    return found


def _told(lines: list[tuple[str, str | None]]) -> list[Story]:
    while lines and lines[-1][1] is None:  # nothing is asked after the last question
        lines = lines[:-1]
    return [Story(tuple(lines))] if lines else []


def babi(
    model: Pixar,
    renderer: Renderer,
    source: str,
    stories: Sequence[Story],
    config: WriteConfig,
    readers: Sequence[ReadsWords],
    *,
    fold_gq: bool = False,
    progress: bool = False,
) -> Babi:
    """Let the model answer. config: `max_patches` None is 5. Raises UserError for prompts that cannot be drawn."""
    config = dataclasses.replace(config, max_patches=config.max_patches or NEW_PATCHES)
    items = [one.item for one in stories]
    # how a place looks does not depend on the story
    each = {item.word: item for item in items}
    drawn = ceiling(renderer, model.config, list(each.values()), config.max_patches or 1, readers[0], fold_gq=fold_gq)
    return Babi(
        source=source,
        count=len(items),
        places=len(each),
        ceiling=drawn,
        answers=answer(model, renderer, items, config, readers, fold_gq=fold_gq, progress=progress),
        baselines=baselines(stories),
    )


def baselines(stories: Sequence[Story]) -> dict[str, Share]:
    """Shares that need no model. The random answer is drawn from those that occur, with a fixed seed."""
    wanted = [one.item.word for one in stories]
    counted = Counter(wanted)
    [(common, _)] = counted.most_common(1)
    places = sorted(counted)
    draw = random.Random(0)
    return {
        f"one of {len(places)} answers at random": share_of(draw.choice(places) == word for word in wanted),
        "the one that was mentioned last": share_of(
            _last_of(counted, one.statements) == word for one, word in zip(stories, wanted, strict=True)
        ),
        f"always {common!r}": share_of(word == common for word in wanted),
    }


def _last_of(answers: Counter[str], statements: str) -> str:
    return next((word for word in reversed(words_of(statements)) if word in answers), "")


def as_text(result: Babi) -> str:
    """The result for people."""
    return "\n".join(
        [
            f"{'stories':<{WIDTH}}{result.source}, {result.count:,}, {result.places} different answers",
            *as_lines(result.answers, result.count),
            *aligned({"ceiling: each answer drawn and read": result.ceiling}),
            "baselines on the same stories",
            *aligned(result.baselines, indent="  "),
        ]
    )


def as_report(result: Babi) -> dict[str, object]:
    """Plain values, for JSON."""
    return {
        "source": result.source,
        "count": result.count,
        "places": result.places,
        "ceiling": dataclasses.asdict(result.ceiling),
        **plain(result.answers),
        "baselines": {name: dataclasses.asdict(share) for name, share in result.baselines.items()},
    }
