"""How strong, and for how long? Stage 2 at several strengths and seeds, looked at after several numbers of steps.

Stage 2 is a narrow window: a few hundred gentle steps help, more of them harm, and a strength that is too high makes
words that can be read and are wrong (specs/pixar.md, section 4.3). Where the window lies is different for every model,
so it is looked for: one run for each strength and seed, and at each of the steps asked for, how well held-out rows of
the training corpus are foretold, how many next words are right, and how many are words at all. The best is the one with
most right words, a mean over seeds. What the model is judged by in the end has no say in it.

    FOLDER/sweep.json               what was asked, every point as it was measured, the best
           sweep.png                the three figures over the steps
           strength-2-seed-0/       a run like any other; its best checkpoint is the step with most right words

Every point is written when it is known, so a sweep that was stopped goes on where it was; strengths and seeds can be
added to one that is finished.
"""

import importlib.util
import json
import logging
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import presets
from pixelcore.checkpoint import hash_weights, read_stored
from pixelcore.durable import write_json
from pixelcore.errors import UserError
from train.config import AdversarialSettings
from train.distributed import Ranks
from train.job import Job, new_job, resumed_job, tables_of
from train.loop import train
from train.run_folder import RunFolder

_log = logging.getLogger(__name__)

FIGURES = ("bits_per_patch", "words_right", "words_legible", "words_most_common")
# of Student's distribution, 95 % between -t and t, by the number of seeds; of more than ten a little too wide
_STUDENT = (math.nan, math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is tried. at: steps after which a run is looked at, rising; 0 is the model that all runs begin with."""

    at: tuple[int, ...]
    strengths: tuple[float, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.at or min(self.at) < 0 or max(self.at) == 0 or list(self.at) != sorted(set(self.at)):
            raise UserError(f"--at {_listed(self.at)}: name rising steps, at least one of them above 0")
        for name, values in (("strengths", self.strengths), ("seeds", self.seeds)):
            if not values or min(values) < 0 or len(set(values)) < len(values):
                raise UserError(f"--{name} {_listed(values)}: name different numbers that are not negative")


class Sweep:
    """A sweep and its folder. overrides: what the settings owe to the user."""

    def __init__(
        self,
        plan: Plan,
        settings: AdversarialSettings,
        init: Path,
        folder: Path,
        ranks: Ranks,
        ops_choice: str,
        overrides: Sequence[str],
    ) -> None:
        if settings.eval.words == 0:
            raise UserError("eval.words = 0: a sweep chooses by next words that are right: set eval.words, 500 or more")
        self.plan, self.init, self.folder = plan, init, folder
        self.ranks, self.ops_choice, self.overrides = ranks, ops_choice, overrides
        # looked at when this file says; its own choice of checkpoints would be by another figure
        steps = max(settings.run.steps, plan.at[-1])
        self.settings = replace(
            settings,
            eval=replace(settings.eval, every=steps, select=""),
            run=replace(settings.run, steps=steps, keep_last=1),
        )
        self.record = self._open()

    def _open(self) -> dict[str, Any]:
        """What is known already, or a new record. Raises UserError where the folder holds something else."""
        asked = {
            "at": list(self.plan.at),
            "init": hash_weights(read_stored(self.init).weights),
            "settings": presets.write(tables_of(self._settings_of(0.0, 0))),
        }
        path = self.folder / "sweep.json"
        if not path.exists():
            if self.folder.is_file() or (self.folder.exists() and any(self.folder.iterdir())):
                raise UserError(f"--out {self.folder}: is no sweep, and not empty: choose a folder that does not exist")
            return {"asked": asked, "points": []}
        record = json.loads(path.read_bytes())
        changed = [name for name in asked if record["asked"].get(name) != asked[name]]
        if changed:
            raise UserError(
                f"--out {self.folder}: holds a sweep with another {' and '.join(changed)}, and takes only more "
                "strengths and seeds: choose another folder"
            )
        return record

    def _settings_of(self, strength: float, seed: int) -> AdversarialSettings:
        objective = replace(self.settings.objective, strength=strength)
        return replace(self.settings, objective=objective, run=replace(self.settings.run, seed=seed))

    # ---- runs --------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train and look at everything that is not known yet; returns `summary`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for strength in self.plan.strengths:
            for seed in self.plan.seeds:
                self._arm(strength, seed)
        summary = self.summary()
        write_json(self.folder / "sweep.json", self.record | summary)
        draw(summary["rows"], self.folder / "sweep.png")
        return summary

    def _arm(self, strength: float, seed: int) -> None:
        missing = [step for step in self.plan.at if step and self._point(strength, seed, step) is None]
        if not missing:
            return
        folder = RunFolder(self.folder / f"strength-{strength:g}-seed-{seed}")
        if folder.marks.exists() and folder.read_marks()["newest"] is None:
            shutil.rmtree(folder.path)  # stopped before its first checkpoint: there is nothing to go on from
        if folder.marks.exists():
            job = self._go_on(folder)
        else:
            settings = self._settings_of(strength, seed)
            job = new_job(settings, folder, self.ranks, self.ops_choice, self.init, self.overrides)
            if 0 in self.plan.at and self._point(None, None, 0) is None:
                self._look(job, None, None)
        for number, step in enumerate(missing):
            if number:
                job = self._go_on(folder)
            train(job, stop_at=step)
            right = self._look(job, strength, seed)["words_right"]
            best = folder.read_marks()["best_value"]
            if best is None or right > best:
                folder.mark(best=folder.checkpoint(step).name, best_value=right)

    def _go_on(self, folder: RunFolder) -> Job:
        job = resumed_job(folder, self.ranks, self.ops_choice, None)
        folder.forget_after(job.step)
        return job

    def _look(self, job: Job, strength: float | None, seed: int | None) -> dict[str, Any]:
        """Measure a model and keep what was found."""
        values = job.objective.evaluate(job.module, job.held_out, job.ranks)
        job.model.eval()
        values |= job.held_out.words.score(job.model)
        job.model.train()
        point = {"strength": strength, "seed": seed, "step": job.step, **values}
        self.record["points"].append(point)
        write_json(self.folder / "sweep.json", self.record)
        where = "the model to begin with" if strength is None else f"strength {strength:g}, seed {seed}"
        _log.info("%s, step %d: %s", where, job.step, job.objective.say(values))
        return point

    def _point(self, strength: float | None, seed: int | None, step: int) -> dict[str, Any] | None:
        for point in self.record["points"]:
            if (point["strength"], point["seed"], point["step"]) == (strength, seed, step):
                return point
        return None

    # ---- what came of it ---------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """rows: for each strength and step the means over seeds, and for each figure half of its 95 % interval where
        there are several. best: the row with most right words, and the run whose best checkpoint it is, or None."""
        groups: dict[tuple[float | None, int], list[dict[str, Any]]] = {}
        for point in self.record["points"]:
            groups.setdefault((point["strength"], point["step"]), []).append(point)
        rows = [
            {"strength": strength, "step": step, "seeds": len(points)} | _means(points)
            for (strength, step), points in sorted(groups.items(), key=lambda item: (item[0][0] or -1.0, item[0][1]))
        ]
        # of equals the one that foretells better
        best = max(rows, key=lambda row: (row["words_right"], -row["bits_per_patch"]))
        return {"rows": rows, "best": best | {"model": self._model_of(best)}}

    def _model_of(self, best: dict[str, Any]) -> str | None:
        if best["strength"] is None:
            return str(self.init)
        points = [p for p in self.record["points"] if (p["strength"], p["step"]) == (best["strength"], best["step"])]
        for point in sorted(points, key=lambda one: -one["words_right"]):
            folder = RunFolder(self.folder / f"strength-{point['strength']:g}-seed-{point['seed']}")
            path = folder.checkpoint(point["step"])
            if path.exists():
                return str(path)
        return None


def _means(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in FIGURES:
        values = [point[name] for point in points]
        found[name] = statistics.fmean(values)
        if len(values) > 1:
            deviation = statistics.stdev(values) / math.sqrt(len(values))
            found[f"{name}_half"] = _STUDENT[min(len(values), len(_STUDENT) - 1)] * deviation
    return found


def table(summary: dict[str, Any]) -> str:
    """The rows for people. After +-, half of the 95 % interval over seeds."""
    lines = ["strength   step  seeds  bits a patch           right words            legible    most common"]
    for row in summary["rows"]:
        cells = [f"{'-' if row['strength'] is None else format(row['strength'], 'g'):>8}", f"{row['step']:>6}"]
        cells += [f"{row['seeds']:>6}", f"{row['bits_per_patch']:>8.3f}{_half(row, 'bits_per_patch', 1, 3)}"]
        cells += [f"{100 * row[name]:>7.2f} %{_half(row, name, 100, 2)}" for name in ("words_right", "words_legible")]
        lines.append(" ".join([*cells, f"{100 * row['words_most_common']:>7.2f} %"]))
    best = summary["best"]
    what = (
        f"strength {best['strength']:g}, step {best['step']}" if best["strength"] is not None else "no stage 2 at all"
    )
    lines.append(f"best by right words on held-out text: {what}")
    lines.append(f"its model: {best['model'] or 'no longer there: train it again with --stop-at'}")
    return "\n".join(lines)


def _half(row: dict[str, Any], name: str, factor: float, digits: int) -> str:
    half = row.get(f"{name}_half")
    return " " * 11 if half is None else f" +- {factor * half:<7.{digits}f}"


def draw(rows: Sequence[dict[str, Any]], picture: Path) -> bool:
    """Right words, legible ones and bits a patch over the steps, a line for each strength, as a PNG. False, with a line
    in the log, without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        _log.info("no %s: drawing it needs matplotlib: pip install 'pixelcore[plot]'", picture.name)
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    begin = [row for row in rows if row["strength"] is None]
    strengths = sorted({row["strength"] for row in rows if row["strength"] is not None})
    titles = {"words_right": "next words right, %", "words_legible": "legible, %", "bits_per_patch": "bits a patch"}
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        factor = 1 if name == "bits_per_patch" else 100
        for strength in strengths:
            line = begin + [row for row in rows if row["strength"] == strength]
            axes.errorbar(
                [row["step"] for row in line],
                [factor * row[name] for row in line],
                yerr=[factor * row.get(f"{name}_half", 0.0) for row in line],
                fmt="o-",
                markersize=3,
                linewidth=1,
                capsize=2,
                label=f"strength {strength:g}",
            )
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(picture, dpi=120, format="png")
    return True


def read_plan(at: str, strengths: str, seeds: str) -> Plan:
    """From the text of the flags: numbers with commas, seeds also as 0-4. Raises UserError for anything else."""
    return Plan(
        at=tuple(int(one) for one in _numbers("--at", at, int)),
        strengths=tuple(_numbers("--strengths", strengths, float)),
        seeds=read_seeds(seeds),
    )


def read_seeds(text: str) -> tuple[int, ...]:
    """0,5,7 or 0-4 as numbers. Raises UserError for anything else."""
    return tuple(int(one) for one in _numbers("--seeds", _spelt_out(text), int))


def _spelt_out(seeds: str) -> str:
    first, dash, last = seeds.partition("-")
    if dash and first.isdigit() and last.isdigit() and int(first) <= int(last) < int(first) + 1000:
        return ",".join(map(str, range(int(first), int(last) + 1)))
    return seeds


def _numbers(flag: str, text: str, kind: type) -> list[float]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as cause:
        raise UserError(f"{flag} {text}: write numbers with commas between them") from cause


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
