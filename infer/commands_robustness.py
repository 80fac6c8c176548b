"""`python -m infer evaluate robustness`: a model under visual attack, next to itself without.

Every attack that the flags name is crossed with its strengths (infer/attack_flags.py), and all of them see the same
items, which come from the tasks that have benchmarks of their own.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infer.arguments import Parser, add_strips_model, check_out, nearest, strips_choices, write
from infer.attack_figure import rows_of
from infer.attack_flags import KINDS, add_attacks, attacks_of, check_attacks, table_of
from infer.attacks import RATIOS
from infer.benchmarks import babi as stories
from infer.benchmarks import lambada as passages
from infer.benchmarks.bits_per_byte import read_texts
from infer.benchmarks.next_word import NEW_PATCHES, WordItem, cut_words
from infer.benchmarks.robustness import Robustness, as_report, robustness
from infer.benchmarks.robustness_tables import as_text
from infer.figure import Panel, stack
from infer.load import load
from infer.pixar import load_pixar
from infer.write_strip import DECODINGS, WriteConfig, check_decoding
from pixelcore.errors import UserError
from render import RenderConfig, RenderError
from render.picture import write_png

TASKS = ("lambada", "babi", "next-word")
COUNT = 500
_BEFORE = 24  # patches of a prompt that the picture shows


def run_robustness(argv: Sequence[str]) -> int:
    """The next word behind damaged prompts."""
    parser = Parser(
        prog="python -m infer evaluate robustness",
        description="How much worse a model of strips foretells the next word when its prompt was attacked: the share "
        "of right words, and the bits of the true word's patches, both against the clean prompts of the same items. "
        "The word itself is never attacked.",
        epilog=f"""{KINDS}
examples:
  python -m infer evaluate robustness --model runs/strips --task babi --attack confusables --count 1000
  python -m infer evaluate robustness --model runs/strips --task lambada --data lambada_openai.jsonl --attack flips
  python -m infer evaluate robustness --model runs/strips --task next-word --data held_out.txt --attack confusables \\
      --confusables confusables.txt --partner runs/tokens --ratio 0.1 --ratio 0.5 --json --out robustness.json
  python -m infer evaluate robustness --task next-word --data held_out.txt --attack blur --strips sheet.png""",
    )
    add_strips_model(parser)
    add = parser.add_argument
    add("--task", required=True, metavar="T", help=f"where prompts and words come from: {', '.join(TASKS)}")
    add("--data", action="append", metavar="PATH", help="lambada, babi: one file of the test set; next-word: any texts")
    add("--variant", metavar="V", help=f"of lambada: {', '.join(passages.VARIANTS)} (by the form of the file)")
    add("--field", metavar="F", help="of next-word: the field of .jsonl or column of .parquet with the text (text)")
    add("--count", type=int, default=COUNT, metavar="N", help="items, drawn with --seed (%(default)s)")
    add("--patches", type=int, metavar="N", help=f"new patches ({NEW_PATCHES}; of babi {stories.NEW_PATCHES})")
    default = WriteConfig()
    add("--decode", default=default.decode, metavar="D", help=f"{', '.join(DECODINGS)} (%(default)s)")
    add("--temperature", type=float, default=default.temperature, metavar="X", help="of what is drawn (%(default)s)")
    add_attacks(parser, ", ".join(map(str, RATIOS)))
    add("--partner", metavar="PATH", help="a decoder of tokens that is asked for the same words after the same texts")
    add("--tokenizer", metavar="FILE", help="of --partner: the .model file of a bundle that has none beside it")
    add("--strips", metavar="FILE", help="a picture of the first items under every attack, a PNG")
    add("--json", action="store_true", help="one JSON object on standard output")
    add("--out", metavar="FILE", help="write the result to FILE instead of standard output")
    options = parser.parse_args(argv)
    config = _check(options)
    table = table_of(options)
    items = _items(options)
    loaded = load_pixar(options.model, **strips_choices(options))
    check_decoding(loaded.model.config, options.decode)
    partner = None
    if options.partner is not None:
        running = {"device": options.device, "dtype": options.dtype, "ops": options.ops}
        partner = load(options.partner, tokenizer=options.tokenizer, **running)
    attacks = attacks_of(options, loaded.renderer, table, RATIOS, apart=True)
    result = robustness(loaded.model, loaded.renderer, items, attacks, config, partner, progress=sys.stderr.isatty())
    if options.strips is not None:
        try:
            write_png(options.strips, Image.fromarray(_sheet(result, loaded.renderer.config, items)))
        except RenderError as cause:
            raise UserError(f"--strips {cause}") from cause
    if options.json:
        about: dict[str, Any] = {
            "model": str(loaded.stored.path),
            "name": loaded.stored.name,
            "step": loaded.stored.step,
            "partner": None if partner is None else str(partner.stored.path),
            "task": options.task,
            "data": options.data,
            "confusables": table.name if "confusables" in options.attack else None,
            "settings": dataclasses.asdict(config),
        }
        write(json.dumps(about | as_report(result), ensure_ascii=False, indent=2), options.out)
        return 0
    lines = [f"task {options.task}, model {loaded.stored.path}"]
    lines += [f"look-alikes, {table.name}"] if "confusables" in options.attack else []
    write("\n".join([*lines, as_text(result)]), options.out)
    return 0


def _check(options: argparse.Namespace) -> WriteConfig:
    check_out(options.out)
    if options.strips is not None:
        check_out(options.strips, "--strips")
        if not options.strips.lower().endswith(".png"):
            raise UserError(f"--strips {options.strips}: pictures are written as PNG; let the name end in .png")
    if options.task not in TASKS:
        raise UserError(f"--task {options.task}: unknown{nearest(options.task, TASKS)}; choose {', '.join(TASKS)}")
    for flag, task in (("variant", "lambada"), ("field", "next-word")):
        if getattr(options, flag) is not None and options.task != task:
            raise UserError(f"--{flag} is for --task {task}, and this is {options.task}: leave it out")
    if options.data is None and options.task != "babi":
        raise UserError(f"--task {options.task}: needs texts: name them with --data PATH")
    if options.data is not None and len(options.data) > 1 and options.task != "next-word":
        raise UserError(f"--data: --task {options.task} takes one file, and there are {len(options.data)}")
    if options.tokenizer is not None and options.partner is None:
        raise UserError("--tokenizer is of --partner, and there is none: leave it out")
    for flag in ("count", "patches"):
        if getattr(options, flag) is not None and getattr(options, flag) < 1:
            raise UserError(f"--{flag} {getattr(options, flag)}: must be at least 1")
    check_attacks(options)
    return WriteConfig(
        decode=options.decode,
        temperature=options.temperature,
        seed=options.seed,
        max_patches=options.patches or (stories.NEW_PATCHES if options.task == "babi" else NEW_PATCHES),
    )


def _items(options: argparse.Namespace) -> list[WordItem]:
    if options.task == "next-word":
        return cut_words(read_texts(options.data, options.field or "text"), options.count, options.seed)
    if options.task == "lambada":
        _, items = passages.read_items(options.data[0], options.variant)
        return passages.chosen(items, options.count, options.seed)
    if options.data is None:
        told = stories.generated(options.count, options.seed)
    else:
        told = passages.chosen(stories.read_stories(options.data[0]), options.count, options.seed)
    return [one.item for one in told]


def _sheet(result: Robustness, config: RenderConfig, items: Sequence[WordItem]) -> NDArray[np.uint8]:
    """Of each item the end of its prompt and what was written behind it, under every attack: uint8 RGB."""
    panels = []
    for index in range(len(result.strips[0].prompts)):
        rows = []
        for row, strips in zip(result.rows, result.strips, strict=True):
            prompt = strips.prompts[index][-_BEFORE:]
            label = f"{row.attack} {row.strength}".strip()
            rows.append((label, np.concatenate([prompt, strips.written[index]]), len(prompt)))
        said = ", ".join(repr(word) for word in dict.fromkeys(strips.words[index] for strips in result.strips))
        panels.append(Panel(rows_of(rows, config), f"wanted {items[index].word!r}; read {said}"))
    return stack(panels)
