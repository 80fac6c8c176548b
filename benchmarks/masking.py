"""How many rows a second get their masks, beside the rules as they are written down: a loop of attempts for each row.

    python -m benchmarks.masking [--rounds N] [--json] [--out FILE]

Batches of 1,024 rows at 529 patches and ratio 0.25, one core. "packed" rows are 529 patches of text; "paper" rows hold
20 to 529 of them and are padded to 529. Seconds are those of the processor, all work being in one thread, so that what
else the machine does counts less. The loop is also what the tests compare with: given the same draws it hides the same
patches.
"""

import argparse
import bisect
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import publish, record
from pixelcore.masking import MASK_RULES, draw_masks, mix_seed

LENGTH, RATIO, BATCH = 529, 0.25, 1024
NUM_BATCHES, NUM_LOOP_ROWS = 4, 64  # in each round


class Draws(Protocol):
    """Where the loop gets its chance from."""

    def span(self) -> int:
        """The length of the next attempt's span."""
        ...

    def left(self, last: int) -> int:
        """Its left end, from 0 to `last`."""
        ...

    def noise(self, size: int) -> Sequence[float]:
        """A number for each patch."""
        ...


class PythonDraws:
    """Python's generator."""

    def __init__(self, seed: int) -> None:
        self.generator = random.Random(seed)

    def span(self) -> int:
        return 1 + bisect.bisect([0.2, 0.4, 0.6, 0.8, 0.9], self.generator.random())

    def left(self, last: int) -> int:
        return int(self.generator.random() * (last + 1))

    def noise(self, size: int) -> Sequence[float]:
        return [self.generator.random() for _ in range(size)]


def mask_by_loop(rule: str, length: int, ratio: float, padded_length: int, draws: Draws) -> list[bool]:
    """One row by the rules of specs/pixel.md, section 2.4, True = hidden; padded_length = length is packed mode."""
    count = padded_length - int(padded_length * (1 - ratio))
    if rule == "random":
        noise = list(draws.noise(padded_length))
        noise[max(range(length), key=noise.__getitem__)] = math.inf
        return _hide(noise, count)
    mask = spans_by_loop(length, padded_length, math.ceil(ratio * padded_length), rule == "span-m4", draws)
    if sum(mask) == count:
        return mask
    return _hide(list(zip(mask, draws.noise(padded_length), strict=True)), count)


def spans_by_loop(length: int, padded_length: int, wanted: int, each_span: bool, draws: Draws) -> list[bool]:
    """The span generator alone: up to `wanted` hidden patches."""
    mask = [False] * padded_length
    count = num_attempts = 0
    while count < wanted:
        for attempt in range(100):
            num_attempts += 1
            span = draws.span()
            if span >= padded_length:
                continue
            in_text = attempt == 0 if each_span else num_attempts == 1
            left = draws.left(max(0, length - span) if in_text else padded_length - span)
            if any(mask[max(0, left - span) : left]) or any(mask[left + span : left + 2 * span]):
                continue
            new = span - sum(mask[left : left + span])
            if 0 < new <= min(wanted - count, 6):
                mask[left : left + span] = [True] * span
                count += new
                break
        else:
            break
    return mask


def _hide(keys: Sequence[Any], count: int) -> list[bool]:
    """The `count` patches with the largest keys."""
    hidden = set(sorted(range(len(keys)), key=keys.__getitem__)[len(keys) - count :])
    return [patch in hidden for patch in range(len(keys))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="each of them measures everything once")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()

    cases = [(rule, mode) for rule in MASK_RULES for mode in ("packed", "paper")]
    ours: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    loop: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for number in range(options.rounds):
        for case in cases:
            ours[case].append(rate(lambda case=case, number=number: draw(*case, number), NUM_BATCHES * BATCH))
            loop[case].append(rate(lambda case=case, number=number: draw_by_loop(*case, number), NUM_LOOP_ROWS))
    result: dict[str, Any] = record(["numpy"], threads=1) | {
        "what": f"masks of {LENGTH} patches, ratio {RATIO}, batches of {BATCH} rows: "
        "rows a second of processor time, medians",
        "rounds": options.rounds,
        "masks": [
            {
                "rule": rule,
                "mode": mode,
                "rows_per_second": round(statistics.median(ours[rule, mode])),
                "loop_rows_per_second": round(statistics.median(loop[rule, mode])),
                "of_each_round": [round(speed) for speed in ours[rule, mode]],
                "loop_of_each_round": [round(speed) for speed in loop[rule, mode]],
            }
            for rule, mode in cases
        ],
    }
    publish(result, as_table(result["masks"]), options.json, options.out)
    return 0


def rate(work: Callable[[], None], num_rows: int) -> float:
    begin = time.process_time()
    work()
    return num_rows / (time.process_time() - begin)


def draw(rule: str, mode: str, number: int) -> None:
    for batch in range(NUM_BATCHES):
        seeds = mix_seed(number, np.arange(batch * BATCH, (batch + 1) * BATCH))
        draw_masks(rule, lengths(mode, BATCH), seeds, RATIO, None if mode == "packed" else LENGTH)


def draw_by_loop(rule: str, mode: str, number: int) -> None:
    for row, length in enumerate(lengths(mode, NUM_LOOP_ROWS)):
        mask_by_loop(rule, int(length), RATIO, LENGTH, PythonDraws(number * NUM_LOOP_ROWS + row))


def lengths(mode: str, num_rows: int) -> np.ndarray:
    return np.full(num_rows, LENGTH) if mode == "packed" else np.linspace(20, LENGTH, num_rows).astype(np.int64)


def as_table(masks: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'rule':10}{'mode':8}{'rows/s':>10}{'loop':>9}{'times':>7}"]
    for one in masks:
        ours, loop = one["rows_per_second"], one["loop_rows_per_second"]
        lines.append(f"{one['rule']:10}{one['mode']:8}{ours:10,}{loop:9,}{ours / loop:7.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
