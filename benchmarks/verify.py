"""Run a published recipe with published weights and data, and put the published figures beside ours.

    python -m benchmarks.verify benchmarks/verify_m4.toml --init WEIGHTS --data FOLDER [--seeds A-B] [--dir RUNS]
                                [--font FILE]... [--set a.b=v]... [--json] [--out FILE]

The file names the preset, the seeds, where weights and data come from, and what was published. Seeds are trained by
`python -m train`, as anyone would; those that are finished in RUNS are not trained again. A published figure of one
seed is one draw: it is confirmed by lying within the range of ours, and not by being equal.
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.record import publish, record
from train.cli import main as train


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Run a published recipe and compare the figures.")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--init", required=True, help="the published weights")
    parser.add_argument("--data", required=True, help="the folder of the data set")
    parser.add_argument("--seeds", help="in place of those of the recipe")
    parser.add_argument("--dir", type=Path, help="of the runs; default: runs/<name of the plan>")
    parser.add_argument("--font", action="append", default=[], help="fonts, the first one first; may be repeated")
    parser.add_argument("--set", action="append", default=[], help="as of python -m train")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    plan = read_plan(arguments.plan)
    runs = arguments.dir or Path("runs") / arguments.plan.stem
    flags = ["--preset", plan["preset"], "--init", arguments.init, "--data", arguments.data, "--out", str(runs)]
    flags += ["--seeds", arguments.seeds or plan["seeds"]]
    fonts = [f"render.fonts={json.dumps(arguments.font)}"] if arguments.font else []
    for change in [*fonts, *arguments.set]:
        flags += ["--set", change]
    status = train(flags)
    if status:
        return status
    ours = json.loads((runs / "seeds.json").read_text(encoding="utf-8"))["runs"]
    compared = compare(plan["published"], ours)
    result = {**plan, "command": ["python", "-m", "train", *flags], "compared": compared} | record(["torch"])
    publish(result, table(plan["title"], compared), arguments.json, arguments.out)
    return 0


def read_plan(path: Path) -> dict[str, Any]:
    """preset, seeds, title, and `published`: figures by the names of a run's own."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def compare(published: dict[str, float], ours: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Of each published figure: it, ours by run, their mean, and whether it lies between the least and the largest."""
    found = {}
    for name, value in published.items():
        values = {run: figures[name] for run, figures in ours.items()}
        mean = sum(values.values()) / len(values)
        within = min(values.values()) <= value <= max(values.values())
        found[name] = {"published": value, "mean": mean, "within": within, "ours": values}
    return found


def table(title: str, compared: dict[str, dict[str, Any]]) -> str:
    """A line for each figure."""
    lines = [title]
    for name, found in compared.items():
        values = " ".join(f"{value:.4f}" for value in found["ours"].values())
        place = "within" if found["within"] else "outside"
        lines.append(f"{name:>12}  published {found['published']:.4f}, ours {found['mean']:.4f} ({values}): {place}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
