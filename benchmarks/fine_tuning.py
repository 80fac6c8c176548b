"""What is pretraining worth to a small pixel encoder? Every task, from four beginnings, beside what is trivial.

    python -m benchmarks.fine_tuning --shared shared/ --runs runs/fine_tuning
    python -m benchmarks.fine_tuning --shared shared/ --runs runs/fine_tuning --tasks pos-ewt pos-coptic --seeds 0-4

Encoders of one size and one renderer (benchmarks/fine_tuning_encoders.py):

    untrained   initial weights
    shuffled    pretrained on text whose letters were shuffled: ink and word lengths, no language
    text        pretrained on the text
    tokens      the token partner, on byte pairs of the same novels, for the tasks that name a preset for it

Each is fine-tuned on each task by the same recipe from the same seeds, but for the learning rate, which is each
encoder's own, and meets the test file once. The table has mean and deviation over seeds, and the difference of `text`
to each of the others with a 95 % interval (hierarchical bootstrap of seeds and examples). There is one pretraining of
each kind, so an interval says nothing of how another pretraining would have come out. Beside them stands what needs no
model.

Tasks and steps stand in benchmarks/fine_tuning.toml. What exists is not trained again, so the command goes on where it
was stopped, and --tasks, --encoders and --seeds may name a part; the table has what is finished.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tomllib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import babi_files
from benchmarks.fine_tuning_encoders import ENCODERS, encoder_commands, encoder_of, is_finished
from benchmarks.mini_plan import paths_of
from benchmarks.record import publish, record
from pixelcore.errors import UserError
from pixelcore.tasks import TASKS
from train.config import TaskSettings
from train.job import read_settings
from train.seeds import compared

PLAN = Path(__file__).with_suffix(".toml")
HELD_BACK = 200  # sentences of UNER's dev file that choose the checkpoint; the others are trained on


def main(argv: Sequence[str] | None = None) -> None:
    """Pretrain and fine-tune what is not, then report everything that is."""
    plan = tomllib.loads(PLAN.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fine_tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shared", type=Path, required=True, metavar="FOLDER", help="data/ and fonts/ below it")
    add("--runs", type=Path, required=True, metavar="FOLDER", help="encoders, runs and what is written for them")
    add("--tasks", nargs="+", choices=plan["tasks"], default=list(plan["tasks"]), metavar="T", help="of the plan")
    add("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS), metavar="E", help=" ".join(ENCODERS))
    add("--seeds", default="0-2", metavar="A-B", help="of fine-tuning (%(default)s)")
    add("--parallel", type=int, default=1, metavar="N", help="runs at a time, one thread each")
    add("--report", action="store_true", help="train nothing; tell what is finished")
    add("--json", action="store_true", help="print JSON, not a table")
    add("--out", type=Path, metavar="FILE", help="a JSON file, and the table beside it as .md")
    options = parser.parse_args(argv)
    try:
        if not options.report:
            run_all([encoder_commands(name, plan, options.shared, options.runs) for name in options.encoders], options)
            run_all(
                [
                    [fine_tuning(task, encoder, plan, options)]
                    for task in options.tasks
                    for encoder in options.encoders
                    if encoder != "tokens" or "partner" in plan["tasks"][task]
                ],
                options,
            )
        result = report(plan, options)
    except UserError as cause:
        parser.exit(2, f"error: {cause}\n")
    lines = table(result)
    publish(result, lines, options.json, options.out)
    if options.out is not None:
        options.out.with_suffix(".md").write_text(lines + "\n", encoding="utf-8")


# ------------------------------------------------------------------ training


def run_all(chains: Sequence[Sequence[Sequence[str]]], options: argparse.Namespace) -> None:
    """Each chain of commands in its order, `options.parallel` chains at a time. Raises UserError where one failed."""
    waiting, running = deque(chain for chain in chains if chain), []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    while waiting or running:
        while waiting and len(running) < options.parallel:
            chained = " && ".join(shlex.join(command) for command in waiting.popleft())
            running.append(subprocess.Popen(["sh", "-c", chained], stdout=sys.stderr, env=environment))
        process = running.pop(0)
        if process.wait():
            raise UserError(f"training ended with status {process.returncode}; what it said stands above")


def fine_tuning(task: str, encoder: str, plan: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """The command that fine-tunes an encoder on a task, from all seeds."""
    about = plan["tasks"][task]
    steps = about["steps"]
    sets = [f"run.steps={steps}", f"eval.every={steps}", f"run.save_every={steps}", "eval.patience=0"]
    sets += [f"schedule.warmup_steps={steps // 10}", "run.micro_batch_blocks=4", "model.hidden_dropout=0.0"]
    sets += [f"optimizer.learning_rate={plan['learning_rate'][encoder]}", *about.get("set", [])]
    preset = about["partner" if encoder == "tokens" else "preset"]
    command = [sys.executable, "-m", "train", "--preset", preset, "--seeds", options.seeds]
    command += ["--init", str(encoder_of(encoder, options.runs)), "--out", str(options.runs / task / encoder)]
    command += ["--data", str(folder_of(about, task, options))]
    return command + [part for change in sets for part in ("--set", change)]


def folder_of(about: dict[str, Any], task: str, options: argparse.Namespace) -> Path:
    """The folder with the files of a task, written first where it is not one of the data's own."""
    if "made" not in about:
        return options.shared / about["data"]
    folder = options.runs / "files" / task
    if about["made"] == "stories":
        if not folder.exists():
            babi_files.main(["--out", str(folder), "--stories", "1000"])
        return folder
    if not folder.exists():
        source = options.shared / about["data"]
        (dev,), (test,) = source.glob("*-dev.iob2"), source.glob("*-test.iob2")
        sentences = dev.read_text(encoding="utf-8").strip().split("\n\n")
        folder.mkdir(parents=True)
        for role, part in (("train", sentences[:-HELD_BACK]), ("dev", sentences[-HELD_BACK:])):
            (folder / f"{role}.iob2").write_text("\n\n".join(part) + "\n\n", encoding="utf-8")
        (folder / "test.iob2").write_bytes(test.read_bytes())
    return folder


# ------------------------------------------------------------------ what came out


def report(plan: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Of each task: what is trivial, the figures of every finished run, and the differences."""
    tasks = {}
    for task in options.tasks:
        about = plan["tasks"][task]
        finished = {name: runs_of(options.runs / task / name) for name in options.encoders}
        finished = {name: runs for name, runs in finished.items() if runs}
        if not finished:
            continue
        settings = settings_of(next(iter(finished.values()))[0])
        differences = {
            name: compared(finished["text"], runs, settings)
            for name, runs in finished.items()
            if name != "text" and "text" in finished
        }
        tasks[task] = about | {
            "baselines": baselines(settings, folder_of(about, task, options), options.runs / task),
            "runs": {name: [figures_of(run) for run in runs] for name, runs in finished.items()},
            "differences": {
                name: {key: value for key, value in found.items() if key != "with"}
                for name, found in differences.items()
            },
        }
    if not tasks:
        raise UserError(f"--runs {options.runs}: no finished run of {', '.join(options.tasks)}: leave --report out")
    what = "a small pixel encoder fine-tuned from initial weights, from shuffled letters and from text"
    encoders = {name: encoder_figures(encoder_of(name, options.runs)) for name in options.encoders}
    return {"what": what, "plan": plan, "encoders": encoders, "tasks": tasks} | record(["torch", "numpy"], 1)


def runs_of(folder: Path) -> list[Path]:
    """The finished runs in a folder of seeds."""
    runs = sorted(folder.glob("seed-*"), key=lambda run: (len(run.name), run.name))
    return [run for run in runs if is_finished(run)]


def settings_of(run: Path) -> TaskSettings:
    settings = read_settings((run / "config.toml").read_text(encoding="utf-8"), [], str(run))
    assert isinstance(settings, TaskSettings)
    return settings


def figures_of(run: Path) -> dict[str, float]:
    """Figures of the test file, and the seconds of its steps."""
    marks = json.loads((run / "run.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = {name: value for name, value in marks.items() if name.startswith(("test_", "train_"))}
    return figures | {"seconds": float(sum(line.get("seconds", 0.0) for line in lines))}


def encoder_figures(run: Path) -> dict[str, float]:
    """The last held-out loss of an encoder; nothing where it has not been made."""
    if not (run / "metrics.jsonl").exists():
        return {}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(({"valid_loss": line["valid_loss"]} for line in reversed(lines) if "valid_loss" in line), {})


def baselines(settings: TaskSettings, folder: Path, kept: Path) -> dict[str, dict[str, float]]:
    """What is trivial, learned from the training file, on the test file; of a folder of languages, in each by itself
    and on average."""
    file = kept / "baselines.json"
    if not file.exists():
        task, options = TASKS[settings.objective.kind], settings.objective
        groups = sorted(each for each in folder.iterdir() if each.is_dir()) or [folder]
        found = {}
        for group in groups:
            splits = task.find_splits(group, options)
            train, test = (
                [example for path in paths_of(splits[role]) for example in task.read(path, options)]
                for role in ("train", "test")
            )
            found[group.name] = task.baselines(train, test, options)
        names = found[groups[0].name]
        mean = {
            name: {key: statistics.fmean(each[name][key] for each in found.values()) for key in names[name]}
            for name in names
        }
        by_group = {
            name: {f"{key}_{group}": each[name][key] for group, each in found.items() for key in names[name]}
            for name in names
            if len(groups) > 1
        }
        file.write_text(json.dumps({name: mean[name] | by_group.get(name, {}) for name in names}, indent=2))
    return json.loads(file.read_text())


# ------------------------------------------------------------------ the table


def table(result: dict[str, Any]) -> str:
    """A line for each task: trivial figures, the encoders, and what separates text from the others. In percent."""
    others = [name for name in ENCODERS if name != "text"]
    heads = ["task, figure", "trivial", *ENCODERS, *(f"text - {name}" for name in others)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for task, found in result["tasks"].items():
        figure = found["figure"]
        trivial = "; ".join(f"{name} {100 * each[figure]:.1f}" for name, each in found["baselines"].items())
        cells = [f"{task}, {figure}", trivial]
        cells += [_over_seeds(found["runs"].get(name, []), f"test_{figure}") for name in ENCODERS]
        cells += [_difference(found["differences"].get(name, {}), f"test_{figure}") for name in others]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _over_seeds(runs: Sequence[dict[str, float]], name: str) -> str:
    if not runs:
        return "-"
    values = [100 * run[name] for run in runs]
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread} ({len(values)})"


def _difference(found: dict[str, Any], name: str) -> str:
    if name not in found:
        return "-"
    value, low, high = (100 * found[name][key] for key in ("difference", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()
