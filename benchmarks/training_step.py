"""Training steps end to end: our kernels against the same models as a PyTorch user would make them fast.

    python -m benchmarks.training_step --data texts/ [--preset 100m] [--out benchmarks/results/training_step.json]
    TRITON_INTERPRET=1 python -m benchmarks.training_step --smoke      a step or two of tiny models, on a CPU

A step is what `train` does: every micro-batch forward and backward, the gradient clipped, AdamW. Both sides are the
preset's model with the same weights, batches and learning rate, in bf16:

    ours    --ops fused
    peer    the reference model under torch.compile, with the library's fused functions in bf16, the fastest attention
            that takes these batches (chosen by timing: packed FlashAttention-2, cuDNN where documents are of one
            length, SDPA length by length), and torch's fused AdamW

They take turns in blocks of steps, so that both meet the same clocks; a block is timed by the host's clock between two
waits for the device. Everything is done twice: with batches that lie ready on the device, where only the models count,
and with the real loader. MFU counts the operations of these very batches, padding and what is hidden left out, over
989 TFLOP/s, the data sheet's, and over 790, what a large product reaches. The first losses must agree, or the sides
compute different things.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import presets
from benchmarks.record import publish, record
from benchmarks.training_peer import Heads, best_attention, peer_record
from pixelcore.accounting import flops_per_token
from pixelcore.accounting_pixar import flops_per_patch
from pixelcore.accounting_vit import strip_flops
from pixelcore.config import DecoderConfig, PixarConfig, ViTMAEConfig
from pixelcore.errors import UserError
from pixelcore.packed import Packed
from train.distributed import Ranks, join
from train.job import Job, new_job, read_settings
from train.run_folder import RunFolder

PEAKS = {"989": 989e12, "790": 790e12}  # of an H200 in bf16: the data sheet's, and a measured product's
LARGEST_LOSS_DIFFERENCE = 0.03  # relative; both sides drop other elements, and round elsewhere


@dataclass(frozen=True)
class Target:
    """Times the peer's speed; MFU over 989 TFLOP/s; and what would be splendid."""

    ratio: float
    mfu: float
    moonshot: float


TARGETS = {
    "100m": Target(1.2, 0.43, 0.48),
    "pixel-base": Target(1.4, 0.40, 0.45),
    "pixar-85m": Target(1.3, 0.45, 0.52),
}
SHAPES: dict[str, tuple[str, ...]] = {  # one micro-batch a step, the shapes of the targets
    "100m": ("data.tokens_per_step=32768", "run.micro_batch_blocks=32"),
    "pixel-base": ("run.micro_batch_blocks=256",),
    "pixar-85m": ("run.micro_batch_blocks=384",),
}
SMOKE: dict[str, tuple[str, ...]] = {
    "smoke": ("data.block_size=32", "data.tokens_per_step=32", "run.micro_batch_blocks=1", "model.num_layers=1"),
    "pixel-smoke": ("data.rows_per_step=1", "run.micro_batch_blocks=1", "model.num_layers=1", "eval.read_rows=0"),
    "pixar-smoke": ("data.rows_per_step=1", "run.micro_batch_blocks=1", "model.num_layers=1"),
}
_QUIET = ("eval.picture_rows=0", "eval.max_rows=1", "data.valid_share=0.1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON. Status 1 where a target that was measured is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help=f"may be repeated ({', '.join(SHAPES)})")
    parser.add_argument("--data", action="append", metavar="PATH", help="text; the interpreter's own where absent")
    parser.add_argument("--warm-up", type=int, default=20, help="steps of each side before any is timed")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each side")
    parser.add_argument("--block", type=int, default=20, help="steps between two looks at the clock")
    parser.add_argument("--staged", type=int, default=2, help="different batches that lie ready on the device")
    parser.add_argument("--smoke", action="store_true", help="a step or two of tiny models, nothing compiled")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.warm_up, options.steps, options.block, options.staged = 0, 1, 1, 1
    ranks = join("cpu" if options.smoke else "cuda")
    if ranks.world > 1:
        raise UserError("this measures one device: run it without torchrun")
    torch.set_float32_matmul_precision("highest")
    result: dict[str, Any] = record(["torch"]) | {
        "what": "training steps, end to end",
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
        "presets": {},
    }
    for name in options.preset or (SMOKE if options.smoke else SHAPES):
        result["presets"][name] = measure_preset(name, options, ranks)
        print(f"{name}: done", file=sys.stderr)
    publish(result, table(result), options.json, options.out)
    missed = "MISSED" in table(result)
    return 1 if missed and not options.smoke else 0


def measure_preset(name: str, options: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Both sides of one preset, with staged batches and with the loader."""
    with tempfile.TemporaryDirectory() as folder:
        changes = (*_QUIET, *(SMOKE if options.smoke else SHAPES).get(name, ()))
        ours = assemble(name, options.data, changes, "fused", ranks, Path(folder) / "ours")
        theirs = assemble(name, options.data, changes, "reference", ranks, Path(folder) / "theirs")
        try:
            return _measured(Side(ours), Side(theirs, peer=True, compiled=not options.smoke), options)
        finally:
            ours.batches.close()
            theirs.batches.close()


def assemble(
    name: str, data: Sequence[str] | None, changes: Sequence[str], ops: str, ranks: Ranks, folder: Path
) -> Job:
    """A run of the preset, as `train` begins it."""
    known = [x for x in changes if _has_field(name, x)]
    settings = read_settings(presets.load(name), known, name)
    if data:
        settings = replace(settings, data=replace(settings.data, paths=tuple(data)))
    job = new_job(settings, RunFolder(folder), ranks, ops, None)
    job.module.train()
    return job


def _has_field(preset: str, change: str) -> bool:
    """Whether the preset's tables have the field of an override: objectives differ in what they show."""
    table, _, field = change.partition("=")[0].partition(".")
    return hasattr(getattr(read_settings(presets.load(preset), (), preset), table), field)


class Side:
    """A run that takes steps: with our kernels, or as the peer."""

    def __init__(self, job: Job, peer: bool = False, compiled: bool = False) -> None:
        self.job, self.compiled = job, compiled
        self.module: Any = job.module
        self.is_peer, self.attention = peer, "fused"
        self.taken = 0

    def dress(self, batch: Any) -> None:
        """Make the peer's record and compile it: which attention is best is seen at a batch."""
        if not self.is_peer:
            return
        model = self.job.model
        heads = heads_of(model.config, batch)
        self.attention, attend = best_attention(heads, self.job.ranks.device, model.compute_dtype)
        model.ops = peer_record(attend)
        if self.compiled:  # pragma: gpu
            torch._dynamo.config.cache_size_limit = 64  # the loader's batches differ in shape
            self.module = torch.compile(model)

    def step(self, micro_batches: Sequence[Any], num_targets: int) -> Tensor:
        """One optimizer step; the reported loss, on the device."""
        job, device = self.job, self.job.ranks.device
        scale = torch.full((), 1 / num_targets, device=device)
        seed = torch.tensor([job.settings.run.seed, self.taken], device=device)
        losses = []
        for batch in micro_batches:
            loss = job.objective.loss(self.module, batch, scale, seed)
            loss.total.backward()
            losses.append(loss.reported.detach())
        job.optimizer.step(job.settings.optimizer.learning_rate / 100)
        self.taken += 1
        return torch.stack(losses).sum()

    def load(self, step: int) -> tuple[list[Any], int]:
        """The micro-batches of a step from the real loader, and its targets."""
        batches, device = self.job.batches, self.job.ranks.device
        return [batches.micro_batch(step, index, device) for index in range(batches.per_rank)], batches.num_targets(
            step
        )


def _measured(ours: Side, theirs: Side, options: argparse.Namespace) -> dict[str, Any]:
    sides, job = {"ours": ours, "peer": theirs}, ours.job
    staged = [ours.load(step) for step in range(options.staged)]
    theirs.dress(staged[0][0][0])
    first = {name: float(side.step(*staged[0])) for name, side in sides.items()}
    apart = abs(first["ours"] - first["peer"]) / abs(first["peer"])
    if apart > LARGEST_LOSS_DIFFERENCE:
        raise RuntimeError(f"the losses are {first}: the two do not compute the same")
    flops = [sum(flops_of(job.settings, batch) for batch in batches) for batches, _ in staged]
    result: dict[str, Any] = {
        "unit": job.objective.UNIT,
        "units_per_step": job.units_per_step,
        "flops_per_step": statistics.mean(flops),
        "peer": f"{'compiled' if theirs.compiled else 'eager'}, {theirs.attention}",
        "first_losses": first,
    }
    for mode in ("staged", "loader"):
        taken = {name: _blocks(side, mode, staged) for name, side in sides.items()}
        for name, block in taken.items():
            for _ in range(options.warm_up and -(-options.warm_up // options.block)):
                block(options.block)
            _forget_peak(sides[name].job.ranks.device)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        peaks = dict.fromkeys(sides, 0)
        for _ in range(max(1, options.steps // options.block)):
            for name, block in taken.items():
                _forget_peak(job.ranks.device)
                seconds[name].append(block(options.block) / options.block)
                peaks[name] = max(peaks[name], _peak(job.ranks.device))
        result[mode] = _summary(result, seconds, peaks)
    return result


def _blocks(side: Side, mode: str, staged: Sequence[tuple[list[Any], int]]) -> Callable[[int], float]:
    """Takes so many steps and gives the seconds they took."""
    begun = len(staged)

    def block(count: int) -> float:
        nonlocal begun
        device = side.job.ranks.device
        _wait(device)
        start = time.perf_counter()
        for _ in range(count):
            side.step(*(staged[begun % len(staged)] if mode == "staged" else side.load(begun)))
            begun += 1
        _wait(device)
        return time.perf_counter() - start

    return block


def _summary(found: dict[str, Any], seconds: dict[str, list[float]], peaks: dict[str, int]) -> dict[str, Any]:
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "seconds": seconds,
        "median_seconds": median,
        "units_per_second": {name: found["units_per_step"] / x for name, x in median.items()},
        "mfu": {
            name: {peak: found["flops_per_step"] / x / flops for peak, flops in PEAKS.items()}
            for name, x in median.items()
        },
        "peak_bytes": peaks,
        "ratio": median["peer"] / median["ours"],
    }


# ------------------------------------------------------------------ what a batch holds


def structures(batch: Any) -> list[Packed]:
    """Over which attention runs: of a masked autoencoder the encoder's rows and the decoder's."""
    if hasattr(batch, "packed"):
        return [batch.packed]
    patches = batch.patches
    return [patches.kept, patches.decoded] if hasattr(patches, "kept") else [patches.packed]


def heads_of(config: Any, batch: Any) -> list[Heads]:
    """What attention gets of a micro-batch."""
    found = structures(batch)
    if isinstance(config, DecoderConfig):
        sizes = (config.num_attention_heads, config.num_key_value_heads, config.head_size)
        return [Heads(found[0], *sizes, "causal", config.attention_dropout)]
    if isinstance(config, ViTMAEConfig):
        encoder = (config.num_attention_heads, config.hidden_size)
        decoder = (config.decoder_num_attention_heads, config.decoder_hidden_size)
        return [
            Heads(packed, heads, heads, width // heads, "full", config.attention_dropout)
            for packed, (heads, width) in zip(found, (encoder, decoder), strict=True)
        ]
    heads = config.num_attention_heads
    return [Heads(found[0], heads, heads, config.hidden_size // heads, "causal", 0.0)]


def flops_of(settings: Any, batch: Any) -> float:
    """Operations of this very micro-batch, forward and backward: what is padding, or hidden, is not there."""
    config, found = settings.model, structures(batch)
    if isinstance(config, DecoderConfig):
        return sum(length * flops_per_token(config, length) for length in found[0].lengths)
    if isinstance(config, ViTMAEConfig):
        pairs = zip(found[0].lengths, found[1].lengths, strict=True)  # both count CLS
        return sum(strip_flops(config, whole - 1, whole - kept, settings.render.channels) for kept, whole in pairs)
    assert isinstance(config, PixarConfig)
    return sum(length * flops_per_patch(config, length) for length in found[0].lengths)


# ------------------------------------------------------------------ the device, the table


def _wait(device: torch.device) -> None:
    if device.type == "cuda":  # pragma: gpu
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":  # pragma: gpu
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['device']}, commit {result['commit']}, {result['date']}"]
    for name, found in result["presets"].items():
        lines.append(f"\n{name}, peer: {found['peer']}")
        lines.append(f"  {'':16}{'step ms':>10}{found['unit'] + '/s':>12}{'MFU 989':>9}{'MFU 790':>9}{'peak GB':>9}")
        for mode in ("staged", "loader"):
            values = found[mode]
            for side in ("ours", "peer"):
                mfu = values["mfu"][side]
                lines.append(
                    f"  {mode + ', ' + side:16}{values['median_seconds'][side] * 1e3:10.2f}"
                    f"{values['units_per_second'][side]:12.0f}{mfu['989']:9.1%}{mfu['790']:9.1%}"
                    f"{values['peak_bytes'][side] / 1e9:9.1f}"
                )
            lines.append(f"  {mode}: {values['ratio']:.3f} x the peer's speed")
        if name in TARGETS:
            lines += [f"  {line}" for line in verdicts(TARGETS[name], found["staged"])]
    return "\n".join(lines)


def verdicts(target: Target, values: dict[str, Any]) -> list[str]:
    """What was promised beside what was measured, with batches that lie ready."""
    ratio, mfu = values["ratio"], values["mfu"]["ours"]["989"]
    moonshot = "reached" if mfu >= target.moonshot else "not reached"
    return [
        f"over the peer >= {target.ratio:.2f}x: {ratio:.2f}x {'kept' if ratio >= target.ratio else 'MISSED'}",
        f"MFU of 989 >= {target.mfu:.0%}: {mfu:.1%} {'kept' if mfu >= target.mfu else 'MISSED'}, "
        f"moonshot {target.moonshot:.0%} {moonshot}",
    ]


if __name__ == "__main__":
    sys.exit(main())
