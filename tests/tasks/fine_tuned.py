"""Models of all four tasks as fine-tuning leaves them, with weights from a seed: they know nothing, but they say it in
the right form."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pixelcore.config import ViTTaskConfig
from pixelcore.initialise import initialise
from pixelcore.models.heads import ViTTask
from pixelcore.tasks import TASKS
from render import RenderConfig
from tests.infer.tiny_pixels import stored, write_run


def fine_tuned(
    run: Path, kind: str, labels: Sequence[str], patches: int = 48, seed: int = 0, **options: object
) -> Path:
    """A run folder of a model of this task. labels: names of its outputs; options: of the task."""
    task = TASKS[kind]
    config = ViTTaskConfig(
        num_patches=patches,
        num_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        task=task.HEAD,
        num_labels=max(len(labels), 1),
    )
    model = ViTTask(config)
    initialise(model, 0)
    record = stored(model, RenderConfig(max_patches=patches))
    about = {"kind": kind, "labels": list(labels), "options": asdict(task.OPTIONS(**options))}
    return write_run(run, replace(record, task=about))
