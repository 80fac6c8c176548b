"""How fast text becomes pixels on one core, next to bare Pango in the same run.

    python -m benchmarks.render [--fonts DIR] [--text DIR] [--quick] [--json] [--out FILE]

A renderer that remembers is fast at what it remembers, so what is measured says what it has seen. Every configuration
is warmed on a million words of some novels. `unseen` are rows of 180 words of other novels that it has never drawn;
`repeated` are the very same rows again; `with spans` are other unseen rows of which `char_spans` is read as well;
`cold` is a renderer made a moment ago, which opens its fonts and draws its first rows. Words are what stands between
white space, joined by single spaces.

Every configuration has a process of its own, one after another: whoever draws text has one renderer in a process. In
one process seven of them would empty the processor's caches for each other and be searched together whenever Python
collects garbage, which the peer, in its own process, is spared.

The peer is PangoCairo called from Python (pango_peer.py), warmed on some of the same words, in the faster of its two
ways. It draws the rows of the moment in every round of `continuous`, right before we do, on the same core: whatever
else the machine does meets both. Figures are medians over rounds, ratios are medians of the ratios of each round. That
both draw the same pixels is looked at too. Without Pango for Python (Debian: python3-gi, python3-gi-cairo,
gir1.2-pango-1.0), it says so and goes on without the peer.

Last, a RenderPool of one and of two processes on all cores, forked from the warm renderer, on unseen rows: sending back
strips, pixels alone, and nothing but a count, which is the most that can be had.
"""

import argparse
import base64
import contextlib
import gzip
import json
import logging
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.pango_peer import WAYS
from benchmarks.record import publish, record
from render import RenderConfig, Renderer, Strip
from render.pool import RenderPool

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("PIXELCORE_SHARED") or ROOT.parent / "shared")
ROW_WORDS = 180
NOTO, PIXELOID = "noto/NotoSans-Regular.ttf", "pixeloid/PixeloidSans-mLxMm.ttf"
KINDS = ("unseen", "repeated", "with_spans", "cold")
ROOMY = 2048  # patches, where a row of 180 words might not fit into the usual number

# name, configuration, font, changes
CASES: list[tuple[str, str, str | None, dict[str, Any]]] = [
    ("continuous", "pixel", NOTO, {}),
    ("words", "pixel", NOTO, {"layout": "words", "max_patches": ROOMY}),
    ("bigrams, code points", "pixel-m4", NOTO, {"max_patches": ROOMY}),
    ("bigrams, graphemes", "default", NOTO, {"layout": "bigrams", "max_patches": ROOMY}),
    ("adaptive", "default", NOTO, {"max_patches": ROOMY}),
    ("PIXAR strip", "pixar", PIXELOID, {"max_patches": ROOMY}),
    ("adaptive, built-in font", "default", None, {"max_patches": ROOMY}),
]
TARGETS = [  # of the first three, the ratio to the peer
    ("continuous, unseen: times the peer", 1.5),
    ("continuous, repeated: times the peer", 3.0),
    ("bigrams, code points, unseen: words/s", 500_000),
    ("PIXAR strip, unseen: words/s", 600_000),
]


class Size(NamedTuple):
    warm_words: int
    rounds: int
    rows: int  # of each measurement
    pool_rows: int


FULL = Size(warm_words=1_000_000, rounds=9, rows=200, pool_rows=2000)
QUICK = Size(warm_words=50_000, rounds=3, rows=40, pool_rows=400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fonts", type=Path, default=SHARED / "fonts", help="folder with the font files")
    parser.add_argument("--text", type=Path, default=SHARED / "data/text/en_books", help="folder of novels, *.txt.gz")
    parser.add_argument("--quick", action="store_true", help="little warming and few rows: to see that it works")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    for needed in (options.fonts / NOTO, options.fonts / PIXELOID, options.text):
        if not needed.exists():
            parser.error(f"{needed} is not there: name the folders with --fonts and --text, or set PIXELCORE_SHARED")
    try:
        warm, rows = read_rows(options.text, size)
    except ValueError as cause:
        parser.error(str(cause))

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})  # inherited by the processes of the cases and of the peer
    cases = {name: in_own_process(measure, name, warm, rows, size, options.fonts, cores) for name, *_ in CASES}
    words_of_warm = set(" ".join(warm).split())
    tested = " ".join(rows[: 2 * size.rounds * size.rows]).split()
    result = {
        "what": f"rows of {ROW_WORDS} English words, one core, each case in a process of its own",
        "warm_words": len(warm) * ROW_WORDS,
        "rows_per_measurement": size.rows,
        "rounds": size.rounds,
        "share_of_new_words": sum(word not in words_of_warm for word in tested) / len(tested),
        "cases": cases,
        "peer": cases["continuous"].pop("peer"),
        "pool": cases["continuous"].pop("pool"),
    }
    result |= record(("numpy", "uharfbuzz", "freetype-py"), threads=1)
    publish(result, table(result), options.json, options.out)


def read_rows(folder: Path, size: Size) -> tuple[list[str], list[str]]:
    """Rows of the first novels, to warm with, and rows of the others in turn. Raises ValueError for too little text."""
    novels = []
    for file in sorted(folder.glob("*.txt.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as text:
            words = text.read().split()
        novels.append([" ".join(words[at : at + ROW_WORDS]) for at in range(0, len(words) - ROW_WORDS, ROW_WORDS)])
    warm: list[str] = []
    while novels and len(warm) * ROW_WORDS < size.warm_words:
        warm += novels.pop(0)
    del warm[-(-size.warm_words // ROW_WORDS) :]
    others = [row for rows in zip(*novels, strict=False) for row in rows]  # a novel has its own names: all take turns
    needed = 2 * size.rounds * size.rows + size.rows + size.pool_rows
    if len(others) < needed:
        raise ValueError(f"{folder}: {len(others)} rows beside those of the warm-up, {needed} are needed")
    return warm, others


def in_own_process(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def measure(name: str, warm: list[str], rows: list[str], size: Size, fonts: Path, cores: set[int]) -> dict[str, Any]:
    """One case on one core; of `continuous`, also the peer beside it, and a pool on all cores."""
    logging.getLogger("render").setLevel(logging.ERROR)  # PIXAR's font is off its grid, as each new renderer would say
    [(named, font, changes)] = [case[1:] for case in CASES if case[0] == name]
    before = resident_mb()
    renderer = Renderer(RenderConfig.named(named, fonts=[str(fonts / font)] if font else [], **changes))
    seconds = timed(draw, renderer, inputs(name, warm))
    case: dict[str, Any] = {
        "warming_words_per_second": len(warm) * ROW_WORDS / seconds,
        "resident_mb": resident_mb() - before,
    }
    chunks = [rows[at : at + size.rows] for at in range(0, len(rows), size.rows)]
    compared, unseen = chunks[0][:20], chunks[1 : 1 + size.rounds]
    others = chunks[1 + size.rounds : 1 + 2 * size.rounds]
    with running_peer(fonts / NOTO) if name == "continuous" else contextlib.nullcontext() as peer:
        if peer is not None:
            equal = same_pixels(renderer, peer, compared)
            for way in WAYS:
                peer.draw(warm[: size.rows], way)
        speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        of_peer: dict[str, list[float]] = {way: [] for way in WAYS}
        cache_bytes = 0
        for mine, more in zip(unseen, others, strict=True):
            if peer is not None:
                for way in WAYS:
                    of_peer[way].append(len(mine) * ROW_WORDS / peer.draw(mine, way))
            for kind, action, batch in (
                ("unseen", draw, mine),
                ("repeated", draw, mine),
                ("with_spans", draw_with_spans, more),
            ):
                speeds[kind].append(len(batch) * ROW_WORDS / timed(action, renderer, inputs(name, batch)))
            cache_bytes = max(cache_bytes, renderer.cache_bytes)
        if name == "continuous":
            case["peer"] = peer and compare(speeds, of_peer) | {
                "versions": peer.versions,
                "rows_with_equal_pixels": equal,
            }
    for mine in unseen:
        speeds["cold"].append(len(mine) * ROW_WORDS / timed(draw_cold, renderer, inputs(name, mine)))
    case |= {f"{kind}_words_per_second": statistics.median(all_) for kind, all_ in speeds.items()}
    case |= {
        "rounds": speeds,
        "cache_mb": cache_bytes / 1e6,
        "peak_resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "clipped_rows": sum(clipped(renderer, inputs(name, mine)) for mine in unseen),
    }
    if name == "continuous":
        os.sched_setaffinity(0, cores)
        case["pool"] = scaling(renderer, rows[-size.pool_rows :], len(cores))
    return case


def compare(ours: dict[str, list[float]], peer: dict[str, list[float]]) -> dict[str, Any]:
    """Speeds of the peer, and ours as multiples of its faster way in the same round."""
    medians = {way: statistics.median(speeds) for way, speeds in peer.items()}
    best = peer[max(medians, key=medians.__getitem__)]
    return {
        "words_per_second": medians,
        "rounds": peer,
        "ratio": {
            kind: statistics.median(a / b for a, b in zip(ours[kind], best, strict=True))
            for kind in KINDS
            if ours[kind]  # `cold` is measured later
        },
    }


def inputs(case: str, rows: list[str]) -> list[Any]:
    """Rows as a case takes them: the layout `words` is for text that is split already."""
    return [row.split() for row in rows] if case == "words" else rows


def timed(action: Callable[[Renderer, Sequence[Any]], None], renderer: Renderer, rows: Sequence[Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    action(renderer, rows)
    return time.perf_counter() - start


def draw(renderer: Renderer, rows: Sequence[Any]) -> None:
    for row in rows:
        _ = renderer(row).pixels


def draw_with_spans(renderer: Renderer, rows: Sequence[Any]) -> None:
    for row in rows:
        strip = renderer(row)
        _ = strip.pixels, strip.char_spans


def draw_cold(renderer: Renderer, rows: Sequence[Any]) -> None:
    draw(Renderer(renderer.config), rows)


def clipped(renderer: Renderer, rows: Sequence[Any]) -> int:
    """Rows that fill the strip to the last patch: some of their words may not have been drawn."""
    return sum(renderer(row).num_patches == renderer.config.max_patches for row in rows)


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


class Peer:
    """PangoCairo in the interpreter that has it, answering over pipes."""

    def __init__(self, process: "subprocess.Popen[str]"):
        self._process = process
        self.versions = self._answer()

    def draw(self, rows: list[str], way: str) -> float:
        """Seconds."""
        return self._ask({"render": rows, "way": way})["seconds"]

    def pixels(self, row: str) -> np.ndarray:
        """uint8 [16, width], 0 = ink, 255 = paper."""
        alpha = base64.b64decode(self._ask({"pixels": row})["alpha"])
        return 255 - np.frombuffer(alpha, np.uint8).reshape(16, -1)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with status {self._process.wait()}: its message stands above")
        return json.loads(line)


@contextlib.contextmanager
def running_peer(font: Path) -> Iterator[Peer | None]:
    """None where no Python at hand has Pango."""
    python = python_with_pango()
    if python is None:
        print("no Python with PyGObject, Pango and cairo: going on without the peer", file=sys.stderr)
        yield None
        return
    command = [python, str(ROOT / "benchmarks/pango_peer.py"), "--font", str(font)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Peer(process)


def python_with_pango() -> str | None:
    probe = "import cairo, gi; gi.require_version('PangoCairo', '1.0'); gi.require_foreign('cairo')"
    # not only the first one on the PATH: that is the one of a virtual environment, which has no system packages
    folders = [*os.get_exec_path(), "/usr/bin"]
    for python in dict.fromkeys(found for folder in folders if (found := shutil.which("python3", path=folder))):
        if subprocess.run([python, "-c", probe], capture_output=True).returncode == 0:
            return python
    return None


def same_pixels(renderer: Renderer, peer: Peer, rows: list[str]) -> str:
    """How many rows both draw alike, "19 of 20"."""
    same = 0
    for row in rows:
        ours = renderer(row).pixels
        same += np.array_equal(ours, peer.pixels(row)[:, : ours.shape[1]])
    return f"{same} of {len(rows)}"


def strip(renderer: Renderer, row: str) -> Strip:
    return renderer(row)


def columns(renderer: Renderer, row: str) -> np.ndarray:
    return renderer(row).columns


def count(renderer: Renderer, row: str) -> int:
    return renderer(row).num_patches


def scaling(renderer: Renderer, rows: list[str], cores: int) -> dict[str, Any]:
    """Words per second of one and two processes, whose renderers are forked before they have seen the rows."""
    figures: dict[str, Any] = {"rows": len(rows), "cores": cores}
    for function in (strip, columns, count):
        speeds = {}
        for workers in (1, 2):
            with RenderPool(renderer, workers, function=function) as pool:
                for _ in pool.map(islice(cycle(["warm"]), 256)):  # all have started
                    pass
                start = time.perf_counter()
                for _ in pool.map(rows):
                    pass
                speeds[str(workers)] = len(rows) * ROW_WORDS / (time.perf_counter() - start)
            figures["start_method"] = pool.start_method
        figures[function.__name__] = {"words_per_second": speeds, "speedup": speeds["2"] / speeds["1"]}
    return figures


def table(result: dict[str, Any]) -> str:
    peer, pool, cases = result["peer"], result["pool"], result["cases"]
    lines = [
        f"{result['what']}, warmed on {result['warm_words']:,} others "
        f"({result['share_of_new_words']:.1%} of the words are new); medians of {result['rounds']} rounds",
        "",
        f"{'words/s':26}"
        + "".join(f"{kind.replace('_', ' '):>12}" for kind in KINDS)
        + f"{'cache MB':>10}{'RSS MB':>8}",
    ]
    for name, case in cases.items():
        speeds = "".join(f"{case[f'{kind}_words_per_second']:12,.0f}" for kind in KINDS)
        lines.append(f"{name:26}{speeds}{case['cache_mb']:10.1f}{case['resident_mb']:8.0f}")
    for way, speed in (peer["words_per_second"] if peer else {}).items():
        lines.append(f"{f'PangoCairo, {way}':26}{speed:12,.0f}")
    peak = max(case["peak_resident_mb"] for case in cases.values())
    lines += ["", f"rows/s: words/s / {ROW_WORDS}; peak resident memory of a process {peak:.0f} MB"]
    lines += [
        f"{case['clipped_rows']} rows of {name} were clipped" for name, case in cases.items() if case["clipped_rows"]
    ]
    if peer:
        lines.append(f"continuous and PangoCairo drew the same pixels for {peer['rows_with_equal_pixels']} rows")
    lines += ["", f"{pool['cores']} cores, pool ({pool['start_method']}), words/s of 1 -> 2 processes that send back"]
    for name in ("strip", "columns", "count"):
        speeds = pool[name]["words_per_second"]
        lines.append(f"  {name:24}{speeds['1']:12,.0f}{speeds['2']:12,.0f}{pool[name]['speedup']:10.2f} x")
    reached = [
        peer and peer["ratio"]["unseen"],
        peer and peer["ratio"]["repeated"],
        cases["bigrams, code points"]["unseen_words_per_second"],
        cases["PIXAR strip"]["unseen_words_per_second"],
    ]
    lines.append("")
    for (name, target), value in zip(TARGETS, reached, strict=True):
        if value is None:
            lines.append(f"{name:42}{'no peer':>12}")
        else:
            digits = 2 if target < 100 else 0
            verdict = "reached" if value >= target else "missed"
            lines.append(f"{name:42}{value:12,.{digits}f}  target {target:,}: {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
