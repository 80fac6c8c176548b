"""What does pretraining on masked pixels teach? Small models, trained from plain text, on what they never saw.

    python -m benchmarks.what_masked_pixels_teach --books en_books/ --out runs/teach

Arms, each with every seed, all trained alike on the first part of ten novels and measured on the same rows of two
others under the same masks:

    text        the novels, drawn continuously
    shuffled    the same text with the letters of each document shuffled: ink, word lengths and punctuation as they
                were, and no language; measured on the real text
    bigrams     the novels, drawn as pairs of characters
    untrained   the initial weights, drawn continuously

A run has three stages, rows of 5, 9 and 17 patches, end patch included (the last is the preset pixel-novels): where to
look, relative to a hole, is what takes longest to learn, and in short rows there are few places to look.

The figure that can be compared is the share of the hidden characters that a reader reads off the painted strips, beside
what needs no model: the most frequent character, a character 5-gram that fills the gaps, and the nearest visible patch.
A stage that exists is resumed, so the command can be repeated.
"""

import argparse
import dataclasses
import gzip
import json
import random
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import publish, record
from pixelcore.documents import read_documents
from train.distributed import Ranks
from train.job import resumed_job
from train.objectives.masked_patches import predictions_of
from train.run_folder import RunFolder

ARMS = ("text", "shuffled", "bigrams", "untrained")
HELD_OUT = ("great_expectations.txt.gz", "dracula.txt.gz")
TEST = ("pride_and_prejudice.txt.gz", "sherlock_holmes.txt.gz")
SHARE = 0.1  # of each work; a run reads about as much
FIRST_CHARACTERS = 50_000  # of each work, for the stages of short rows
# rows of so many patches, so many of them in a step, for so many steps
STAGES = ((5, 102, 500), (9, 57, 600))
FIGURES = ("characters", "loss", "pixel_loss")


def main() -> None:
    """Train what is not trained, then report everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, required=True, help="a folder of .txt.gz files, one a work")
    parser.add_argument("--out", type=Path, required=True, help="where the runs and the figures go")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, help="of each run; the preset's when absent")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=v", help="for all runs")
    parser.add_argument("--result", type=Path, help="a JSON file")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    texts = {
        arm: {
            "first": copies(arguments, arm, lambda text: text[:FIRST_CHARACTERS], "first"),
            "all": copies(arguments, arm, lambda text: text[: int(SHARE * len(text))], "all"),
        }
        for arm in ("text", "shuffled")
    }
    jobs = [(arm, seed) for seed in range(arguments.seeds) for arm in arguments.arms]
    running: list[tuple[tuple[str, int], subprocess.Popen[bytes]]] = []
    while jobs or running:
        while jobs and len(running) < arguments.parallel:
            arm, seed = jobs.pop(0)
            commands = training(arm, seed, texts["shuffled" if arm == "shuffled" else "text"], arguments)
            chained = " && ".join(["true", *(shlex.join(command) for command in commands)])
            running.append(((arm, seed), subprocess.Popen(["sh", "-c", chained], stdout=sys.stderr)))
        name, process = running.pop(0)
        if process.wait():
            raise SystemExit(f"{name[0]}, seed {name[1]}: training ended with status {process.returncode}")
    result = {
        "what": "share of hidden characters that are read off the painted strips, held-out novels",
        "arms": {
            arm: [read(run_of(arguments.out, arm, seed)) for seed in range(arguments.seeds)] for arm in arguments.arms
        },
    }
    draw(result, arguments.out / "curves.png")
    publish(result | record(["torch", "numpy"], 1), table(result), False, arguments.result)


def training_works(books: Path) -> list[Path]:
    """The works that are neither held out nor kept for testing."""
    works = sorted(work for work in books.glob("*.txt.gz") if work.name not in HELD_OUT + TEST)
    if not works:
        raise SystemExit(f"--books {books}: no .txt.gz files but those that are held out")
    return works


def copies(arguments: argparse.Namespace, arm: str, cut: Callable[[str], str], name: str) -> list[Path]:
    """The works, cut, their letters shuffled for that arm, as files."""
    files = []
    for work in training_works(arguments.books):
        file = arguments.out / "texts" / f"{arm}-{name}" / work.name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            text = cut("\n\n".join(read_documents(work)))
            text = shuffled(text, work.name) if arm == "shuffled" else text
            with gzip.open(file, "wt", encoding="utf-8") as opened:
                opened.write(text)
        files.append(file)
    return files


def shuffled(text: str, seed: str) -> str:
    """The letters of each document in other places of letters; all else stays."""
    shuffle = random.Random(seed).shuffle
    documents = []
    for document in text.split("\n\n"):
        characters = list(document)
        places = [place for place, character in enumerate(characters) if unicodedata.category(character)[0] == "L"]
        letters = [characters[place] for place in places]
        shuffle(letters)
        for place, letter in zip(places, letters, strict=True):
            characters[place] = letter
        documents.append("".join(characters))
    return "\n\n".join(documents)


def run_of(folder: Path, arm: str, seed: int) -> Path:
    """Where a run lives."""
    return folder / f"{arm}-{seed}"


def training(arm: str, seed: int, works: dict[str, list[Path]], arguments: argparse.Namespace) -> list[list[str]]:
    """The commands of one run, stage by stage."""
    run = run_of(arguments.out, arm, seed)
    marks = run / "run.json"
    if marks.exists() and json.loads(marks.read_text())["finished"]:
        return []
    layout = ["render.layout=bigrams"] if arm == "bigrams" else []
    if arm == "untrained":  # one step that changes nothing a reader could see
        still = ["run.steps=1", "optimizer.learning_rate=1e-12", "schedule.warmup_steps=0"]
        return [start(run, seed, works["all"], arguments, [*arguments.set, *still])]
    commands, before = [], None
    for number, (patches, rows, steps) in enumerate(STAGES):
        stage = run.with_name(f"{run.name}-stage{number}")
        changes = [f"data.row_patches={patches}", f"data.min_patches={patches - 1}", f"data.rows_per_step={rows}"]
        changes += [f"run.micro_batch_blocks={rows}", f"run.steps={steps}", "schedule.shape=constant"]
        changes += [f"eval.every={steps}", "eval.read_rows=0", "eval.picture_rows=0", *layout, *arguments.set]
        commands.append(start(stage, seed, works["first"], arguments, changes, before))
        layout, before = [], stage  # the next stage draws as its model has seen
    changes = [*arguments.set] + ([] if arguments.steps is None else [f"run.steps={arguments.steps}"])
    return [*commands, start(run, seed, works["all"], arguments, changes, before)]


def start(
    run: Path, seed: int, works: list[Path], arguments: argparse.Namespace, changes: list[str], init: Path | None = None
) -> list[str]:
    """The command that starts one stage, or goes on with it."""
    command = [sys.executable, "-m", "train"]
    if (run / "run.json").exists():
        return [*command, "--resume", str(run)]
    command += ["--preset", "pixel-novels", "--seed", str(seed), "--out", str(run)]
    command += [] if init is None else ["--init", str(init)]
    for work in works:
        command += ["--data", str(work)]
    for name in HELD_OUT:
        command += ["--valid", str(arguments.books / name)]
    for change in ["data.split=by-document", "data.test=[]", *changes]:
        command += ["--set", change]
    return command


def read(run: Path) -> dict[str, Any]:
    """The evaluations of a run, what it took, and what can be read off its last checkpoint."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "valid_loss" in line]
    return {
        "steps": evaluations[-1]["step"],
        "seconds": sum(line["seconds"] for line in lines if "seconds" in line),
        "curve": [{name: line[f"valid_{name}"] for name in FIGURES} | {"step": line["step"]} for line in evaluations],
        "last": read_again(run),
    }


def read_again(run: Path) -> dict[str, Any]:
    """The last checkpoint, measured by this program, whichever version of it trained the model."""
    job = resumed_job(RunFolder.open(run), Ranks(0, 1, torch.device("cpu")), "auto", None)
    with closing(job.batches):
        values = job.objective.evaluate(job.module, job.held_out, job.ranks)
        characters = job.held_out.characters.score(
            lambda rows: predictions_of(job.model, rows), normalised=job.model.config.normalise_pixels
        )
    return values | dataclasses.asdict(characters)


def draw(result: dict[str, Any], picture: Path) -> None:
    """Accuracy over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (arm, runs) in enumerate(result["arms"].items()):
        for seed, run in enumerate(runs):
            steps = [point["step"] for point in run["curve"]]
            label = arm if seed == 0 else None
            left.plot(
                steps, [100 * point["characters"] for point in run["curve"]], "o-", color=f"C{number}", label=label
            )
            right.plot(steps, [point["loss"] for point in run["curve"]], "o-", color=f"C{number}", label=label)
    left.set_ylabel("hidden characters read, %")
    right.set_ylabel("held-out loss")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(picture, dpi=120)


def table(result: dict[str, Any]) -> str:
    """One line for each run, then the baselines of each layout."""
    lines = [f"{'arm':12}{'seed':>5}{'steps':>7}{'characters':>12}{'95 %':>16}{'loss':>9}{'raw':>9}{'minutes':>9}"]
    for arm, runs in result["arms"].items():
        for seed, run in enumerate(runs):
            last = run["last"]
            interval = f"{100 * last['low']:.2f} - {100 * last['high']:.2f}"
            lines.append(
                f"{arm:12}{seed:5}{run['steps']:7}{100 * last['accuracy']:11.2f}%{interval:>16}{last['loss']:9.4f}"
                f"{last['pixel_loss']:9.4f}{run['seconds'] / 60:9.1f}"
            )
    for arm, runs in result["arms"].items():
        known = runs[0]["last"]
        shares = {name: f"{100 * known[name]:.2f} %" for name in ("most_frequent", "ngram", "nearest", "ceiling")}
        lines.append(
            f"{arm}, of {known['count']} characters: most frequent {shares['most_frequent']}, 5-gram "
            f"{shares['ngram']}, nearest patch {shares['nearest']}, true pixels {shares['ceiling']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
