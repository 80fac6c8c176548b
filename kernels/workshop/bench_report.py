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
from pixelcore.errors import UserError

_AHEAD, _LEAST = 1.10, 0.97
Entry = Mapping[str, Any]
Book = Mapping[str, Any]


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
    entries = _measured(book, kernel)
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


def _measured(book: Book, kernel: str) -> list[Entry]:
    return [x for x in book["cases"] if x["kernel"] == kernel and x["status"] == "measured"]


def _over_best(entry: Entry) -> float | None:
    direction = "both" if "both" in _ours(entry) else "forward"
    peers = [_ms(x, direction) for x in entry["contestants"] if x["role"] in ("eager", "peer") and direction in x]
    return min(peers) / _ms(_ours(entry), direction) if peers else None


def _ours(entry: Entry) -> Entry:
    return next(x for x in entry["contestants"] if x["role"] == "ours")


def _ms(contestant: Entry, direction: str) -> float:
    return contestant[direction]["median_ms"]


# ------------------------------------------------------------------ targets


@dataclass(frozen=True)
class Target:
    """A promise over every shape. Without a peer it is about the share of a copy's bandwidth; with one about its time
    over ours, at least, or about ours over its, at most."""

    what: str
    kernel: str
    direction: str
    peer: str | None = None
    least: float | None = None
    most: float | None = None

    def line(self, book: Book) -> str:
        sign, bound = (">=", self.least) if self.least is not None else ("<=", self.most)
        assert bound is not None
        start = f"{self.what:60}{f'{sign} {self._text(bound)}':>10}"
        values = self.values(book)
        if not values:
            return f"{start}  unmeasured"
        worst = min(values) if self.least is not None else max(values)
        kept = worst >= bound if self.least is not None else worst <= bound
        shapes = f"worst of {len(values)}" if len(values) > 1 else "one shape"
        return f"{start}  {self._text(worst)} ({shapes}) {'kept' if kept else 'MISSED'}"

    def values(self, book: Book) -> list[float]:
        """What was measured, at each shape."""
        if self.peer is None:
            found = [_ours(x).get(self.direction, {}).get("share_of_copy") for x in _measured(book, self.kernel)]
            return [share for share in found if share is not None]
        ratios = _over(book, self.kernel, self.peer, self.direction)
        return ratios if self.most is None else [1 / ratio for ratio in ratios]

    def _text(self, value: float) -> str:
        return f"{value:.0%}" if self.peer is None else f"{value:.2f}x"


def _over(book: Book, kernel: str, peer: str, direction: str) -> list[float]:
    """The peer's time over ours, wherever both were timed."""
    found = []
    for entry in _measured(book, kernel):
        ours = _ours(entry)
        timed = [x for x in entry["contestants"] if x["name"] == peer and direction in x and direction in ours]
        found += [_ms(x, direction) / _ms(ours, direction) for x in timed]
    return found


def _bandwidth(kernel: str, direction: str, least: float) -> Target:
    return Target(f"{kernel}, {direction}, of the copy's bandwidth", kernel, direction, least=least)


TARGETS: tuple[Target, ...] = (
    _bandwidth("add_norm", "forward", 0.90),
    _bandwidth("add_norm", "backward", 0.80),
    Target("add_norm, backward, over Liger-Kernel", "add_norm", "backward", "Liger-Kernel", 1.5),
    Target("add_norm, backward, over torch.compile", "add_norm", "backward", "torch.compile", 1.5),
    _bandwidth("glu", "forward", 0.92),
    _bandwidth("glu", "backward", 0.92),
    _bandwidth("split_rope", "forward", 0.88),
    _bandwidth("split_rope", "backward", 0.88),
    Target("split_rope over eager", "split_rope", "both", "eager", 3.0),
    Target("patch_embed over the published chain", "embed_strips", "both", "as published", 4.0),
    Target(
        "head and cross_entropy, in times of their three products",
        "head_cross_entropy",
        "both",
        "its three products",
        most=1.2,
    ),
    *(
        Target(f"{loss} over {peer}", loss, "both", peer, least)
        for loss in ("pixel_mse", "pixel_bce", "mixture_bce")
        for peer, least in (("eager", 3.0), ("torch.compile", 1.2))
    ),
    Target("adamw over torch fused, clip, cast", "clip_adamw", "forward", "torch fused, clip, cast", 1.15),
)


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
    lines = [title, f"  {'':24}{heads}{'noise':>7}{'host us':>9}{'peak MB':>9}{'error':>9}"]
    lines += [_row(x, _ours(entry)) for x in entry["contestants"]]
    shares = [
        f"{direction} {found['gb_s']:.0f} GB/s = {found['share_of_copy']:.0%} of a copy"
        for direction in DIRECTIONS
        if (found := _ours(entry).get(direction)) and found["share_of_copy"]
    ]
    shares += [
        f"{direction} {found['tflop_s']:.0f} TFLOP/s"
        for direction in DIRECTIONS
        if (found := _ours(entry).get(direction)) and found["tflop_s"]
    ]
    return "\n".join([*lines, *([f"  ours: {', '.join(shares)}"] if shares else [])])


def _row(x: Entry, ours: Entry) -> str:
    if x["status"] != "timed":
        return f"  {x['name']:24} {x['status']}: {x['reason']}"
    cells, last = "", x["both"] if "both" in x else x["forward"]
    for direction in DIRECTIONS:
        if direction in x:
            cells += f"{_ms(x, direction):16.4f}{_ms(x, direction) / _ms(ours, direction):6.2f}x"
        else:
            cells += f"{'-':>16}{'':7}"
    peak = "-" if x["peak_bytes"] is None else f"{x['peak_bytes'] / 1e6:.0f}"
    error = "-" if x["error"] is None else f"{x['error']:.0e}"
    noise = max(x[direction]["noise"] for direction in DIRECTIONS if direction in x)
    return f"  {x['name']:24}{cells}{noise:7.1%}{last['host_ms'] * 1e3:9.0f}{peak:>9}{error:>9}"


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
        entries = _measured(book, kernel)
        names = dict.fromkeys(x["name"] for entry in entries for x in entry["contestants"] if x["role"] != "ours")
        for name in names:
            direction = "both" if any("both" in _ours(entry) for entry in entries) else "forward"
            ratios = _over(book, kernel, name, direction)
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
