"""Stories of our generator as files of bAbI's form, with the statement that each answer follows from.

    python -m benchmarks.babi_files --out data/babi --stories 2000 [--seed 0]

It writes train.txt, and dev.txt and test.txt with a tenth of the stories each, five questions in a story. The published
training file has 200 stories, which a model of pixels knows by heart before it can read; of these there are as many as
one asks for. No story is in two files.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from infer.benchmarks.stories import Turn, story


def told(turns: list[Turn]) -> list[str]:
    """The numbered lines of a story."""
    lines = []
    moved: dict[str, int] = {}  # the last statement about each person
    for number, turn in enumerate(turns, start=1):
        if turn.answer is None:
            moved[turn.text.split()[0]] = number
            lines.append(f"{number} {turn.text}")
        else:
            person = turn.text.rstrip("?").split()[-1]
            lines.append(f"{number} {turn.text}\t{turn.answer}\t{moved[person]}")
    return lines


def different(seed: int, questions: int = 5) -> Iterator[list[str]]:
    """Stories without end, each once."""
    seen = set()
    index = 0
    while True:
        lines = told(story(random.Random(f"{seed} {index}"), questions))
        index += 1
        if tuple(lines) not in seen:
            seen.add(tuple(lines))
            yield lines


def main(argv: list[str] | None = None) -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.babi_files", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument("--stories", type=int, default=2000, metavar="N", help="to train on (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the stories (default: 0)")
    options = parser.parse_args(argv)
    if options.stories < 10:
        parser.error(f"--stories {options.stories}: must be at least 10")
    stories = different(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for role, count in (("train", options.stories), ("dev", options.stories // 10), ("test", options.stories // 10)):
        text = "".join(f"{line}\n" for _ in range(count) for line in next(stories))
        (options.out / f"{role}.txt").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
