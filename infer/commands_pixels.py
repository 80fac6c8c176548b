"""The commands of `python -m infer` for models that read strips: reconstruct, continue, embed.

Each draws its texts with the model's own renderer, so none has a flag for a layout: `--font` says where a font lies on
this machine, and `--set render.x=v` changes the renderer, which has to be asked for with render.accept_changed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infer.arguments import (
    Parser,
    add_strips_model,
    check_out,
    check_picture,
    read_lines,
    read_standard_input,
    save_picture,
    strips_choices,
    write,
)
from infer.continue_strip import PASSES, Continuation, continue_strip
from infer.continue_strip import figure as figure_of_passes
from infer.embed import LAST, POOLINGS, embed
from infer.embed import save as save_vectors
from infer.load import PIXEL_MODELS
from infer.pixels import LoadedPixels, load_pixels
from infer.reconstruct import RATIO, Reconstruction, figure, read_spans, reconstruct
from pixelcore.errors import UserError
from pixelcore.masking import MASK_RULES
from pixelcore.stored import Stored
from render import Reader

_MOST_ROWS = 64  # strips in a picture
PAINTERS = PIXEL_MODELS[:1]


def _load(options: argparse.Namespace, kinds: Sequence[str]) -> LoadedPixels:
    return load_pixels(options.model, **strips_choices(options), kinds=kinds)


def _about(loaded: LoadedPixels) -> dict[str, Any]:
    return {"model": str(loaded.stored.path), "name": loaded.stored.name, "step": loaded.stored.step}


# ------------------------------------------------------------------ reconstruct


def run_reconstruct(argv: Sequence[str]) -> int:
    """Hide patches of texts and paint them."""
    parser = Parser(
        prog="python -m infer reconstruct",
        description="Hide patches of a text and let a model paint them. The picture shows the original, what the model "
        "saw, what it predicted, and both together.",
        epilog="""masks:
  span      PIXEL's: runs of 1 to 6 patches, each with as many visible ones on either side
  random    single patches
  span-m4   PIXEL-M4's: spans over a strip as long as the model's table, text first: a short text loses more
  3-8,12    these patches, counted from 0; the last one of a strip is the black end patch

A model of normalised patches does not say how bright a patch is. Painted patches take the mean brightness and contrast
of the visible ones, or, with --oracle, those of the patch itself, which the model has not seen.

examples:
  python -m infer reconstruct --text "The quick brown fox jumps over the lazy dog" --out fox.png
  python -m infer reconstruct --model runs/a --text "Hello, world" --mask 3-5,8 --out hello.png --read
  python -m infer reconstruct --model Team-PIXEL/pixel-base --font GoNotoCurrent.ttf --data lines.txt --out lines.png
  python -m infer reconstruct --text "Hello, world" --mask random --ratio 0.5 --seed 3 --json""",
    )
    add_strips_model(parser)
    add = parser.add_argument
    add("--text", metavar="T", help='the text; "-" reads standard input')
    add("--data", metavar="FILE", help='several: a text in each line, or "text" of each record of a .jsonl')
    add("--mask", default="span", metavar="M", help=f"{', '.join(MASK_RULES)} or patches such as 3-8,12 (%(default)s)")
    add("--ratio", type=float, metavar="X", help=f"share of the patches to hide ({RATIO})")
    add("--seed", type=int, metavar="S", help="text i is masked with S + i (0)")
    add("--oracle", action="store_true", help="painted patches get their true brightness and contrast")
    add("--read", action="store_true", help="read the painted patches, beside what stands there")
    add("--json", action="store_true", help="one JSON object on standard output: losses of each patch, counts, means")
    add("--out", metavar="FILE", help="the picture, a PNG")
    options = parser.parse_args(argv)
    check_picture(options.out)
    drawn = options.mask in MASK_RULES
    if not drawn and not options.mask[:1].isdigit():
        raise UserError(f"--mask {options.mask}: unknown; choose {', '.join(MASK_RULES)}, or patches such as 3-8,12")
    for flag in ("ratio", "seed"):
        if not drawn and getattr(options, flag) is not None:
            raise UserError(
                f"--{flag} is for masks that are drawn, and --mask {options.mask} names patches: leave it out"
            )
    texts = _texts(options.text, options.data)
    if options.out is not None and len(texts) > _MOST_ROWS:
        raise UserError(f"--out: a picture shows at most {_MOST_ROWS} texts, and there are {len(texts)}: give fewer")
    loaded = _load(options, PAINTERS)
    ratio, seed = RATIO if options.ratio is None else options.ratio, options.seed or 0
    found = []
    for index, text in enumerate(texts):
        where = f"{options.data}, text {index + 1}: " if options.data is not None else ""
        try:
            one = reconstruct(
                loaded.mae,
                loaded.renderer,
                text,
                rule=options.mask if drawn else "span",
                ratio=ratio,
                seed=seed + index,
                mask=None if drawn else options.mask,
                oracle=options.oracle,
            )
        except UserError as cause:
            raise UserError(f"{where}{cause}") from cause
        found.append(one)
    reader = Reader(loaded.renderer.config) if options.read else None
    reports = [_reconstruction_report(one, reader) for one in found]
    if options.out is not None:
        save_picture(options.out, figure(found))
    settings = {"mask": options.mask} | ({"ratio": ratio, "seed": seed} if drawn else {})
    settings |= {"brightness": found[0].brightness}
    if options.json:
        counts = np.array([row["num_hidden"] for row in reports])
        means = {key: float(np.average([row[key] for row in reports], weights=counts)) for key in ("loss", "raw_loss")}
        totals = {"num_texts": len(found), "num_hidden": int(counts.sum()), **means}
        write(
            json.dumps(_about(loaded) | {"settings": settings} | totals | {"texts": reports}, ensure_ascii=False), None
        )
    else:
        write("\n".join(_line(row) for row in reports), None)
    return 0


def _reconstruction_report(one: Reconstruction, reader: Reader | None) -> dict[str, Any]:
    places = np.flatnonzero(one.hidden).tolist()
    spans: list[dict[str, Any]] = [
        {"first": first, "last": last - 1, "truth": one.truth(first, last)} for first, last in one.spans()
    ]
    if reader is not None:
        for span, text in zip(spans, read_spans(reader, one.pasted, one.spans()), strict=True):
            span["read"] = text
    return {
        "text": one.text,
        "num_patches": len(one.hidden),
        "num_hidden": len(places),
        "loss": one.loss,
        "raw_loss": one.raw_loss,
        "patches": [
            {"patch": patch, "loss": float(loss), "raw_loss": float(raw)}
            for patch, loss, raw in zip(places, one.losses, one.raw_losses, strict=True)
        ],
        "spans": spans,
    }


def _line(row: dict[str, Any]) -> str:
    line = (
        f"{row['num_hidden']} of {row['num_patches']} patches hidden; loss {row['loss']:.4f}, of painted pixels "
        f"{row['raw_loss']:.4f}"
    )
    for span in row["spans"]:
        if "read" in span:
            line += f"\n  {span['first']}-{span['last']}: {span['truth']!r} painted as {span['read']!r}"
    return line


# ------------------------------------------------------------------ continue


def continue_by_painting(options: argparse.Namespace, stored: Stored) -> int:
    """`python -m infer continue` of a masked model; infer/commands_pixar.py has its flags."""
    if options.patches is None and options.gap is None:
        raise UserError("how much to write is not said: give --patches N or --gap A-B")
    text = _texts(options.text, None)[0]
    loaded = load_pixels(stored, **strips_choices(options), kinds=PAINTERS)
    passes = PASSES if options.passes is None else options.passes
    found = continue_strip(loaded.mae, loaded.renderer, text, patches=options.patches, gap=options.gap, passes=passes)
    if options.out is not None:
        save_picture(options.out, figure_of_passes([found]))
    if options.json:
        write(json.dumps(_about(loaded) | _continuation_report(found), ensure_ascii=False), None)
    else:
        write("\n".join(found.read), None)
    return 0


def _continuation_report(found: Continuation) -> dict[str, Any]:
    return {
        "text": found.text,
        "num_patches": len(found.hidden),
        "filled": np.flatnonzero(found.hidden).tolist(),
        "passes": [
            {"patches": one.pasted.tolist(), "certainty": [round(float(value), 4) for value in one.certainty]}
            for one in found.passes
        ],
        "read": list(found.read),
        "line": found.line,
    }


# ------------------------------------------------------------------ embed


def run_embed(argv: Sequence[str]) -> int:
    """Vectors of texts."""
    parser = Parser(
        prog="python -m infer embed",
        description="Vectors of texts, and of their words, from the encoder of a model that reads strips.",
        epilog="""The file holds arrays: vectors [texts, D], texts, num_patches, pooling, layer, model,
model_name; with --words also words, word_vectors [words, D], word_spans [words, 2] (first patch,
one after the last), word_offsets [texts + 1].
Layer 0 is the embedded patches, n the state after n blocks, -1 the end of the encoder after its last norm.
The mean is over the patches, end patch included and CLS not.

examples:
  python -m infer embed --text "Hello, world" --out hello.npz
  python -m infer embed --model runs/a --data sentences.txt --pooling mean --layer 8 --out sentences.npz
  python -m infer embed --model Team-PIXEL/pixel-base --data lines.jsonl --words --out words.npz""",
    )
    add_strips_model(parser)
    add = parser.add_argument
    add("--text", metavar="T", help='the text; "-" reads standard input')
    add("--data", metavar="FILE", help='several: a text in each line, or "text" of each record of a .jsonl')
    add("--words", action="store_true", help="draw the texts word by word, cut at spaces, and give word vectors too")
    add("--pooling", default="mean", metavar="P", help=f"{', '.join(POOLINGS)} (%(default)s)")
    add("--layer", type=int, default=LAST, metavar="N", help="0 to the number of blocks, or -1 (%(default)s)")
    add("--json", action="store_true", help="what was written, as one JSON object on standard output")
    add("--out", required=True, metavar="FILE", help="the vectors, a .npz of NumPy")
    options = parser.parse_args(argv)
    check_out(options.out)
    if Path(options.out).suffix != ".npz":
        raise UserError(f"--out {options.out}: vectors are written as .npz; let the name end in it")
    if options.pooling not in POOLINGS:
        raise UserError(f"--pooling {options.pooling}: unknown; choose {', '.join(POOLINGS)}")
    texts = _texts(options.text, options.data)
    loaded = _load(options, PIXEL_MODELS)
    found = embed(
        loaded.model,
        loaded.renderer,
        [text.split() for text in texts] if options.words else texts,
        pooling=options.pooling,
        layer=options.layer,
        progress=sys.stderr.isatty(),
    )
    about = _about(loaded)
    save_vectors(options.out, found, {"model": about["model"], "model_name": about["name"]})
    shape = {"num_texts": len(found.texts), "size": found.vectors.shape[1]}
    if found.words is not None:
        shape["num_words"] = len(found.words)
    if options.json:
        settings = {"pooling": found.pooling, "layer": found.layer, "out": options.out}
        write(json.dumps(about | settings | shape), None)
    else:
        words = f", {shape['num_words']} words" if "num_words" in shape else ""
        write(f"{options.out}: {shape['num_texts']} texts{words}, vectors of {shape['size']} values", None)
    return 0


# ------------------------------------------------------------------ what they share


def _texts(text: str | None, file: str | None) -> list[str]:
    if text is not None and file is not None:
        raise UserError("--text and --data: give one of them")
    if file is not None:
        return read_lines("--data", Path(file), "text")
    if text is not None and text != "-":
        return [text]
    if text is None and sys.stdin.isatty():
        raise UserError('no text: give --text "...", or pipe it in')
    return [read_standard_input()]
