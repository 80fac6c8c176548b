"""All families at equal size, text and arithmetic: what can each be measured on, how good is it, and what does it cost?

    python -m benchmarks.mini --books en_books/ --sib sib200/eng_Latn/ --treebank UD_English-EWT/ --runs runs/mini
    python -m benchmarks.mini ... --budget gpu --seeds 3
    python -m benchmarks.mini --own-text --data mine.txt --held-out other.txt --runs runs/own

Seven families: PIXEL, which paints hidden patches; a token encoder that says hidden tokens, of bytes or of byte pairs;
PIXAR, which writes strips, with independent pixels or a mixture; the decoder of tokens, with byte pairs or bytes.

Trunks are equal in layers, width and parameters, all train on the same rows of the same novels, and for so many steps
that training costs the same arithmetic, within 2 % (benchmarks/mini_families.py). The text is fixed, and told by its
hash (benchmarks/mini_plan.py). The budget `cpu` is meant to take 60 minutes of one core in all, `gpu` 10 minutes of a
GPU; how long it took, the table says. A family is measured on what it can be asked (benchmarks/mini_measures.py), the
topics of SIB-200 after a short fine-tuning being the one figure that all of them have. Parts of speech need a label for
each word, which a model that reads from left to right gives before it has seen the word's end: no head here does it.

Without --sib or --treebank, those columns are empty. What exists is not made again: a run goes on where it stopped,
and what was measured of it is kept in RUNS/measured/. The table is Markdown, also written beside the JSON.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.mini_families import FAMILIES, Arm, arm_of, fine_tuning, pretraining, run_of
from benchmarks.mini_measures import bits_per_character, painted_characters, said_characters, writing_speed
from benchmarks.mini_plan import BUDGETS, Budget, plan, prepare, short_rows, task_options, texts_of
from benchmarks.patch_length import over_seeds
from benchmarks.record import publish, record
from infer.benchmarks.bits_per_character import evenly
from pixelcore.accounting import num_parameters
from pixelcore.durable import write_json
from pixelcore.errors import UserError
from pixelcore.tasks import TASKS

FIGURES = ("bits_per_character", "restored", "classify", "tag")
OF_TASK = {"classify": "macro_f1", "tag": "accuracy"}  # the figure of a task that has an interval


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the text, train what is not trained, measure what is not measured, report everything."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mini", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--books", type=Path, metavar="FOLDER", help="the novels, a .txt.gz each")
    add("--data", action="append", default=[], metavar="FILE", help="own text to train on; may be repeated")
    add("--held-out", action="append", default=[], metavar="FILE", help="own text to measure on; may be repeated")
    add("--own-text", action="store_true", help="take texts whose hashes are not the fixed ones; the table says so")
    add("--sib", type=Path, metavar="FOLDER", help="SIB-200 in English")
    add("--treebank", type=Path, metavar="FOLDER", help="UD English-EWT")
    add("--runs", type=Path, required=True, metavar="FOLDER", help="rows, runs and measures; to be used again")
    add("--budget", choices=BUDGETS, default="cpu", help="%(default)s")
    add("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="F", help=" ".join(FAMILIES))
    add("--seeds", type=int, default=1, metavar="N", help="of each family; one seed is no claim (%(default)s)")
    add("--device", default="", metavar="D", help="cpu, cuda or cuda:N (that of the budget)")
    add("--json", action="store_true", help="print JSON, not a table")
    add("--out", type=Path, metavar="FILE", help="benchmarks/results/mini_BUDGET.json")
    options = parser.parse_args(argv)
    if bool(options.books) == bool(options.data) or bool(options.data) != bool(options.held_out):
        parser.error("give --books FOLDER, or --data FILE and --held-out FILE")
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: must be at least 1")
    options.device = options.device or ("cuda" if options.budget == "gpu" else "cpu")
    options.out = options.out or Path(f"benchmarks/results/mini_{options.budget}.json")
    try:
        result = compare(options)
    except UserError as cause:
        parser.exit(2, f"error: {cause}\n")
    lines = table(result)
    publish(result, lines, options.json, options.out)
    options.out.with_suffix(".md").write_text(lines + "\n", encoding="utf-8")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written to the JSON."""
    planned, budget = plan(options), BUDGETS[options.budget]
    begin = time.perf_counter()
    rows = prepare(options, budget)
    short = short_rows(options, rows["held-out"], budget)
    arms = [arm_of(key, budget, options.runs) for key in options.families]
    prepared = _once(options.runs / "measured" / "preparing.json", lambda: {"seconds": time.perf_counter() - begin})
    measured = {
        arm.family.key: {
            "name": arm.family.name,
            **about(arm),
            "seeds": [measure(arm, seed, rows, short, budget, options) for seed in range(options.seeds)],
        }
        for arm in arms
    }
    baselines = baselines_of(options)
    seconds = prepared["seconds"] + sum(each["elapsed"] for each in baselines.values())
    seconds += sum(seed["seconds"]["all"] for one in measured.values() for seed in one["seeds"])
    training = [one["flops"] for one in measured.values()]
    what = "all families at equal trunk, text and training FLOPs, and what each can be measured on"
    about_text = {
        "training_rows": len(rows["training"]),
        "training_characters": sum(map(len, rows["training"])),
        "held_out_rows": min(len(rows["held-out"]), budget.rows),
    }
    return {
        "what": what,
        "plan": planned,
        "budget": dataclasses.asdict(budget),
        "num_seeds": options.seeds,
        "device": options.device,
        "text": about_text,
        "flops_apart": max(training) / min(training) - 1,
        "minutes": seconds / 60,
        "families": measured,
        "baselines": baselines,
    } | record(["torch", "numpy", "sentencepiece"], threads=int(os.environ.get("OMP_NUM_THREADS", 0)) or None)


def about(arm: Arm) -> dict[str, Any]:
    """What an arm is, before any run."""
    config = {"kind": arm.config.kind} | dataclasses.asdict(arm.config)
    return {
        "config": config,
        "parameters": num_parameters(arm.config),
        "trunk_parameters": arm.trunk_parameters,
        "steps": [stage.steps for stage in arm.stages],
        "flops": arm.flops,
        "characters_read": arm.characters,
    }


def _once(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, kept in a file."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, make())
    return json.loads(file.read_text(encoding="utf-8"))


# ------------------------------------------------------------------ one run


def measure(
    arm: Arm,
    seed: int,
    rows: dict[str, list[str]],
    short: list[str],
    budget: Budget,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """All that is asked of one seed of a family. Each part is kept as soon as it is known."""
    key, runs, device = arm.family.key, options.runs, options.device
    kept = runs / "measured" / f"{key}-{seed}"
    for run, command in pretraining(arm, seed, runs, device):
        call(run, command)
    stages = [run_of(arm, stage, seed, runs) for stage in arm.stages]
    model, held_out = stages[-1], evenly(rows["held-out"], budget.rows)
    trained = [cost(stage) for stage in stages]
    seconds = sum(one["seconds"] for one in trained)
    found: dict[str, Any] = {
        "memory_gib": max(one["memory_gib"] for one in trained),
        "train_characters_per_second": arm.characters / seconds,
        "seconds": {"training": seconds, "with_start": sum(one["elapsed"] for one in trained)},
    }
    is_encoder = "tag" in arm.family.tasks
    if is_encoder:
        ask = painted_characters if key == "pixel" else said_characters
        found["restored"] = _timed(f"{kept}-restored.json", lambda: ask(model, rows["training"], short, device))
    else:
        bits = _timed(f"{kept}-bits.json", lambda: bits_per_character(model, held_out, device))
        found["bits_per_character"] = bits
        found["writing"] = _timed(
            f"{kept}-writing.json",
            lambda: writing_speed(model, budget.written, 1 / bits["units_per_character"], device),
        )
    for task, folder in (("classify", options.sib), ("tag", options.treebank)):
        if folder is not None and task in arm.family.tasks:
            run, command = fine_tuning(arm, task, folder, budget, seed, runs, device)
            call(run, command)
            marks = json.loads((run / "run.json").read_text())
            figures = {name: value for name, value in marks.items() if name.startswith(("test_", "train_"))}
            found[task] = {**figures, **cost(run)}
            found["seconds"][task] = found[task]["elapsed"]
    measuring = sum(found[name]["elapsed"] for name in ("restored", "bits_per_character", "writing") if name in found)
    total = found["seconds"]["with_start"] + measuring
    total += sum(found["seconds"].get(task, 0.0) for task in TASKS)
    found["seconds"] |= {"measuring": measuring, "all": total}
    return found


def _timed(file: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    def timed() -> dict[str, Any]:
        begin = time.perf_counter()
        return make() | {"elapsed": time.perf_counter() - begin}

    return _once(Path(file), timed)


def call(run: Path, command: Sequence[str]) -> None:
    """Train, and add the seconds to those that the run has taken before. Raises UserError where training failed."""
    if not command:
        return
    begin = time.perf_counter()
    status = execute(command)
    file = run / "elapsed.json"
    if run.exists():
        before = json.loads(file.read_text())["seconds"] if file.exists() else 0.0
        write_json(file, {"seconds": before + time.perf_counter() - begin})
    if status:
        raise UserError(f"{run.name}: training ended with status {status}; what it said stands above")


def execute(command: Sequence[str]) -> int:
    """In a process of its own, whose peak memory is then that of the run alone."""
    return subprocess.run(command, stdout=sys.stderr).returncode


def cost(run: Path) -> dict[str, float]:
    """seconds of steps, peak memory, and elapsed: with start, held-out looks and checkpoints."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds, file = sum(line.get("seconds", 0.0) for line in lines), run / "elapsed.json"
    return {
        "seconds": seconds,
        "memory_gib": max(line.get("memory_gib", 0.0) for line in lines),
        # a run that was finished by hand, or whose end nobody saw, took its steps at least
        "elapsed": json.loads(file.read_text())["seconds"] if file.exists() else seconds,
    }


def baselines_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What needs no model, of the test file of each task that is asked."""
    files, found = texts_of(options), {}
    for name, task in (("sib", "classify"), ("treebank", "tag")):
        if name in files:

            def figures(task: str = task, name: str = name) -> dict[str, Any]:
                train, _, test = (TASKS[task].read(path, task_options(task)) for path in files[name])
                return {"figures": TASKS[task].baselines(train, test, task_options(task))}

            found[task] = _timed(str(options.runs / "measured" / f"baselines-{task}.json"), figures)
    return found


# ------------------------------------------------------------------ the table


def table(result: dict[str, Any]) -> str:
    """A line for each family, the baselines of each figure beside it, and how far the comparison carries."""
    heads = ("family", "parameters (trunk)", "TFLOP", "text read", "bits/character", "hidden characters restored")
    heads += (
        "SIB-200 topics, macro-F1",
        "POS, accuracy",
        "seconds of training",
        "GiB",
        "characters/s, training",
        "characters/s, writing",
    )
    lines = [_line(heads), _line(["---"] * len(heads))]
    for one in result["families"].values():
        seeds = one["seeds"]
        cells = [
            one["name"],
            f"{one['parameters']:,} ({one['trunk_parameters']:,})",
            f"{one['flops'] / 1e12:.4g}",
            f"{one['characters_read'] / 1e6:.3g} M",
            *(figure(seeds, name) for name in FIGURES),
            f"{statistics.fmean(seed['seconds']['training'] for seed in seeds):.0f}",
            f"{max(seed['memory_gib'] for seed in seeds):.2f}",
            f"{statistics.fmean(seed['train_characters_per_second'] for seed in seeds):,.0f}",
            _mean_of(seeds, "writing", "characters_per_second"),
        ]
        lines.append(_line(cells))
    return "\n".join([*lines, "", *notes(result)])


def figure(seeds: Sequence[dict[str, Any]], name: str) -> str:
    """The mean of a figure with its interval: over held-out examples of one seed, over the seeds of several."""
    if name not in seeds[0]:
        return "-"
    value, low, high, scale, digits = {
        "bits_per_character": ("bits_per_character", "low", "high", 1, 3),
        "restored": ("accuracy", "low", "high", 100, 2),
    }.get(name) or (*(f"test_{OF_TASK[name]}{end}" for end in ("", "_low", "_high")), 100, 2)
    values = [scale * seed[name][value] for seed in seeds]
    first = seeds[0][name]
    ends = (scale * first[low], scale * first[high]) if len(values) == 1 else over_seeds(values)
    unit = " %" if scale == 100 else ""
    text = f"{statistics.fmean(values):.{digits}f}{unit} ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"
    if name == "restored":  # the holes of each family are others, so its baselines stand in its own cell
        text += f"; 5-gram {100 * first['ngram']:.2f}, most frequent {100 * first['most_frequent']:.2f}"
    if name == "bits_per_character" and first["read_back"] is not None:
        text += f"; {100 * first['read_back']:.0f} % of strips read back"
    return text


def notes(result: dict[str, Any]) -> list[str]:
    """Baselines, and what keeps the table honest."""
    budget, baselines = result["budget"], result["baselines"]
    lines = []
    for one in result["families"].values():
        bits = one["seeds"][0].get("bits_per_character")
        if bits is not None:
            lines.append(
                f"Bits per character of the same {bits['num_rows']} rows without a model: uniform bytes "
                f"{bits['uniform']:.3f}, character entropy {bits['order_0']:.3f}, xz -9e {bits['xz']:.3f}. A strip "
                "also says how its text is drawn: of strips the figure is an upper bound."
            )
            break
    for task, name in (("classify", "SIB-200 topics"), ("tag", "POS")):
        if task in baselines:
            told = ", ".join(
                f"{key} {100 * each[OF_TASK[task]]:.2f} %" for key, each in baselines[task]["figures"].items()
            )
            lines.append(f"{name} without a model: {told}.")
    several = result["num_seeds"] > 1
    lines.append(
        f"{result['num_seeds']} seeds; intervals are Student's over the seeds (95 %)."
        if several
        else "One seed, which is no claim; intervals (95 %) are over held-out examples and say nothing of other seeds."
    )
    lines.append(f"Training FLOPs are within {100 * result['flops_apart']:.2f} % of each other.")
    over = "" if result["minutes"] <= budget["minutes"] * result["num_seeds"] else ", which is MORE than planned"
    lines.append(
        f"Took {result['minutes']:.1f} minutes of {result['device']}, start and measuring included, for "
        f"{result['num_seeds']} x {budget['minutes']:g} planned{over}."
    )
    if result["plan"]["own_text"]:
        lines.append("**Own text**: the figures compare with no other table.")
    hashes = ", ".join(f"{name} {value[:16]}" for name, value in result["plan"]["sha256"].items())
    return [f"- {line}" for line in [*lines, f"Texts by sha256: {hashes}."]]


def _mean_of(seeds: Sequence[dict[str, Any]], part: str, name: str) -> str:
    return f"{statistics.fmean(seed[part][name] for seed in seeds):,.0f}" if part in seeds[0] else "-"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
