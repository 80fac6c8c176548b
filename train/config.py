"""What a run is, besides its model: the tables of a preset, one frozen record each.

The names of the tables and fields are what `--set table.field=value` takes. Which tables a run has follows from its
objective: one that learns from tokens has a tokenizer, one that learns from strips has a renderer. Counts, ranks, paths
of outputs and whatever else changes while a run goes on are not configuration and stand elsewhere.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

from pixelcore.config import DecoderConfig, ModelConfig, ViTMAEConfig
from pixelcore.masking import MASK_RULES
from render.config import RenderConfig


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
class TextConfig:
    """Which text. paths: files, folders or globs of .txt, .txt.gz, .jsonl, .jsonl.gz, .parquet; none: the standard
    library's own documentation. weights: share of the training text each path gets; none: in proportion to their size.

    Held-out text: valid names separate paths; else split divides each path's documents, "by-document" or "by-file"
    (valid_share of them), or by a list of file names to hold out. test: file names kept from both.
    field: the text's key in JSONL and Parquet records.
    """

    paths: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    valid: tuple[str, ...] = ()
    split: str | tuple[str, ...] = "by-document"
    valid_share: float = 0.02
    test: tuple[str, ...] = ()
    field: str = "text"

    def __post_init__(self) -> None:
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
class DataConfig(TextConfig):
    """Text as tokens. block_size: tokens a model sees at once. tokens_per_step: tokens of one optimizer step over all
    ranks, a multiple of block_size."""

    block_size: int = 1024
    tokens_per_step: int = 32768

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.block_size > 0, f"block_size = {self.block_size} must be positive")
        _require(
            self.tokens_per_step > 0 and self.tokens_per_step % self.block_size == 0,
            f"tokens_per_step = {self.tokens_per_step} must be a positive multiple of block_size = {self.block_size}",
        )


@dataclass(frozen=True, kw_only=True)
class StripDataConfig(TextConfig):
    """Text as strips. The paragraphs of a document are joined to rows of at most row_patches patches, end patch
    included; rows of fewer than min_patches are left out. rows_per_step: of one optimizer step over all ranks. clean:
    rules for what is taken out of the text before it is drawn ("unassigned", "unrenderable"). workers: processes that
    draw; 0: the training process draws."""

    row_patches: int = 529
    rows_per_step: int = 256
    min_patches: int = 22
    clean: tuple[str, ...] = ("unassigned", "unrenderable")
    workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.rows_per_step > 0, f"rows_per_step = {self.rows_per_step} must be positive")
        _require(
            2 <= self.min_patches <= self.row_patches,
            f"min_patches = {self.min_patches} must lie between 2 and row_patches = {self.row_patches}",
        )
        unknown = sorted(set(self.clean) - {"unassigned", "unrenderable"})
        _require(not unknown, f'clean = {list(self.clean)} may hold "unassigned" and "unrenderable"')
        _require(self.workers >= 0, f"workers = {self.workers} must not be negative")


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """Predict each token of a document from those before it."""

    kind: ClassVar[str] = "next_token"


@dataclass(frozen=True, kw_only=True)
class MaskedPatchesConfig:
    """Paint the patches of a strip that are hidden, from those that are not. rule: how they are chosen, "random",
    "span" (PIXEL's) or "span-m4" (PIXEL-M4's). ratio: the share that is hidden. counts: "packed" hides that share of
    the patches of a strip; "paper" counts over a row of data.row_patches, blank paper included, as the originals do."""

    kind: ClassVar[str] = "masked_patches"

    rule: str = "span"
    ratio: float = 0.25
    counts: str = "packed"

    def __post_init__(self) -> None:
        _require(self.rule in MASK_RULES, f"rule = {self.rule!r} must be one of {list(MASK_RULES)}")
        _require(0 < self.ratio < 1, f"ratio = {self.ratio} must lie between 0 and 1, both excluded")
        _require(self.counts in ("packed", "paper"), f'counts = {self.counts!r} must be "packed" or "paper"')


@dataclass(frozen=True, kw_only=True)
class RenderTable(RenderConfig):
    """How text is drawn. accept_changed: go on from a model although its strips were drawn otherwise."""

    accept_changed: bool = False

    @property
    def plain(self) -> RenderConfig:
        """What the renderer is made from."""
        return RenderConfig.from_dict({name: value for name, value in asdict(self).items() if name != "accept_changed"})


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
class WhenConfig:
    """Look at held-out text every `every` steps and at the end. select "loss": keep the checkpoint with the lowest."""

    every: int = 100
    select: str = ""

    def __post_init__(self) -> None:
        _require(self.every > 0, f"every = {self.every} must be positive")
        _require(self.select in ("", "loss"), f'select = {self.select!r} must be "loss" or empty')


@dataclass(frozen=True, kw_only=True)
class EvalConfig(WhenConfig):
    """Loss on held-out text (whole documents, about max_tokens of them, evenly taken), and what the model writes after
    each prompt."""

    max_tokens: int = 1_000_000
    prompts: tuple[str, ...] = ()
    sample_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.max_tokens > 0, f"max_tokens = {self.max_tokens} must be positive")
        _require(self.sample_tokens > 0, f"sample_tokens = {self.sample_tokens} must be positive")


@dataclass(frozen=True, kw_only=True)
class StripEvalConfig(WhenConfig):
    """On held-out rows under masks that never change: loss on at most max_rows of them, evenly taken; the hidden
    characters of read_rows of them read back; a picture of picture_rows of them."""

    max_rows: int = 512
    read_rows: int = 32
    picture_rows: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.max_rows > 0, f"max_rows = {self.max_rows} must be positive")
        for name in ("read_rows", "picture_rows"):
            _require(getattr(self, name) >= 0, f"{name} = {getattr(self, name)} must not be negative")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run goes. name: of the exported model. micro_batch_blocks: blocks of tokens, or rows of patches, computed
    at once on one device; 0: sized to the memory there is, once, and saved with the run. precision of the activations:
    "auto" is bf16 on a GPU that has it, else fp32. recompute: activation checkpointing. max_skipped: stop after so many
    steps in a row without a finite gradient. parallel, under torchrun: "ddp" or "fsdp". profile: write a trace of a few
    steps. report: "tensorboard", "wandb".
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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the tables of every run have in common."""

    model: ModelConfig
    data: TextConfig
    objective: NextTokenConfig | MaskedPatchesConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    eval: WhenConfig
    run: RunConfig


@dataclass(frozen=True, kw_only=True)
class TokenSettings(Settings):
    """All tables of a run that learns from tokens, by name."""

    model: DecoderConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    objective: NextTokenConfig
    eval: EvalConfig


@dataclass(frozen=True, kw_only=True)
class StripSettings(Settings):
    """All tables of a run that learns from strips, by name."""

    model: ViTMAEConfig
    render: RenderTable
    data: StripDataConfig
    objective: MaskedPatchesConfig
    eval: StripEvalConfig


Tables = Mapping[str, type | Mapping[str, type]]
_MODELS: Mapping[str, type] = {DecoderConfig.kind: DecoderConfig, ViTMAEConfig.kind: ViTMAEConfig}
_OBJECTIVES: Mapping[str, type] = {NextTokenConfig.kind: NextTokenConfig, MaskedPatchesConfig.kind: MaskedPatchesConfig}
_REST: Tables = {"optimizer": OptimizerConfig, "schedule": ScheduleConfig}

# by the kind of the objective: the record of the settings, and the tables in the order in which they are written
SETTINGS: Mapping[str, tuple[type[TokenSettings] | type[StripSettings], Tables]] = {
    NextTokenConfig.kind: (
        TokenSettings,
        {"model": _MODELS, "tokenizer": TokenizerConfig, "data": DataConfig, "objective": _OBJECTIVES}
        | {**_REST, "eval": EvalConfig, "run": RunConfig},
    ),
    MaskedPatchesConfig.kind: (
        StripSettings,
        {"model": _MODELS, "render": RenderTable, "data": StripDataConfig, "objective": _OBJECTIVES}
        | {**_REST, "eval": StripEvalConfig, "run": RunConfig},
    ),
}
MODEL_OF_OBJECTIVE = {NextTokenConfig.kind: DecoderConfig.kind, MaskedPatchesConfig.kind: ViTMAEConfig.kind}
