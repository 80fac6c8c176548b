"""What a training step of a masked autoencoder costs, and what padding costs: our model beside two others.

    python -m benchmarks.mae_step
    python -m benchmarks.mae_step --preset pixel-base --batch 2 --rounds 5 --out benchmarks/results/mae_step.json

In each round, one after another in one process: our model on packed grey strips, at three fills (the share of a row's
patches that are real); the same sizes computed as the original does (benchmarks/plain_mae.py: padding kept, three
channels, fused attention), whose time does not depend on the fill; and, where transformers is installed,
ViTMAEForPreTraining on square images of as many patches, which says whether the plain one is a fair peer. A step is
forward, backward, and clearing the gradients; optimizers are the same for all and left out, and so is dropout: the
library's fused attention has none on a CPU. Weights are fp32. Figures are medians of ratios within a round.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import presets
from benchmarks.plain_mae import PlainMAE
from benchmarks.record import publish, record
from pixelcore.config import ViTMAEConfig
from pixelcore.initialise import initialise
from pixelcore.masking import draw_masks
from pixelcore.models.vit_mae import ViTMAE
from pixelcore.patches import arrange
from train.job import read_settings

FILLS = (0.3, 0.6, 1.0)
RATIO = 0.25
TARGETS = (("plain", "1.0", 0.97), ("plain", "0.6", 1.5))


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="pixel-base")
    parser.add_argument("--batch", type=int, default=2, help="rows of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    config = read_settings(presets.load(arguments.preset), (), arguments.preset).model
    assert isinstance(config, ViTMAEConfig)
    config = replace(config, hidden_dropout=0.0, attention_dropout=0.0)
    steps = {f"ours, {fill} full": ours(config, arguments.batch, fill) for fill in FILLS}
    steps["plain"] = plain(config, arguments.batch)
    if importlib.util.find_spec("transformers") is not None:
        steps["ViTMAEForPreTraining"] = theirs(config, arguments.batch)
    for step in steps.values():  # memory is allocated, plans are made
        step()
    rounds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(arguments.rounds):
        names = list(steps)
        for name in names[number % len(names) :] + names[: number % len(names)]:  # nobody is always the first
            rounds[name].append(steps[name]())
    result: dict[str, Any] = {
        "what": f"training step of {arguments.preset}, {arguments.batch} rows of {config.num_patches} patches, fp32",
        "seconds": {name: statistics.median(times) for name, times in rounds.items()},
        "rounds": rounds,
        "plain_over_ours": {
            str(fill): statistics.median(
                a / b for a, b in zip(rounds["plain"], rounds[f"ours, {fill} full"], strict=True)
            )
            for fill in FILLS
        },
    }
    if "ViTMAEForPreTraining" in rounds:
        pairs = zip(rounds["ViTMAEForPreTraining"], rounds["plain"], strict=True)
        result["vitmae_over_plain"] = statistics.median(a / b for a, b in pairs)
    result |= record(["torch", "numpy"], arguments.threads)
    publish(result, table(result), arguments.json, arguments.out)


def rows(config: ViTMAEConfig, batch: int, fill: float) -> tuple[list[int], np.ndarray]:
    """Lengths, and masks drawn over them."""
    lengths = [max(2, round(fill * config.num_patches))] * batch
    return lengths, np.asarray(draw_masks("span", np.array(lengths), np.arange(batch), RATIO))


def ours(config: ViTMAEConfig, batch: int, fill: float) -> Callable[[], float]:
    """A step of our model on packed strips."""
    model = ViTMAE(config)
    initialise(model, 0)
    lengths, hidden = rows(config, batch, fill)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (sum(lengths), config.patch_size**2), generator=generator, dtype=torch.uint8)
    patches = arrange(pixels, lengths, torch.from_numpy(np.concatenate(list(hidden))))
    return lambda: seconds_of(model, lambda: model(patches).loss)


def plain(config: ViTMAEConfig, batch: int) -> Callable[[], float]:
    """A step as the original computes it, whatever the fill."""
    model = PlainMAE(config)
    _, hidden = rows(config, batch, 1.0)
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, config.patch_size, config.patch_size * config.num_patches)
    pixels, hidden_BL = torch.rand(shape, generator=generator), torch.from_numpy(hidden)
    real_BL = torch.ones_like(hidden_BL)
    return lambda: seconds_of(model, lambda: model(pixels, real_BL, hidden_BL))


def theirs(config: ViTMAEConfig, batch: int) -> Callable[[], float]:
    """A step of the transformers library's model on square images of as many patches."""
    from transformers import ViTMAEConfig as TheirConfig  # pyright: ignore[reportMissingImports] - an extra
    from transformers import ViTMAEForPreTraining  # pyright: ignore[reportMissingImports] - an extra

    side = round(config.num_patches**0.5) * config.patch_size
    their_config = TheirConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=config.layer_norm_eps,
        image_size=side,
        patch_size=config.patch_size,
        decoder_hidden_size=config.decoder_hidden_size,
        decoder_num_hidden_layers=config.decoder_num_layers,
        decoder_num_attention_heads=config.decoder_num_attention_heads,
        decoder_intermediate_size=config.decoder_intermediate_size,
        mask_ratio=RATIO,
        norm_pix_loss=True,
    )
    their_config._attn_implementation = "sdpa"
    model = ViTMAEForPreTraining(their_config)
    pixels = torch.rand((batch, 3, side, side), generator=torch.Generator().manual_seed(0))
    return lambda: seconds_of(model, lambda: model(pixels).loss)


def seconds_of(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> float:
    """Of one forward and backward pass."""
    start = time.perf_counter()
    loss().backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def table(result: dict[str, Any]) -> str:
    """Seconds of each, ratios against the targets."""
    lines = [result["what"], ""]
    lines += [f"{name:28}{seconds:9.3f} s" for name, seconds in result["seconds"].items()]
    lines.append("")
    for _, fill, target in TARGETS:
        ratio = result["plain_over_ours"][fill]
        verdict = "reached" if ratio >= target else "missed"
        lines.append(f"plain / ours, {fill} full{ratio:13.2f} x  target {target}: {verdict}")
    lines.append(f"plain / ours, 0.3 full{result['plain_over_ours']['0.3']:13.2f} x")
    if "vitmae_over_plain" in result:
        lines.append(f"ViTMAEForPreTraining / plain{result['vitmae_over_plain']:7.2f} x  (a fair peer: 0.95 to 1.05)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
