"""The command line of `python -m infer`.

Each command is a parser and a function that calls the same API a program would; results go to standard output, the log
to standard error. A user's mistake is one line and exit status 2, an interruption 130 (Ctrl-C) or 143 (SIGTERM).
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import logging.handlers
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from infer import export as exporting
from infer import inspect as inspecting
from infer.arguments import (
    Parser,
    add_model,
    add_running,
    check_out,
    nearest,
    read_prompts,
    setting,
    write,
)
from infer.benchmarks import bits_per_byte as measuring
from infer.commands_analysis import run_map, run_probe, run_retrieval
from infer.commands_attack import run_attack
from infer.commands_bits import run_bits_per_character
from infer.commands_pixar import run_continue
from infer.commands_pixels import run_embed, run_reconstruct
from infer.commands_report import run_report
from infer.commands_robustness import run_robustness
from infer.commands_tasks import run_evaluate_task, run_predict
from infer.commands_testbed import run_testbed
from infer.commands_words import run_babi, run_lambada, run_readability
from infer.generate_tokens import DEFAULT_MAX_TOKENS, Generation, generate
from infer.load import Loaded, load
from infer.read import BUILTIN, as_report, read
from infer.sampling import SamplingConfig
from pixelcore.errors import UserError
from render.config import CHOICES, NAMED, RenderConfig
from render.ocr import READERS

_log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        with _held_log(), _sigterm_raises():
            arguments = list(argv)
            command = COMMANDS["generate"]
            if arguments and not arguments[0].startswith("-"):
                name = arguments.pop(0)
                if name not in COMMANDS:
                    raise UserError(f"{name}: unknown command{nearest(name, COMMANDS)}; choose {', '.join(COMMANDS)}")
                command = COMMANDS[name]
            status = command(arguments)
            sys.stdout.flush()
            return status
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except _Terminated:
        print("terminated", file=sys.stderr)
        return 143
    except BrokenPipeError:
        # whoever read our output, such as `head`, has enough; what Python still holds must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# ------------------------------------------------------------------ generate


def run_generate(argv: Sequence[str]) -> int:
    """Continue prompts."""
    parser = Parser(
        prog="python -m infer [generate]",
        description="Continue prompts with a trained model. Other commands (each has --help): predict, "
        "reconstruct, continue, embed, evaluate, report, attack, inspect, export, read.",
        epilog="""examples:
  python -m infer --prompt "Once upon a time"                    the newest run under runs/
  python -m infer --model checkpoints/pixel_100m/latest.pt --prompt "Hello from PIXEL"
  echo "Once upon a time" | python -m infer --model runs/a --temperature 0 --max-tokens 40
  python -m infer --model runs/a --prompts prompts.txt --stop "." --json --out texts.json""",
    )
    add_model(parser)
    add_running(parser)
    default = SamplingConfig()
    add = parser.add_argument
    add("--prompt", metavar="T", help='the text to continue, as it is; "-" reads standard input (less one line end)')
    add("--prompts", metavar="FILE", help='a batch: one prompt in each line, or "prompt" of each record of a .jsonl')
    add("--max-tokens", type=int, default=DEFAULT_MAX_TOKENS, metavar="N", help="at most N new tokens (%(default)s)")
    add("--temperature", type=float, default=default.temperature, metavar="X", help="0 = greedy (%(default)s)")
    add("--top-k", type=int, default=default.top_k, metavar="K", help="keep the K likeliest; 0 = all (%(default)s)")
    add("--top-p", type=float, default=default.top_p, metavar="P", help="keep the nucleus; 1 = all (%(default)s)")
    add("--min-p", type=float, default=default.min_p, metavar="P", help="at least P of the likeliest (%(default)s)")
    add("--repetition-penalty", type=float, default=default.repetition_penalty, metavar="X", help="1 = off")
    add("--seed", type=int, default=default.seed, metavar="S", help="prompt i draws with S + i (%(default)s)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    add("--logprobs", action="store_true", help="also give the log-probability of each token")
    add("--sliding", action="store_true", help="when the context is full, forget its first half and go on")
    add("--stream", action=argparse.BooleanOptionalAction, help="show text as it comes (default: for one prompt)")
    add("--json", action="store_true", help="one JSON object on standard output")
    add("--out", metavar="FILE", help="write the result to FILE instead of standard output")
    options = parser.parse_args(argv)

    sampling = SamplingConfig(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )
    if options.max_tokens < 1:
        raise UserError(f"--max-tokens {options.max_tokens}: must be at least 1")
    if options.stream and (options.json or options.out is not None):
        raise UserError("--stream shows text on standard output as it comes: leave out --json and --out, or --stream")
    check_out(options.out)
    prompts = read_prompts(options.prompt, options.prompts)
    if options.stream and len(prompts) > 1:
        raise UserError(f"--stream: {len(prompts)} prompts would mix their texts: give one, or leave --stream out")
    stream = options.stream
    if stream is None:
        stream = len(prompts) == 1 and not options.json and options.out is None
    loaded = _load(options)

    def show(index: int, piece: str) -> None:
        _show_log()
        sys.stdout.write(piece)
        sys.stdout.flush()

    generations = generate(
        loaded.model,
        loaded.tokenizer,
        prompts,
        sampling,
        max_tokens=options.max_tokens,
        stop=options.stop,
        sliding=options.sliding,
        on_text=show if stream else None,
    )
    for generation in generations:
        _log.info("%s", _summary(generation))
    if options.json:
        report = _generation_report(loaded, sampling, options, generations)
        write(json.dumps(report, ensure_ascii=False, indent=2), options.out)
        return 0
    parts = []
    for number, generation in enumerate(generations, 1):
        heading = f"==> {number}: {generation.prompt}\n" if len(generations) > 1 else ""
        table = _log_probability_table(loaded, generation) if options.logprobs else ""
        parts.append(heading + ("" if stream else generation.text) + table)
    write("\n".join(parts), options.out)
    return 0


def _generation_report(
    loaded: Loaded, sampling: SamplingConfig, options: argparse.Namespace, generations: Sequence[Generation]
) -> dict[str, object]:
    rows = []
    for generation in generations:
        row = dataclasses.asdict(generation) | {"num_tokens": generation.num_tokens}
        if options.logprobs:
            row["pieces"] = loaded.tokenizer.pieces(generation.ids)
        else:
            del row["log_probabilities"]
        rows.append(row)
    return {
        "model": str(loaded.stored.path),
        "name": loaded.stored.name,
        "step": loaded.stored.step,
        "tokenizer_sha256": loaded.tokenizer.sha256,
        "device": str(loaded.model.head_weight.device),
        "dtype": str(loaded.model.compute_dtype).removeprefix("torch."),
        "settings": dataclasses.asdict(sampling)
        | {"max_tokens": options.max_tokens, "stop": options.stop, "sliding": options.sliding},
        "generations": rows,
    }


def _summary(generation: Generation) -> str:
    rate = generation.num_tokens / generation.seconds if generation.seconds else 0.0
    return (
        f"{generation.num_prompt_tokens} + {generation.num_tokens} tokens in {generation.seconds:.2f} s "
        f"({rate:.1f} tokens/s), ended by {generation.finish_reason}, seed {generation.seed}"
    )


def _log_probability_table(loaded: Loaded, generation: Generation) -> str:
    pieces = loaded.tokenizer.pieces(generation.ids)
    rows = zip(generation.log_probabilities, generation.ids, pieces, strict=True)
    return "".join(f"\n{log_probability:10.4f}  {id:>6}  {piece}" for log_probability, id, piece in rows)


# ------------------------------------------------------------------ evaluate


def run_evaluate(argv: Sequence[str]) -> int:
    """Measure a model."""
    arguments = list(argv)
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        if name not in BENCHMARKS:
            raise UserError(f"evaluate {name}: unknown{nearest(name, BENCHMARKS)}; choose {', '.join(BENCHMARKS)}")
        return BENCHMARKS[name](arguments)
    if not {"-h", "--help"} & set(arguments):
        raise UserError(f"evaluate: name what to measure first; choose {', '.join(BENCHMARKS)}")
    return run_bits_per_byte(arguments)


def run_bits_per_byte(argv: Sequence[str]) -> int:
    """Loss, perplexity and bits per byte."""
    parser = Parser(
        prog="python -m infer evaluate bits-per-byte",
        description="How well a model predicts text: loss, perplexity and bits per byte, beside three baselines.",
        epilog="""examples:
  python -m infer evaluate bits-per-byte --model runs/a --data books/held_out.txt
  python -m infer evaluate bits-per-byte --data "held_out/*.txt" --stride 128 --json""",
    )
    add_model(parser)
    add_running(parser)
    add = parser.add_argument
    add("--data", action="append", required=True, metavar="PATH", help="file, folder or glob; may be repeated")
    add("--field", default="text", help="the field of .jsonl or column of .parquet with the text (%(default)s)")
    add("--window", type=int, metavar="N", help="tokens that the model sees at once (default: its context length)")
    add("--stride", type=int, metavar="N", help="tokens by which the window moves on (default: the window)")
    add("--json", action="store_true", help="one JSON object on standard output")
    add("--out", metavar="FILE", help="write the result to FILE instead of standard output")
    options = parser.parse_args(argv)
    check_out(options.out)
    documents = measuring.read_texts(options.data, options.field)
    loaded = _load(options)
    result = measuring.bits_per_byte(
        loaded.model,
        loaded.tokenizer,
        documents,
        window=options.window,
        stride=options.stride,
        progress=sys.stderr.isatty(),
    )
    if options.json:
        about = {"model": str(loaded.stored.path), "step": loaded.stored.step, "data": options.data}
        write(json.dumps(about | dataclasses.asdict(result), indent=2), options.out)
    else:
        write(measuring.as_text(result), options.out)
    return 0


# ------------------------------------------------------------------ inspect, export


def run_inspect(argv: Sequence[str]) -> int:
    """Say what a model folder holds."""
    parser = Parser(
        prog="python -m infer inspect",
        description="What a model folder holds: format, step, configuration, parameters, tokenizer or renderer, files.",
        epilog="""examples:
  python -m infer inspect runs/a
  python -m infer inspect runs/a/checkpoints/step_00000100 --tensors
  python -m infer inspect checkpoints/pixel_100m --json
  python -m infer inspect Team-PIXEL/pixel-base --tensors""",
    )
    parser.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="any model folder, or a public name (or --model PATH)",
    )
    parser.add_argument("--model", metavar="PATH", help="the same; default: the newest run under runs/")
    parser.add_argument("--tensors", action="store_true", help="also list every tensor")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args(argv)
    if options.path is not None and options.model is not None:
        raise UserError("inspect: a path and --model: give one of them")
    report = inspecting.inspect(options.path or options.model, tensors=options.tensors)
    write(json.dumps(report, indent=2) if options.json else inspecting.as_text(report), None)
    return 0


def run_export(argv: Sequence[str]) -> int:
    """Write a model in another format."""
    parser = Parser(
        prog="python -m infer export",
        description="Write a model into a new folder, in another format.",
        epilog="""formats:
  safetensors   ours, weights only; --model reads it
  bundle        decoder: the original program's files: latest.pt, configurations, tokenizer, model card
  hf            decoder: Llama's layout for transformers; adapters are always merged
  pixel         vit_mae, vit_task: the published PIXEL folder, config.json and pytorch_model.bin; what was read from
                such a folder is written as it was, in the file format it had; adapters are always merged
  vitmae        vit_mae: the layout of transformers' ViTMAEForPreTraining; a square number of patches
  pixar         pixar: the published PIXAR backbone, config.json and pytorch_model.bin; neither a mixture nor a start
                vector, which that layout does not know

examples:
  python -m infer export --model runs/a --to bundle --out exported/a --with-optimizer
  python -m infer export --model runs/a --to hf --out exported/a_hf
  python -m infer export --model runs/strips --to pixel --out exported/strips
  python -m infer export --model fetched/sst2 --pooling mean --to safetensors --out exported/sst2""",
    )
    add_model(parser)
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(exporting.FORMATS))
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument("--with-optimizer", action="store_true", help="AdamW's moments too (bundle)")
    parser.add_argument("--merge", action="store_true", help="fold adapters into the weights")
    parser.add_argument("--pooling", metavar="P", help="of a published classifier: mean, max or pma<heads>")
    options = parser.parse_args(argv)
    folder = exporting.export(
        options.model,
        options.to,
        options.out,
        with_optimizer=options.with_optimizer,
        merge=options.merge,
        tokenizer=options.tokenizer,
        pooling=options.pooling,
    )
    write(str(folder), None)
    return 0


# ------------------------------------------------------------------ read


def run_read(argv: Sequence[str]) -> int:
    """Read a picture of text."""
    parser = Parser(
        prog="python -m infer read",
        description="Read a PNG of rendered text: one that `python -m render --out` wrote, or a strip as it is.",
        epilog="""examples:
  python -m render "Hello, world" --out strip.png && python -m infer read strip.png
  python -m infer read strip.png --preset pixel --font NotoSans.ttf --json
  python -m infer read strip.png --set render.height=8 --set render.color=binary --scripts Latn,Cyrl
  python -m infer read strip.png --reader tesseract""",
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="a PNG; how it was drawn is taken from the picture itself where it says so")
    add("--preset", metavar="P", help=f"how it was drawn, where it does not say so: {', '.join(NAMED)}")
    add("--layout", metavar="L", help=f"{', '.join(CHOICES['layout'])}")
    add("--font", action="append", default=[], metavar="F", help="a font file; may be repeated: a chain")
    add("--set", action="append", default=[], metavar="A=V", help="a field of the configuration, as in render.height=8")
    add("--scripts", metavar="S,S", help="scripts that may occur, such as Latn,Cyrl (default: those the fonts are for)")
    add("--reader", default=BUILTIN, metavar="R", help=f"{', '.join([BUILTIN, *READERS])} (%(default)s)")
    add("--json", action="store_true", help="one JSON object: text, confidences, how often non-text passes for text")
    options = parser.parse_args(argv)
    changes: dict[str, Any] = {}
    if options.preset is not None:
        if options.preset not in NAMED:
            raise UserError(
                f"--preset {options.preset}: unknown{nearest(options.preset, list(NAMED))}; choose {', '.join(NAMED)}"
            )
        changes |= RenderConfig.named(options.preset).to_dict()
    if options.layout is not None:
        changes["layout"] = options.layout
    if options.font:
        changes["fonts"] = options.font
    changes |= dict(setting(item) for item in options.set)
    scripts = None if options.scripts is None else [name for name in options.scripts.split(",") if name]
    found = read(options.file, changes=changes, scripts=scripts, reader=options.reader)
    if options.json:
        write(json.dumps(as_report(found), ensure_ascii=False, indent=2), None)
        return 0
    if found.readable is False:
        _log.warning("not readable: %.0f %% of the ink is explained", 100 * (found.confidence or 0))
    write(found.text, None)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "generate": run_generate,
    "evaluate": run_evaluate,
    "inspect": run_inspect,
    "export": run_export,
    "read": run_read,
    "reconstruct": run_reconstruct,
    "continue": run_continue,
    "embed": run_embed,
    "attack": run_attack,
    "predict": run_predict,
    "report": run_report,
}
BENCHMARKS: dict[str, Callable[[Sequence[str]], int]] = {
    "bits-per-byte": run_bits_per_byte,
    "bits-per-character": run_bits_per_character,
    "testbed": run_testbed,
    "lambada": run_lambada,
    "babi": run_babi,
    "readability": run_readability,
    "robustness": run_robustness,
    "classify": functools.partial(run_evaluate_task, "classify"),
    "tag": functools.partial(run_evaluate_task, "tag"),
    "parse": functools.partial(run_evaluate_task, "parse"),
    "answer": functools.partial(run_evaluate_task, "answer"),
    "retrieval": run_retrieval,
    "probe": run_probe,
    "map": run_map,
}


# ------------------------------------------------------------------ what the commands share


def _load(options: argparse.Namespace) -> Loaded:
    return load(options.model, device=options.device, dtype=options.dtype, ops=options.ops, tokenizer=options.tokenizer)


class _Terminated(BaseException):
    """SIGTERM; not an Exception, so that nothing on the way takes it for a failure."""


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there Python lets signals be handled
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_LOGGERS = tuple(logging.getLogger(package) for package in ("infer", "kernels", "pixelcore", "render"))


@contextlib.contextmanager
def _held_log() -> Iterator[None]:
    """The project's log lines on standard error, held until there are results: a user's mistake is one line alone."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(logging.Formatter("%(message)s"))
    held = logging.handlers.MemoryHandler(capacity=1000, target=stream, flushOnClose=False)
    seen: set[str] = set()  # several renderers of one command say the same about their fonts
    held.addFilter(lambda line: line.name != "render" or not (line.getMessage() in seen or seen.add(line.getMessage())))
    levels = [logger.level for logger in _LOGGERS]
    for logger in _LOGGERS:
        logger.addHandler(held)
        logger.setLevel(logging.INFO)
    try:
        yield
        held.flush()
    finally:
        for logger, level in zip(_LOGGERS, levels):
            logger.removeHandler(held)
            logger.setLevel(level)
        held.close()


def _show_log() -> None:
    for logger in _LOGGERS:
        for handler in logger.handlers:
            handler.flush()
