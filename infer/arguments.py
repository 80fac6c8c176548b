"""What the commands of `python -m infer` share: their parser, the flags that several have, and how results go out."""

import argparse
import difflib
import json
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infer.load import DTYPES
from pixelcore.durable import write_file
from pixelcore.errors import UserError
from render import RenderError
from render.picture import write_png


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a `UserError` naming the nearest flag, and that leaves the examples as written."""

    def __init__(self, *, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            wrong = next((word for word in unknown.split() if word.startswith("-")), unknown.split()[0])
            wrong = wrong.split("=")[0]
            raise UserError(f"{wrong}: unknown argument{nearest(wrong, flags)}; see {self.prog} --help")
        raise UserError(f"{message}; see {self.prog} --help")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Flags that name a decoder."""
    add = parser.add_argument
    add("--model", metavar="PATH", help="run, checkpoint, export or bundle (default: the newest run under runs/)")
    add("--tokenizer", metavar="FILE", help="the .model file of a bundle that has none beside it")


def add_running(parser: argparse.ArgumentParser) -> None:
    """Flags that say where and how to compute."""
    add = parser.add_argument
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (%(default)s)")
    add("--dtype", default="auto", metavar="T", help=f"auto, {', '.join(DTYPES)} (auto: float32 on a CPU)")
    add("--ops", default="auto", metavar="O", help="auto, fused or reference (%(default)s)")


def add_strips_model(parser: argparse.ArgumentParser) -> None:
    """Flags that name a model of strips and say how strips are drawn, where and how to compute."""
    add = parser.add_argument
    add("--model", metavar="PATH", help="run, checkpoint, export or published folder (default: the newest run of one)")
    add(
        "--font", action="append", default=[], metavar="F", help="a font of the model's, where it lies here; repeatable"
    )
    add("--set", action="append", default=[], metavar="A=V", help="change the renderer, as in render.layout=bigrams")
    add_running(parser)


def strips_choices(options: argparse.Namespace) -> dict[str, Any]:
    """What those flags say besides the model, as `infer.load_pixels` and `infer.pixar.load_pixar` take it."""
    changes = dict(setting(item) for item in options.set)
    accept_changed = changes.pop("accept_changed", False)
    if not isinstance(accept_changed, bool):
        raise UserError(f"--set render.accept_changed={accept_changed}: must be true or false")
    return {
        "device": options.device,
        "dtype": options.dtype,
        "ops": options.ops,
        "fonts": options.font,
        "render": changes,
        "accept_changed": accept_changed,
    }


def setting(item: str, of: str = "render") -> tuple[str, Any]:
    """Field and value of `render.x=v`, or of another table; v is TOML, else a string."""
    path, equals, written = item.partition("=")
    table, dot, key = path.strip().rpartition(".")
    if not equals or not key or (dot and table != of):
        raise UserError(f"--set {item}: is not of the form {of}.x=v")
    try:
        return key, tomllib.loads(f"value = {written.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key, written.strip()


def read_lines(flag: str, file: Path, field: str) -> list[str]:
    """The texts of a file: one in each line, or `field` of each record of a .jsonl; blank lines of a text file too.

    flag: names the file in errors. Raises UserError for a file that cannot be read, holds no text, or a bad line.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as cause:
        raise UserError(f"{flag} {file}: cannot be read ({cause.strerror}): give a text or .jsonl file") from cause
    except UnicodeDecodeError as cause:
        raise UserError(f"{flag} {file}: byte {cause.start} is not UTF-8: convert the file to UTF-8") from cause
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if not text.strip():
        raise UserError(f"{flag} {file}: no {field} in it; write one in each line")
    if file.suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as cause:
            raise UserError(f"{flag} {file}, line {number}: not JSON ({cause}): mend the line") from cause
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            raise UserError(f'{flag} {file}, line {number}: no text in a field "{field}": add it')
        texts.append(record[field])
    return texts


def read_prompts(prompt: str | None, file: str | None) -> list[str]:
    """The prompts that --prompt and --prompts name."""
    if prompt is not None and file is not None:
        raise UserError("--prompt and --prompts: give one of them")
    if file is not None:
        return read_lines("--prompts", Path(file), "prompt")
    if prompt is not None and prompt != "-":
        return [prompt]
    if prompt is None and sys.stdin.isatty():
        raise UserError('no prompt: give --prompt "...", --prompts FILE, or pipe the text in')
    return [read_standard_input()]


def read_standard_input() -> str:
    """All of it, less one line end."""
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as cause:
        raise UserError(f"standard input: byte {cause.start} is not UTF-8: convert the text to UTF-8") from cause
    return text.removesuffix("\n").removesuffix("\r")


def check_out(out: str | None, flag: str = "--out") -> None:
    """Before the work, not after it."""
    if out is None:
        return
    if Path(out).is_dir():
        raise UserError(f"{flag} {out}: this is a folder; name a file")
    if not Path(out).absolute().parent.is_dir():
        raise UserError(f"{flag} {out}: the folder {Path(out).parent} does not exist; create it first")


def check_picture(out: str | None) -> None:
    """The same for a picture."""
    check_out(out)
    if out is not None and Path(out).suffix.lower() != ".png":
        raise UserError(f"--out {out}: pictures are written as PNG; let the name end in .png")


def save_picture(out: str, picture: NDArray[np.uint8]) -> None:
    """Write a picture, uint8 RGB [height, width, 3]."""
    try:
        write_png(out, Image.fromarray(picture))
    except RenderError as cause:
        raise UserError(f"--out {cause}") from cause


def write(text: str, out: str | None) -> None:
    """A result, to standard output or into a file."""
    if out is None:
        sys.stdout.write(text + "\n")
        return
    try:
        write_file(Path(out), (text + "\n").encode())
    except OSError as cause:
        raise UserError(f"--out {out}: cannot be written ({cause.strerror}): choose another place") from cause


def nearest(wrong: str, known: Iterable[str]) -> str:
    """ ", did you mean x?", or nothing."""
    close = difflib.get_close_matches(wrong, list(known), n=3)
    return f", did you mean {' or '.join(close)}?" if close else ""
