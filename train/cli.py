"""The command line of training: `python -m train --preset NAME`.

Flags are few; everything else is a field of a table, reached with --set. Results go to standard output, logs to
standard error. Exit status: 0 success (also --stop-at, and resuming a finished run), 2 the user's mistake in one line,
1 a stopped training or a fault of ours, 130 or 143 after saving on Ctrl-C or SIGTERM.
"""

import argparse
import json
import logging
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch

import presets
from pixelcore.errors import UserError
from pixelcore.log import log_to_stderr
from train.config import (
    AdversarialSettings,
    DrawnSettings,
    Settings,
    StripTaskSettings,
    TaskSettings,
    TokenizedSettings,
    TokenTaskSettings,
)
from train.data.corpus import find_sources, find_tokenizer
from train.distributed import Ranks, join, leave
from train.job import new_job, read_settings, resumed_job, tables_of
from train.loop import Stopped, TrainingStoppedError, train
from train.objectives import OBJECTIVES
from train.run_folder import RunFolder
from train.seeds import run_seeds
from train.seeds import table as table_of_seeds
from train.sweep import Sweep, read_plan, read_seeds, table

_log = logging.getLogger("train")

_COMMANDS = ("run", "tokenizer", "prepare", "verify", "sweep")
_EXAMPLES = """examples:
  python -m train --preset smoke --steps 12                      a first run, in seconds
  python -m train --preset demo                                  minutes on a CPU, legible English
  python -m train --preset 100m --data texts/ --out runs/a       your own .txt, .jsonl or .parquet
  python -m train --resume runs/a                                go on where it stopped
  python -m train --preset 100m --init runs/a --data law/ --set model.lora.rank=16
  python -m train tokenizer --preset demo --data texts/ --out my.model
  python -m train prepare --preset 100m --data texts/            tokenize now, train later
  python -m train --preset pixel-base --data texts/ --set 'render.fonts=["GoNotoCurrent.ttf"]'
  python -m train --preset pixar-novels --data en_books/         a model that writes strips
  python -m train verify --preset pixel-base --data texts/       are the prepared rows what would be drawn now?
  python -m train --preset pixar-adversarial --init runs/a --data texts/           stage 2 of a model that writes strips
  python -m train --preset pixel-base-pos --init PATH --data UD_English-EWT/ --seeds 0-4 --out runs/pos
  python -m train sweep --help                                   how strong, and for how long: stage 2 tried out
  torchrun --nproc-per-node 8 -m train --preset 1b --data texts/ --set run.parallel=fsdp
presets: """


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; python -m train --help shows the flags")


def main(argv: list[str]) -> int:
    """Run one command; returns the exit status."""
    with log_to_stderr(chatty=("train", "pixelcore", "infer")):
        try:
            if argv[:1] == ["sweep"]:
                return _sweep(_sweep_parser().parse_args(argv[1:]))
            return _main(_parser().parse_args(argv))
        except (UserError, presets.PresetError) as cause:
            print(f"error: {' '.join(str(cause).split())}", file=sys.stderr)
            return 2
        except TrainingStoppedError as cause:
            print(f"error: {cause}", file=sys.stderr)
            return 1
        except Stopped as cause:
            return 128 + cause.signal_number
        except KeyboardInterrupt:
            return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m train",
        description="Train a model.",
        epilog=_EXAMPLES + ", ".join(presets.names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # checked later: a choice here would take the value of a misspelt flag for a wrong command
    parser.add_argument("command", nargs="?", metavar="COMMAND", default="run", help=f"{', '.join(_COMMANDS)}")
    parser.add_argument("--preset", metavar="NAME", help="a named configuration")
    parser.add_argument("--data", metavar="PATH", action="append", help="file, folder or glob; may be repeated")
    parser.add_argument("--valid", metavar="PATH", action="append", help="held-out text of its own; may be repeated")
    parser.add_argument("--init", metavar="PATH", type=Path, help="a model to start from")
    parser.add_argument("--out", metavar="RUN", type=Path, help="default: runs/<preset>-<UTC time>")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on inside RUN")
    parser.add_argument("--steps", metavar="N", type=int, help="optimizer steps of the whole run")
    parser.add_argument("--stop-at", metavar="N", type=int, help="stop after step N; the run can be resumed")
    parser.add_argument("--seed", metavar="S", type=int)
    parser.add_argument("--seeds", metavar="A-B", help="of a task: a run for each of these seeds, 0-4 or 0,5,7")
    parser.add_argument("--compare", metavar="RUN", type=Path, help="with --seeds: is it better than these runs?")
    parser.add_argument("--device", metavar="D", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--ops", metavar="O", default="auto", help="auto, fused or reference")
    parser.add_argument("--set", metavar="a.b=v", action="append", default=[], help="change a field of a table")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on standard output")
    return parser


def _main(arguments: argparse.Namespace) -> int:
    if arguments.command == "sweep":
        raise UserError("sweep has flags of its own and comes first: python -m train sweep --help")
    if arguments.command not in _COMMANDS:
        raise UserError(f"unknown command {arguments.command!r}; commands: {', '.join(_COMMANDS)}")
    if arguments.command == "tokenizer":
        return _tokenizer(arguments)
    if arguments.command == "prepare":
        return _prepare(arguments)
    if arguments.command == "verify":
        return _verify(arguments)
    for name in ("steps", "stop_at"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be positive")
    ranks = join(arguments.device)
    if not ranks.is_first:
        for package in ("train", "pixelcore", "infer"):
            logging.getLogger(package).setLevel(logging.WARNING)
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it; nothing on a CPU
    try:
        return _resume(arguments, ranks) if arguments.resume else _start(arguments, ranks)
    finally:
        leave(ranks)


def _start(arguments: argparse.Namespace, ranks: Ranks) -> int:
    settings = _settings(arguments)
    when = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = RunFolder(arguments.out or Path("runs") / f"{arguments.preset}-{when}")
    if arguments.seeds is not None:
        return _start_seeds(arguments, settings, folder.path, ranks)
    if arguments.compare is not None:
        raise UserError("--compare RUN: belongs to --seeds: --seeds 0 makes a single run that is compared")
    job = new_job(settings, folder, ranks, arguments.ops, arguments.init, arguments.set)
    if ranks.is_first:
        _log.info("%s", folder.read_config().strip())
        _log.info("run folder: %s", folder.path)
    return _report(train(job, arguments.stop_at), arguments, ranks)


def _start_seeds(arguments: argparse.Namespace, settings: Settings, folder: Path, ranks: Ranks) -> int:
    """One run for each seed."""
    if not isinstance(settings, TaskSettings):
        raise UserError(f"--seeds: preset {arguments.preset} is no task: start its runs one by one, with --seed")
    if arguments.seed is not None or arguments.stop_at is not None:
        raise UserError("--seeds: leave out --seed and --stop-at: each run has its own seed and goes to its end")
    seeds = read_seeds(arguments.seeds)
    summary = run_seeds(settings, seeds, folder, ranks, arguments.ops, arguments.init, arguments.set, arguments.compare)
    if ranks.is_first:
        print(json.dumps(summary) if arguments.json else table_of_seeds(summary))
    return 0


def _resume(arguments: argparse.Namespace, ranks: Ranks) -> int:
    _refuse_all_but(
        arguments,
        ("resume", "steps", "stop_at", "device", "ops", "json"),
        "cannot be used with --resume: a run goes on with its own settings; only --steps, --stop-at, --device and "
        "--ops may change; for anything else start a new run with --init",
    )
    folder = RunFolder.open(arguments.resume)
    _check_longer(folder, arguments.steps)
    job = resumed_job(folder, ranks, arguments.ops, arguments.steps)
    if job.step >= job.settings.run.steps:
        _log.info("%s is finished at step %d; --steps N makes it longer", folder.path, job.step)
    elif ranks.is_first:
        _log.info("resuming %s at step %d", folder.path, job.step)
    if ranks.is_first:
        folder.forget_after(job.step)
        folder.write_config(presets.write(tables_of(job.settings)))
        folder.mark(finished=job.step >= job.settings.run.steps)
    return _report(train(job, arguments.stop_at), arguments, ranks)


def _refuse_all_but(arguments: argparse.Namespace, allowed: tuple[str, ...], why: str) -> None:
    """No flag without effect: raise UserError for one that is given and not allowed here."""
    default = vars(_parser().parse_args([]))
    for name, value in vars(arguments).items():
        if name != "command" and name not in allowed and value != default[name]:
            raise UserError(f"--{name.replace('_', '-')} {why}")


def _check_longer(folder: RunFolder, steps: int | None) -> None:
    if steps is None:
        return
    planned = read_settings(folder.read_config(), (), str(folder.config)).run.steps
    if steps < planned:
        raise UserError(f"--steps {steps}: the run was planned for {planned} steps; it can only be made longer")


def _settings(arguments: argparse.Namespace) -> Settings:
    if arguments.preset is None:
        raise UserError(f"name a preset with --preset, or a run with --resume; presets: {', '.join(presets.names())}")
    flags = {
        "run.steps": arguments.steps,
        "run.seed": arguments.seed,
        "data.paths": arguments.data,
        "data.valid": arguments.valid,
    }
    # a JSON value is a TOML value: flags are overrides like --set, which comes last
    given = {field: value for field, value in flags.items() if value is not None}
    overrides = [f"{field}={json.dumps(value, ensure_ascii=False)}" for field, value in given.items()]
    settings = read_settings(presets.load(arguments.preset), [*overrides, *arguments.set], f"preset {arguments.preset}")
    # absolute, so that a run can be resumed from any folder
    paths, valid = (
        tuple(os.path.abspath(path) for path in group) for group in (settings.data.paths, settings.data.valid)
    )
    settings = replace(settings, data=replace(settings.data, paths=paths, valid=valid))
    if isinstance(settings, TokenizedSettings | TokenTaskSettings) and settings.tokenizer.path:
        path = os.path.abspath(settings.tokenizer.path)
        settings = replace(settings, tokenizer=replace(settings.tokenizer, path=path))
    if isinstance(settings, TaskSettings):
        test = tuple(os.path.abspath(path) for path in settings.data.test)
        settings = replace(settings, data=replace(settings.data, test=test))
    if isinstance(settings, DrawnSettings | StripTaskSettings):
        fonts = tuple(os.path.abspath(font) if os.path.exists(font) else font for font in settings.render.fonts)
        settings = replace(settings, render=replace(settings.render, fonts=fonts))
    return settings


def _report(summary: dict[str, Any], arguments: argparse.Namespace, ranks: Ranks) -> int:
    if ranks.is_first:
        _print(summary, arguments.json)
    return 0


def _tokenizer(arguments: argparse.Namespace) -> int:
    """Train a tokenizer and write it to --out."""
    _refuse_all_but(arguments, ("preset", "data", "valid", "out", "set", "json"), "has no effect on a tokenizer")
    settings = _settings(arguments)
    if not isinstance(settings, TokenizedSettings):
        raise UserError(f"preset {arguments.preset}: trains on strips, which need no tokenizer")
    if arguments.out is None:
        raise UserError("python -m train tokenizer: name the file to write with --out FILE")
    if arguments.out.exists():
        raise UserError(f"--out {arguments.out}: exists; a tokenizer is never overwritten: choose another name")
    sources, _ = find_sources(settings.data)
    tokenizer = find_tokenizer(sources, settings.data, settings.tokenizer, settings.model.vocab_size)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(tokenizer.model_bytes)
    arguments.out.with_suffix(".vocab").write_text(tokenizer.vocab_text(), encoding="utf-8")
    summary = {"tokenizer": str(arguments.out), "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256}
    print(json.dumps(summary) if arguments.json else f"{arguments.out}: {tokenizer.vocab_size} pieces")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    """Tokenize, or measure rows, into the cache, so that a run starts at once."""
    _refuse_all_but(arguments, ("preset", "data", "valid", "set", "json"), "has no effect on prepared data")
    settings = _settings(arguments)
    corpus, _ = OBJECTIVES[settings.objective.kind].find_data(settings, Ranks(0, 1, torch.device("cpu")), None, None)
    _print(corpus.summary, arguments.json)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    """Draw all prepared rows again and compare them with what was prepared."""
    _refuse_all_but(arguments, ("preset", "data", "valid", "set", "json"), "has no effect on prepared data")
    settings = _settings(arguments)
    if not isinstance(settings, DrawnSettings):
        raise UserError(f"preset {arguments.preset}: trains on tokens; only prepared rows of strips can be verified")
    ranks = Ranks(0, 1, torch.device("cpu"))
    corpus, settings = OBJECTIVES[settings.objective.kind].find_data(settings, ranks, None, None)
    _print({"verified_rows": corpus.verify(settings.data.workers)}, arguments.json)
    return 0


def _sweep_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m train sweep",
        description="Train stage 2 at several strengths and seeds, and look at it after several numbers of steps.\n"
        "Steps and strength are chosen on held-out text of the training corpus, by next words that are right; bits a\n"
        "patch and legible words stand beside them. The same command goes on where it stopped, and may ask for more\n"
        "strengths and seeds.",
        epilog="example:\n  python -m train sweep --preset pixar-adversarial --init runs/a --data texts/ "
        "--at 0,50,100,200 --strengths 1,2,5 --seeds 0-2 --set objective.strength_warmup_steps=100 --out runs/sweep",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--preset", metavar="NAME", default="pixar-adversarial", help="default: %(default)s")
    parser.add_argument("--data", metavar="PATH", action="append", help="file, folder or glob; may be repeated")
    parser.add_argument("--valid", metavar="PATH", action="append", help="held-out text of its own; may be repeated")
    parser.add_argument("--init", metavar="PATH", type=Path, required=True, help="the stage-1 run to start from")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="the sweep's folder")
    parser.add_argument("--at", metavar="N,N,...", default="0,50,100,200,500", help="steps, 0 is the stage-1 model")
    parser.add_argument("--strengths", metavar="X,X,...", default="1,2,5,10", help="default: %(default)s")
    parser.add_argument("--seeds", metavar="A-B", default="0", help="of the runs, 0-2 or 0,5,7")
    parser.add_argument("--device", metavar="D", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--ops", metavar="O", default="auto", help="auto, fused or reference")
    parser.add_argument("--set", metavar="a.b=v", action="append", default=[], help="change a field of a table")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on standard output")
    return parser


def _sweep(arguments: argparse.Namespace) -> int:
    """Try out stage 2, and print what came of it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("python -m train sweep: runs in one process; start it without torchrun")
    plan = read_plan(arguments.at, arguments.strengths, arguments.seeds)
    settings = _settings(argparse.Namespace(**vars(arguments), steps=None, seed=None))
    if not isinstance(settings, AdversarialSettings):
        raise UserError(f"preset {arguments.preset}: is no stage 2; a sweep needs one, such as pixar-adversarial")
    torch.set_float32_matmul_precision("high")
    ranks = join(arguments.device)
    sweep = Sweep(plan, settings, arguments.init, arguments.out, ranks, arguments.ops, arguments.set)
    summary = sweep.run()
    print(json.dumps(summary) if arguments.json else table(summary))
    return 0


def _print(summary: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(summary) if as_json else "\n".join(f"{name:>20}  {value}" for name, value in summary.items()))
