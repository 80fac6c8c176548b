"""What a book of the bench says: the table of every case, a verdict for each kernel, and the targets.

A ratio is a peer's time over ours, so more than one means that ours is faster. The verdict of a kernel compares it, at
each shape, with the best of all peers there, the eager reference included, on forward and backward pass together:

    ahead     the geometric mean over the shapes is at least 1.10, and no shape is below 0.97
    behind    the geometric mean is below 0.97
    parity    everything between

Shapes that were not measured and peers that are missing are named beside it: a verdict speaks of those that ran.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.workshop.contest import DIRECTIONS
from kernels.workshop.targets import TARGETS, Book, Entry, measured, milliseconds, ours_of, over
from pixelcore.errors import UserError

_AHEAD, _LEAST = 1.10, 0.97
_ERRORS_BESIDE = {"attention": "FlashAttention-2, packed"}  # whose errors are shown, result by result, beside ours


@dataclass(frozen=True)
class Verdict:
    """mean and worst: of the ratios of the best peer, None where nothing was measured."""

    kernel: str
    word: str
    mean: float | None
    worst: float | None
    shapes: int
    shapes_in_all: int
    absent: tuple[str, ...]

    def __str__(self) -> str:
        ratios = f" {self.mean:.2f}x, worst shape {self.worst:.2f}x" if self.mean and self.worst else ""
        without = f"; without {', '.join(self.absent)}" if self.absent else ""
        return f"{self.kernel:20}{self.word:11}{ratios}, {self.shapes} of {self.shapes_in_all} shapes{without}"


def verdicts(book: Book) -> list[Verdict]:
    """One for each kernel that the book names."""
    return [_verdict(book, name) for name in dict.fromkeys(x["kernel"] for x in (*book["cases"], *book["left_out"]))]


def _verdict(book: Book, kernel: str) -> Verdict:
    entries = measured(book, kernel)
    ratios = [ratio for entry in entries if (ratio := _over_best(entry)) is not None]
    in_all = sum(x["kernel"] == kernel for x in (*book["cases"], *book["left_out"]))
    peers = [x for entry in entries for x in entry["contestants"] if x["role"] == "peer" and x["status"] != "timed"]
    absent = tuple(dict.fromkeys(x["name"] for x in peers))
    if any(x["kernel"] == kernel and x["status"] != "measured" for x in book["cases"]):
        return Verdict(kernel, "unreported", None, None, len(entries), in_all, absent)
    if not ratios:
        return Verdict(kernel, "unmeasured", None, None, 0, in_all, absent)
    mean, worst = _geometric_mean(ratios), min(ratios)
    return Verdict(kernel, verdict_word(ratios), mean, worst, len(entries), in_all, absent)


def verdict_word(ratios: Sequence[float]) -> str:
    mean = _geometric_mean(ratios)
    if mean >= _AHEAD and min(ratios) >= _LEAST:
        return "ahead"
    return "behind" if mean < _LEAST else "parity"


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _over_best(entry: Entry) -> float | None:
    direction = "both" if "both" in ours_of(entry) else "forward"
    others = [x for x in entry["contestants"] if x["role"] in ("eager", "peer") and direction in x]
    peers = [milliseconds(x, direction) for x in others]
    return min(peers) / milliseconds(ours_of(entry), direction) if peers else None


# ------------------------------------------------------------------ pages


def report(book: Book) -> str:
    """Everything, as text."""
    blocks = [_heading(book), *(_case(entry) for entry in book["cases"])]
    if book.get("first"):
        blocks.append(_first(book["first"]))
    if book["left_out"]:
        names = "; ".join(f"{x['kernel']}, {x['case']}" for x in book["left_out"])
        blocks.append(f"left out, the budget was spent: {names}")
    if book["cases"]:
        blocks.append("\n".join(["verdicts, of forward and backward together", *map(str, verdicts(book))]))
        blocks.append("\n".join(["targets, at every shape", *(target.line(book) for target in TARGETS)]))
    return "\n\n".join(blocks)


def _heading(book: Book) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in book["versions"].items() if version)
    return f"{book['device']}, {book['dtype']}, commit {book['commit']}, {book['runs'][-1]['date']}\n{versions}"


def _case(entry: Entry) -> str:
    title = f"{entry['kernel']}, {entry['case']}"
    if entry["status"] != "measured":
        return f"{title}: {entry['status']}: {entry['reason']}"
    heads = "".join(f"{f'{name}, ms':>16}{'ours':>7}" for name in DIRECTIONS)
    lines = [title, f"  {'':30}{heads}{'noise':>7}{'host us':>9}{'peak MB':>9}{'error':>9}"]
    lines += [_row(x, ours_of(entry)) for x in entry["contestants"]]
    shares = [
        f"{direction} {found['gb_s']:.0f} GB/s = {found['share_of_copy']:.0%} of a copy"
        for direction in DIRECTIONS
        if (found := ours_of(entry).get(direction)) and found["share_of_copy"]
    ]
    shares += [
        f"{direction} {found['tflop_s']:.0f} TFLOP/s"
        for direction in DIRECTIONS
        if (found := ours_of(entry).get(direction)) and found["tflop_s"]
    ]
    return "\n".join([*lines, *([f"  ours: {', '.join(shares)}"] if shares else []), *_errors(entry)])


def _errors(entry: Entry) -> list[str]:
    """A line with the error of each result, ours and a peer's."""
    name = _ERRORS_BESIDE.get(entry["kernel"])
    found = next((x for x in entry["contestants"] if x["name"] == name and x.get("errors")), None)
    if found is None:
        return []
    ours = ours_of(entry)["errors"]
    return [f"  errors, ours / {name}: " + ", ".join(f"{x} {ours[x]:.1e} / {found['errors'][x]:.1e}" for x in ours)]


def _row(x: Entry, ours: Entry) -> str:
    if x["status"] != "timed":
        return f"  {x['name']:30} {x['status']}: {x['reason']}"
    cells, last = "", x["both"] if "both" in x else x["forward"]
    for direction in DIRECTIONS:
        if direction in x:
            cells += (
                f"{milliseconds(x, direction):16.4f}{milliseconds(x, direction) / milliseconds(ours, direction):6.2f}x"
            )
        else:
            cells += f"{'-':>16}{'':7}"
    peak = "-" if x["peak_bytes"] is None else f"{x['peak_bytes'] / 1e6:.0f}"
    error = "-" if x["error"] is None else f"{x['error']:.0e}"
    noise = max(x[direction]["noise"] for direction in DIRECTIONS if direction in x)
    return f"  {x['name']:30}{cells}{noise:7.1%}{last['host_ms'] * 1e3:9.0f}{peak:>9}{error:>9}"


def _first(found: Mapping[str, Any]) -> str:
    """Nested figures, a line for each leaf's group."""
    lines = ["the machine"]
    for probe, result in found.items():
        groups = result if all(isinstance(x, Mapping) for x in result.values()) else {"": result}
        for name, figures in groups.items():
            label = f"{probe}, {name}" if name else probe
            lines.append(f"  {label:52}" + ", ".join(f"{what} {_figure(x)}" for what, x in figures.items()))
    return "\n".join(lines)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check_plot(path: Path) -> None:
    """UserError where no picture can be drawn, before anything is measured."""
    if path.suffix != ".png":
        raise UserError(f"--plot {path.name}: the picture is a PNG: name it .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"--plot {path.name}: drawing needs matplotlib: pip install 'pixelcore[plot]'")


def plot(book: Book, path: Path) -> None:
    """For each kernel and peer a bar: the geometric mean of the ratios over the shapes."""
    from matplotlib.figure import Figure  # the extra `plot`; no window and no global state

    bars: list[tuple[str, float]] = []
    for kernel in dict.fromkeys(x["kernel"] for x in book["cases"]):
        entries = measured(book, kernel)
        names = dict.fromkeys(x["name"] for entry in entries for x in entry["contestants"] if x["role"] != "ours")
        for name in names:
            direction = "both" if any("both" in ours_of(entry) for entry in entries) else "forward"
            ratios = over(measured(book, kernel), (name,), direction)
            if ratios:
                bars.append((f"{kernel}: {name}", _geometric_mean(ratios)))
    figure = Figure(figsize=(9, 1.2 + 0.25 * len(bars)), layout="constrained")
    axes = figure.subplots()
    places = range(len(bars), 0, -1)
    axes.barh(places, [ratio for _, ratio in bars], color=["#2a7" if ratio >= 1 else "#b43" for _, ratio in bars])
    axes.set_yticks(list(places), [name for name, _ in bars], fontsize=8)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("their time / ours, forward and backward, geometric mean over the shapes")
    axes.set_title(f"{book['device']}, {book['dtype']}, commit {book['commit']}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
