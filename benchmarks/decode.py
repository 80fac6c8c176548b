"""Tokens and patches a second: steps replayed as a CUDA graph, the loop token by token, and a compiled peer.

    python -m benchmarks.decode [--family decoder pixar] [--batch 1 16 64] [--json] [--out FILE]
    python -m benchmarks.decode --smoke            tiny shapes on a CPU: whether all write the same, no speed

The `100m` decoder at a context of 512 and `pixar-85m` at 360 hold random weights in bf16, read the same random prompts,
which end a little short of the context, and write on to its end, always the likeliest:

    steps       what `--ops fused` does: five kernels a layer, sixteen steps a graph, one copy to the host for each
    loop        the model's own forward pass for each token, on the reference operations, ids chosen on the host
    compiled    plain PyTorch with a static cache, torch.compile(mode="reduce-overhead"): `compiled_decode_peer.py`

Prompts are read before the clock starts. Everybody's choices are compared before anything is timed, up to the first one
that rounding decides: there the two candidates must be nearer than what rounding makes of the logits. Runs alternate,
so that whatever else the machine does meets everybody; the result is the median. Bytes moved are the weights once a
step and what the cache holds on average; their share of 4.3 TB/s, which a copy reaches on an H200, is called MBU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import presets
from benchmarks.compiled_decode_peer import PlainDecoder, PlainPixar
from benchmarks.record import publish, record
from infer.step_loop import GROUP, StepLoop
from kernels import choose_ops, step_ops_of
from pixelcore.config import DecoderConfig, PixarConfig
from pixelcore.decode_step import PatchSteps, TokenSteps
from pixelcore.initialise import initialise
from pixelcore.kv_cache import KVCache
from pixelcore.models.decoder import Decoder
from pixelcore.models.pixar import Pixar
from pixelcore.step_ops import STEP_REFERENCE, StepOps
from train.job import read_settings

BYTES_PER_SECOND = 4.3e12
PRESETS = {"decoder": "100m", "pixar": "pixar-85m"}
CONTEXT = 512  # of the decoder, whose preset has room for twice that
TINY = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
_GREEDY = (0.0, 0, 1.0, 0.0, 1.0)


@dataclass(frozen=True)
class Setting:
    """Where, how and how much."""

    device: torch.device
    dtype: torch.dtype
    ops: StepOps
    smoke: bool
    new: int
    runs: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=tuple(PRESETS), default=list(PRESETS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--new", type=int, default=4 * GROUP, help="written behind the prompts (%(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each, after two that are not timed")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on a CPU, nothing compiled")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args(arguments)
    if options.smoke:
        setting = Setting(torch.device("cpu"), torch.float32, STEP_REFERENCE, smoke=True, new=6, runs=1)
        options.batch = [2]
    elif not torch.cuda.is_available():
        parser.error("it measures a CUDA device, and there is none here; --smoke checks it on a CPU")
    else:
        device = torch.device("cuda")
        ops = step_ops_of(choose_ops(device, "fused"))
        assert ops is not None
        setting = Setting(device, torch.bfloat16, ops, smoke=False, new=options.new, runs=options.runs)
    rows = [row for family in options.family for batch in options.batch for row in measured(family, batch, setting)]
    result = {
        "what": "the likeliest token or patch, to the end of the context, random weights",
        "smoke": options.smoke,
        "device": "cpu" if options.smoke else torch.cuda.get_device_name(),
        "dtype": str(setting.dtype).removeprefix("torch."),
        "new": setting.new,
        "bytes_per_second_of_a_copy": BYTES_PER_SECOND,
        "rows": rows,
    } | record(("torch",), torch.get_num_threads())
    publish(result, table(rows, options.smoke), options.json, options.out)


@torch.no_grad()
def measured(family: str, batch: int, setting: Setting) -> list[dict[str, Any]]:
    """Everybody at one batch size."""
    model, wide = models(family, setting)
    race = Tokens(model, batch, setting) if isinstance(model, Decoder) else Patches(model, batch, setting)
    contestants: dict[str, Callable[[], Tensor]] = {
        "steps": race.write_steps,
        "loop": race.write_loop,
        "compiled": race.write_compiled,
    }
    written = {name: write() for name, write in contestants.items()}
    agreement = {name: compare(race, wide, written["steps"], each) for name, each in written.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in range(setting.runs + 1):
        for name, write in contestants.items():
            start = time.perf_counter()
            write()  # which ends with a copy to the host
            if run:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) / setting.new for name, values in seconds.items()}
    return [
        {
            "family": family,
            "batch": batch,
            "context": race.context,
            "who": name,
            "per_second": batch / each,
            "step_us": each * 1e6,
            "steps_are_faster_by": each / medians["steps"],
            "bytes_per_step": race.bytes_per_step,
            "share_of_bandwidth": race.bytes_per_step / each / BYTES_PER_SECOND,
            "seconds": seconds[name],
            "agreement": agreement[name],
        }
        for name, each in medians.items()
    ]


def models(family: str, setting: Setting) -> tuple[Decoder | Pixar, Decoder | Pixar]:
    """The model, and one that holds the same weights and computes in fp32."""
    config = read_settings(presets.load(PRESETS[family]), (), f"preset {PRESETS[family]}").model
    if isinstance(config, DecoderConfig):
        config = replace(config, context_length=CONTEXT)
        if setting.smoke:
            config = replace(config, **TINY, num_key_value_heads=2, vocab_size=97, context_length=24)
    assert isinstance(config, DecoderConfig | PixarConfig)
    if isinstance(config, PixarConfig) and setting.smoke:
        config = replace(config, **TINY, max_patches=24)
    model, wide = (Decoder(config) if isinstance(config, DecoderConfig) else Pixar(config) for _ in range(2))
    initialise(model, seed=0)
    for name, weight in model.named_parameters():  # as a fresh model begins it hardly looks at what it reads
        weight *= 3 if name.endswith(("qkv.weight", "out.weight", "down.weight")) else 1
    model.compute_dtype = setting.dtype
    model.to(setting.device, setting.dtype).eval()
    wide.load_state_dict(model.state_dict())
    return model, wide.to(setting.device).eval()


class Race:
    """One model at one batch size: the same prompts, read by everybody, and what each writes behind them."""

    steps: TokenSteps | PatchSteps
    first_said: tuple[Any, ...]  # by the model behind the prompts, for `begin` of the steps
    peer_first: Tensor  # by the peer, [B, 1] and so on

    def __init__(self, model: Decoder | Pixar, context: int, batch: int, setting: Setting) -> None:
        self.context, self.batch, self.setting = context, batch, setting
        self.held = context - setting.new
        self.parameters = sum(weight.numel() for weight in model.parameters())
        self.caches = [model.new_cache(batch, context) for _ in range(2)]
        self.prompt_places = torch.arange(self.held, device=setting.device)
        self.places = torch.arange(self.held, context, device=setting.device)[:, None]

    @property
    def bytes_per_step(self) -> float:
        """Weights once, and of the cache what is held on average."""
        keys, num_layers = self.caches[0].layers[0].keys, len(self.caches[0].layers)
        per_place = 2 * num_layers * keys.shape[1] * keys.shape[3]
        values = self.parameters + self.batch * per_place * (self.held + self.setting.new / 2)
        return values * keys.element_size()

    def start(self, steps: TokenSteps | PatchSteps, peer: PlainDecoder | PlainPixar, prompts: Tensor) -> None:
        """Let the peer read the prompts."""
        self.steps, self.step_loop = steps, StepLoop(steps)
        self.peer_first = peer(prompts, self.prompt_places)
        self.peer = (
            peer if self.setting.smoke else torch.compile(peer, mode="reduce-overhead", fullgraph=True, dynamic=False)
        )

    def write_steps(self) -> Tensor:
        """The loop of `infer`, less what it makes of ids: on the host, [new, B] and so on, as of the others."""
        first = self.steps.begin(*self.first_said, seeds=[0] * self.batch)
        return torch.cat([group[0] for group in self.step_loop.groups(first, self.setting.new - 1)])

    def write_compiled(self) -> Tensor:
        """The peer's loop."""
        found = [self.peer_first]
        for place in self.places[: self.setting.new - 1]:
            found.append(self.peer(found[-1], place).clone())  # the next replay writes where this result lies
        return torch.cat(found, dim=1).transpose(0, 1).cpu()


class Tokens(Race):
    """The decoder's."""

    def __init__(self, model: Decoder, batch: int, setting: Setting) -> None:
        super().__init__(model, model.config.context_length, batch, setting)
        generator = torch.Generator().manual_seed(batch)
        prompts = torch.randint(4, model.config.vocab_size, (batch, self.held), generator=generator)
        self.model, self.prompts = model, prompts.to(setting.device)
        self.first_said = tuple(self._read(cache, self.prompts) for cache in self.caches)[:1]
        self.start(
            TokenSteps(model, self.caches[0], setting.ops, _GREEDY),
            PlainDecoder(model, batch, self.context),
            self.prompts,
        )

    def _read(self, cache: KVCache, ids_BT: Tensor) -> Tensor:
        packed = cache.begin([ids_BT.shape[1]] * self.batch, self.setting.device)
        logits_BV = self.model(ids_BT.flatten(), packed, cache=cache, last_only=True).logits
        assert logits_BV is not None
        return logits_BV

    def write_loop(self) -> Tensor:
        """The loop of `infer` where nothing is fused: each id comes to the host before the next is asked for."""
        cache, found = self.caches[1], [self.first_said[0].argmax(-1).tolist()]
        cache.lengths = [self.held] * self.batch
        while len(found) < self.setting.new:
            ids_B1 = torch.tensor(found[-1], device=self.setting.device)[:, None]
            found.append(self._read(cache, ids_B1).argmax(-1).tolist())
        return torch.tensor(found)

    def said(self, model: Any, row: int, written: Tensor) -> Tensor:
        """Of a model behind a prompt and what was written there: [V], on the host."""
        ids_1T = torch.cat((self.prompts[row], written.to(self.setting.device)))[None]
        return model(ids_1T).logits[0, -1].float().cpu()

    def gap(self, said: Tensor, one: Tensor, other: Tensor) -> float:
        return (said[one] - said[other]).abs().item()


class Patches(Race):
    """PIXAR's."""

    def __init__(self, model: Pixar, batch: int, setting: Setting) -> None:
        super().__init__(model, model.config.max_patches, batch, setting)
        generator = torch.Generator().manual_seed(batch)
        paper = torch.rand(batch, self.held, model.config.patch_values, generator=generator) < 0.8
        self.model, self.prompts = model, (paper.to(torch.uint8) * 255).to(setting.device)
        self.first_said = *(self._read(cache, self.prompts) for cache in self.caches[:1]), None
        self._read(self.caches[1], self.prompts)
        self.start(
            PatchSteps(model, self.caches[0], setting.ops, "threshold", stop=False, temperature=1.0),
            PlainPixar(model, batch, self.context),
            (self.prompts / 255).to(setting.dtype),
        )

    def _read(self, cache: KVCache, pixels_BLA: Tensor) -> Tensor:
        lengths = [pixels_BLA.shape[1]] * self.batch
        return self.model.read(pixels_BLA.flatten(0, 1), lengths, cache, last_only=True).components

    def write_loop(self) -> Tensor:
        """The same as of tokens; on the host `infer` looks for an end."""
        cache, odds_BZA, found = self.caches[1], self.first_said[0], []
        cache.lengths = [self.held] * self.batch
        while True:
            found.append((odds_BZA[:, 0] > 0).to("cpu", torch.uint8) * 255)
            if len(found) == self.setting.new:
                return torch.stack(found)
            odds_BZA = self._read(cache, found[-1].to(self.setting.device)[:, None])

    def write_compiled(self) -> Tensor:
        return (super().write_compiled() * 255).to(torch.uint8)

    def said(self, model: Any, row: int, written: Tensor) -> Tensor:
        """Of a model behind a prompt and what was written there: the log-odds [A], on the host."""
        pixels = torch.cat((self.prompts[row], written.to(self.setting.device)))
        return model.read(pixels, [len(pixels)], last_only=True).components[0, 0].float().cpu()

    def gap(self, said: Tensor, one: Tensor, other: Tensor) -> float:
        return said[one != other].abs().max().item()


def compare(race: Tokens | Patches, wide: Decoder | Pixar, ours: Tensor, other: Tensor) -> dict[str, float]:
    """Both must write the same, in every row, up to the first choice that rounding decides.

    Rounding moves the logits of either by about as much as those of the model's own forward pass, which fp32 tells; a
    difference of two of them by four times that. Behind such a place the two write different texts.
    """
    equal, widest = 0, 0.0
    for row in range(race.batch):
        differ = (ours[:, row] != other[:, row]).flatten(1) if ours.dim() == 3 else ours[:, row] != other[:, row]
        differ = differ.any(1) if differ.dim() == 2 else differ
        same = int(differ.int().argmax()) if differ.any() else len(ours)
        equal += same
        if same < len(ours):
            exact, rounded = (race.said(model, row, ours[:same, row]) for model in (wide, race.model))
            budget = 4 * (exact - rounded).abs().max().item() + 1e-5
            gap = race.gap(exact, ours[same, row], other[same, row])
            assert gap <= budget, f"place {same} of row {row}: {gap:.2e} apart, more than rounding's {budget:.2e}"
            widest = max(widest, gap)
    return {"equal": equal, "of": race.batch * len(ours), "widest_gap_at_a_difference": widest}


def table(rows: Sequence[dict[str, Any]], smoke: bool) -> str:
    """Of a smoke test no times."""
    lines = [f"{'family':9}{'batch':>6}{'context':>9}  {'who':10}{'the same':>12}"]
    lines[0] += "" if smoke else f"{'per second':>13}{'us a step':>11}{'MBU':>7}"
    for row in rows:
        same = f"{row['agreement']['equal']} of {row['agreement']['of']}"
        line = f"{row['family']:9}{row['batch']:6}{row['context']:9}  {row['who']:10}{same:>12}"
        if not smoke:
            line += f"{row['per_second']:13,.0f}{row['step_us']:11.1f}{row['share_of_bandwidth']:7.1%}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
