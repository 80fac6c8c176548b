"""A model that writes strips, small enough to be built in a test, and loud enough to write something of everything."""

import dataclasses
from pathlib import Path

import torch

from pixelcore.config import PixarConfig
from pixelcore.initialise import initialise
from pixelcore.models.pixar import Pixar
from pixelcore.stored import Stored
from render import RenderConfig, Renderer

CONFIG = PixarConfig(
    num_layers=2,
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=24,
    max_patches=40,
    head="mixture",
    num_components=4,
    start_vector=True,
)
RENDER = RenderConfig.named("pixar", max_patches=40)
TEXT = "Mary went to the"


def pixar(**changes: object) -> Pixar:
    """A model with parameters drawn from a seed, in eval mode."""
    model = Pixar(dataclasses.replace(CONFIG, **changes))
    initialise(model, 0)
    with torch.no_grad():  # what a fresh model says hardly depends on what it reads
        for weight in model.parameters():
            weight *= 5 if weight.dim() >= 2 else 1
    return model.eval()


def bernoulli(**changes: object) -> Pixar:
    """The same with the published head."""
    return pixar(**{"head": "bernoulli", "num_components": 1} | changes)


def stored(model: Pixar, render: RenderConfig | None = RENDER, step: int = 7) -> Stored:
    """The model as a checkpoint holds it; render: None for one that does not say how its strips were drawn."""
    return Stored(
        path=Path("."),
        origin="checkpoint",
        name="tiny",
        step=step,
        config=model.config,
        weights={name: tensor.detach() for name, tensor in model.state_dict().items()},
        renderer=None if render is None else {"config": render.to_dict(), "identity": Renderer(render).identity()},
    )
