"""One training step, ours against `LlamaForCausalLM` of transformers, in one process.

    python -m benchmarks.training_vs_transformers [--profile] [--json] [--out FILE]

A step is what a trainer does: forward, backward, clip the gradient to norm 1, fused AdamW, clear the gradient. Both
models are the 100m architecture in fp32 on the CPU, begin with the same weights and read the same random tokens; their
losses must stay together, or the times compare different things. Steps alternate, and which one goes first alternates
too, so that whatever else the machine does meets both. The result is the ratio of the medians, above 1 where ours is
faster. `--profile` adds where each spends its time. Needs the extra `parity`.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.llama_peer import LlamaOptimizer, architecture, as_llama, loss_of_llama
from benchmarks.record import publish, record
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Decoder
from pixelcore.ops import REFERENCE
from pixelcore.packed import Packed
from train.config import OptimizerConfig
from train.optimizer import AdamW

CONFIG = architecture("100m")
OPTIMIZER = OptimizerConfig(learning_rate=3e-4)
ROWS, TOKENS = 2, 256
LARGEST_LOSS_DIFFERENCE = 1e-3
PROFILED_STEPS = 5

Step = Callable[[Tensor, Tensor], float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each, after two that are not timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="then trace further steps of each, operator by operator")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    steps = {"ours": (ours := OurStep()), "transformers": LlamaStep(ours.model)}
    batches = [draw_batch(seed) for seed in range(options.steps + 2)]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for index, batch in enumerate(batches):
        for name in list(steps)[:: 1 if index % 2 else -1]:
            start, start_cpu = time.perf_counter(), time.process_time()
            losses[name].append(steps[name](*batch))
            if index >= 2:
                seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name].append(time.process_time() - start_cpu)
        print(f"step {index - 1} of {options.steps}" if index >= 2 else "warm-up", file=sys.stderr)
    median, cpu_median = (
        {name: statistics.median(values) for name, values in kind.items()} for kind in (seconds, cpu_seconds)
    )
    apart = max(abs(one - other) for one, other in zip(losses["ours"], losses["transformers"], strict=True))
    assert apart < LARGEST_LOSS_DIFFERENCE, f"the losses are {apart:.2e} apart: the two do not compute the same"

    result: dict[str, Any] = record(["torch", "transformers"], options.threads) | {
        "what": "training step: forward, backward, clip, fused AdamW, zero grad",
        "dtype": "float32",
        "shapes": {"rows": ROWS, "tokens": TOKENS, "parameters": sum(p.numel() for p in ours.model.parameters())},
        "ratio": median["transformers"] / median["ours"],
        "ratio_of_cpu_time": cpu_median["transformers"] / cpu_median["ours"],
        "ratio_of_each_pair": [b / a for a, b in zip(seconds["ours"], seconds["transformers"], strict=True)],
        "median_seconds": median,
        "tokens_per_second": {name: ROWS * TOKENS / value for name, value in median.items()},
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "largest_loss_difference": apart,
    }
    if options.profile:
        result["profile_ms"] = operators(steps, batches[:PROFILED_STEPS])
    publish(result, as_table(result), options.json, options.out)
    return 0


class OurStep:
    """A step of the training loop on packed rows."""

    def __init__(self) -> None:
        self.model = Decoder(CONFIG)
        initialise(self.model, seed=0)
        self.optimizer = AdamW(self.model, OPTIMIZER, REFERENCE)

    def __call__(self, ids_BT: Tensor, targets_BT: Tensor) -> float:
        packed = Packed.from_lengths([ids_BT.shape[1]] * len(ids_BT))
        scale = torch.tensor(1 / targets_BT.numel())
        out = self.model(ids_BT.flatten(), packed, targets=targets_BT.flatten(), scale=scale)
        out.loss.backward()
        self.optimizer.step(OPTIMIZER.learning_rate)
        return out.loss.item()


class LlamaStep:
    """The same step with the other library's model and PyTorch's optimizer."""

    def __init__(self, model: Decoder) -> None:
        self.llama = as_llama(model)
        self.optimizer = LlamaOptimizer(self.llama, OPTIMIZER, fused=True)

    def __call__(self, ids_BT: Tensor, targets_BT: Tensor) -> float:
        loss = loss_of_llama(self.llama, ids_BT, targets_BT)
        loss.backward()
        self.optimizer.step(OPTIMIZER.learning_rate)
        return loss.item()


def draw_batch(seed: int) -> tuple[Tensor, Tensor]:
    """Ids and targets int64 [B, T] of random text; the target is the next id."""
    generator = torch.Generator().manual_seed(seed)
    text_BT = torch.randint(4, CONFIG.vocab_size, (ROWS, TOKENS + 1), generator=generator)
    return text_BT[:, :-1].contiguous(), text_BT[:, 1:].contiguous()


def operators(steps: Mapping[str, Step], batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, dict[str, float]]:
    """Milliseconds of one step by operator, without what it calls: the median over the batches, in alternation; largest
    first, from a tenth of a millisecond."""
    samples: dict[str, defaultdict[str, list[float]]] = {name: defaultdict(list) for name in steps}
    for batch in batches:
        for name, step in steps.items():
            with profile(activities=[ProfilerActivity.CPU]) as trace:
                step(*batch)
            for event in trace.key_averages():
                samples[name][event.key].append(event.self_cpu_time_total / 1000)
    medians = {
        name: {key: round(statistics.median(values), 2) for key, values in operator.items()}
        for name, operator in samples.items()
    }
    return {
        name: dict(sorted(((key, ms) for key, ms in operator.items() if ms >= 0.1), key=lambda item: -item[1]))
        for name, operator in medians.items()
    }


def as_table(result: dict[str, Any]) -> str:
    lines = [f"{'':14}{'median s':>10}{'tokens/s':>10}{'least s':>10}"]
    for name, median in result["median_seconds"].items():
        speed, least = result["tokens_per_second"][name], min(result["seconds"][name])
        lines.append(f"{name:14}{median:10.3f}{speed:10.1f}{least:10.3f}")
    lines.append(f"ours runs at {result['ratio']:.3f} x the speed of transformers")
    lines.append(f"by processor time, which other programs disturb less: {result['ratio_of_cpu_time']:.3f} x")
    if "profile_ms" in result:
        ours, theirs = result["profile_ms"]["ours"], result["profile_ms"]["transformers"]
        lines.append(f"\n{'one step, ms in the operator itself':45}{'ours':>10}{'theirs':>14}")
        for name in sorted(ours | theirs, key=lambda name: -max(ours.get(name, 0), theirs.get(name, 0)))[:40]:
            lines.append(f"{name[:44]:45}{ours.get(name, 0):10.1f}{theirs.get(name, 0):14.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
