"""`python -m infer evaluate testbed`: a text to train on whose floors are known, and a model measured against them."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infer.arguments import Parser, add_strips_model, check_out, setting, strips_choices, write
from infer.benchmarks.testbed import as_text, measure
from infer.benchmarks.testbed_drawing import Drawing
from infer.benchmarks.testbed_floors import FloorMaker, Floors, floors_as_text
from infer.benchmarks.testbed_worlds import WORLDS, World, world_of
from infer.benchmarks.testbed_writing import DECODINGS, Decoding
from infer.pixar import load_pixar
from pixelcore.documents import read_documents
from pixelcore.durable import write_file
from pixelcore.errors import UserError
from render import RenderConfig, Renderer, RenderError

COMPONENTS = (2, 4, 8, 16)  # of the mixtures whose floors are given
_CHECKED = 200  # texts of a corpus that are drawn to see that their sentences keep to themselves
# how strips of the test bed are drawn, as in presets/pixar-testbed.toml
RENDER: dict[str, Any] = {
    "layout": "sentences",
    "height": 8,
    "patch_width": 16,
    "size": 80 / 9,
    "hinting": "none",
    "color": "binary",
    "lift": 1,
}


def run_testbed(argv: Sequence[str]) -> int:
    """Texts with known floors, and models beside them."""
    parser = Parser(
        prog="python -m infer evaluate testbed",
        description="Worlds of texts whose every next patch has a known distribution: with --write, a text to train "
        "on and the floor of each head; else a model beside truth and floors: bits per patch, right answers, legible "
        "sentences, and how many different ones.",
        epilog="""worlds:
  stories   who is where: bAbI task 1 from a generator of ours
  names     one of 16 names behind a fixed beginning, and the same name again
  numbers   two numbers and their sum
  scripts   Latin or Cyrillic, as the first sentence says

examples:
  python -m infer evaluate testbed --write stories.txt --world stories --count 20000
  python -m infer evaluate testbed --write names.txt --world names --font PixeloidSans.ttf --set render.size=9
  python -m train --preset pixar-testbed --data stories.txt --out runs/bed
  python -m infer evaluate testbed --model runs/bed --world stories --data stories.txt
  python -m infer evaluate testbed --model runs/bed --decode legal --temperature 1 --count 200 --json""",
    )
    add_strips_model(parser)
    add = parser.add_argument
    add("--world", default="stories", metavar="W", help=f"{', '.join(WORLDS)} (%(default)s)")
    add("--write", metavar="FILE", help="write texts to train on, one a document, and print the floors")
    add("--count", type=int, metavar="N", help="texts (20000 to write, 500 to measure)")
    add("--seed", type=int, default=0, metavar="S", help="of the texts, and of what is drawn (%(default)s)")
    add("--data", metavar="FILE", help="the text that the model was trained on: none of its texts is measured")
    add("--decode", metavar="D", help=f"{', '.join(DECODINGS)} (threshold; of a mixture head mixture)")
    add("--temperature", type=float, metavar="X", help="of what is drawn; of legal, 0 is the likeliest sentence")
    add("--no-floors", action="store_true", help="leave the averages over the whole world out")
    add("--json", action="store_true", help="one JSON object on standard output")
    add("--out", metavar="FILE", help="write the result to FILE instead of standard output")
    options = parser.parse_args(argv)
    check_out(options.out)
    world = world_of(options.world)
    if options.count is not None and options.count < 1:
        raise UserError(f"--count {options.count}: must be at least 1")
    if options.write is not None:
        return _write_corpus(options, world)
    return _measure(options, world)


# ------------------------------------------------------------------ a text and its floors


def _write_corpus(options: argparse.Namespace, world: World) -> int:
    for name in ("model", "data", "decode", "temperature"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} is for measuring a model, and --write makes a text: leave one of them out")
    check_out(options.write)
    fonts = {"fonts": options.font} if options.font else {}
    try:
        renderer = Renderer(RenderConfig.from_dict({**RENDER, **dict(map(setting, options.set)), **fonts}))
    except RenderError as cause:
        raise UserError(f"{cause}") from cause
    drawing = Drawing(renderer, world)
    texts = world.draw_many(options.count or 20_000, options.seed)
    for sentences in texts[:_CHECKED]:
        drawing.check(sentences)
    write_file(Path(options.write), "".join(f"{' '.join(sentences)}\n\n" for sentences in texts).encode())
    report: dict[str, Any] = {"world": world.name, "texts": len(texts), "seed": options.seed}
    report["longest"] = max(len(drawing.text(sentences)) for sentences in texts)
    lines = [f"{options.write}: {len(texts):,} texts of world {world.name}, at most {report['longest']} patches long"]
    if not options.no_floors:
        floors = FloorMaker(drawing, COMPONENTS).floors()
        report["floors"] = dataclasses.asdict(floors)
        lines.append(floors_as_text(floors))
    write(json.dumps(report, indent=2) if options.json else "\n".join(lines), options.out)
    return 0


# ------------------------------------------------------------------ a model beside them


def _measure(options: argparse.Namespace, world: World) -> int:
    loaded = load_pixar(options.model, **strips_choices(options))
    decode = options.decode or ("mixture" if loaded.model.config.head == "mixture" else "threshold")
    decoding = Decoding(decode=decode, temperature=options.temperature, seed=options.seed)
    drawing = Drawing(loaded.renderer, world)
    known = () if options.data is None else _texts(Path(options.data))
    result = measure(
        loaded.model,
        drawing,
        decoding,
        count=options.count or 500,
        seed=options.seed,
        known=known,
        progress=sys.stderr.isatty(),
    )
    floors: Floors | None = None if options.no_floors else FloorMaker(drawing, COMPONENTS).floors()
    about: dict[str, Any] = {"model": str(loaded.stored.path), "step": loaded.stored.step}
    if options.json:
        about["floors"] = None if floors is None else dataclasses.asdict(floors)
        write(json.dumps(about | dataclasses.asdict(result), indent=2, ensure_ascii=False), options.out)
    else:
        write(as_text(result) + ("" if floors is None else "\n" + floors_as_text(floors)), options.out)
    return 0


def _texts(file: Path) -> set[str]:
    """The texts of a file that `--write` wrote."""
    return set(read_documents(file))
