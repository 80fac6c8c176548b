"""What the counts of the models of strips say, against the models. The decoder's are tested beside it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pixelcore.accounting import num_parameters
from pixelcore.accounting_vit import published_parameters, strip_flops, strip_training_bytes
from pixelcore.config import ViTMAEConfig, ViTTaskConfig
from pixelcore.initialise import initialise
from pixelcore.models import MODELS
from pixelcore.models.vit_mae import ViTMAE
from pixelcore.patches import Patches, arrange

ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": {"num_layers": 12, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "small": {"num_layers": 12, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"num_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
DECODERS = {"tiny": (4, 132, 3, 512), "small": (4, 264, 6, 1056), "base": (8, 512, 16, 2048)}


def published(size: str, **changes: Any) -> ViTMAEConfig:
    layers, width, heads, hidden = DECODERS[size]
    decoder: dict[str, Any] = {
        "decoder_num_layers": layers,
        "decoder_hidden_size": width,
        "decoder_num_attention_heads": heads,
        "decoder_intermediate_size": hidden,
    }
    return ViTMAEConfig(**(ENCODERS[size] | decoder | changes))


CONFIG = ViTMAEConfig(
    patch_size=8,
    num_patches=64,
    num_layers=2,
    hidden_size=64,
    num_attention_heads=4,
    intermediate_size=160,
    decoder_num_layers=3,
    decoder_hidden_size=32,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=96,
)


def counted(config: ViTMAEConfig | ViTTaskConfig) -> tuple[int, int]:
    """Trainable parameters, and all that is stored."""
    with torch.device("meta"):
        model = MODELS[config.kind](config)  # type: ignore[arg-type]
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    return sum(parameter.numel() for parameter in model.parameters()), stored


def test_the_published_size_of_pixel_base():
    config = published("base")
    assert published_parameters(config) == 112_334_080
    assert num_parameters(config) == 112_334_080 - 678_400
    with torch.device("meta"):
        encoder = ViTMAE(config).encoder.state_dict()
    assert sum(tensor.numel() for tensor in encoder.values()) == 86_054_400


@pytest.mark.parametrize("size, millions", [("tiny", (5.6, 1.0)), ("small", (21.8, 3.8))])
def test_the_smaller_published_sizes(size, millions):
    with torch.device("meta"):
        model = ViTMAE(published(size))
    for part, expected in zip((model.encoder, model.decoder), millions):
        assert sum(x.numel() for x in part.state_dict().values()) / 1e6 == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"num_channels": 1, "num_patches": 50}])
def test_accounting_counts_the_parameters_there_are(changes):
    config = published("tiny", **changes)
    assert (num_parameters(config), published_parameters(config)) == counted(config)


HEADS: list[dict[str, Any]] = [
    *({"task": "sequence", "pooling": pooling} for pooling in ("mean", "max", "cls", "pma4")),
    {"task": "sequence", "pooling": "mean", "pooler_norm": False},
    {"task": "sequence", "pooling": "cls", "pooler_norm": False},
    {"task": "sequence", "pooling": "pma2", "pooler_norm": False},
    {"task": "token"},
    {"task": "qa", "num_labels": 2},
    {"task": "parser"},
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: "-".join(map(str, head.values())))
def test_accounting_counts_the_parameters_of_each_head(head):
    fields = {"num_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40, "num_labels": 7}
    config = ViTTaskConfig(patch_size=4, num_patches=9, **(fields | head))
    assert (num_parameters(config), published_parameters(config)) == counted(config)


# ------------------------------------------------------------------ a step


def strips(num_strips: int, num_patches: int, num_hidden: int) -> Patches:
    pixels = torch.randint(256, (num_strips * num_patches, 64), generator=torch.Generator().manual_seed(0))
    hidden = torch.arange(num_patches) < num_hidden
    return arrange(pixels.to(torch.uint8), [num_patches] * num_strips, hidden.repeat(num_strips))


def learner(config: ViTMAEConfig = CONFIG) -> ViTMAE:
    model = ViTMAE(config)
    initialise(model, seed=0)
    return model


def test_estimate_of_arithmetic_is_that_of_the_products():
    model, patches = learner(), strips(3, 40, 10)
    with FlopCounterMode(display=False) as counter:
        loss = model(patches).loss
        assert loss is not None
        loss.backward()
    products = sum(flops for name, flops in counter.get_flop_counts()["Global"].items() if "mm" in str(name))
    # the counter knows no attention on a CPU: scores and their product with the values, once forward and twice backward
    attention = 3 * 2 * 2 * (2 * 64 * 31**2 + 3 * 32 * 41**2)
    # the reference projects something for CLS rows too, and throws it away
    projected_for_nothing = 2 * 2 * 64 * 64
    assert projected_for_nothing * 3 < 0.01 * products
    assert products == 3 * (strip_flops(CONFIG, 40, 10) - attention)


def test_hiding_more_costs_less():
    config = published("base")
    costs = [strip_flops(config, 529, hidden) for hidden in (1, 133, 265, 396)]
    assert costs == sorted(costs, reverse=True)
    assert strip_flops(config, 529, 133, num_channels=3) > costs[1]


def kept_bytes(model: ViTMAE, patches: Patches, **arguments: Any) -> int:
    """Bytes that a forward pass leaves behind for the backward pass, parameters not counted."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(patches, **arguments)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for place, size in kept.items() if place not in parameters) + 4 * out.logits.numel()


@pytest.mark.parametrize("recompute", [False, True])
def test_estimate_of_memory_is_near_what_is_kept(recompute):
    config = replace(CONFIG, num_layers=12, decoder_num_layers=8)  # one block, whole again, is a small part of it
    model, patches = learner(config), strips(16, 60, 15)
    model.recompute = recompute
    real = kept_bytes(model, patches)
    fixed = 16 * num_parameters(config)
    estimate = strip_training_bytes(config, 16, 60, 15, bytes_per_value=4, recompute=recompute)
    assert 0.7 < (estimate - fixed) / real < 1.4


def test_estimate_of_memory_knows_weights_that_are_kept():
    model, patches = learner(), strips(4, 60, 15)
    more = kept_bytes(model, patches, dropout_seed=torch.tensor([1, 2]))
    estimate = strip_training_bytes(CONFIG, 4, 60, 15, bytes_per_value=4, weights_kept=True)
    assert 0.5 < (estimate - 16 * num_parameters(CONFIG)) / more < 1.5
