"""What a run is, besides its model: the tables of a preset, one frozen record each.

The names of the tables and fields are what `--set table.field=value` takes. Counts, ranks, paths of outputs and
whatever else changes while a run goes on are not configuration and stand elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pixelcore.config import MODEL_CONFIGS, DecoderConfig


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """path: a SentencePiece model to use; empty: train one of model.vocab_size pieces on the training text, at most
    training_megabytes of it, evenly taken."""

    path: str = ""
    training_megabytes: float = 64.0

    def __post_init__(self) -> None:
        _require(self.training_megabytes > 0, f"training_megabytes = {self.training_megabytes} must be positive")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """paths: files, folders or globs of .txt, .txt.gz, .jsonl, .jsonl.gz, .parquet; none: the standard library's own
    documentation. weights: share of the training tokens each path gets; none: in proportion to their size.

    Held-out text: valid names separate paths; else split divides each path's documents, "by-document" or "by-file"
    (valid_share of them), or by a list of file names to hold out. test: file names kept from both.
    field: the text's key in JSONL and Parquet records. block_size: tokens a model sees at once. tokens_per_step:
    tokens of one optimizer step over all ranks, a multiple of block_size.
    """

    paths: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    valid: tuple[str, ...] = ()
    split: str | tuple[str, ...] = "by-document"
    valid_share: float = 0.02
    test: tuple[str, ...] = ()
    field: str = "text"
    block_size: int = 1024
    tokens_per_step: int = 32768

    def __post_init__(self) -> None:
        _require(self.block_size > 0, f"block_size = {self.block_size} must be positive")
        _require(
            self.tokens_per_step > 0 and self.tokens_per_step % self.block_size == 0,
            f"tokens_per_step = {self.tokens_per_step} must be a positive multiple of block_size = {self.block_size}",
        )
        _require(0 < self.valid_share < 1, f"valid_share = {self.valid_share} must lie between 0 and 1")
        _require(
            not self.weights or len(self.weights) == len(self.paths),
            f"weights has {len(self.weights)} entries for {len(self.paths)} paths: give one for each path",
        )
        _require(all(weight > 0 for weight in self.weights), f"weights = {list(self.weights)} must be positive")
        _require(
            not isinstance(self.split, str) or self.split in ("by-document", "by-file"),
            f'split = {self.split!r} must be "by-document", "by-file" or a list of file names',
        )


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """Predict each token of a document from those before it."""

    kind: ClassVar[str] = "next_token"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. Matrices decay, vectors (norm weights) do not; gradients are clipped to a global norm, 0 for never."""

    learning_rate: float = 3e-4
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, f"learning_rate = {self.learning_rate} must be positive")
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"betas = {list(self.betas)} must be two numbers at least 0 and below 1",
        )
        _require(self.eps > 0, f"eps = {self.eps} must be positive")
        _require(self.weight_decay >= 0, f"weight_decay = {self.weight_decay} must not be negative")
        _require(self.max_grad_norm >= 0, f"max_grad_norm = {self.max_grad_norm} must not be negative")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run: linear warm-up, then "cosine", "linear" or "constant" down to final_ratio of the
    peak at the last step."""

    shape: str = "cosine"
    warmup_steps: int = 0
    final_ratio: float = 0.1

    def __post_init__(self) -> None:
        shapes = ("cosine", "linear", "constant")
        _require(self.shape in shapes, f"shape = {self.shape!r} must be one of {list(shapes)}")
        _require(self.warmup_steps >= 0, f"warmup_steps = {self.warmup_steps} must not be negative")
        _require(0 <= self.final_ratio <= 1, f"final_ratio = {self.final_ratio} must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Every `every` steps and at the end: loss on held-out text (whole documents, about max_tokens of them, evenly
    taken), and what the model writes after each prompt. select "loss": keep the checkpoint with the lowest."""

    every: int = 100
    max_tokens: int = 1_000_000
    select: str = ""
    prompts: tuple[str, ...] = ()
    sample_tokens: int = 64

    def __post_init__(self) -> None:
        _require(self.every > 0, f"every = {self.every} must be positive")
        _require(self.max_tokens > 0, f"max_tokens = {self.max_tokens} must be positive")
        _require(self.sample_tokens > 0, f"sample_tokens = {self.sample_tokens} must be positive")
        _require(self.select in ("", "loss"), f'select = {self.select!r} must be "loss" or empty')


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run goes. name: of the exported model. micro_batch_blocks: blocks computed at once on one device; 0: sized
    to the memory there is, once, and saved with the run. precision of the activations: "auto" is bf16 on a GPU that
    has it, else fp32. recompute: activation checkpointing. max_skipped: stop after so many steps in a row without a
    finite gradient. parallel, under torchrun: "ddp" or "fsdp". profile: write a trace of a few steps. report:
    "tensorboard", "wandb".
    """

    name: str = ""
    steps: int = 1000
    seed: int = 0
    micro_batch_blocks: int = 0
    precision: str = "auto"
    recompute: bool = False
    max_skipped: int = 10
    log_every: int = 1
    save_every: int = 500
    keep_last: int = 2
    parallel: str = "ddp"
    profile: bool = False
    report: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "max_skipped", "log_every", "save_every", "keep_last"):
            _require(getattr(self, name) > 0, f"{name} = {getattr(self, name)} must be positive")
        _require(self.micro_batch_blocks >= 0, f"micro_batch_blocks = {self.micro_batch_blocks} must not be negative")
        _require(0 <= self.seed < 2**32, f"seed = {self.seed} must lie between 0 and 2^32 - 1")
        _require(
            self.precision in ("auto", "fp32", "bf16"), f'precision = {self.precision!r} must be "auto", "fp32", "bf16"'
        )
        _require(self.parallel in ("ddp", "fsdp"), f'parallel = {self.parallel!r} must be "ddp" or "fsdp"')
        unknown = sorted(set(self.report) - {"tensorboard", "wandb"})
        _require(not unknown, f'report = {list(self.report)} may hold "tensorboard" and "wandb"')


TABLES: Mapping[str, type | Mapping[str, type]] = {
    "model": MODEL_CONFIGS,
    "tokenizer": TokenizerConfig,
    "data": DataConfig,
    "objective": {"next_token": NextTokenConfig},
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "eval": EvalConfig,
    "run": RunConfig,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All tables of one run, by name."""

    model: DecoderConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    objective: NextTokenConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    eval: EvalConfig
    run: RunConfig
