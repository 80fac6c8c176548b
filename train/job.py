"""Everything a run needs, assembled and checked before its first step.

A new run starts from a preset, a resumed one from its own folder; both end as the same `Job`. Nothing is written into
the run's folder until all that the user could have got wrong has been looked at.
"""

import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
from pixelcore.config import DecoderConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models import MODELS
from pixelcore.models.decoder import Decoder
from pixelcore.ops import Ops
from pixelcore.tokenizer import Tokenizer
from train.config import TABLES, DataConfig, Settings
from train.data.batches import Batches
from train.data.blocks import Blocks
from train.data.corpus import Corpus, build_corpus, check_tokenizer, find_sources, find_tokenizer
from train.data.order import BlockOrder
from train.distributed import Ranks, parallelise
from train.evaluate import HeldOut
from train.optimizer import AdamW
from train.report import check_services
from train.run_folder import RunFolder
from train.sizing import announce_cpu_cost, micro_batch_blocks

_log = logging.getLogger(__name__)


@dataclass
class Job:
    """A run, ready to go on from `step`. model: the parameters' owner; module: what to call in training (the same, or
    its DDP wrapper). base: where frozen weights come from, for adapters. state: small tensors of the checkpoint.
    save_first: write a checkpoint before the first step, because the folder says nothing else of the weights that the
    run begins with."""

    settings: Settings
    folder: RunFolder
    ranks: Ranks
    ops: Ops
    corpus: Corpus
    batches: Batches
    held_out: HeldOut
    model: Decoder
    module: nn.Module
    optimizer: AdamW
    step: int
    state: dict[str, Tensor]
    base: dict[str, str] | None
    save_first: bool = False

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint of this run says besides the model."""
        return {
            "settings": presets.write(tables_of(self.settings)),
            "tokenizer": self.corpus.tokenizer.sha256,
            "data": {
                "fingerprint": self.corpus.fingerprint,
                "overlap": self.corpus.overlap,
                "sources": [asdict(source.split) for source in self.corpus.sources],
            },
            "versions": library_versions() | {"machine": platform.machine()},
        }


def tables_of(settings: Settings) -> dict[str, Any]:
    """The tables of a run in the order in which they are written."""
    return {name: getattr(settings, name) for name in TABLES}


def read_settings(text: str, overrides: Sequence[str], where: str) -> Settings:
    """Settings from TOML text and `--set` overrides. Raises PresetError."""
    tables: dict[str, Any] = presets.read(text, TABLES, overrides, where)
    return Settings(**tables)


def new_job(settings: Settings, folder: RunFolder, ranks: Ranks, ops_choice: str, init: Path | None) -> Job:
    """A run from its first step. init: a model to start from, whose architecture and tokenizer then hold."""
    folder.check_free(folder.path)
    check_services(settings.run.report)
    if settings.model.lora is not None and init is None:
        raise UserError("model.lora adapts a trained model: name it with --init PATH, or drop model.lora")
    stored = None if init is None else read_stored(init)
    if stored is not None:
        settings = replace(settings, model=_with_architecture(settings.model, stored.config))
        settings = replace(settings, data=_within_context(settings.data, settings.model.context_length))
        if stored.tokenizer is None and not settings.tokenizer.path:
            raise UserError(f"--init {init}: has no tokenizer; name its own with --set tokenizer.path=FILE")
    own = None if stored is None else stored.tokenizer
    corpus, settings = _corpus(settings, ranks, None if settings.tokenizer.path else own, None)
    if own is not None:
        check_tokenizer(corpus.tokenizer, own.sha256, str(init))
    settings = _sized(settings, ranks)
    weights, base = None, None
    if stored is not None:
        weights = stored.weights
        if settings.model.lora is not None:
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
    own_corpus = folder.corpus if folder.corpus.exists() else None
    if folder.read_marks()["newest"] is None:
        corpus, settings = _corpus(settings, ranks, None, own_corpus)
        return _assemble(settings, folder, ranks, ops_choice, corpus, None, None)
    path = checkpoint_of_run(folder.path, "newest")
    manifest = read_manifest(path)
    stored = read_checkpoint(path, with_optimizer=True)
    assert stored.optimizer is not None
    corpus, settings = _corpus(settings, ranks, stored.tokenizer, own_corpus)
    if corpus.fingerprint != manifest["data"]["fingerprint"]:
        raise UserError(
            f"--resume {folder.path}: the training or held-out text has changed since the run began: put it back, or "
            f"start a new run with --init {folder.path}"
        )
    job = _assemble(settings, folder, ranks, ops_choice, corpus, stored.weights, manifest["base"])
    job.optimizer.restore(stored.optimizer)
    job.step = stored.step
    job.state = read_tensors(path, manifest, "state.safetensors")
    job.optimizer.skipped.copy_(job.state["skipped"])
    job.optimizer.skipped_in_a_row.copy_(job.state["skipped_in_a_row"])
    return job


def _with_architecture(wanted: DecoderConfig, found: DecoderConfig) -> DecoderConfig:
    """The stored model's architecture; adapters and dropout as the run wants them."""
    if found.lora is not None and wanted.lora is not None and found.lora != wanted.lora:
        raise UserError("--init has adapters of another shape than model.lora: export it with --merge first")
    return replace(
        found, lora=wanted.lora or found.lora, dropout=wanted.dropout, attention_dropout=wanted.attention_dropout
    )


def _within_context(data: DataConfig, context_length: int) -> DataConfig:
    """Blocks no longer than a model's context, and about as many tokens in a step."""
    if data.block_size <= context_length:
        return data
    blocks = max(1, data.tokens_per_step // context_length)
    _log.info("data.block_size = %d: the context of the model that --init names", context_length)
    return replace(data, block_size=context_length, tokens_per_step=blocks * context_length)


def _corpus(
    settings: Settings, ranks: Ranks, tokenizer: Tokenizer | None, own_corpus: Path | None
) -> tuple[Corpus, Settings]:
    """Data and tokenizer, and the settings with the vocabulary that the tokenizer really has."""
    data, model = settings.data, settings.model
    if data.block_size > model.context_length:
        raise UserError(
            f"data.block_size = {data.block_size} must not exceed model.context_length = {model.context_length}"
        )
    if not ranks.is_first:
        ranks.wait()  # the first rank prepares; the others find everything in the cache
    sources, held_out = find_sources(data, own_corpus)
    if tokenizer is None:
        tokenizer = find_tokenizer(sources, data, settings.tokenizer, model.vocab_size)
    corpus = build_corpus(sources, held_out, tokenizer, data, settings.eval.max_tokens)
    if ranks.is_first:
        ranks.wait()
        tokens = sum(blocks.num_targets_total for blocks in corpus.training)
        _log.info(
            "%s tokens to train on, %s held out; of the held-out 50-character windows %.2f %% occur in training text",
            f"{tokens:,}",
            f"{sum(blocks.num_targets_total for blocks in corpus.held_out):,}",
            100 * corpus.overlap,
        )
    return corpus, replace(settings, model=replace(model, vocab_size=tokenizer.vocab_size))


def _sized(settings: Settings, ranks: Ranks) -> Settings:
    """The settings with everything decided that depends on the machine: precision and the size of a micro-batch."""
    run, data = settings.run, settings.data
    if run.precision == "auto":
        has_bf16 = ranks.device.type == "cuda" and torch.cuda.is_bf16_supported()
        run = replace(run, precision="bf16" if has_bf16 else "fp32")
    if ranks.is_first and ranks.device.type == "cpu":
        announce_cpu_cost(settings.model, data.tokens_per_step, data.block_size, run.steps)
    if run.micro_batch_blocks == 0:
        share = -(-data.tokens_per_step // data.block_size // ranks.world)
        dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
        blocks = micro_batch_blocks(settings.model, ranks.device, data.block_size, share, dtype, run.recompute)
        run = replace(run, micro_batch_blocks=ranks.agree(blocks))
        _log.info("micro-batches of %d x %d tokens", run.micro_batch_blocks, data.block_size)
    return replace(settings, run=run)


def _assemble(
    settings: Settings,
    folder: RunFolder,
    ranks: Ranks,
    ops_choice: str,
    corpus: Corpus,
    weights: dict[str, Tensor] | None,
    base: dict[str, str] | None,
) -> Job:
    run, data = settings.run, settings.data
    ops = choose_ops(ranks.device, ops_choice)
    model = MODELS[settings.model.kind](settings.model, ops)
    initialise(model, run.seed)
    if weights is not None:
        # adapters that the weights do not have keep their initial values
        fresh = {name: parameter.detach() for name, parameter in model.named_parameters() if ".adapters." in name}
        load_weights(model, fresh | weights, str(folder.path))
    if settings.model.lora is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".adapters." in name)
    model.compute_dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    model.recompute = run.recompute
    model.to(ranks.device)
    module = parallelise(model, ranks, run.parallel, model.compute_dtype)
    blocks_per_step = data.tokens_per_step // data.block_size
    dealing = {"micro_batch_blocks": run.micro_batch_blocks, "rank": ranks.rank, "world": ranks.world}
    order = BlockOrder(run.seed, [len(blocks) for blocks in corpus.training], data.weights or None)
    batches = Batches(corpus.training, order, blocks_per_step=blocks_per_step, **dealing)
    return Job(
        settings=settings,
        folder=folder,
        ranks=ranks,
        ops=ops,
        corpus=corpus,
        batches=batches,
        held_out=_held_out(corpus.held_out, dealing),
        model=model,
        module=module,
        optimizer=AdamW(model, settings.optimizer, ops),
        step=0,
        state={},
        base=base,
    )


def _held_out(blocks: list[Blocks], dealing: dict[str, int]) -> HeldOut:
    """The held-out text as one step of its own."""
    sizes = [len(source) for source in blocks]
    batches = Batches(blocks, BlockOrder(0, sizes), blocks_per_step=sum(sizes), **dealing)
    return HeldOut(batches, sum(source.num_text_bytes for source in blocks))
