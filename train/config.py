"""What a run is, besides its model: the tables of a preset, one frozen record each.

The names of the tables and fields are what `--set table.field=value` takes. Which tables a run has follows from its
objective: one that learns from tokens has a tokenizer, one that learns from strips has a renderer. Counts, ranks, paths
of outputs and whatever else changes while a run goes on are not configuration and stand elsewhere.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

from pixelcore.config import (
    DecoderConfig,
    DecoderTaskConfig,
    ModelConfig,
    PixarConfig,
    PixarTaskConfig,
    TokenMLMConfig,
    TokenTaskConfig,
    ViTMAEConfig,
    ViTTaskConfig,
)
from pixelcore.masking import MASK_RULES
from pixelcore.tasks.classify import ClassifyOptions
from render.config import RenderConfig
from train.config_tasks import TASK_OPTIONS, TaskDataConfig, TaskEvalConfig, TaskOptions


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """path: a SentencePiece model to use; empty: make one of this kind. kind: "bpe", trained to model.vocab_size pieces
    on the training text, at most training_megabytes of it, evenly taken; "bytes", whose pieces are the 256 bytes."""

    path: str = ""
    kind: str = "bpe"
    training_megabytes: float = 64.0

    def __post_init__(self) -> None:
        _require(self.kind in ("bpe", "bytes"), f'kind = {self.kind!r} must be "bpe" or "bytes"')
        _require(
            self.kind == "bpe" or not self.path,
            f'path = {self.path!r} names a tokenizer, and kind = "bytes" makes one: leave one of them out',
        )
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
class MaskedTokensConfig:
    """Say which tokens of a text are hidden, from the others. rule: how they are chosen, "random" or "span", as patches
    are. ratio: the share that is chosen."""

    kind: ClassVar[str] = "mlm"

    rule: str = "random"
    ratio: float = 0.15

    def __post_init__(self) -> None:
        _require(self.rule in ("random", "span"), f'rule = {self.rule!r} must be "random" or "span"')
        _require(0 < self.ratio < 1, f"ratio = {self.ratio} must lie between 0 and 1, both excluded")


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
class NextPatchConfig:
    """Predict each patch of a strip from those before it. What is said of it is the model's head."""

    kind: ClassVar[str] = "next_patch"


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(NextPatchConfig):
    """Stage 2: predict each patch of a strip, and pass predictions off as real before a discriminator that learns to
    tell. The loss is that of the likelihood + strength * balance * the adversarial one, where the balance is what makes
    both gradients at the last layer equally large.

    strength: rises from 0 over strength_warmup_steps, then stays. lag: 0 measures the balance in the step that uses it;
    1 uses that of the step before, and the generator stays as it is in the first step, as published.
    fakes_per_strip: predictions of a strip that are judged, at most. fakes: what is judged, "soft", the chance of paper
    of each pixel, or "straight-through", its decision, with the gradient of the chance. draw: which are judged: "strip"
    draws among the patches of each strip; "batch" draws places once for a whole step, as published.
    real_noise: by how much, at most, a pixel of a real patch is moved towards its opposite before it is judged.
    rollout: steps of the model's own up to the one that is judged; 1, behind real patches alone, as published.
    hot_layers: the last layers alone learn, and the head; 0: everything does. Source: specs/pixar.md, section 4.
    """

    kind: ClassVar[str] = "adversarial"

    strength: float = 10.0
    strength_warmup_steps: int = 1000
    lag: int = 0
    fakes_per_strip: int = 30
    fakes: str = "soft"
    draw: str = "strip"
    real_noise: float = 0.0
    rollout: int = 1
    hot_layers: int = 0

    def __post_init__(self) -> None:
        _require(self.strength >= 0, f"strength = {self.strength} must not be negative")
        _require(
            self.strength_warmup_steps >= 0,
            f"strength_warmup_steps = {self.strength_warmup_steps} must not be negative",
        )
        _require(self.lag in (0, 1), f"lag = {self.lag} must be 0 or 1")
        _require(self.fakes_per_strip > 0, f"fakes_per_strip = {self.fakes_per_strip} must be positive")
        _require(
            self.fakes in ("soft", "straight-through"), f'fakes = {self.fakes!r} must be "soft" or "straight-through"'
        )
        _require(self.draw in ("strip", "batch"), f'draw = {self.draw!r} must be "strip" or "batch"')
        _require(0 <= self.real_noise <= 1, f"real_noise = {self.real_noise} must lie between 0 and 1")
        _require(1 <= self.rollout <= 8, f"rollout = {self.rollout} must be from 1 to 8")
        _require(
            self.rollout == 1 or self.draw == "strip",
            f'rollout = {self.rollout} with draw = "batch": steps of the model\'s own need draw = "strip"',
        )
        _require(self.hot_layers >= 0, f"hot_layers = {self.hot_layers} must not be negative")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Who judges. learning_rate rises over warmup_steps and goes on as [schedule] says; all else of its AdamW is as in
    [optimizer]."""

    learning_rate: float = 1e-5
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, f"learning_rate = {self.learning_rate} must be positive")
        _require(self.warmup_steps >= 0, f"warmup_steps = {self.warmup_steps} must not be negative")


@dataclass(frozen=True, kw_only=True)
class ContextDiscriminatorConfig(DiscriminatorConfig):
    """A copy of the generator with a head of two classes, which sees the real patches before the one it judges.
    positions: where a fake stands, "next" behind the patch it follows, or "same" in that patch's place. hot_layers: the
    last layers alone learn, and the head; 0: everything does. Source: specs/pixar.md, sections 4.1 and 4.4."""

    kind: ClassVar[str] = "context"

    positions: str = "next"
    hot_layers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.positions in ("next", "same"), f'positions = {self.positions!r} must be "next" or "same"')
        _require(self.hot_layers >= 0, f"hot_layers = {self.hot_layers} must not be negative")


@dataclass(frozen=True, kw_only=True)
class PatchDiscriminatorConfig(DiscriminatorConfig):
    """A perceptron of num_blocks residual blocks that sees one patch and nothing else. Source: specs/pixar.md, 4.2."""

    kind: ClassVar[str] = "patch"

    width: int = 768
    num_blocks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "num_blocks"):
            _require(getattr(self, name) > 0, f"{name} = {getattr(self, name)} must be positive")


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
class TokenEvalConfig(WhenConfig):
    """Loss on held-out text: whole documents, about max_tokens of them, evenly taken."""

    max_tokens: int = 1_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.max_tokens > 0, f"max_tokens = {self.max_tokens} must be positive")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(TokenEvalConfig):
    """And what the model writes after each prompt."""

    prompts: tuple[str, ...] = ()
    sample_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.sample_tokens > 0, f"sample_tokens = {self.sample_tokens} must be positive")


@dataclass(frozen=True, kw_only=True)
class RowEvalConfig(WhenConfig):
    """Loss on at most max_rows held-out rows, evenly taken."""

    max_rows: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.max_rows > 0, f"max_rows = {self.max_rows} must be positive")


@dataclass(frozen=True, kw_only=True)
class StripEvalConfig(RowEvalConfig):
    """On held-out rows, under masks that never change: the hidden characters of read_rows of them read back; a picture
    of picture_rows of them."""

    read_rows: int = 32
    picture_rows: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("read_rows", "picture_rows"):
            _require(getattr(self, name) >= 0, f"{name} = {getattr(self, name)} must not be negative")


@dataclass(frozen=True, kw_only=True)
class PatchEvalConfig(RowEvalConfig):
    """On held-out rows: a picture of picture_rows of them, whose second half the model writes; the next word, as the
    model writes it, read at `words` places, 0 for none."""

    picture_rows: int = 4
    words: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("picture_rows", "words"):
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
    data: TextConfig | TaskDataConfig
    objective: NextTokenConfig | MaskedTokensConfig | MaskedPatchesConfig | NextPatchConfig | TaskOptions
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    eval: WhenConfig | TaskEvalConfig
    run: RunConfig


@dataclass(frozen=True, kw_only=True)
class TokenizedSettings(Settings):
    """What the tables of every run that learns a language from tokens have in common."""

    model: DecoderConfig | TokenMLMConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    eval: TokenEvalConfig


@dataclass(frozen=True, kw_only=True)
class TokenSettings(TokenizedSettings):
    """All tables of a run that predicts the next token, by name."""

    model: DecoderConfig
    objective: NextTokenConfig
    eval: EvalConfig


@dataclass(frozen=True, kw_only=True)
class MaskedTokenSettings(TokenizedSettings):
    """All tables of a run that says which tokens are hidden, by name."""

    model: TokenMLMConfig
    objective: MaskedTokensConfig


@dataclass(frozen=True, kw_only=True)
class DrawnSettings(Settings):
    """What the tables of every run that learns from drawn text have in common."""

    render: RenderTable
    data: StripDataConfig
    eval: RowEvalConfig


@dataclass(frozen=True, kw_only=True)
class StripSettings(DrawnSettings):
    """All tables of a run that paints what is hidden of strips, by name."""

    model: ViTMAEConfig
    objective: MaskedPatchesConfig
    eval: StripEvalConfig


@dataclass(frozen=True, kw_only=True)
class PatchSettings(DrawnSettings):
    """All tables of a run that writes strips patch by patch, by name."""

    model: PixarConfig
    objective: NextPatchConfig
    eval: PatchEvalConfig


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings(PatchSettings):
    """All tables of stage 2, by name."""

    objective: AdversarialConfig
    discriminator: ContextDiscriminatorConfig | PatchDiscriminatorConfig


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """What the tables of every run that fine-tunes on a task have in common."""

    model: ViTTaskConfig | PixarTaskConfig | TokenTaskConfig | DecoderTaskConfig
    data: TaskDataConfig
    objective: TaskOptions
    eval: TaskEvalConfig


@dataclass(frozen=True, kw_only=True)
class StripTaskSettings(TaskSettings):
    """All tables of a run that fine-tunes what reads strips, by name."""

    model: ViTTaskConfig | PixarTaskConfig
    render: RenderTable


@dataclass(frozen=True, kw_only=True)
class TokenTaskSettings(TaskSettings):
    """All tables of a run that fine-tunes what reads tokens, by name."""

    model: TokenTaskConfig | DecoderTaskConfig
    tokenizer: TokenizerConfig


Tables = Mapping[str, type | Mapping[str, type]]
_MODELS: Mapping[str, type] = {
    config.kind: config
    for config in (
        DecoderConfig,
        ViTMAEConfig,
        PixarConfig,
        TokenMLMConfig,
        ViTTaskConfig,
        PixarTaskConfig,
        TokenTaskConfig,
        DecoderTaskConfig,
    )
}
_OBJECTIVES: Mapping[str, type] = {
    config.kind: config
    for config in (NextTokenConfig, MaskedTokensConfig, MaskedPatchesConfig, NextPatchConfig, AdversarialConfig)
} | TASK_OPTIONS
_DISCRIMINATORS: Mapping[str, type] = {
    config.kind: config for config in (ContextDiscriminatorConfig, PatchDiscriminatorConfig)
}
_TOKENS: Tables = {"model": _MODELS, "tokenizer": TokenizerConfig, "data": DataConfig, "objective": _OBJECTIVES}
_REST: Tables = {"optimizer": OptimizerConfig, "schedule": ScheduleConfig}
_DRAWN: Tables = {"model": _MODELS, "render": RenderTable, "data": StripDataConfig, "objective": _OBJECTIVES} | _REST
_TASK: Tables = {"data": TaskDataConfig, "objective": _OBJECTIVES, **_REST, "eval": TaskEvalConfig, "run": RunConfig}

# by the kind of the objective: the record of the settings, and the tables in the order in which they are written
SETTINGS: Mapping[str, tuple[type[Settings], Tables]] = {
    NextTokenConfig.kind: (TokenSettings, {**_TOKENS, **_REST, "eval": EvalConfig, "run": RunConfig}),
    MaskedTokensConfig.kind: (MaskedTokenSettings, {**_TOKENS, **_REST, "eval": TokenEvalConfig, "run": RunConfig}),
    MaskedPatchesConfig.kind: (StripSettings, {**_DRAWN, "eval": StripEvalConfig, "run": RunConfig}),
    NextPatchConfig.kind: (PatchSettings, {**_DRAWN, "eval": PatchEvalConfig, "run": RunConfig}),
    AdversarialConfig.kind: (
        AdversarialSettings,
        {**_DRAWN, "discriminator": _DISCRIMINATORS, "eval": PatchEvalConfig, "run": RunConfig},
    ),
    **dict.fromkeys(TASK_OPTIONS, (StripTaskSettings, {"model": _MODELS, "render": RenderTable, **_TASK})),
}
# the same of tasks, where the model reads tokens
SETTINGS_OF_TOKENS: Mapping[str, tuple[type[Settings], Tables]] = dict.fromkeys(
    TASK_OPTIONS, (TokenTaskSettings, {"model": _MODELS, "tokenizer": TokenizerConfig, **_TASK})
)
_READ_TOKENS = (TokenTaskConfig.kind, DecoderTaskConfig.kind)


def settings_for(objective: str, model: str) -> tuple[type[Settings], Tables]:
    """The entry for an objective and a model of these kinds."""
    return (SETTINGS_OF_TOKENS if objective in TASK_OPTIONS and model in _READ_TOKENS else SETTINGS)[objective]


# the models that an objective trains, by their kind
MODELS_OF_OBJECTIVE = {
    NextTokenConfig.kind: (DecoderConfig.kind,),
    MaskedTokensConfig.kind: (TokenMLMConfig.kind,),
    MaskedPatchesConfig.kind: (ViTMAEConfig.kind,),
    NextPatchConfig.kind: (PixarConfig.kind,),
    AdversarialConfig.kind: (PixarConfig.kind,),
    **dict.fromkeys(TASK_OPTIONS, (ViTTaskConfig.kind, TokenTaskConfig.kind)),
    ClassifyOptions.kind: (ViTTaskConfig.kind, TokenTaskConfig.kind, PixarTaskConfig.kind, DecoderTaskConfig.kind),
}
