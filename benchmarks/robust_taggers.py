"""What look-alike letters do to taggers of pixels and of tokens: one curve for each kind of look-alike.

    python -m benchmarks.robust_taggers --model pixel=runs/fine_tuning/pos-ewt/text \\
        --model tokens=runs/fine_tuning/pos-ewt/tokens --data en_ewt-ud-test.conllu --train en_ewt-ud-train.conllu.gz

A model is a folder of seeds (`--seeds` of training) or one run; the first that draws says by its font how look-alikes
are drawn, and all models read the same attacked sentences. Each letter that has look-alikes becomes one of them with
the severity as its chance: any of them (`confusables`), or those alone that the font draws with the same pixels
(`unchanged`), otherwise (`drawn`), or lacks (`missing`, drawn as a box with a number). A model of pixels cannot see the
first of these three; to one of tokens all are other tokens.

The sentences are taken evenly from the file. Accuracy is the mean over a model's seeds; intervals (95 %, bootstrap) are
over sentences. Beside the models stands what needs none: the most frequent tag of the word or its ending.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.record import publish, record
from infer.benchmarks.bits_per_character import evenly
from infer.predict import TaskModel, load_model, predict, read_files
from infer.task_attacks import TaskAttack, attack_of, attacked
from pixelcore.errors import UserError
from pixelcore.tasks.bootstrap import Sums, intervals
from pixelcore.tasks.tag import WordsPrediction
from pixelcore.tasks.tag_baselines import taggers

STRATA = ("confusables", "confusables-unchanged", "confusables-drawn", "confusables-missing")
SEVERITIES = (0.2, 0.5, 0.8)
TRIVIAL = "most frequent of the word"


def main(argv: Sequence[str] | None = None) -> None:
    """Attack, tag, report, draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robust_taggers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="NAME=RUN", help="a run or a folder of seeds; repeatable")
    add("--data", required=True, metavar="FILE", help="labelled sentences")
    add("--train", required=True, metavar="FILE", help="what the most frequent tag is learned from")
    add("--examples", type=int, default=500, metavar="N", help="sentences, evenly taken (%(default)s)")
    add("--severity", action="append", type=float, metavar="X", help=f"0 to 1, repeatable ({SEVERITIES})")
    add("--seed", type=int, default=0, metavar="S", help="of the attacks (%(default)s)")
    add("--json", action="store_true", help="print JSON, not a table")
    add("--out", type=Path, metavar="FILE", help="a JSON file")
    add("--figure", type=Path, metavar="FILE", help="a PNG of the curves")
    options = parser.parse_args(argv)
    if options.figure is not None and importlib.util.find_spec("matplotlib") is None:  # before minutes of tagging
        parser.error(f"--figure {options.figure}: drawing needs matplotlib: pip install 'pixelcore[plot]'")
    try:
        result = compare(options)
    except UserError as cause:
        parser.exit(2, f"error: {cause}\n")
    if options.figure is not None:
        draw(result, options.figure)
    publish(result, table(result), options.json, options.out)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Accuracies of all models, clean and under every attack."""
    models = {name: _seeds(name, run) for name, run in (_named(given) for given in options.model)}
    first = next(iter(models.values()))[0]
    renderer = next((one.renderer for seeds in models.values() for one in seeds if one.renderer is not None), None)
    if renderer is None:
        raise UserError("--model: none of them reads pixels, so nothing says how look-alikes are drawn: add one")
    examples = evenly(read_files(first, [options.data]), options.examples)
    trivial = taggers(read_files(first, [options.train]))[TRIVIAL]
    severities = options.severity or SEVERITIES
    attacks = [attack_of(f"{name}:{x:g}", options.seed, renderer=renderer) for name in STRATA for x in severities]
    conditions: list[tuple[str, float, list[Any]]] = [("clean", 0.0, examples)]
    conditions += [(attack.name, attack.severity, _hit(attack, examples)) for attack in attacks]
    found = []
    for name, severity, sentences in tqdm(conditions, desc="attacks", disable=None):
        accuracies = {key: _accuracy(seeds, sentences) for key, seeds in models.items()}
        said = [WordsPrediction(labels=tuple(map(trivial, example.words))) for example in sentences]
        accuracies[TRIVIAL] = _figures(first, [first.task.counts(sentences, said, first.options)])
        found.append({"attack": name, "severity": severity, **_changed(examples, sentences), "accuracy": accuracies})
    about = {"num_examples": len(examples), "seeds": {name: len(seeds) for name, seeds in models.items()}}
    return {"what": "accuracy of taggers under look-alikes", **about, "conditions": found} | record(["torch", "numpy"])


def _named(given: str) -> tuple[str, Path]:
    name, equals, run = given.partition("=")
    if not (name and equals and run):
        raise UserError(f"--model {given}: is not of the form NAME=RUN")
    return name, Path(run)


def _seeds(name: str, run: Path) -> list[TaskModel]:
    """The models of a folder of seeds, or the one of a run."""
    runs = sorted(run.glob("seed-*")) or [run]
    found = [load_model(one, kind="tag") for one in runs]
    if any(one.known != found[0].known for one in found):
        raise UserError(f"--model {name}={run}: its runs do not know the same labels: they are of different data")
    return found


def _hit(attack: TaskAttack, examples: Sequence[Any]) -> list[Any]:
    return [attacked(attack, example, number) for number, example in enumerate(examples)]


def _changed(before: Sequence[Any], after: Sequence[Any]) -> dict[str, float]:
    """Shares of the words and of the characters that the attack made others."""
    words = [(a, b) for one, other in zip(before, after, strict=True) for a, b in zip(one.words, other.words)]
    letters = [x != y for a, b in words for x, y in zip(a, b)]
    return {"words_changed": float(np.mean([a != b for a, b in words])), "characters_changed": float(np.mean(letters))}


def _accuracy(seeds: Sequence[TaskModel], examples: Sequence[Any]) -> dict[str, Any]:
    one = seeds[0]
    counts = [one.task.counts(examples, predict(model, examples)[0].predictions, one.options) for model in seeds]
    return _figures(one, counts)


def _figures(one: TaskModel, counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds with its interval over sentences, and each seed's own."""
    added = {name: np.sum([each[name] for each in counts], axis=0) for name in counts[0]}
    each = [float(one.task.figures(Sums(single), one.options)["accuracy"]) for single in counts]
    low, high = intervals(added, lambda sums: one.task.figures(sums, one.options))["accuracy"]
    return {"mean": float(np.mean(each)), "low": low, "high": high, "seeds": each}


def table(result: dict[str, Any]) -> str:
    """A line for each condition, in percent."""
    names = list(result["conditions"][0]["accuracy"])
    heads = ["attack", "severity", "words changed", *names]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for one in result["conditions"]:
        cells = [one["attack"], f"{one['severity']:g}", f"{100 * one['words_changed']:.0f}"]
        for name in names:
            mean, low, high = (100 * one["accuracy"][name][key] for key in ("mean", "low", "high"))
            cells.append(f"{mean:.1f} ({low:.1f} to {high:.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel for each kind of look-alike, a line for each model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axes = figure.subplots(1, len(STRATA), sharey=True)
    clean = result["conditions"][0]
    for axis, name in zip(axes, STRATA, strict=True):
        points = [clean, *(one for one in result["conditions"] if one["attack"] == name)]
        severities = [one["severity"] for one in points]
        for model in clean["accuracy"]:
            values = [one["accuracy"][model] for one in points]
            low, high = ([100 * value[key] for value in values] for key in ("low", "high"))
            style = "--" if model == TRIVIAL else "-"
            axis.plot(
                severities, [100 * value["mean"] for value in values], style, marker="o", markersize=3, label=model
            )
            axis.fill_between(severities, low, high, alpha=0.15)
        axis.set(title=name, xlabel="chance of each letter")
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
