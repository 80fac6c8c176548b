"""How long should a patch be, and what do pixels cost? Models of strips and of tokens on the same rows, at equal FLOPs.

    python -m benchmarks.patch_length --data en_books/ --held-out dracula.txt.gz --steps 1000 --runs runs/patches
    python -m benchmarks.patch_length ... --models pixels-2 bpe-2 bytes --sizes 1m 3m 10m --seeds 3

Models, as many as are named:

    pixels-L    patches of 8 rows and 8 L columns, L = 1, 2, 3, 5, whose pixels are independent given what was before
    mixture-L   the same patches, of which a mixture of --components says what is next
    bpe-L       tokens of a byte pair vocabulary that hold as many characters as the patches of pixels-L do
    bytes       tokens that are UTF-8 bytes

The text is cut into rows once, no wider than --width pixels whatever the patch, and every model is trained on these
rows and asked about held-out ones, each a text of its own: none sees a context that another has not. All models of a
size have the same trunk (benchmarks/token_partners.py), the same recipe, the same rows in a step (of tokens: about as
many tokens as that is), and so many steps that training costs the same arithmetic; how much text each has read for it,
the table says. The budget is --flops for every model, or what --steps of pixels-2 of each size cost, or about --minutes
of this machine by the speed of its matrix product.

The figure is bits per character (infer/benchmarks/bits_per_character.py). Its interval is Student's over the seeds
where there are two or more, else that of the rows. A run that exists is resumed, and one that is finished is only
measured, so the command can be repeated, with more models, sizes and seeds.
"""

import argparse
import dataclasses
import json
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.patch_length_models import PATCH_LENGTHS, SIZES, WIDEST, Arm, arm_of, plan, rows_of
from benchmarks.record import publish, record
from benchmarks.token_partners import row_flops
from infer.benchmarks.bits_per_character import bits_of_strips, bits_of_tokens, evenly, measured, read_back
from infer.load import load
from infer.pixar import load_pixar
from pixelcore.accounting import num_parameters
from pixelcore.config import DecoderConfig
from pixelcore.errors import UserError

MODELS = (*(f"pixels-{length}" for length in PATCH_LENGTHS), "bpe-2", "bytes")
EVALUATIONS = 4
STUDENT = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 95 %, by degrees of freedom


def main() -> None:
    """Cut rows, find vocabularies, train what is not trained, measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", action="append", required=True, metavar="PATH", help="text to train on; may be repeated")
    add("--held-out", action="append", required=True, metavar="PATH", help="text to measure on; may be repeated")
    add("--runs", type=Path, required=True, metavar="FOLDER", help="rows, vocabularies and runs; to be used again")
    add(
        "--models",
        nargs="+",
        default=list(MODELS),
        metavar="M",
        help=f"{' '.join(MODELS)}, mixture-L, bpe-L (%(default)s)",
    )
    add("--sizes", nargs="+", default=["tiny"], choices=SIZES, metavar="S", help=f"{' '.join(SIZES)} (%(default)s)")
    add("--seeds", type=int, default=1, metavar="N", help="runs of each model (%(default)s)")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--flops", type=float, metavar="F", help="of the training of each model")
    budget.add_argument("--steps", type=int, metavar="N", help="as much as N steps of pixels-2 cost")
    budget.add_argument("--minutes", type=float, metavar="M", help="as much as about M minutes of this machine")
    add("--components", type=int, default=8, metavar="K", help="of a mixture (%(default)s)")
    add("--width", type=int, default=1440, metavar="W", help=f"of a row, a multiple of {WIDEST} px (%(default)s)")
    add("--rows-per-step", type=int, default=32, metavar="N", help="%(default)s")
    add("--held-out-rows", type=int, default=400, metavar="N", help="rows to measure on, evenly taken (%(default)s)")
    add("--rate", type=float, metavar="X", help="learning rate of all models, instead of the size's own")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (%(default)s)")
    add("--parallel", type=int, default=1, metavar="N", help="runs at a time")
    add("--json", action="store_true", help="print JSON, not a table")
    add("--out", type=Path, default=Path("benchmarks/results/patch_length.json"), metavar="FILE", help="%(default)s")
    options = parser.parse_args()
    known = ["bytes", *(f"{kind}-{length}" for kind in ("pixels", "mixture", "bpe") for length in PATCH_LENGTHS)]
    wrong = [name for name in options.models if name not in known]
    if wrong:
        parser.error(f"--models {wrong[0]}: unknown; choose {', '.join(known)}")
    if options.width % WIDEST or options.width < 2 * WIDEST:
        parser.error(f"--width {options.width}: must be a multiple of {WIDEST}, the widest patch, and at least two")
    try:
        result = compare(options)
    except UserError as cause:
        parser.exit(2, f"error: {cause}\n")
    publish(result, table(result), options.json, options.out)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written to the JSON."""
    planned = plan(options)
    rows, held_out = rows_of(options, "training"), rows_of(options, "held-out")
    chosen = evenly(held_out, options.held_out_rows)
    arms = {
        size: [arm_of(name, size, rows, planned["flops"][size], options) for name in options.models]
        for size in options.sizes
    }
    train(arms, options)
    sizes = {
        size: {
            "flops": planned["flops"][size],
            "models": {arm.name: measure(arm, size, rows, chosen, options) for arm in arms[size]},
        }
        for size in options.sizes
    }
    about = {name: value for name, value in planned.items() if name != "flops"} | {"seeds": options.seeds}
    about |= {name: [Path(path).name for path in planned[name]] for name in ("data", "held_out")}
    text = {"training_rows": len(rows), "training_characters": sum(map(len, rows)), "held_out_rows": len(chosen)}
    what = "bits per character of held-out rows, models of strips and of tokens at equal training FLOPs"
    return {"what": what, "settings": about | text, "sizes": sizes} | record(["torch", "numpy", "sentencepiece"])


# ------------------------------------------------------------------ training


def train(arms: dict[str, list[Arm]], options: argparse.Namespace) -> None:
    """Run what is not finished, `parallel` at a time. Raises UserError where a run fails."""
    waiting: list[tuple[str, list[str]]] = []
    for size, models in arms.items():
        for seed in range(options.seeds):
            for arm in models:
                run = run_of(size, arm, seed, options)
                command = command_of(run, arm, size, seed, options)
                if command:
                    waiting.append((str(run), command))
    running: list[tuple[str, subprocess.Popen[bytes]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < options.parallel:
                name, command = waiting.pop(0)
                print(f"{name}: {shlex.join(command)}", file=sys.stderr)
                running.append((name, subprocess.Popen(command, stdout=sys.stderr)))
            name, process = running[0]
            if process.wait():
                raise UserError(f"{name}: training ended with status {process.returncode}; what it said stands above")
            running.pop(0)
    finally:
        for _, process in running:  # they save and can be resumed
            process.terminate()
            process.wait()


def run_of(size: str, arm: Arm, seed: int, options: argparse.Namespace) -> Path:
    return options.runs / size / f"{arm.name}-{seed}"


def command_of(run: Path, arm: Arm, size: str, seed: int, options: argparse.Namespace) -> list[str]:
    """The command that starts a run or goes on with it; none for one that is finished."""
    command = [sys.executable, "-m", "train", "--device", options.device]
    if (run / "run.json").exists():
        finished = json.loads((run / "run.json").read_text())["finished"]
        return [] if finished else [*command, "--resume", str(run)]
    command += ["--preset", arm.preset, "--out", str(run), "--seed", str(seed), "--steps", str(arm.steps)]
    command += ["--data", str(options.runs / "training.jsonl"), "--valid", str(options.runs / "held-out.jsonl")]
    changes = {
        "optimizer.learning_rate": options.rate or SIZES[size][-1],
        "optimizer.betas": [0.9, 0.95],
        "optimizer.weight_decay": 0.1,
        "schedule.warmup_steps": arm.steps // 20,
        "schedule.final_ratio": 0.1,
        "eval.every": max(1, arm.steps // EVALUATIONS),
        "run.log_every": max(1, arm.steps // 100),
        "run.save_every": max(1, arm.steps // EVALUATIONS),
        "run.keep_last": 1,
    }
    for name, value in (changes | arm.changes).items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    return command


# ------------------------------------------------------------------ measuring


def measure(
    arm: Arm, size: str, rows: Sequence[str], held_out: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    """What a model costs and reaches, over its seeds."""
    seeds = [measure_run(run_of(size, arm, seed, options), arm, held_out, options) for seed in range(options.seeds)]
    bits = [seed["bits_per_character"] for seed in seeds]
    low, high = (seeds[0]["low"], seeds[0]["high"]) if len(seeds) == 1 else over_seeds(bits)
    seen = arm.steps * arm.rows_per_step
    config = {"kind": arm.config.kind} | dataclasses.asdict(arm.config)
    return {
        "config": {name: value for name, value in config.items() if value is not None},
        "parameters": num_parameters(arm.config),
        "characters_per_unit": sum(map(len, rows)) / sum(arm.lengths),
        "steps": arm.steps,
        "flops": seen * row_flops(arm.config, arm.lengths),
        "epochs": seen / len(rows),
        "bits_per_character": statistics.fmean(bits),
        "low": low,
        "high": high,
        "seeds": seeds,
    }


def measure_run(run: Path, arm: Arm, held_out: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    if isinstance(arm.config, DecoderConfig):
        loaded = load(run, device=options.device, dtype="float32")
        return dataclasses.asdict(measured(held_out, bits_of_tokens(loaded.model, loaded.tokenizer, held_out)))
    pixels = load_pixar(run, device=options.device, dtype="float32")
    scored = bits_of_strips(pixels.model, pixels.renderer, held_out)
    return dataclasses.asdict(measured(held_out, scored, read_back(pixels.renderer, held_out)))


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean."""
    freedom = len(values) - 1
    quantile = STUDENT[freedom] if freedom < len(STUDENT) else 1.96 + 2.4 / freedom
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def table(result: dict[str, Any]) -> str:
    """One line for each model, then the baselines."""
    columns: list[tuple[str, int, Callable[[dict[str, Any]], str]]] = [
        ("characters", 11, lambda one: f"{one['characters_per_unit']:.2f}"),
        ("parameters", 12, lambda one: f"{one['parameters']:,}"),
        ("TFLOP", 11, lambda one: f"{one['flops'] / 1e12:.4g}"),
        ("steps", 8, lambda one: f"{one['steps']:,}"),
        ("epochs", 8, lambda one: f"{one['epochs']:.2f}"),
        ("bits/character", 16, lambda one: f"{one['bits_per_character']:.4f}"),
        ("95 %", 19, lambda one: f"{one['low']:.4f} - {one['high']:.4f}" if one["low"] is not None else ""),
        ("read back", 11, lambda one: share(one["seeds"][0]["read_back"])),
    ]
    lines = [f"{'size':7}{'model':12}" + "".join(f"{name:>{width}}" for name, width, _ in columns)]
    for size, group in result["sizes"].items():
        for name, one in group["models"].items():
            lines.append(f"{size:7}{name:12}" + "".join(f"{value(one):>{width}}" for _, width, value in columns))
    first = next(iter(next(iter(result["sizes"].values()))["models"].values()))["seeds"][0]
    lines.append(
        f"the same rows, bits per character: uniform bytes {first['uniform']:.3f}, character entropy "
        f"{first['order_0']:.3f}, xz -9e {first['xz']:.3f}"
    )
    return "\n".join(lines)


def share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


if __name__ == "__main__":
    main()
