"""What does pretraining on masked pixels teach? Small models, trained from plain text, on what they never saw.

    python -m benchmarks.what_masked_pixels_teach --books en_books/ --out runs/teach

Arms, each with every seed, all trained alike (preset pixel-novels) on ten novels and measured on the same rows of two
others under the same masks:

    text        the novels, drawn continuously
    shuffled    the same novels with the letters of each document shuffled: ink, word lengths and punctuation as they
                were, and no language; measured on the real text
    bigrams     the novels, drawn as pairs of characters
    untrained   the initial weights, drawn continuously

The figure that can be compared is the share of the hidden characters that a reader reads off the painted strips, beside
what needs no model: the most frequent character, a character 5-gram that fills the gaps, and the nearest visible patch.
A run that exists is resumed, so the command can be repeated.
"""

import argparse
import gzip
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

from benchmarks.record import publish, record
from pixelcore.documents import read_documents

ARMS = ("text", "shuffled", "bigrams", "untrained")
HELD_OUT = ("great_expectations.txt.gz", "dracula.txt.gz")
TEST = ("pride_and_prejudice.txt.gz", "sherlock_holmes.txt.gz")
FIGURES = ("characters", "characters_low", "characters_high", "loss", "pixel_loss")
BASELINES = ("characters_most_frequent", "characters_ngram", "characters_nearest", "characters_count")


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
    texts = {"text": list(training_works(arguments.books))}
    texts["shuffled"] = [shuffled_copy(work, arguments.out / "shuffled" / work.name) for work in texts["text"]]
    jobs = [(arm, seed) for seed in range(arguments.seeds) for arm in arguments.arms]
    running: list[tuple[tuple[str, int], subprocess.Popen[bytes]]] = []
    while jobs or running:
        while jobs and len(running) < arguments.parallel:
            arm, seed = jobs.pop(0)
            command = training(arm, seed, texts["shuffled" if arm == "shuffled" else "text"], arguments)
            running.append(((arm, seed), subprocess.Popen(command, stdout=sys.stderr)))
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


def shuffled_copy(work: Path, copy: Path) -> Path:
    """The work with the letters of each document shuffled among their places; all else stays."""
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shuffle = random.Random(work.name).shuffle
        documents = []
        for text in read_documents(work):
            characters = list(text)
            places = [place for place, character in enumerate(characters) if unicodedata.category(character)[0] == "L"]
            letters = [characters[place] for place in places]
            shuffle(letters)
            for place, letter in zip(places, letters, strict=True):
                characters[place] = letter
            documents.append("".join(characters))
        with gzip.open(copy, "wt", encoding="utf-8") as file:
            file.write("\n\n".join(documents))
    return copy


def run_of(folder: Path, arm: str, seed: int) -> Path:
    """Where a run lives."""
    return folder / f"{arm}-{seed}"


def training(arm: str, seed: int, works: list[Path], arguments: argparse.Namespace) -> list[str]:
    """The command of one run."""
    run = run_of(arguments.out, arm, seed)
    command = [sys.executable, "-m", "train"]
    if (run / "run.json").exists():
        return [*command, "--resume", str(run)]
    command += ["--preset", "pixel-novels", "--seed", str(seed), "--out", str(run)]
    for work in works:
        command += ["--data", str(work)]
    for name in HELD_OUT:
        command += ["--valid", str(arguments.books / name)]
    changes = ["data.split=by-document", "data.test=[]", *arguments.set]
    changes += ["render.layout=bigrams"] if arm == "bigrams" else []
    if arm == "untrained":  # one step that changes nothing a reader could see
        changes += ["run.steps=1", "optimizer.learning_rate=1e-12", "schedule.warmup_steps=0"]
    elif arguments.steps is not None:
        changes.append(f"run.steps={arguments.steps}")
    for change in changes:
        command += ["--set", change]
    return command


def read(run: Path) -> dict[str, Any]:
    """The evaluations of a run and what it took."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "valid_loss" in line]
    last = evaluations[-1]
    return {
        "steps": last["step"],
        "seconds": sum(line["seconds"] for line in lines if "seconds" in line),
        "curve": [{name: line[f"valid_{name}"] for name in FIGURES} | {"step": line["step"]} for line in evaluations],
        "last": {name: last[f"valid_{name}"] for name in FIGURES},
        "baselines": {name: last[f"valid_{name}"] for name in BASELINES},
    }


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
            interval = f"{100 * last['characters_low']:.2f} - {100 * last['characters_high']:.2f}"
            lines.append(
                f"{arm:12}{seed:5}{run['steps']:7}{100 * last['characters']:11.2f}%{interval:>16}{last['loss']:9.4f}"
                f"{last['pixel_loss']:9.4f}{run['seconds'] / 60:9.1f}"
            )
    for arm, runs in result["arms"].items():
        known = runs[0]["baselines"]
        shares = {name: f"{100 * known[f'characters_{name}']:.2f} %" for name in ("most_frequent", "ngram", "nearest")}
        lines.append(
            f"{arm}, of {known['characters_count']} characters: most frequent {shares['most_frequent']}, 5-gram "
            f"{shares['ngram']}, nearest patch {shares['nearest']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
