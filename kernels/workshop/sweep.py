"""Attention over all lengths: where is it fast, and does it fall off a cliff somewhere?

The shapes of the models are a handful of points. Between and beyond them tiles fill badly, lists of tiles become long
and caches too small, so `bench attention --sweep` walks along the length, with the same number of rows and the same
width everywhere: what changes is how the rows are divided into documents and the width into heads.

    16384 rows, width 2048       128 documents of 128  ...  16 of 1024  ...  1 of 16384
    head size 32, 64, 128        full and causal, as many key/value heads as heads
    head size 64, causal         and 2, 4 and 8 query heads for each of them

The measure is TFLOP/s of useful products, which should rise with the length. Where it drops by a fifth although the
length doubles, for us or for anyone, the table says so. Documents are of one length here, so that dense peers run too;
SDPA in fp32, exact and without a matrix of all scores, is the truth.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from kernels.workshop import attention_peers
from kernels.workshop.cases import Case, Cost, Draw
from kernels.workshop.contest import Subject
from kernels.workshop.peers import PEERS
from kernels.workshop.targets import Book, Entry, measured

NAME = "attention sweep"
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
ROWS, WIDTH = 16_384, 2048
SERIES = (  # head size, rule, query heads for each key/value head; most valuable first
    (64, "causal", 1),
    (64, "full", 1),
    (32, "full", 1),
    (64, "causal", 4),
    (128, "causal", 1),
    (32, "causal", 1),
    (128, "full", 1),
    (64, "causal", 2),
    (64, "causal", 8),
)
CASES = tuple(
    Case(
        f"{rule}, heads of {size}, {ratio} to 1, {length}",
        {"M": ROWS // length, "L": length, "H": WIDTH // size, "G": WIDTH // size // ratio, "K": size, "rule": rule},
    )
    for size, rule, ratio in SERIES
    for length in LENGTHS
)
CLIFF = 0.8  # of the speed at half the length
_PEERS = ("FlashAttention-2, packed", "SDPA cuDNN, padded", "FlexAttention, packed")


class Sweep:
    """Has the names of a kernel's file, as composites have."""

    __name__ = NAME
    CASES = ()
    TIMED = CASES

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    @staticmethod
    def reference(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, packed: Any, rule: str, scale: float) -> Tensor:
        """SDPA with keys and values repeated: in fp32 torch has no other kernel that writes no scores."""
        group = q_NHK.shape[1] // k_NGK.shape[1]
        shape = (len(packed.lengths), packed.max_length)
        rows = (q_NHK, *(x.repeat_interleave(group, dim=1) for x in (k_NGK, v_NGK)))
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in rows)
        out = attention_peers.dense(None, 1)(q, k, v, None, is_causal=rule == "causal", scale=scale)
        return out.transpose(1, 2).flatten(0, 1)

    def fused(self, **given: Any) -> Tensor:
        return self.kernel.fused(**given)[0]

    @staticmethod
    def arguments(case: Case, draw: Draw) -> dict[str, Any]:
        num_rows = case["M"] * case["L"]
        return {
            "q_NHK": draw.normal(num_rows, case["H"], case["K"], grad=True),
            "k_NGK": draw.normal(num_rows, case["G"], case["K"], grad=True),
            "v_NGK": draw.normal(num_rows, case["G"], case["K"], grad=True),
            "packed": draw.packed([case["L"]] * case["M"]),
            "rule": case["rule"],
            "scale": case["K"] ** -0.5,
        }

    @staticmethod
    def cost(case: Case, size: int) -> Cost:
        """q, k, v and out once, backward twice and their log-sum-exp; pairs that the rule shows."""
        num_rows, length, H, G, K = (case[name] for name in "MLHGK")
        num_rows *= length
        values, statistics = 2 * num_rows * (H + G) * K * size, 4 * num_rows * H
        pairs = num_rows * ((length + 1) / 2 if case["rule"] == "causal" else length)
        products = int(2 * K * H * pairs)
        return Cost(values + statistics, 2 * values + statistics, 2 * products, 5 * products)


def subject(kernel: Any) -> Subject:
    """The sweep of a kernel of attention, with those peers that know no padding or need none."""
    peers = tuple(peer for peer in PEERS["attention"] if peer.name in _PEERS)
    return Subject(NAME, Sweep(kernel), peers, {"attention": kernel})


# ------------------------------------------------------------------ what the book says


def report(book: Book) -> str:
    """A table for each series: TFLOP/s forward and backward, megabytes, of everyone, along the length; then cliffs."""
    blocks = [_table(name, entries) for name, entries in _series(book).items()]
    found = cliffs(book)
    return "\n\n".join([*blocks, "\n".join(["cliffs:", *(f"  {line}" for line in found)]) if found else "no cliff"])


def _series(book: Book) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in sorted(measured(book, NAME), key=lambda entry: entry["sizes"]["L"]):
        found.setdefault(entry["case"].rpartition(",")[0], []).append(entry)
    return found


MEASURES: Mapping[str, Callable[[Entry], float | None]] = {
    "forward, TFLOP/s": lambda x: x.get("forward", {}).get("tflop_s"),
    "backward, TFLOP/s": lambda x: x.get("backward", {}).get("tflop_s"),
    "peak, MB": lambda x: None if x.get("peak_bytes") is None else x["peak_bytes"] / 1e6,
}


def _table(name: str, entries: Sequence[Entry]) -> str:
    lines = [f"{name:44}" + "".join(f"{entry['sizes']['L']:>8}" for entry in entries)]
    for measure, values in _lines(entries).items():
        for contestant, points in values.items():
            cells = "".join(f"{'-' if y is None else format(y, '.0f'):>8}" for y in points)
            lines.append(f"  {contestant:24}{measure:18}{cells}")
    return "\n".join(lines)


def _lines(entries: Sequence[Entry]) -> dict[str, dict[str, list[float | None]]]:
    """By measure and contestant a value for each entry, None where there is none."""
    names = list(dict.fromkeys(x["name"] for entry in entries for x in entry["contestants"] if x["role"] != "eager"))
    found: dict[str, dict[str, list[float | None]]] = {}
    for measure, value in MEASURES.items():
        for name in names:
            points = [next((value(x) for x in entry["contestants"] if x["name"] == name), None) for entry in entries]
            if any(y is not None for y in points):
                found.setdefault(measure, {})[name] = points
    return found


def cliffs(book: Book) -> list[str]:
    """Where the speed falls by a fifth or more although the length grows, ours and everyone's."""
    found = []
    for series, entries in _series(book).items():
        lengths = [entry["sizes"]["L"] for entry in entries]
        for measure, values in _lines(entries).items():
            if not measure.endswith("TFLOP/s"):
                continue
            for name, points in values.items():
                known = [(length, y) for length, y in zip(lengths, points, strict=True) if y is not None]
                for (before, fast), (after, slow) in pairwise(known):
                    if slow < CLIFF * fast:
                        found.append(f"{series}: {name}, {measure}: {fast:.0f} at {before}, {slow:.0f} at {after}")
    return found


def plot(book: Book, path: Path) -> None:
    """A column for each series, a row for each measure, a line for everyone."""
    from matplotlib.figure import Figure  # the extra `plot`; no window and no global state

    series = _series(book)
    figure = Figure(figsize=(3.2 * max(len(series), 1), 2.6 * len(MEASURES)), layout="constrained")
    grid = figure.subplots(len(MEASURES), max(len(series), 1), squeeze=False)
    for column, (name, entries) in enumerate(series.items()):
        lengths, lines = [entry["sizes"]["L"] for entry in entries], _lines(entries)
        for row, measure in enumerate(MEASURES):
            axes = grid[row][column]
            for contestant, points in lines.get(measure, {}).items():
                wide = 2.0 if contestant == "ours" else 1.0
                heights = [float("nan") if y is None else y for y in points]
                axes.plot(lengths, heights, marker="o", markersize=3, linewidth=wide, label=contestant)
            axes.set_xscale("log", base=2)
            if measure.startswith("peak"):
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            if row == 0:
                axes.set_title(name, fontsize=8)
            if column == 0:
                axes.set_ylabel(measure, fontsize=8)
            if row == len(MEASURES) - 1:
                axes.set_xlabel("rows of a document", fontsize=8)
    if series:
        grid[0][0].legend(fontsize=6)
    figure.suptitle(f"attention, {ROWS} rows, width {WIDTH}: {book['device']}, {book['dtype']}, {book['commit']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
