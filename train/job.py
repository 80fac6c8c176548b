"""Everything a run needs, assembled and checked before its first step.

A new run starts from a preset, a resumed one from its own folder; both end as the same `Job`. Nothing is written into
the run's folder until all that the user could have got wrong has been looked at.
"""

import logging
import platform
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

import presets
from kernels import choose_ops
from pixelcore.checkpoint import (
    checkpoint_of_run,
    hash_weights,
    library_versions,
    load_weights,
    read_checkpoint,
    read_manifest,
    read_stored,
    read_tensors,
)
from pixelcore.convert.merge import adapters_of
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models import MODELS
from pixelcore.ops import REFERENCE, Ops
from train.config import MODELS_OF_OBJECTIVE, SETTINGS, AdversarialSettings, Settings, TaskSettings, settings_for
from train.distributed import Ranks, parallelise
from train.objective import Batches, Corpus, Objective
from train.objectives import OBJECTIVES
from train.opponent import MOMENTS, WEIGHTS, Opponent, freeze_below
from train.optimizer import AdamW
from train.report import check_services
from train.run_folder import RunFolder
from train.sizing import announce_cpu_cost, micro_batch_blocks
from train.task_models import BEGINS_FROM, ENCODER, begun_weights

_log = logging.getLogger(__name__)

_DECIDING = ("objective", "model")  # tables whose kinds say which others there are


@dataclass
class Job:
    """A run, ready to go on from `step`. model: the parameters' owner; module: what to call in training (the same, or
    its DDP wrapper). base: where frozen weights come from, for adapters. state: small tensors of the checkpoint.
    save_first: write a checkpoint before the first step, because the folder says nothing else of the weights that the
    run begins with. opponent: a second model that learns against the first, where the objective has one. stale: looks
    at held-out text in a row that found nothing better."""

    settings: Settings
    objective: Objective
    folder: RunFolder
    ranks: Ranks
    ops: Ops
    corpus: Corpus
    batches: Batches
    held_out: Any
    model: Any
    module: nn.Module
    optimizer: AdamW
    step: int
    state: dict[str, Tensor]
    base: dict[str, str] | None
    save_first: bool = False
    opponent: Opponent | None = None
    stale: int = 0

    @property
    def has_lost_patience(self) -> bool:
        """Whether the run ends here, because what it selects on has not become better for long enough."""
        patience = self.settings.eval.patience if isinstance(self.settings, TaskSettings) else 0
        return 0 < patience <= self.stale

    @property
    def units_per_step(self) -> int:
        """Units of progress (tokens, rows) of one step over all ranks."""
        return self.objective.num_blocks(self.settings) * self.objective.block_units(self.settings)

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint of this run says besides the model."""
        tokenizer = self.corpus.belongings.tokenizer
        return {
            "settings": presets.write(tables_of(self.settings)),
            "tokenizer": None if tokenizer is None else tokenizer.sha256,
            "data": {
                "fingerprint": self.corpus.fingerprint,
                "overlap": self.corpus.overlap,
                "sources": [asdict(split) for split in self.corpus.splits],
            },
            "versions": library_versions() | {"machine": platform.machine()},
        }


def tables_of(settings: Settings) -> dict[str, Any]:
    """The tables of a run in the order in which they are written."""
    _, tables = settings_for(settings.objective.kind, settings.model.kind)
    return {name: getattr(settings, name) for name in tables}


def read_settings(text: str, overrides: Sequence[str], where: str) -> Settings:
    """Settings from TOML text and `--set` overrides. Raises PresetError, and UserError where the model is not one that
    the objective trains."""
    record, tables = settings_for(*_kinds_of(text))
    values: dict[str, Any] = presets.read(text, tables, overrides, where)
    settings = record(**values)
    wanted = MODELS_OF_OBJECTIVE[settings.objective.kind]
    if settings.model.kind not in wanted:
        raise UserError(
            f"{where}: objective.kind = {settings.objective.kind!r} trains a model of kind "
            f"{' or '.join(map(repr, wanted))}, and model.kind = {settings.model.kind!r}: take a preset of that kind"
        )
    if settings_for(settings.objective.kind, settings.model.kind)[0] is not record:
        raise UserError(
            f"{where}: objective.kind = {settings.objective.kind!r} with model.kind = {settings.model.kind!r} "
            "asks for other tables than the preset has: take a preset of these kinds"
        )
    return settings


def _kinds_of(text: str) -> tuple[str, str]:
    """The kinds of the objective and the model, on which the set of tables depends; where there is none to be seen, any
    set will do for saying what is wrong with the text."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        tables = {}
    found = [table.get("kind") if isinstance(table := tables.get(name), dict) else None for name in _DECIDING]
    objective, model = (kind if isinstance(kind, str) else "" for kind in found)
    return objective if objective in SETTINGS else next(iter(SETTINGS)), model


def new_job(
    settings: Settings,
    folder: RunFolder,
    ranks: Ranks,
    ops_choice: str,
    init: Path | None,
    overrides: Sequence[str] = (),
) -> Job:
    """A run from its first step. init: a model to start from, whose architecture, and tokenizer or renderer, hold.
    overrides: what the settings owe to the user and not to a preset."""
    folder.check_free(folder.path)
    check_services(settings.run.report)
    objective = OBJECTIVES[settings.objective.kind]
    if _has_adapters(settings) and init is None:
        raise UserError("model.lora adapts a trained model: name it with --init PATH, or drop model.lora")
    if isinstance(settings, AdversarialSettings) and init is None:
        raise UserError(
            "objective.kind = 'adversarial' is stage 2, which goes on from a trained model: name a stage-1 run with "
            "--init RUN, or take a preset of stage 1"
        )
    stored = None if init is None else read_stored(init)
    if stored is not None and init is not None:
        possible = BEGINS_FROM.get(settings.model.kind, (settings.model.kind,))
        if stored.config.kind not in possible:
            raise UserError(
                f"--init {init}: is a model of kind {stored.config.kind!r}, and the preset trains "
                f"{settings.model.kind!r}{'' if len(possible) == 1 else ' from ' + ' or '.join(map(repr, possible))}: "
                "take a preset of that kind"
            )
        wanted, settings = settings, objective.adopt(settings, stored, init)
        _check_heard(wanted, settings, overrides, init)
    corpus, settings = objective.find_data(settings, ranks, stored, None)
    settings = _sized(settings, objective, ranks)
    weights, base = None, None
    if stored is not None:
        weights = begun_weights(stored, settings.model) if isinstance(settings, TaskSettings) else stored.weights
        if _has_adapters(settings) and not isinstance(settings, TaskSettings):  # whose checkpoints are whole
            base = {"path": str(stored.path.absolute()), "sha256": hash_weights(stored.weights)}
    job = _assemble(settings, folder, ranks, ops_choice, corpus, weights, base)
    job.save_first = stored is not None
    if ranks.is_first:
        default_text = None if settings.data.paths else corpus.sources[0].files[0]
        folder.create(presets.write(tables_of(settings)), default_text)
    ranks.wait()
    return job


def resumed_job(folder: RunFolder, ranks: Ranks, ops_choice: str, steps: int | None) -> Job:
    """A run from where its newest checkpoint stands. steps: a later end."""
    overrides = [] if steps is None else [f"run.steps={steps}"]
    settings = read_settings(folder.read_config(), overrides, str(folder.config))
    check_services(settings.run.report)
    objective = OBJECTIVES[settings.objective.kind]
    own_text = folder.corpus if folder.corpus.exists() else None
    if folder.read_marks()["newest"] is None:
        if isinstance(settings, AdversarialSettings):
            raise UserError(
                f"--resume {folder.path}: the run ended before it had saved the model that it began with: start it "
                "again, with --init"
            )
        corpus, settings = objective.find_data(settings, ranks, None, own_text)
        return _assemble(settings, folder, ranks, ops_choice, corpus, None, None)
    path = checkpoint_of_run(folder.path, "newest")
    manifest = read_manifest(path)
    stored = read_checkpoint(path, with_optimizer=True)
    assert stored.optimizer is not None
    corpus, settings = objective.find_data(settings, ranks, stored, own_text)
    if corpus.fingerprint != manifest["data"]["fingerprint"]:
        raise UserError(
            f"--resume {folder.path}: the training or held-out text has changed since the run began: put it back, or "
            f"start a new run with --init {folder.path}"
        )
    others = {}
    if isinstance(settings, AdversarialSettings):
        others = {name: read_tensors(path, manifest, name) for name in (WEIGHTS, MOMENTS)}
    job = _assemble(settings, folder, ranks, ops_choice, corpus, stored.weights, manifest["base"], others.get(WEIGHTS))
    job.optimizer.restore(stored.optimizer)
    job.step = stored.step
    job.state = read_tensors(path, manifest, "state.safetensors")
    job.stale = int(job.state.get("stale", 0))
    job.optimizer.skipped.copy_(job.state["skipped"])
    job.optimizer.skipped_in_a_row.copy_(job.state["skipped_in_a_row"])
    if job.opponent is not None:
        job.opponent.restore(others[MOMENTS], job.state)
    return job


def _check_heard(wanted: Settings, adopted: Settings, overrides: Sequence[str], init: Path) -> None:
    """Raise UserError for an override of [model] or [render] that what --init holds takes the place of."""
    for override in overrides:
        table, _, key = override.partition("=")[0].strip().partition(".")
        if table not in ("model", "render"):
            continue
        name = key.partition(".")[0]
        asked, found = (getattr(getattr(settings, table), name) for settings in (wanted, adopted))
        if asked == found:
            continue
        if table == "model":
            raise UserError(f"--set {override}: the model of --init {init} has model.{name} = {found!r}: leave it out")
        raise UserError(
            f"--set {override}: the model of --init {init} has seen strips with render.{key} = {found!r}: leave it "
            "out, or --set render.accept_changed=true"
        )


def _has_adapters(settings: Settings) -> bool:
    return adapters_of(settings.model) is not None


def _is_own(name: str, settings: Settings) -> bool:
    """Whether a parameter belongs to the run and not to the model it begins with: adapters, and the head of a task."""
    return ".adapters." in name or (isinstance(settings, TaskSettings) and not name.startswith(ENCODER))


def _say_what_learns(model: nn.Module, settings: Settings) -> None:
    trained, whole = 0, 0
    for parameter in model.parameters():
        whole += parameter.numel()
        trained += parameter.numel() if parameter.requires_grad else 0
    what = "adapters and the head" if isinstance(settings, TaskSettings) else "adapters"
    _log.info("%s of %s values are trained, %s; all others stay as they are", f"{trained:,}", f"{whole:,}", what)


def _sized(settings: Settings, objective: Objective, ranks: Ranks) -> Settings:
    """The settings with everything decided that depends on the machine: precision and the size of a micro-batch."""
    run = settings.run
    if run.precision == "auto":
        has_bf16 = ranks.device.type == "cuda" and torch.cuda.is_bf16_supported()
        run = replace(run, precision="bf16" if has_bf16 else "fp32")
    if ranks.is_first and ranks.device.type == "cpu":
        units = objective.num_blocks(settings) * objective.block_units(settings)
        announce_cpu_cost(objective.step_flops(settings), f"{units:,} {objective.UNIT}", run.steps)
    if run.micro_batch_blocks == 0:
        share = -(-objective.num_blocks(settings) // ranks.world)
        size = torch.finfo(torch.bfloat16 if run.precision == "bf16" else torch.float32).bits // 8
        blocks = micro_batch_blocks(
            lambda blocks: objective.block_bytes(settings, blocks, size, run.recompute),
            ranks.device,
            limit=share,
            rows=objective.block_rows(settings),
            block=objective.describe_block(settings),
        )
        run = replace(run, micro_batch_blocks=ranks.agree(blocks))
        _log.info("micro-batches of %d x %s", run.micro_batch_blocks, objective.describe_block(settings))
    return replace(settings, run=run)


def _assemble(
    settings: Settings,
    folder: RunFolder,
    ranks: Ranks,
    ops_choice: str,
    corpus: Corpus,
    weights: dict[str, Tensor] | None,
    base: dict[str, str] | None,
    opponent_weights: dict[str, Tensor] | None = None,
) -> Job:
    run, objective = settings.run, OBJECTIVES[settings.objective.kind]
    ops = choose_ops(ranks.device, ops_choice)
    model = MODELS[settings.model.kind](settings.model, ops)
    initialise(model, run.seed)
    if weights is not None:
        # adapters, and the head of a task, that the weights do not have keep their initial values
        fresh = {name: parameter.detach() for name, parameter in model.named_parameters() if _is_own(name, settings)}
        load_weights(model, fresh | weights, str(folder.path))
    if _has_adapters(settings):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(_is_own(name, settings))
        _say_what_learns(model, settings)
    if isinstance(settings, AdversarialSettings):
        freeze_below(model, settings.objective.hot_layers)
    model.compute_dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    model.recompute = run.recompute
    model.to(ranks.device)
    module = parallelise(model, ranks, run.parallel, model.compute_dtype)
    # fused ops write them for nothing; sharded weights are cast before they are gathered (`parallelise`)
    keeps_shadows = run.precision == "bf16" and ops is not REFERENCE and not isinstance(module, FSDPModule)
    batches, held_out = objective.deal(settings, corpus, ranks)
    opponent = None
    if isinstance(settings, AdversarialSettings):
        opponent = Opponent(settings, model, batches, ranks, ops, opponent_weights, keeps_shadows)
    return Job(
        settings=settings,
        objective=objective,
        folder=folder,
        ranks=ranks,
        ops=ops,
        corpus=corpus,
        batches=batches,
        held_out=held_out,
        model=model,
        module=module,
        optimizer=AdamW(model, settings.optimizer, ops, keeps_shadows),
        step=0,
        state={},
        base=base,
        opponent=opponent,
    )
