"""The command line of the renderer: `python -m render "text"` shows how a text becomes patches.

Without --out the strip is drawn in the terminal, with it into a PNG that can be turned back into the strip
(picture.py). What one would want to know beside the picture goes to standard error, a line each: the fonts that draw,
characters that no font has, text that did not fit. A user's mistake is one line and exit status 2; Ctrl-C is 130.

`--preset` takes a named configuration or a TOML file with a [render] table, such as a preset of training or a run's
config.toml. Presets by name belong to packages that this one does not know.
"""

import argparse
import contextlib
import difflib
import json
import logging
import logging.handlers
import os
import re
import sys
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from render.config import NAMED, RenderConfig
from render.errors import RenderError
from render.fonts import FontFile, is_ignorable
from render.picture import SCALE, patches_of, save, stacked, write_png
from render.preview import mode_of, preview
from render.renderer import Renderer, Text
from render.strip import Strip

_log = logging.getLogger("render")

_EXAMPLES = f"""configurations (--preset): {", ".join(NAMED)}; or a TOML file with a [render] table

examples:
  python -m render "Hello, world"                                   a preview in the terminal
  python -m render "Hello, world" --layout bigrams --grid --out strip.png
  python -m render "Hello, world" --compare                         every layout, one under another
  python -m render "Who wrote it?" "A printer did." --json          a pair of texts, with what stands where
  python -m render --file page.txt --font NotoSans.ttf --font NotoSansArabic.ttf --out page.png
  python -m render --preset pixel --font GoNotoCurrent.ttf --identity
  echo "Hello, world" | python -m render --preset pixar --set patch_width=24"""

_MOST_PATCHES = 1 << 20  # the most that a configuration may ask for
_MOST_LISTED = 8  # missing characters on a line of the log


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    try:
        with _held_log():
            status = _main(_parser().parse_args(argv))
            sys.stdout.flush()
            return status
    except RenderError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read our output, such as `head`, has enough; what Python still holds must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m render",
        description="Draw text as the pixel patches that a model sees.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="a text, or two for a pair; none: --file or standard input")
    add("--file", metavar="F", help="read the text from a file")
    add("--words", action="store_true", help="cut the text at white space and draw it as a list of words")
    add("--preset", "--config", metavar="P", help="a named configuration, or a TOML file (default: default)")
    add("--layout", metavar="L", help="continuous, words, sentences, bigrams or adaptive")
    add("--font", metavar="F", action="append", help="file, folder, system:NAME or builtin; may be repeated: a chain")
    add("--set", metavar="x=v", action="append", default=[], help="change a field of the configuration")
    add("--compare", action="store_true", help="all layouts, one under another")
    add("--out", metavar="PNG", help="write a picture instead of showing it here")
    add("--grid", action="store_true", help="draw patch edges; mark separators and where words begin")
    add("--scale", metavar="N", type=int, help=f"pixels of the picture for one of the strip (default: {SCALE})")
    add("--columns", metavar="N", type=int, help="patches in a row (default: what is easy to read)")
    add("--json", action="store_true", help="print what stands where as JSON")
    add("--identity", action="store_true", help="print what makes this renderer the same as another, as JSON")
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are a `RenderError` that names the nearest flag."""

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            wrong = next((word for word in unknown.split() if word.startswith("-")), unknown.split()[0]).split("=")[0]
            close = difflib.get_close_matches(wrong, flags)
            tell = f", did you mean {' or '.join(close)}?" if close else ""
            raise RenderError(f"{wrong}: unknown argument{tell}; see {self.prog} --help")
        raise RenderError(f"{message}; see {self.prog} --help")


def _main(options: argparse.Namespace) -> int:
    _check_flags(options)
    config = _config(options)
    if options.identity:
        _print_json(Renderer(config).identity())
        return 0
    text = _text(options)
    if options.compare:
        return _compare(options, config, text)
    renderer = Renderer(config)
    strip = renderer(text)
    _tell(renderer, strip, text)
    if options.out is not None:
        scale = SCALE if options.scale is None else options.scale
        texts = _parts(text)
        save(options.out, strip, renderer, columns=options.columns, scale=scale, grid=options.grid, texts=texts)
        _log.info("%s: %s", options.out, patches_of(strip))
    if options.json:
        _print_json(report(renderer, strip, text))
    elif options.out is None:
        _show(strip, options)
    return 0


# ---- what is asked for -----------------------------------------------------------------------------------------------


def _check_flags(options: argparse.Namespace) -> None:
    """No flag without effect, and no work before it is clear that the result can be written."""
    if options.identity:
        for flag in ("texts", "file", "words", "compare", "out", "grid", "scale", "columns", "json"):
            if getattr(options, flag):
                name = "a text" if flag == "texts" else f"--{flag}"
                raise RenderError(f"--identity describes the renderer and draws nothing: leave {name} out")
    if options.compare and options.layout:
        raise RenderError("--compare draws every layout: leave --layout out")
    if options.scale is not None and options.out is None:
        raise RenderError("--scale enlarges a picture: name it with --out FILE.png, or leave --scale out")
    for flag in ("grid", "columns"):
        if getattr(options, flag) and options.json and options.out is None:
            raise RenderError(
                f"--json shows no picture, so --{flag} has no effect: add --out FILE.png, or leave it out"
            )
    for flag in ("scale", "columns"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise RenderError(f"--{flag} {value}: must be at least 1")
    if len(options.texts) > 2:
        raise RenderError(f"{len(options.texts)} texts; give one, or two for a pair: a text with spaces needs quotes")
    if options.words and len(options.texts) > 1:
        raise RenderError("--words cuts one text into words: give one text, or leave --words out")
    if options.file is not None and options.texts:
        raise RenderError(f"--file {options.file}: and a text on the command line; give one of them")
    if options.out is not None:
        out = Path(options.out)
        if out.is_dir():
            raise RenderError(f"--out {out}: this is a folder; name a file")
        if out.suffix.lower() != ".png":
            raise RenderError(f"--out {out}: pictures are written as PNG; let the name end in .png")
        if not out.absolute().parent.is_dir():
            raise RenderError(f"--out {out}: the folder {out.parent} does not exist; create it first")


def _config(options: argparse.Namespace) -> RenderConfig:
    name = options.preset or "default"
    if name in NAMED:
        table = dict(NAMED[name])
    elif name.endswith(".toml"):
        table = _render_table(Path(name))
    else:
        close = difflib.get_close_matches(name, NAMED, 1)
        tell = f"did you mean {close[0]}? there are" if close else "there are"
        known = ", ".join(NAMED)
        raise RenderError(f"--preset {name}: unknown; {tell} {known}; or name a TOML file that has a [render] table")
    if options.layout:
        table["layout"] = options.layout
    if options.font:
        table["fonts"] = options.font
    for item in options.set:
        key, value = _assignment(item)
        if (key == "fonts" and options.font) or (key == "layout" and options.layout):
            flag = "--font" if key == "fonts" else "--layout"
            raise RenderError(f"--set {item}: {flag} says it too; give one of them")
        table[key] = value
    try:
        return RenderConfig.from_dict(table)
    except RenderError as cause:
        if options.layout and options.preset and "belong to the layout" in str(cause):
            tell = f"--preset {name} sets them: leave out --layout {options.layout}, or take another preset"
            raise RenderError(f"{cause}; {tell}") from cause
        raise


def _render_table(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            tables = tomllib.load(opened)
    except OSError as cause:
        raise RenderError(f"--preset {file}: cannot be read ({cause.strerror}); name a TOML file") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise RenderError(f"--preset {file}: not valid TOML ({cause}); mend it") from cause
    table = tables.get("render")
    if not isinstance(table, dict):
        there = ", ".join(f"[{name}]" for name in tables) or "nothing"
        raise RenderError(f"--preset {file}: has no [render] table, only {there}; name a preset that draws text")
    _check_fonts(table.get("fonts", []), f"--preset {file}")
    return dict(table)


def _assignment(item: str) -> tuple[str, Any]:
    """Key and value of `render.x=v` or `x=v`; v is TOML, else a string."""
    path, equals, written = item.partition("=")
    key = path.strip().removeprefix("render.")
    if not equals or not key or "." in key:
        raise RenderError(f"--set {item}: is not of the form render.x=v or x=v; fields: see docs/rendering.md")
    try:
        parsed = tomllib.loads(f"value = {written.strip()}")
    except tomllib.TOMLDecodeError:
        return key, written.strip()
    value = parsed["value"] if len(parsed) == 1 else written.strip()
    if key == "fonts":
        _check_fonts(value, f"--set {item}")
    return key, value


def _check_fonts(value: object, where: str) -> None:
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(font, str) for font in value)):
        return  # the configuration has its own line for one string
    raise RenderError(f'{where}: fonts are a list of names, as in fonts=["a.ttf", "b.ttf"]')


def _text(options: argparse.Namespace) -> Text:
    if len(options.texts) == 2:
        return options.texts[0], options.texts[1]
    if options.texts:
        text = options.texts[0]
    elif options.file is not None:
        try:
            text = _decoded(Path(options.file).read_bytes(), f"--file {options.file}")
        except OSError as cause:
            raise RenderError(f"--file {options.file}: cannot be read ({cause.strerror}); give a text file") from cause
    else:
        tell = 'give it as an argument ("..."), with --file F, or pipe it in'
        if sys.stdin.isatty():
            raise RenderError(f"no text: {tell}")
        text = _decoded(sys.stdin.buffer.read(), "standard input")
        if not text:
            raise RenderError(f"no text, and standard input is empty: {tell}")
    return text.split() if options.words else text


def _decoded(data: bytes, where: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise RenderError(f"{where}: byte {cause.start} is not UTF-8; convert the text to UTF-8") from cause
    return text.removesuffix("\n").removesuffix("\r")


def _parts(text: Text) -> list[str]:
    return [text] if isinstance(text, str) else list(text)


# ---- what comes of it ------------------------------------------------------------------------------------------------


def every_layout(config: RenderConfig) -> dict[str, RenderConfig]:
    """What --compare draws: the configuration in each layout, and PIXAR's strip of the same fonts."""

    def layout(name: str, unit: str = "grapheme", word_gap: str = "space") -> RenderConfig:
        return config.replace(layout=name, unit=unit, word_gap=word_gap)

    return {
        "continuous": layout("continuous"),
        "words": layout("words"),
        "sentences": layout("sentences"),
        "bigrams of code points": layout("bigrams", "code-point", "none"),
        "bigrams of graphemes": layout("bigrams"),
        "adaptive": layout("adaptive"),
        "PIXAR strip": RenderConfig.named("pixar", fonts=config.fonts, missing=config.missing),
    }


def _compare(options: argparse.Namespace, config: RenderConfig, text: Text) -> int:
    renderers = {label: Renderer(variant) for label, variant in every_layout(config).items()}
    strips = {label: renderer(text) for label, renderer in renderers.items()}
    for label, renderer in renderers.items():
        _tell(renderer, strips[label], text)
    if options.out is not None:
        scale = SCALE if options.scale is None else options.scale
        write_png(options.out, stacked(list(strips.items()), columns=options.columns, scale=scale, grid=options.grid))
        _log.info("%s: %d layouts", options.out, len(strips))
    if options.json:
        _print_json([{"label": label, **report(renderers[label], strip, text)} for label, strip in strips.items()])
    elif options.out is None:
        for number, (label, strip) in enumerate(strips.items()):
            _print("\n" * bool(number) + f"{label}: {patches_of(strip)}")
            _show(strip, options)
    return 0


def report(renderer: Renderer, strip: Strip, text: Text) -> dict[str, Any]:
    """What stands where on a strip, as plain values: see docs/rendering.md."""
    height, width = strip.pixels.shape[:2]
    return {
        "config": renderer.config.to_dict(),
        "fonts": [
            {"name": face.name, "file": str(getattr(face, "path", "")) or None, "sha256": face.sha256}
            for face in renderer.setter.chain.faces
        ],
        "num_patches": strip.num_patches,
        "height": height,
        "width": width,
        "separators": list(strip.separators),
        "word_starts": None if strip.word_starts is None else strip.word_starts.tolist(),
        "char_spans": strip.char_spans.tolist(),
        "missing": [
            {"character": character, "code_point": _code_point(character), "name": _name(character), "count": count}
            for character, count in strip.missing_glyphs.items()
        ],
        "drawn": _drawn(renderer, strip, text),
        "given": _given(text),
        "truncated": _is_truncated(renderer, strip, text),
    }


def _tell(renderer: Renderer, strip: Strip, text: Text) -> None:
    """Log what a reader of the picture could overlook. Raises RenderError if no font has anything of the text."""
    missing = strip.missing_glyphs
    visible = {c for part in _parts(text) for c in part if not (c.isspace() or is_ignorable(c))}
    has_files = any(isinstance(face, FontFile) for face in renderer.setter.chain.faces)
    if missing and has_files and visible <= missing.keys():
        fonts = ", ".join(renderer.config.fonts)
        first = _described(next(iter(missing)))
        raise RenderError(f"no character of the text is in {fonts} (the first is {first}); add a --font that has it")
    if missing:
        listed = [_described(c) + f" x{n}" * (n > 1) for c, n in list(missing.items())[:_MOST_LISTED]]
        more = [f"and {len(missing) - _MOST_LISTED} others"] if len(missing) > _MOST_LISTED else []
        total = sum(missing.values())
        _log.warning("missing: %d of no font here: %s", total, ", ".join([*listed, *more]))
    if _is_truncated(renderer, strip, text):
        kind = "words" if isinstance(text, list) else "characters"
        drawn, given = _drawn(renderer, strip, text), _given(text)
        counts = " and ".join(f"{have:,} of {whole:,} {kind}" for have, whole in zip(drawn, given))
        limit = renderer.config.max_patches
        _log.warning("truncated: %s fit into %d patches (render.max_patches)", counts, limit)


def _is_truncated(renderer: Renderer, strip: Strip, text: Text) -> bool:
    if renderer.config.overflow == "cluster":
        return list(strip.drawn) != _given(text)
    # strips that are clipped do not say so, but with room for all of the text they would be longer
    if renderer.config.layout != "bigrams" and strip.num_patches < renderer.config.max_patches:
        return False
    return renderer(text, _MOST_PATCHES).num_patches > strip.num_patches


def _given(text: Text) -> list[int]:
    """Characters of each text, or words of a list."""
    return [len(text)] if isinstance(text, list) else [len(part) for part in _parts(text)]


def _drawn(renderer: Renderer, strip: Strip, text: Text) -> list[int]:
    """The same of what is on the strip."""
    if isinstance(text, list) or not _is_truncated(renderer, strip, text) or renderer.config.overflow == "cluster":
        return list(strip.drawn)
    clusters = strip.clusters()
    visible = clusters[clusters[:, 3] < strip.separators[-1] * renderer.config.patch_width]
    spans = np.unique(visible[:, :3], axis=0)
    return [int((spans[:, 2] - spans[:, 1])[spans[:, 0] == which].sum()) for which in range(len(_parts(text)))]


def _described(character: str) -> str:
    return f"{_code_point(character)} {_name(character)}"


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"


_NAMELESS = {"Cc": "control", "Cs": "surrogate", "Co": "private use", "Cn": "unassigned"}


def _name(character: str) -> str:
    return unicodedata.name(character, f"<{_NAMELESS.get(unicodedata.category(character), 'no name')}>")


def _show(strip: Strip, options: argparse.Namespace) -> None:
    _print(preview(strip, mode_of(sys.stdout), options.columns, options.grid))


def _print(lines: str) -> None:
    try:
        print(lines)
    except UnicodeEncodeError as cause:
        tell = "set PYTHONIOENCODING=utf-8, or write a picture with --out"
        raise RenderError(f"standard output is {cause.encoding}, which has no block characters: {tell}") from cause


def _print_json(value: object) -> None:
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(value, ensure_ascii=not is_unicode)
    print(re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text))


# ---- the log ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _held_log() -> Iterator[None]:
    """The package's log on standard error, each line once, held until there are results: a mistake stays alone."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(logging.Formatter("%(message)s"))
    held = logging.handlers.MemoryHandler(capacity=1000, target=stream, flushOnClose=False)
    seen: set[str] = set()
    held.addFilter(lambda record: record.getMessage() not in seen and not seen.add(record.getMessage()))
    level, propagates = _log.level, _log.propagate
    _log.addHandler(held)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    try:
        yield
        held.flush()
    finally:
        _log.removeHandler(held)
        _log.setLevel(level)
        _log.propagate = propagates
        held.close()
