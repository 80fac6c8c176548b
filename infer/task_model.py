"""Run a task model over rows: what it predicts for each example, and the loss where there are labels.

Rows are sorted by length, so that a batch has little padding, and put back. The scores of a batch are decoded before
the next one is computed, because those of a parser are too large to be kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from infer.task_rows import TaskRows
from pixelcore.models.heads import Head, TaskOutput
from pixelcore.models.packed_head import PackedHead

_UNITS_AT_ONCE = 4096  # of a batch, padding counted
_SCORES = ("logits", "start_logits", "end_logits", "arc_logits", "rel_logits")


@dataclass(frozen=True)
class Predicted:
    """A prediction for each example. loss: the mean over all targets; None without labels."""

    predictions: list[Any]
    loss: float | None


@torch.no_grad()
def predict(model: nn.Module, rows: TaskRows, device: torch.device | str, *, with_loss: bool) -> Predicted:
    """What a model in eval mode says of all examples. with_loss: the examples have labels."""
    task = rows.task
    head = getattr(model, "module", model).head  # of the model itself, where DDP wraps it
    assert isinstance(head, Head | PackedHead)
    pieces: list[dict[int, Any]] = [{} for _ in rows.examples]
    one = torch.ones((), device=device)
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for numbers in _batches(rows):
        targets = [rows.targets(number) for number in numbers]
        batch = rows.batch(numbers, targets, None if with_loss else head.needs)
        output = model(**{name: tensor.to(device) for name, tensor in batch.items()}, scale=one)
        if with_loss:
            total += output.loss.double()
            count += sum(map(task.num_targets, targets))
        examples = [rows.example(number) for number in numbers]
        layouts = [rows.row(number).layout for number in numbers]
        decoded = task.decode(scores_of(output), examples, layouts, rows.known, rows.options)
        for number, prediction in zip(numbers, decoded, strict=True):
            example, window = rows.places[number]
            pieces[example][window] = prediction
    joined = [
        task.join(example, [found[window] for window in sorted(found)])
        for example, found in zip(rows.examples, pieces, strict=True)
    ]
    return Predicted(joined, total.item() / max(count, 1) if with_loss else None)


def scores_of(output: TaskOutput) -> dict[str, NDArray[np.float32]]:
    """The scores that a model gave, on the host."""
    given = {name: getattr(output, name) for name in _SCORES}
    return {name: tensor.float().cpu().numpy() for name, tensor in given.items() if tensor is not None}


def _batches(rows: TaskRows) -> Iterator[list[int]]:
    """All rows, the shortest first."""
    lengths = [rows.row(number).layout.num_units for number in range(len(rows))]
    batch: list[int] = []
    for number in sorted(range(len(rows)), key=lambda number: lengths[number]):
        if batch and (len(batch) + 1) * lengths[number] > _UNITS_AT_ONCE:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
