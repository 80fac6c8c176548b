"""The same fine-tuning from several seeds: how much of a figure is luck, and whether it is better than another run's.

    RUN/seed-0/       a run like any other
        seeds.json    each run's figures, their mean and standard deviation, and what they were compared with

One run of a small data set says little: the seed decides where the head begins and in which order examples come, and
moves a figure by as much as most ideas do. The difference to other runs is judged by a paired hierarchical bootstrap
(`pixelcore/tasks/bootstrap.py`) of the test examples and the seeds, from the counts in predictions/test.jsonl.

Seeds that are finished are not run again, so a command that was stopped goes on where it was, and may name more seeds.
"""

import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import presets
from pixelcore.durable import write_json
from pixelcore.errors import UserError
from pixelcore.tasks import TASKS
from pixelcore.tasks.bootstrap import Counts, differences
from train.config import TaskSettings
from train.distributed import Ranks
from train.job import new_job, resumed_job, tables_of
from train.loop import train
from train.run_folder import RunFolder

_log = logging.getLogger(__name__)

_NEW, _GOES_ON, _FINISHED = range(3)


def run_seeds(
    settings: TaskSettings,
    seeds: Sequence[int],
    folder: Path,
    ranks: Ranks,
    ops_choice: str,
    init: Path | None,
    overrides: Sequence[str],
    compare: Path | None,
) -> dict[str, Any]:
    """Train what is not trained yet; returns what seeds.json says.

    compare: another folder of seeds, or a run. Raises UserError where the folder holds something else.
    """
    if (folder / "run.json").exists():
        raise UserError(
            f"--out {folder}: holds a single run, and --seeds makes a folder of them: choose another folder"
        )
    asked = _asked(settings, init, folder)
    theirs = None if compare is None else _runs_of(compare)  # before hours of training
    for seed in seeds:
        run = RunFolder(folder / f"seed-{seed}")
        state = ranks.agree(_state_of(run))
        if state == _FINISHED:
            continue
        if state == _GOES_ON:
            job = resumed_job(run, ranks, ops_choice, None)
            if ranks.is_first:
                run.forget_after(job.step)
        else:
            own = replace(settings, run=replace(settings.run, seed=seed))
            job = new_job(own, run, ranks, ops_choice, init, overrides)
        _log.info("seed %d: %s, from step %d", seed, run.path, job.step)
        train(job)
        if ranks.is_first:
            write_json(folder / "seeds.json", {"asked": asked})
    runs = [folder / f"seed-{seed}" for seed in seeds]
    summary = summarise(runs)
    if theirs is not None:
        summary["compare"] = compared(runs, theirs, settings)
    if ranks.is_first:
        write_json(folder / "seeds.json", {"asked": asked} | summary)
    ranks.wait()
    return summary


def _asked(settings: TaskSettings, init: Path | None, folder: Path) -> dict[str, str | None]:
    """What all runs of the folder have in common. Raises UserError where the folder's own have something else."""
    plain = replace(settings, run=replace(settings.run, seed=0))
    asked = {"settings": presets.write(tables_of(plain)), "init": None if init is None else str(init.absolute())}
    path = folder / "seeds.json"
    if path.exists():
        before = json.loads(path.read_bytes())["asked"]
        changed = [name for name in asked if before[name] != asked[name]]
        if changed:
            raise UserError(
                f"--out {folder}: holds runs with another {' and '.join(changed)}, and takes only more seeds: choose "
                "another folder"
            )
    return asked


def _state_of(run: RunFolder) -> int:
    if not run.marks.exists():
        return _NEW
    return _FINISHED if run.read_marks()["finished"] else _GOES_ON


def summarise(runs: Sequence[Path]) -> dict[str, Any]:
    """runs: the figures of each by its name; mean and deviation (of a sample) of each figure."""
    figures = {run.name: _figures(run) for run in runs}
    names = list(next(iter(figures.values())))
    columns = {name: [found[name] for found in figures.values()] for name in names}
    return {
        "runs": figures,
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "deviation": {name: statistics.stdev(values) if len(values) > 1 else None for name, values in columns.items()},
    }


def _figures(run: Path) -> dict[str, float]:
    marks = RunFolder(run).read_marks()
    return {name: value for name, value in marks.items() if name.startswith(("valid_", "test_"))}


def compared(ours: Sequence[Path], theirs: Sequence[Path], settings: TaskSettings) -> dict[str, Any]:
    """The difference of every test figure of the task, with its interval. Raises UserError for runs of other
    examples."""
    task, options = TASKS[settings.objective.kind], settings.objective
    found = [[_counts(run) for run in runs] for runs in (ours, theirs)]
    for run, (ids, _) in zip([*ours, *theirs], [*found[0], *found[1]], strict=True):
        if ids != found[0][0][0]:
            raise UserError(f"{run}: its test examples are not those of {ours[0]}: compare runs of the same file")
    one, other = ([counts for _, counts in side] for side in found)
    differ = differences(one, other, lambda sums: task.figures(sums, options))
    return {"with": [str(run) for run in theirs]} | {f"test_{name}": asdict(each) for name, each in differ.items()}


def _runs_of(path: Path) -> list[Path]:
    """The runs in a folder of seeds, or the run itself."""
    runs = sorted(path.glob("seed-*"), key=lambda run: (len(run.name), run.name)) or [path]
    for run in runs:
        if not (run / "predictions" / "test.jsonl").exists():
            raise UserError(
                f"--compare {path}: {run} has no predictions/test.jsonl: name finished runs with a test file"
            )
    return runs


def _counts(run: Path) -> tuple[list[str], Counts]:
    """Ids and counts of a run's test examples."""
    path = run / "predictions" / "test.jsonl"
    if not path.exists():
        raise UserError(f"{path}: missing: only runs that had a test file can be compared")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = {name: np.array([line["counts"][name] for line in lines]) for name in lines[0]["counts"]}
    return [line["id"] for line in lines], counts


def table(summary: dict[str, Any]) -> str:
    """Means and deviations for people, and the differences."""
    lines = []
    for name, mean in summary["mean"].items():
        values = " ".join(f"{found[name]:.4f}" for found in summary["runs"].values())
        deviation = summary["deviation"][name]
        spread = "" if deviation is None else f" +- {deviation:.4f}"
        lines.append(f"{name:>24}  {mean:.4f}{spread}   ({values})")
    for name, found in summary.get("compare", {}).items():
        if name == "with":
            lines.append(f"minus the mean of {', '.join(found)}:")
            continue
        lines.append(
            f"{name:>24}  {found['difference']:+.4f}  (95 % interval {found['low']:+.4f} to {found['high']:+.4f}; "
            f"{found['seeds'][0]} and {found['seeds'][1]} seeds, {found['examples']} examples)"
        )
    return "\n".join(lines)
