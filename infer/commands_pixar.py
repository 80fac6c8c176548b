"""`python -m infer continue`: letting a model of strips write on.

Two kinds of model can, each in its own way: one that was trained to paint what is hidden fills empty patches
(infer/commands_pixels.py), one that was trained to foretell patches writes them from left to right. Which one it is
stands in the model, so there is one command for both; each flag says for which it is, and is refused for the other.
"""

import argparse
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.arguments import (
    Parser,
    add_strips_model,
    check_picture,
    read_prompts,
    save_picture,
    strips_choices,
    write,
)
from infer.commands_pixels import PAINTERS, continue_by_painting
from infer.continue_strip import MARKER, PASSES
from infer.continued import Continued, GrowingStrip, picture
from infer.legal import BEAM, LegalConfig, LegalWritten, write_legal
from infer.load import PIXAR_MODELS, read
from infer.pixar import LoadedPixar, as_strip, load_pixar, prompt_patches, read_written
from infer.write_strip import DECODINGS, WriteConfig, Written, check_decoding
from infer.write_strip import write as write_strips
from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from pixelcore.stored import Stored
from render import Reader
from render.preview import mode_of, preview

LEGAL = "legal"
_MOST_STRIPS = 64  # in a picture

_log = logging.getLogger(__name__)

_PAINTING = ("text", "gap", "passes")
_WRITING = ("prompt", "prompts", "decode", "temperature", "seed", "beam", "alphabet", "read", "stream")


def run_continue(argv: Sequence[str]) -> int:
    """Write on with a model of strips."""
    parser = Parser(
        prog="python -m infer continue",
        description="Let a model of strips write. One that foretells patches (PIXAR) goes on from a prompt, patch by "
        "patch. One that paints (PIXEL) fills hidden patches behind a text, or in a gap of it, in several passes, the "
        "most certain first. Decoders of tokens write with: python -m infer generate",
        epilog=f"""decodings of a model that foretells patches:
  threshold   each pixel by what is likelier, of a mixture those of its likeliest component; nothing is drawn
  mixture     a component of a mixture is drawn, and its pixels are thresholded
  sample      the component, and then every pixel, is drawn: what the model believes, specks and all
  legal       only patches that the font can draw: a beam, or with --temperature a draw among them

A patch that a model paints is the more certain the more contrast its prediction keeps: where many things could stand,
they average out to grey.

examples:
  python -m infer continue --prompt "Mary went to the" --patches 4 --read
  python -m infer continue --model runs/a --prompt "Once upon a time" --decode mixture --seed 3 --out strip.png
  python -m infer continue --model pixar/backbone --font PixeloidSans.ttf --prompts prompts.txt --patches 8 --json
  python -m infer continue --model runs/a --prompt "Once upon a time" --decode legal --patches 8
  python -m infer continue --model runs/b --text "Once upon a {MARKER} there was a house" --patches 4 --out passes.png
  python -m infer continue --model runs/b --text "The quick brown fox jumps" --gap 6-9 --json""",
    )
    add_strips_model(parser)
    add = parser.add_argument
    add("--patches", type=int, metavar="N", help="how many to write (default: until the end patch or a full context)")
    add("--json", action="store_true", help="one JSON object on standard output: the patches and what is known of them")
    add("--out", metavar="FILE", help="a picture, a PNG: written patches stand on a tint; or every pass")
    group = parser.add_argument_group("models that foretell patches (PIXAR)")
    add = group.add_argument
    add("--prompt", metavar="T", help='the text to continue, as it is; "-" reads standard input (less one line end)')
    add("--prompts", metavar="FILE", help='a batch: one prompt in each line, or "prompt" of each record of a .jsonl')
    names = ", ".join((*DECODINGS, LEGAL))
    add("--decode", metavar="D", help=f"{names} (mixture for a mixture head, else threshold)")
    add("--temperature", type=float, metavar="X", help="below 1 sharpens what is drawn from, above 1 flattens it (1)")
    add("--seed", type=int, metavar="S", help="prompt i draws with S + i (0)")
    add("--beam", type=int, metavar="N", help=f"of legal: texts that are kept after each patch ({BEAM})")
    add("--alphabet", metavar="T", help="of legal: the characters that may be written (printable ASCII of the font)")
    add("--read", action="store_true", default=None, help="read what was written and print it")
    add("--stream", action="store_true", default=None, help="show the strip as it is written, row by row")
    group = parser.add_argument_group("models that paint (PIXEL)")
    add = group.add_argument
    add("--text", metavar="T", help=f'the text, in which {MARKER} may mark a gap; "-" reads standard input')
    add("--gap", metavar="A-B", help="patches of the text's own strip to fill instead, such as 12-20")
    add("--passes", type=int, metavar="K", help=f"rounds, at most one for each patch ({PASSES})")
    options = parser.parse_args(argv)
    check_picture(options.out)
    for flag in ("patches", "passes", "beam"):
        if getattr(options, flag) is not None and getattr(options, flag) < 1:
            raise UserError(f"--{flag} {getattr(options, flag)}: must be at least 1")
    stored = read(options.model, kinds=(*PAINTERS, *PIXAR_MODELS))
    if stored.config.kind in PAINTERS:
        _refuse(options, stored, _WRITING, "is for models that foretell patches", {"prompt": "text"})
        return continue_by_painting(options, stored)
    _refuse(options, stored, _PAINTING, "is for models that paint", {"text": "prompt"})
    return _continue_by_writing(options, stored)


def _refuse(
    options: argparse.Namespace, stored: Stored, flags: Sequence[str], why: str, instead: dict[str, str]
) -> None:
    """No flag is without effect."""
    for flag in flags:
        if getattr(options, flag) is not None:
            remedy = f"use --{instead[flag]}" if flag in instead else "leave it out"
            raise UserError(f"--{flag} {why}, and {stored.path} is a {stored.config.kind} model: {remedy}")


# ------------------------------------------------------------------ writing


def _continue_by_writing(options: argparse.Namespace, stored: Stored) -> int:
    assert isinstance(stored.config, PixarConfig)
    decode = options.decode or ("mixture" if stored.config.head == "mixture" else "threshold")
    _settings(options, decode, stored.config, 0)  # a mistake in a flag is found before anything is drawn
    texts = read_prompts(options.prompt, options.prompts)
    _check_output(options, decode, texts)
    loaded = load_pixar(stored, **strips_choices(options))
    names = [f"prompt {index}" if len(texts) > 1 else "the prompt" for index in range(1, len(texts) + 1)]
    prompts = [
        prompt_patches(loaded.renderer, text, stored.config, name) for text, name in zip(texts, names, strict=True)
    ]
    config = _settings(options, decode, stored.config, max(map(len, prompts)))
    rows = GrowingStrip(loaded.renderer.config, prompts[0]) if options.stream else None
    start = time.perf_counter()
    written = _write(loaded, texts, prompts, config, None if rows is None else rows.add)
    seconds = time.perf_counter() - start
    if rows is not None:
        rows.finish()
    strips = [
        Continued(*each) for each in zip(texts, prompts, written, _said(loaded, texts, prompts, written, options.read))
    ]
    count = sum(len(one.patches) for one in written)
    _log.info("%d patches in %.2f s (%.1f patches/s)", count, seconds, count / seconds)
    if options.out is not None:
        save_picture(options.out, picture(strips, loaded.renderer.config))
    if options.json:
        settings = {"decode": decode} | dataclasses.asdict(config)
        totals = {"num_patches": count, "seconds": seconds, "patches_per_second": count / seconds}
        report = _about(loaded) | {"settings": settings} | totals | {"strips": [strip.report() for strip in strips]}
        write(json.dumps(report, ensure_ascii=False), None)
        return 0
    parts = []
    for number, strip in enumerate(strips, 1):
        _log.info("%s", strip.summary)
        parts += [f"==> {number}: {strip.prompt}"] if len(strips) > 1 else []
        if strip.text is not None:
            parts.append(strip.text)
        elif options.out is not None:
            parts.append(f"{options.out}: {strip.summary}")
        elif rows is None:
            parts.append(preview(as_strip(strip.whole, loaded.renderer.config), mode_of(sys.stdout)))
    if parts:
        write("\n".join(parts), None)
    return 0


def _about(loaded: LoadedPixar) -> dict[str, Any]:
    stored, model = loaded.stored, loaded.model
    running = {"device": str(model.norm.weight.device), "dtype": str(model.compute_dtype).removeprefix("torch.")}
    return {"model": str(stored.path), "name": stored.name, "step": stored.step} | running


def _settings(options: argparse.Namespace, decode: str, model: PixarConfig, longest: int) -> WriteConfig | LegalConfig:
    """What the flags ask for, of prompts of at most so many patches. Raises UserError for one without effect."""
    if decode not in (*DECODINGS, LEGAL):
        raise UserError(f"--decode {decode}: unknown; choose {', '.join((*DECODINGS, LEGAL))}")
    seed, temperature = options.seed or 0, options.temperature
    if decode == LEGAL:
        given = {} if options.beam is None else {"beam": options.beam}
        if temperature and given:
            raise UserError("--beam: with --temperature patches are drawn one by one: give one of them")
        if not temperature and options.seed is not None:
            raise UserError("--seed: a beam draws nothing: give --temperature X too, or leave it out")
        patches = options.patches or model.max_patches - longest
        return LegalConfig(
            max_patches=patches, temperature=temperature or 0.0, seed=seed, alphabet=options.alphabet, **given
        )
    for flag in ("beam", "alphabet"):
        if getattr(options, flag) is not None:
            raise UserError(f"--{flag} is for --decode legal, and this is {decode}: leave it out")
    if decode == "threshold" and options.seed is not None:
        raise UserError("--seed: with --decode threshold nothing is drawn: leave it out, or choose another decoding")
    check_decoding(model, decode)
    return WriteConfig(
        decode=decode, temperature=1.0 if temperature is None else temperature, seed=seed, max_patches=options.patches
    )


def _check_output(options: argparse.Namespace, decode: str, texts: Sequence[str]) -> None:
    if options.stream and options.json:
        raise UserError("--stream shows the strip on standard output as it comes: leave out --json, or --stream")
    if options.stream and len(texts) > 1:
        raise UserError(f"--stream: {len(texts)} prompts would mix their strips: give one, or leave --stream out")
    if options.read and decode == LEGAL:
        raise UserError("--read: what --decode legal writes is known without reading: leave it out")
    if options.out is not None and len(texts) > _MOST_STRIPS:
        raise UserError(
            f"--out: a picture shows at most {_MOST_STRIPS} strips, and there are {len(texts)}: give fewer prompts"
        )


def _write(
    loaded: LoadedPixar,
    texts: Sequence[str],
    prompts: Sequence[NDArray[np.uint8]],
    config: WriteConfig | LegalConfig,
    on_patch: Callable[[int, NDArray[np.uint8]], None] | None,
) -> Sequence[Written | LegalWritten]:
    if isinstance(config, WriteConfig):
        return write_strips(loaded.model, prompts, config, on_patch=on_patch)
    return write_legal(loaded.model, loaded.renderer, prompts, config, texts=texts, on_patch=on_patch)


def _said(
    loaded: LoadedPixar,
    texts: Sequence[str],
    prompts: Sequence[NDArray[np.uint8]],
    written: Sequence[Written | LegalWritten],
    read: bool,
) -> list[str | None]:
    """What each strip says behind its prompt, where it is known or wanted."""
    reader = Reader(loaded.renderer.config) if read else None
    found: list[str | None] = []
    for text, prompt, one in zip(texts, prompts, written, strict=True):
        if isinstance(one, LegalWritten):
            found.append(one.text)
        else:
            new = one.patches[:-1] if one.ended else one.patches
            found.append(None if reader is None else read_written(reader, loaded.renderer, text, prompt, new))
    return found
