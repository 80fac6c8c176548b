"""The end of a run on a task: its best checkpoint meets the test file, once, and everything it says is written down.

    RUN/predictions/valid.jsonl      a line for each example of the dev file: what was given, what was predicted, and
                    test.jsonl       the counts that its figures are made of, from which runs are compared later

The checkpoint is read from the disk like any other model, so the figures are those of what is kept.
"""

import json
import logging
from typing import Any

import torch

from infer.task_rows import TaskRows
from pixelcore.checkpoint import build_model, checkpoint_of_run, read_checkpoint
from pixelcore.durable import write_file
from pixelcore.tasks.bootstrap import intervals
from train.config import TaskSettings
from train.data.task_batches import TaskBatches
from train.data.task_corpus import TaskCorpus
from train.job import Job
from train.objectives.task import figures_of, in_words, inputs_of

_log = logging.getLogger(__name__)


def test_figures(job: Job) -> dict[str, Any]:
    """valid_ and test_ figures of the best checkpoint, and the step it is of. The first rank computes them; the others
    have nothing to say."""
    if not job.ranks.is_first:
        return {}
    settings, corpus, device = job.settings, job.corpus, job.ranks.device
    assert isinstance(settings, TaskSettings) and isinstance(corpus, TaskCorpus)
    assert isinstance(job.batches, TaskBatches)
    stored = read_checkpoint(checkpoint_of_run(job.folder.path))
    dtype = torch.bfloat16 if settings.run.precision == "bf16" else torch.float32
    model = build_model(stored, device, dtype, job.ops)
    inputs = inputs_of(settings, corpus)
    found: dict[str, Any] = {"best_step": stored.step}
    for role, examples in (("valid", corpus.held_out), ("test", corpus.test)):
        if not examples:
            continue
        rows = TaskRows(corpus.task, examples, inputs, corpus.labels, corpus.options, cache_bytes=2**28)
        values, predictions = figures_of(model, rows, device)
        _log.info("%s file, step %d: %s", role, stored.step, in_words(values))
        found |= {f"{role}_{name}": value for name, value in values.items()}
        counts = corpus.task.counts(examples, predictions, corpus.options)
        if role == "test":
            chances = intervals(counts, lambda sums: corpus.task.figures(sums, corpus.options))
            select = corpus.task.select(corpus.options)
            found |= {f"test_{select}_low": chances[select][0], f"test_{select}_high": chances[select][1]}
        lines = []
        for place, (example, prediction) in enumerate(zip(examples, predictions, strict=True)):
            own = {name: float(column[place]) for name, column in counts.items()}
            lines.append(json.dumps(corpus.task.record(example, prediction) | {"counts": own}, ensure_ascii=False))
        folder = job.folder.path / "predictions"
        folder.mkdir(exist_ok=True)
        write_file(folder / f"{role}.jsonl", "".join(line + "\n" for line in lines).encode())
    training = job.batches.rows.shares()
    return found | {f"train_{name}": share for name, share in training.items()}
