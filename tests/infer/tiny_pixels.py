"""A masked autoencoder of strips, small enough to be built in a test, and the folders it can lie in."""

import dataclasses
import json
from pathlib import Path

import torch

from pixelcore.checkpoint import write_checkpoint
from pixelcore.config import ViTMAEConfig, ViTTaskConfig
from pixelcore.initialise import initialise
from pixelcore.models.heads import ViTTask
from pixelcore.models.vit_mae import ViTMAE
from pixelcore.stored import Stored
from render import RenderConfig, Renderer

CONFIG = ViTMAEConfig(
    num_patches=36,
    num_layers=2,
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=24,
    decoder_num_layers=1,
    decoder_hidden_size=16,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=24,
)
RENDER = RenderConfig(layout="continuous", max_patches=36)
TEXT = "The quick brown fox jumps over"


def mae(**changes: object) -> ViTMAE:
    """A model with parameters drawn from a seed, in eval mode."""
    model = ViTMAE(dataclasses.replace(CONFIG, **changes))
    initialise(model, 0)
    return model.eval()


def classifier() -> ViTTask:
    """The same encoder as a fine-tuned model has it."""
    encoder = {
        field.name: getattr(CONFIG, field.name)
        for field in dataclasses.fields(ViTTaskConfig)
        if field.init and hasattr(CONFIG, field.name)
    }
    model = ViTTask(ViTTaskConfig(**encoder, task="sequence", num_labels=2))
    initialise(model, 0)
    return model.eval()


def stored(model: ViTMAE | ViTTask, render: RenderConfig | None = RENDER, step: int = 7) -> Stored:
    """The model as a checkpoint holds it; render: None for one that does not say how its strips were drawn."""
    renderer = None
    if render is not None:
        renderer = {"config": render.to_dict(), "identity": Renderer(render).identity()}
    return Stored(
        path=Path("."),
        origin="checkpoint",
        name="tiny",
        step=step,
        config=model.config,
        weights={name: tensor.detach() for name, tensor in model.state_dict().items()},
        renderer=renderer,
    )


def write_run(run: Path, record: Stored) -> Path:
    """A run folder with one checkpoint."""
    name = f"step_{record.step:08d}"
    (run / "checkpoints").mkdir(parents=True)
    write_checkpoint(run / "checkpoints" / name, record, state={"none": torch.zeros(1)}, manifest={})
    (run / "run.json").write_text(json.dumps({"newest": name, "best": None, "finished": True}))
    return run
