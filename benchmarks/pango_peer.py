"""Bare PangoCairo, drawing rows of text as PIXEL's renderer does: the peer of `benchmarks.render`.

    python3 benchmarks/pango_peer.py --font NotoSans-Regular.ttf [--rows FILE]

Runs under any Python that has PyGObject (Debian: python3-gi, gir1.2-pango-1.0, python3-gi-cairo), which is why it
imports nothing of this project and nothing else that has to be installed. A row is an alpha surface 16 px high and 529
patches wide. The text starts at x = 2 as one layout, its baseline goes where its height puts it, and a black patch
closes it. Everything that the original spends around that is left out, the copy into an array and its inversion
included: what remains is what Pango and cairo cost when called from Python.

Two ways are timed. `fresh` makes surface and layout anew for each row, as the original does; `reused` keeps one of
each, clears the surface and sets the layout's text, which skips allocations and is what a careful user of Pango would
write.

With --rows, a file with a row per line, it prints the speed of both. Without, it answers requests on standard input,
one JSON object per line, so that a benchmark can alternate with it while its caches stay warm:

    {"render": [row, ...], "way": "reused"}  ->  {"seconds": 1.23}, the drawing loop alone
    {"pixels": row}                          ->  {"alpha": base64 of 16 x 8464 bytes, 255 = ink}

fontconfig is told about one folder, in which the font file is the only one: nothing that the machine has installed can
be drawn with. Its other settings are Debian's, of which slight hinting is the one that shows.
"""

import argparse
import base64
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, PATCH = 529 * 16, 16, 16
MARGIN = 2  # px left of the text, and right of it before the end patch
WAYS = ("fresh", "reused")

FONTS_CONF = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{folder}</dir>
  <cachedir>{folder}/cache</cachedir>
  <match target="pattern"><edit name="hintstyle" mode="append"><const>hintslight</const></edit></match>
</fontconfig>
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, required=True, help="the only font file there is")
    parser.add_argument("--family", default="Noto Sans", help="the name by which fontconfig knows it")
    parser.add_argument("--size", type=float, default=8 * 120 / 72, help="px; default: 8 pt at 120 dpi")
    parser.add_argument("--rows", type=Path, help="draw the lines of this file and print the speed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FONTCONFIG_FILE"] = only_font(options.font, Path(folder))  # before fontconfig is loaded
        peer = Peer(f"{options.family} {options.size:.6f}px", options.family)
        if options.rows is None:
            answer_requests(peer)
        else:
            print_speed(peer, options.rows.read_text(encoding="utf-8").splitlines())
    return 0


def only_font(font: Path, folder: Path) -> str:
    """Write a fontconfig configuration that knows one font file; returns its path."""
    (folder / font.name).symlink_to(font.resolve(strict=True))
    conf = folder / "fonts.conf"
    conf.write_text(FONTS_CONF.format(folder=folder), encoding="utf-8")
    return str(conf)


class Peer:
    """Pango and cairo with one font. Raises SystemExit where fontconfig answers with another font than asked for."""

    def __init__(self, font: str, family: str):
        # Here and not above: fontconfig reads its configuration once, and only this interpreter has them.
        import cairo  # pyright: ignore[reportMissingImports]
        import gi  # pyright: ignore[reportMissingImports]

        gi.require_version("Pango", "1.0")
        gi.require_version("PangoCairo", "1.0")
        gi.require_foreign("cairo")
        from gi.repository import Pango, PangoCairo  # pyright: ignore[reportMissingImports]

        self.cairo, self.pango_cairo = cairo, PangoCairo
        self.description = Pango.FontDescription(font)
        self.surface = cairo.ImageSurface(cairo.FORMAT_A8, WIDTH, HEIGHT)
        self.context = cairo.Context(self.surface)
        self.layout = PangoCairo.create_layout(self.context)
        self.layout.set_font_description(self.description)
        self.versions = {"pango": Pango.version_string(), "cairo": cairo.cairo_version_string()}
        found = self.layout.get_context().load_font(self.description).describe().get_family()
        if found != family:
            sys.exit(f"{font!r} is drawn with {found!r}: is that the family of the font file?")

    def draw(self, rows: list[str], way: str) -> float:
        """Draw every row and take the bytes of its surface; returns seconds."""
        start = time.perf_counter()
        if way == "fresh":
            for row in rows:
                self._fresh(row)
        else:
            for row in rows:
                self._reused(row)
        return time.perf_counter() - start

    def pixels(self, row: str) -> bytes:
        """Alpha of a row. Both ways must give the same."""
        fresh, reused = self._fresh(row), self._reused(row)
        assert fresh == reused
        return fresh

    def _fresh(self, row: str) -> bytes:
        surface = self.cairo.ImageSurface(self.cairo.FORMAT_A8, WIDTH, HEIGHT)
        context = self.cairo.Context(surface)
        layout = self.pango_cairo.create_layout(context)
        layout.set_font_description(self.description)
        return self._show(row, surface, context, layout)

    def _reused(self, row: str) -> bytes:
        self.context.set_operator(self.cairo.OPERATOR_CLEAR)
        self.context.paint()
        self.context.set_operator(self.cairo.OPERATOR_OVER)
        return self._show(row, self.surface, self.context, self.layout)

    def _show(self, row: str, surface: Any, context: Any, layout: Any) -> bytes:
        layout.set_text(row, -1)
        width, height = layout.get_pixel_size()
        context.move_to(MARGIN, HEIGHT / 2 - height / 2 - 2)
        self.pango_cairo.show_layout(context, layout)
        end = -(-(MARGIN + width + MARGIN) // PATCH) * PATCH
        context.rectangle(min(end, WIDTH - PATCH), 0, PATCH, HEIGHT)
        context.fill()
        surface.flush()
        return bytes(surface.get_data())


def answer_requests(peer: Peer) -> None:
    print(json.dumps(peer.versions), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "pixels" in request:
            answer = {"alpha": base64.b64encode(peer.pixels(request["pixels"])).decode()}
        else:
            answer = {"seconds": peer.draw(request["render"], request["way"])}
        print(json.dumps(answer), flush=True)


def print_speed(peer: Peer, rows: list[str]) -> None:
    words = sum(len(row.split()) for row in rows)
    for way in WAYS:
        peer.draw(rows, way)
        seconds = peer.draw(rows, way)
        print(f"{way:6} {len(rows) / seconds:7.0f} rows/s {words / seconds:10.0f} words/s")


if __name__ == "__main__":
    sys.exit(main())
