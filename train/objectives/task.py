"""Fine-tune an encoder on a task: classify, tag, parse or answer, which differ only in what `pixelcore/tasks/` says.

A run begins with a pretrained encoder (--init), whose architecture and renderer, or tokenizer, hold; its decoder is
left out and the head is fresh. Examples are drawn when they are needed. The dev file is scored as the run goes on; the
best checkpoint by the task's own figure is kept, and it alone meets the test file, at the end (`train/task_end.py`).
"""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infer.pixels import check_renderer, renderer_of
from infer.task_model import predict
from infer.task_rows import Inputs, Strips, TaskRows
from infer.task_tokens import Tokens
from pixelcore.errors import UserError
from pixelcore.stored import Stored
from pixelcore.tasks import TASKS
from pixelcore.tasks.bootstrap import Sums
from pixelcore.tasks.task import score
from render import Renderer, RenderError
from train.config import RenderTable, StripTaskSettings, TaskSettings, TokenTaskSettings
from train.data.corpus import check_own_tokenizer
from train.data.task_batches import TaskBatches, TaskMicroBatch
from train.data.task_corpus import TaskCorpus, read_corpus, tokenizer_of
from train.distributed import Ranks
from train.objective import Loss
from train.report import Reporter
from train.task_models import (
    adopted,
    check_head,
    check_strips,
    check_tokens,
    row_flops,
    step_bytes,
    with_positions_cut,
)

UNIT = "rows"  # what progress is counted in
CURVE = "loss of the task"

_log = logging.getLogger(__name__)


# ------------------------------------------------------------------ before the first step


def adopt(settings: TaskSettings, stored: Stored, init: Path) -> TaskSettings:
    """The stored encoder's architecture and renderer or tokenizer; head, dropout and lengths as the run wants them."""
    model = adopted(settings.model, stored.config)
    if isinstance(settings, TokenTaskSettings):
        check_own_tokenizer(settings.tokenizer, stored, init)
        return replace(settings, model=model)
    assert isinstance(settings, StripTaskSettings)
    render = settings.render
    if not render.accept_changed:
        found = renderer_of(stored, fonts=render.fonts if stored.renderer is None else ())
        render = RenderTable(**asdict(found.config))
    render = replace(render, max_patches=settings.data.max_patches)
    return replace(settings, model=model, render=render)


def find_data(
    settings: TaskSettings, ranks: Ranks, stored: Stored | None, own_text: Path | None
) -> tuple[TaskCorpus, TaskSettings]:
    """The examples, and settings that know how many labels they have and by which figure the run selects."""
    task, options = TASKS[settings.objective.kind], settings.objective
    check_head(settings.model, options.kind, task.HEAD)
    if settings.data.cut_positions:
        settings = replace(settings, model=with_positions_cut(settings.model, settings.data.max_patches))
    if isinstance(settings, StripTaskSettings):
        settings = replace(settings, render=replace(settings.render, max_patches=settings.data.max_patches))
        renderer = _renderer(settings, stored)
        corpus = read_corpus(settings.data, options)
        corpus = replace(corpus, renderer={"config": renderer.config.to_dict(), "identity": renderer.identity()})
    else:
        assert isinstance(settings, TokenTaskSettings)
        check_tokens(settings.model, settings.data.max_patches)
        corpus = read_corpus(settings.data, options)
        own = None if stored is None else stored.tokenizer  # the ids of another one would be other words
        tokenizer = own or tokenizer_of(corpus, settings.tokenizer, settings.model.vocab_size)
        corpus = replace(corpus, tokenizer=tokenizer, max_tokens=settings.data.max_patches)
        settings = replace(settings, model=replace(settings.model, vocab_size=tokenizer.vocab_size))
    outputs = task.num_outputs(corpus.labels, options)
    if settings.model.num_labels not in (0, outputs):
        raise UserError(
            f"model.num_labels = {settings.model.num_labels}, and the task has {outputs} outputs here: leave it out"
        )
    select = settings.eval.select or task.select(options)
    names = ["loss", *_figure_names(corpus)]
    if select not in names:
        raise UserError(f"eval.select = {select!r} must be one of {', '.join(names)}")
    settings = replace(
        settings,
        model=replace(settings.model, num_labels=outputs),
        eval=replace(settings.eval, select=select),
    )
    return corpus, settings


def _renderer(settings: StripTaskSettings, stored: Stored | None) -> Renderer:
    check_strips(settings.model, settings.render, settings.data.max_patches)
    try:
        renderer = Renderer(settings.render.plain)
    except RenderError as cause:  # a font that is not there, or no font
        raise UserError(f"[render]: {cause}") from cause
    if stored is not None and stored.renderer is not None:
        check_renderer(stored.renderer["identity"], renderer, settings.render.accept_changed, str(stored.path))
    return renderer


def inputs_of(settings: TaskSettings, corpus: TaskCorpus) -> Inputs:
    """How examples become rows."""
    if isinstance(settings, StripTaskSettings):
        return Strips(Renderer(settings.render.plain), settings.data.max_patches)
    assert corpus.tokenizer is not None
    return Tokens(corpus.tokenizer, corpus.max_tokens)


def _figure_names(corpus: TaskCorpus) -> list[str]:
    """What the task's figures are called, by asking for those of nothing."""
    task, options = corpus.task, corpus.options
    return list(task.figures(Sums(task.counts([], [], options)), options))


def num_blocks(settings: TaskSettings) -> int:
    """Rows of one step."""
    return settings.data.rows_per_step


def block_units(settings: TaskSettings) -> int:
    """A row is a row."""
    return 1


def describe_block(settings: TaskSettings) -> str:
    """A row in words."""
    return f"at most {settings.data.max_patches} {'patches' if isinstance(settings, StripTaskSettings) else 'tokens'}"


def block_bytes(settings: TaskSettings, blocks: int, bytes_per_value: int, recompute: bool) -> float:
    """Estimated peak memory of a training step with micro-batches of so many full rows."""
    return step_bytes(settings.model, blocks, settings.data.max_patches, bytes_per_value, recompute)


def block_rows(settings: TaskSettings) -> int:
    """Patches or tokens of a full row."""
    return settings.data.max_patches


def step_flops(settings: TaskSettings) -> float:
    """Floating point operations of one optimizer step, were all its rows full."""
    num_channels = settings.render.channels if isinstance(settings, StripTaskSettings) else 1
    return settings.data.rows_per_step * row_flops(settings.model, settings.data.max_patches, num_channels)


@dataclass(frozen=True)
class HeldOut:
    """The dev examples as rows."""

    rows: TaskRows


def deal(settings: TaskSettings, corpus: TaskCorpus, ranks: Ranks) -> tuple[TaskBatches, HeldOut]:
    """The training rows in the order of the seed, and the held-out rows."""
    inputs = inputs_of(settings, corpus)
    room = settings.data.cache_megabytes * 10**6
    batches = TaskBatches(
        TaskRows(corpus.task, corpus.training, inputs, corpus.labels, corpus.options, room),
        seed=settings.run.seed,
        rows_per_step=settings.data.rows_per_step,
        micro_batch_rows=settings.run.micro_batch_blocks,
        rank=ranks.rank,
        world=ranks.world,
    )
    return batches, HeldOut(TaskRows(corpus.task, corpus.held_out, inputs, corpus.labels, corpus.options, room))


# ------------------------------------------------------------------ in a step, and after it


def loss(model: nn.Module, batch: TaskMicroBatch, scale: Tensor, dropout_seed: Tensor | None) -> Loss:
    """The loss of one micro-batch; scale is 1 / (targets of the whole step)."""
    out = model(**batch.given, scale=scale, dropout_seed=dropout_seed, documents=batch.documents)
    return Loss(out.loss, out.loss.detach(), torch.zeros_like(out.loss))


def evaluate(model: nn.Module, held_out: HeldOut, ranks: Ranks) -> dict[str, float]:
    """Loss and figures on the dev examples, and which share of them could not be seen whole. Every rank computes all of
    it: dev files are small."""
    was_training = model.training
    model.eval()
    values, _ = figures_of(model, held_out.rows, ranks.device)
    model.train(was_training)
    return values


def figures_of(model: nn.Module, rows: TaskRows, device: torch.device) -> tuple[dict[str, float], list[Any]]:
    """loss, the task's figures, and the shares of what was cut and not drawn; and the predictions."""
    found = predict(model, rows, device, with_loss=True)
    assert found.loss is not None
    figures = score(rows.task, rows.examples, found.predictions, rows.options)
    return {"loss": found.loss, **figures, **rows.shares()}, found.predictions


def say(values: dict[str, float]) -> str:
    """What `evaluate` found, in a line."""
    return f"held-out {in_words(values)}"


def in_words(values: dict[str, float]) -> str:
    """Loss and figures, of whatever file."""
    named = ", ".join(f"{name} {100 * value:.2f} %" for name, value in values.items() if name != "loss")
    return f"loss {values['loss']:.4f}, {named}"


def show(
    model: Any, settings: TaskSettings, corpus: TaskCorpus, held_out: HeldOut, reporter: Reporter, step: int
) -> dict[str, float]:
    """Nothing more: predictions are written at the end, by the best checkpoint."""
    return {}
