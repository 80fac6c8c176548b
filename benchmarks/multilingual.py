"""One model of strips for several languages: what each costs it, how well its script is read back, what it writes.

    python -m benchmarks.multilingual --data en=en_books/ --data uk=uk.txt.gz --data hi=hi_pratham.txt.gz
        --data zh=zh.txt.gz --font NotoSans-Regular.ttf --font NotoSansDevanagari-Regular.ttf
        --font 'NotoSansCJK-Regular.ttc#2' --runs runs/languages --minutes 25 --out benchmarks/results/multilingual.json

A small model of the preset `pixar-multilingual` (16 rows, patches of 16 columns that begin where letters begin) is
trained through the command line on equal shares of the languages, whatever their sizes. Of each language so many
--megabytes are taken evenly, and of these every 20th document is held out (benchmarks/multilingual_text.py). Sizes are
those of a CPU core; --set changes any field of the preset. --minutes takes as many steps as fit by the speed of a trial
of a few steps.

Then every language is measured by itself, on held-out rows (benchmarks/multilingual_measures.py): bits per character
beside those of xz and of the characters' entropy; how well and how fast the reader reads clean strips, which is the
least error that anything read from this model can have; and what the model writes behind the first halves of rows.
What it wrote is shown: a picture for each language in --runs, held-out row above, the model's below.

A run that exists is resumed, and one that is finished is only measured, so the command can be repeated.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import presets
from benchmarks.multilingual_measures import languages_measured
from benchmarks.multilingual_text import Language, find_languages
from benchmarks.record import publish, record
from infer.write_strip import DECODINGS
from pixelcore.durable import write_json
from pixelcore.errors import UserError
from render import Renderer, RenderError
from train.config import DrawnSettings
from train.job import read_settings

PRESET = "pixar-multilingual"
TRIAL_STEPS = 8
EVALUATIONS = 4
# a model of 2.6 M parameters, of which 0.8 M are the mixture's
SMALL: dict[str, Any] = {
    "model.num_layers": 4,
    "model.hidden_size": 192,
    "model.num_attention_heads": 3,
    "model.intermediate_size": 512,
    "model.head": "mixture",
    "model.num_components": 16,
    "model.start_vector": True,
    "render.layout": "adaptive",  # a Han character a patch; two, as in bigrams, are wider than one and not than two
    "data.min_patches": 16,
    "data.rows_per_step": 32,
    "data.workers": 0,
    "optimizer.learning_rate": 2e-3,
    "eval.max_rows": 64,
    "eval.picture_rows": 4,
    "run.micro_batch_blocks": 16,
    "run.keep_last": 1,
}


def main() -> None:
    """Take the text, train what is not trained, measure every language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", action="append", required=True, metavar="LANG=PATH", help="text of a language; may be repeated")
    add("--font", action="append", required=True, metavar="F", help="may be repeated; asked in this order")
    add("--runs", type=Path, required=True, metavar="FOLDER", help="text, runs and pictures; to be used again")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int, metavar="N", help="of the training")
    budget.add_argument("--minutes", type=float, metavar="M", help="of the training, about, on this machine")
    add("--megabytes", type=float, default=1.0, metavar="N", help="of text of each language, at most (%(default)s)")
    add("--row-patches", type=int, default=64, metavar="N", help="of a row, end patch included (%(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="of the training and of what is written (%(default)s)")
    add("--set", action="append", default=[], metavar="a.b=v", help="change a field of the preset; may be repeated")
    add("--held-out-rows", type=int, default=100, metavar="N", help="of a language, for the bits (%(default)s)")
    add("--read-rows", type=int, default=16, metavar="N", help="of a language, to read and write on (%(default)s)")
    add("--patches", type=int, default=24, metavar="N", help="written behind the first half of a row (%(default)s)")
    add("--decode", default="mixture", choices=DECODINGS, help="how strips are written (%(default)s)")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (%(default)s)")
    add("--json", action="store_true", help="print JSON, not a table")
    add("--out", type=Path, metavar="FILE", help="write the JSON here")
    options = parser.parse_args()
    for name in ("steps", "minutes", "megabytes", "held_out_rows", "read_rows", "patches"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} {value}: must be positive")
    try:
        result = run(options)
    except UserError as cause:
        parser.exit(2, f"error: {cause}\n")
    publish(result, table(result), options.json, options.out)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written to the JSON."""
    check_plan(options)
    languages = find_languages(options.data, renderer_of(options), options.runs, options.megabytes)
    folder = options.runs / f"run-{options.seed}"
    train(folder, languages, options)
    about = {
        "fonts": [Path(font).name for font in options.font],
        "row_patches": options.row_patches,
        "steps": steps_of(folder, languages, options),
        "set": options.set,
        "seed": options.seed,
        "decode": options.decode,
    }
    what = "a small model of strips for several languages, each measured on held-out rows of its own"
    found = languages_measured(folder, languages, options)
    return {"what": what, "settings": about} | found | record(["torch", "numpy", "uharfbuzz", "freetype-py"])


def check_plan(options: argparse.Namespace) -> None:
    """Raise UserError where the folder's runs were made otherwise than they would be now."""
    names = ("data", "font", "megabytes", "row_patches", "set")
    wanted = {name: getattr(options, name) for name in names}
    file = options.runs / "plan.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else wanted
    for name, value in wanted.items():
        if found[name] != value:
            raise UserError(
                f"--runs {options.runs}: its runs were made with {name} = {found[name]}, not {value}: choose another "
                "folder, or the same settings"
            )
    options.runs.mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)


def renderer_of(options: argparse.Namespace) -> Renderer:
    """What draws the rows of the run. Raises UserError for fonts that are not there and settings that cannot be."""
    settings = read_settings(presets.load(PRESET), overrides([], 1, options), f"preset {PRESET}")
    assert isinstance(settings, DrawnSettings)
    try:
        return Renderer(settings.render.plain.replace(max_patches=options.row_patches))
    except RenderError as cause:
        raise UserError(f"--font: {cause}") from cause


# ------------------------------------------------------------------ training


def train(folder: Path, languages: Sequence[Language], options: argparse.Namespace) -> None:
    """Make the run, or go on with it, unless it is finished. Raises UserError where it fails."""
    if (folder / "run.json").exists():
        if json.loads((folder / "run.json").read_text())["finished"]:
            return
        call([*program(options), "--resume", str(folder)])
        return
    steps = steps_of(folder, languages, options)
    call([*program(options), *flags(languages, steps, options), "--out", str(folder)])


def steps_of(folder: Path, languages: Sequence[Language], options: argparse.Namespace) -> int:
    """Steps of the run: what was asked for, or what fits the minutes, found once and kept beside the run."""
    file = folder.with_name(f"{folder.name}-steps.json")
    if not file.exists():
        steps = options.steps or max(1, round(60 * options.minutes / seconds_of_step(languages, options)))
        write_json(file, {"steps": steps})
    return json.loads(file.read_text())["steps"]


def seconds_of_step(languages: Sequence[Language], options: argparse.Namespace) -> float:
    """The median of a trial, whose first step is left out: it waits for memory and drawn letters."""
    folder = options.runs / "trial"
    if not (folder / "metrics.jsonl").exists():
        every = ["--set", "run.log_every=1", "--set", f"eval.every={TRIAL_STEPS}"]
        call([*program(options), *flags(languages, TRIAL_STEPS, options), *every, "--out", str(folder)])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median([line["seconds"] for line in lines if "seconds" in line][1:])


def program(options: argparse.Namespace) -> list[str]:
    return [sys.executable, "-m", "train", "--device", options.device]


def flags(languages: Sequence[Language], steps: int, options: argparse.Namespace) -> list[str]:
    """What the run is made of."""
    found = ["--preset", PRESET, "--seed", str(options.seed), "--steps", str(steps)]
    for language in languages:
        found += ["--data", str(language.training), "--valid", str(language.held_out)]
    for change in overrides(languages, steps, options):
        found += ["--set", change]
    return found


def overrides(languages: Sequence[Language], steps: int, options: argparse.Namespace) -> list[str]:
    """What it changes in the preset: the sizes, and equal shares of the languages."""
    changes = SMALL | {
        "model.max_patches": options.row_patches,
        "data.row_patches": options.row_patches,
        "data.weights": [1.0] * len(languages),
        "render.fonts": [os.path.abspath(font) if os.path.exists(font) else font for font in options.font],
        "schedule.warmup_steps": steps // 20,
        "eval.every": max(1, steps // EVALUATIONS),
        "run.log_every": max(1, steps // 100),
        "run.save_every": max(1, steps // EVALUATIONS),
    }
    return [*(f"{name}={json.dumps(value)}" for name, value in changes.items()), *options.set]


def call(command: list[str]) -> None:
    print(shlex.join(command), file=sys.stderr)
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        status = process.wait()
    finally:
        process.terminate()  # after Ctrl-C it saves and can be resumed
        process.wait()
    if status:
        raise UserError(f"training ended with status {status}; what it said stands above")


# ------------------------------------------------------------------ showing


def table(result: dict[str, Any]) -> str:
    """Two tables, a line for each language: how likely the text is, and what is read and written."""
    bits: list[tuple[str, int, Callable[[dict[str, Any]], str]]] = [
        ("rows", 6, lambda one: f"{one['bits']['num_rows']}"),
        ("bits/character", 16, lambda one: f"{one['bits']['bits_per_character']:.3f}"),
        ("95 %", 21, lambda one: interval(one["bits"])),
        ("xz", 8, lambda one: f"{one['bits']['xz']:.3f}"),
        ("order 0", 9, lambda one: f"{one['bits']['order_0']:.3f}"),
        ("bits/patch", 12, lambda one: f"{one['bits']['bits_per_unit']:.2f}"),
        ("characters/patch", 18, lambda one: f"{1 / one['bits']['units_per_character']:.2f}"),
        ("no glyph", 10, lambda one: f"{one['missing_glyphs']}"),
        ("overlap", 9, lambda one: percent(one["overlap"])),
    ]
    strips: list[tuple[str, int, Callable[[dict[str, Any]], str]]] = [
        ("CER", 8, lambda one: percent(one["reader"]["cer"], 2)),
        ("equal", 7, lambda one: percent(one["reader"]["equal"])),
        ("strips/s", 10, lambda one: f"{one['reader']['strips_per_second']:.2f}"),
        ("legible", 9, lambda one: percent(one["written"]["legible"]["share"])),
        ("floor", 7, lambda one: percent(one["shuffled"]["legible"]["share"])),
        ("truth", 7, lambda one: percent(one["truth"]["legible"]["share"])),
        ("exact", 7, lambda one: percent(one["written"]["exact"]["share"])),
        ("truth", 7, lambda one: percent(one["truth"]["exact"]["share"])),
        ("own script", 12, lambda one: percent(one["written"]["own_script"])),
        ("truth", 7, lambda one: percent(one["truth"]["own_script"])),
        ("known patches", 15, lambda one: percent(one["written"]["known_patches"])),
        ("truth", 7, lambda one: percent(one["truth"]["known_patches"])),
        ("ended", 7, lambda one: percent(one["written"]["ended"])),
        ("truth", 7, lambda one: percent(one["truth"]["ended"])),
    ]
    lines = [f"{result['parameters']:,} parameters, {result['settings']['steps']:,} steps", "held-out rows"]
    for columns in (bits, strips):
        lines.append(f"{'':6}" + "".join(f"{name:>{width}}" for name, width, _ in columns))
        for name, one in result["languages"].items():
            lines.append(f"{name:6}" + "".join(f"{value(one):>{width}}" for _, width, value in columns))
        if columns is bits:
            lines.append("clean strips as they are read; what is written behind first halves of rows, and in truth")
    return "\n".join([*lines, f"pictures: {result['pictures']}"])


def interval(bits: dict[str, Any]) -> str:
    return "" if bits["low"] is None else f"{bits['low']:.3f} - {bits['high']:.3f}"


def percent(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


if __name__ == "__main__":
    main()
