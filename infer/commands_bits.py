"""`python -m infer evaluate bits-per-character`: the figure by which models of strips and of tokens compare.

Both kinds must be asked about the same rows, and only a model of strips knows how wide a text is. So it cuts the rows,
`--write-rows` keeps them, and `--rows` gives them to every other model.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from infer.arguments import Parser, add_model, add_running, check_out, read_lines, setting, write
from infer.benchmarks.bits_per_byte import read_texts
from infer.benchmarks.bits_per_character import (
    READ_ROWS,
    RowBits,
    as_text,
    bits_of_strips,
    bits_of_tokens,
    evenly,
    measured,
    read_back,
)
from infer.benchmarks.text_rows import cut_rows
from infer.load import DECODERS, PIXAR_MODELS, load, read
from infer.pixar import LoadedPixar, load_pixar
from pixelcore.durable import write_file
from pixelcore.errors import UserError

_log = logging.getLogger(__name__)


def run_bits_per_character(argv: Sequence[str]) -> int:
    """Bits per character, bits per byte, and whether strips say their text."""
    parser = Parser(
        prog="python -m infer evaluate bits-per-character",
        description="How well a model predicts text, in bits per character: -log2 of the likelihood of rows of text, "
        "as strips or as tokens, over their characters. Rows fit the model, and none sees another.",
        epilog="""To compare models, ask them about the same rows: the one whose rows are the shortest writes them.

examples:
  python -m infer evaluate bits-per-character --model runs/strips --data books/held_out.txt --write-rows rows.jsonl
  python -m infer evaluate bits-per-character --model runs/tokens --rows rows.jsonl
  python -m infer evaluate bits-per-character --model runs/strips --rows lines.txt --read-rows 200 --json""",
    )
    add_model(parser)
    add_running(parser)
    add = parser.add_argument
    add("--font", action="append", default=[], metavar="F", help="a font of the model's, where it lies here")
    add("--set", action="append", default=[], metavar="A=V", help="change the renderer, as in render.layout=words")
    add("--data", action="append", metavar="PATH", help="file, folder or glob, cut into rows; may be repeated")
    add("--field", metavar="F", help="the field of .jsonl or column of .parquet with the text (text)")
    add("--row-patches", type=int, metavar="N", help="of the longest row, end patch included (what the model can read)")
    add("--max-rows", type=int, metavar="N", help="of the rows of --data, at most N, evenly taken")
    add("--write-rows", metavar="FILE", help="write the rows of --data to a .jsonl, for other models")
    add(
        "--rows",
        metavar="FILE",
        help='rows as they are, in place of --data: "text" of each record of a .jsonl, or lines',
    )
    add("--read-rows", type=int, metavar="N", help=f"strips that are read back, evenly taken; 0: none ({READ_ROWS})")
    add("--json", action="store_true", help="one JSON object on standard output")
    add("--out", metavar="FILE", help="write the result to FILE instead of standard output")
    options = parser.parse_args(argv)
    _check(options)
    # the record says which kind of model it is, and whoever opens that kind reads it again
    stored = read(options.model, tokenizer=options.tokenizer, kinds=(*PIXAR_MODELS, *DECODERS))
    path = stored.path if options.model is None else options.model
    about: dict[str, object] = {"model": str(stored.path), "step": stored.step}
    if stored.config.kind in DECODERS:
        rows, scored, found = *_tokens(path, options), (0, 0)
    else:
        rows, scored, found = _strips(path, options, about)
    result = measured(rows, scored, found)
    if options.json:
        about["data"] = options.data or options.rows
        write(json.dumps(about | dataclasses.asdict(result), indent=2), options.out)
    else:
        write(as_text(result), options.out)
    return 0


def _check(options: argparse.Namespace) -> None:
    check_out(options.out)
    if (options.data is None) == (options.rows is None):
        raise UserError("--data and --rows: give one of them: text to cut into rows, or rows that were cut before")
    if options.rows is not None:
        for name in ("row_patches", "max_rows", "write_rows", "field"):
            if getattr(options, name) is not None:
                raise UserError(f"{_flag(name)} is for --data, and --rows gives rows that are cut: leave it out")
    for name, least in (("row_patches", 2), ("max_rows", 1), ("read_rows", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"{_flag(name)} {value}: must be at least {least}")
    if options.write_rows is not None:
        if not options.write_rows.endswith(".jsonl"):
            raise UserError(f"--write-rows {options.write_rows}: name a .jsonl file: a row is the text of a record")
        if not Path(options.write_rows).absolute().parent.is_dir():
            raise UserError(f"--write-rows {options.write_rows}: its folder does not exist; create it first")


def _tokens(path: str | Path, options: argparse.Namespace) -> tuple[list[str], RowBits]:
    if options.data is not None:
        raise UserError(
            f"{path}: a decoder of tokens has no renderer, which says where rows end: let a model of strips write them "
            "with --data PATH --write-rows FILE.jsonl, and give this one --rows FILE.jsonl"
        )
    for name in ("font", "set", "read_rows"):
        if getattr(options, name):
            raise UserError(f"{_flag(name)} is for models of strips, and {path} reads tokens: leave it out")
    rows = _read_rows(options.rows)
    loaded = load(path, device=options.device, dtype=options.dtype, ops=options.ops, tokenizer=options.tokenizer)
    return rows, bits_of_tokens(loaded.model, loaded.tokenizer, rows, sys.stderr.isatty())


def _strips(
    path: str | Path, options: argparse.Namespace, about: dict[str, object]
) -> tuple[list[str], RowBits, tuple[int, int]]:
    if options.tokenizer is not None:
        raise UserError(f"--tokenizer is for models of tokens, and {path} reads strips: leave it out")
    changes = dict(setting(item) for item in options.set)
    accept_changed = changes.pop("accept_changed", False)
    if not isinstance(accept_changed, bool):
        raise UserError(f"--set render.accept_changed={accept_changed}: must be true or false")
    loaded = load_pixar(
        path,
        device=options.device,
        dtype=options.dtype,
        ops=options.ops,
        fonts=options.font,
        render=changes,
        accept_changed=accept_changed,
    )
    rows = _read_rows(options.rows) if options.rows is not None else _cut(loaded, options, about)
    scored = bits_of_strips(loaded.model, loaded.renderer, rows, sys.stderr.isatty())
    count = READ_ROWS if options.read_rows is None else options.read_rows
    return rows, scored, read_back(loaded.renderer, rows, count)


def _read_rows(file: str) -> list[str]:
    rows = [row for row in read_lines("--rows", Path(file), "text") if row.strip()]
    if not rows:
        raise UserError(f"--rows {file}: no row in it has text: write one in each line")
    return rows


def _cut(loaded: LoadedPixar, options: argparse.Namespace, about: dict[str, object]) -> list[str]:
    most = loaded.model.config.max_patches
    row_patches = options.row_patches or most
    if row_patches > most:
        raise UserError(f"--row-patches {row_patches}: the model reads at most {most}")
    cut = cut_rows(read_texts(options.data, options.field or "text"), loaded.renderer, row_patches)
    if cut.replaced or cut.left_out:
        _log.warning(
            "%d characters that no font has are spaces now; %d clusters wider than a row are left out",
            cut.replaced,
            cut.left_out,
        )
    about |= {"row_patches": row_patches, "replaced": cut.replaced, "left_out": cut.left_out}
    rows = list(cut.texts) if options.max_rows is None else evenly(cut.texts, options.max_rows)
    if options.write_rows is not None:
        lines = "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows)
        write_file(Path(options.write_rows), lines.encode())
    return rows


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
