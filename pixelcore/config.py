"""What defines a model: frozen, keyword-only records, checked once when they are made.

A record holds everything that decides the shape and the arithmetic of a model and nothing that changes while it trains.
Field names of the decoder are those of the original bundle (specs/decoder.md, section 1), so that a published
configuration reads straight into one; its two switches for experts and adapters became records that are there or not.
"""

from dataclasses import dataclass
from typing import ClassVar

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ENCODER_LORA_TARGETS = tuple(name for name in LORA_TARGETS if name != "gate_proj")  # its feed-forward has no gate


def _positive(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if value <= 0:
            raise ValueError(f"{name} = {value} must be positive")


def _share(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if not 0 <= value < 1:
            raise ValueError(f"{name} = {value} must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Mixture of experts: every `expert_interval`-th feed-forward layer routes each token to `top_k` experts.

    balance_coefficient weighs the load-balancing loss, which is 1.0 per layer when every expert gets its share
    (Switch Transformer, arXiv:2101.03961, eq. 4-6). The original program fixes it at 1.0.
    """

    num_experts: int = 4
    top_k: int = 2
    expert_interval: int = 4
    balance_coefficient: float = 0.01

    def __post_init__(self) -> None:
        _positive(self, "num_experts", "top_k", "expert_interval")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k = {self.top_k} must not exceed num_experts = {self.num_experts}")
        if self.balance_coefficient < 0:
            raise ValueError(f"balance_coefficient = {self.balance_coefficient} must not be negative")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters (arXiv:2106.09685): y += dropout(x) A^T B^T * alpha / rank on each named linear map.

    target_modules are the published names; q, k, v and gate, up are row slices of the packed weights.
    """

    possible: ClassVar[tuple[str, ...]] = LORA_TARGETS

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    target_modules: tuple[str, ...] = LORA_TARGETS

    def __post_init__(self) -> None:
        _positive(self, "rank", "alpha")
        _share(self, "dropout")
        unknown = sorted(set(self.target_modules) - set(self.possible))
        if unknown or not self.target_modules:
            raise ValueError(f"target_modules = {list(self.target_modules)} must be some of {list(self.possible)}")


@dataclass(frozen=True, kw_only=True)
class EncoderLoRAConfig(LoRAConfig):
    """Adapters of an `EncoderConfig`, by the names that the same maps have in a decoder."""

    possible: ClassVar[tuple[str, ...]] = ENCODER_LORA_TARGETS

    target_modules: tuple[str, ...] = ENCODER_LORA_TARGETS


@dataclass(frozen=True, kw_only=True)
class DecoderTrunkConfig:
    """What reads tokens from left to right, whatever is made of what it has read. Source: specs/decoder.md, sections 1
    and 2."""

    vocab_size: int
    context_length: int
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    rope_base: float = 500000.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    rms_norm_eps: float = 1e-5
    moe: MoEConfig | None = None
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        _positive(self, "vocab_size", "context_length", "num_layers", "hidden_size", "num_attention_heads")
        _positive(self, "num_key_value_heads", "intermediate_size", "rope_base", "rms_norm_eps")
        _share(self, "dropout", "attention_dropout")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be a multiple of num_attention_heads = "
                f"{self.num_attention_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"the head size {self.head_size} must be even: rotary positions turn pairs of features")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} must be a multiple of num_key_value_heads = "
                f"{self.num_key_value_heads}"
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def is_moe_layer(self, index: int) -> bool:
        """Layer `index` (from 0) routes to experts iff (index + 1) is a multiple of the interval."""
        return self.moe is not None and (index + 1) % self.moe.expert_interval == 0


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(DecoderTrunkConfig):
    """A decoder-only token language model. tie_word_embeddings: the embedding's matrix scores the next token too."""

    kind: ClassVar[str] = "decoder"

    tie_word_embeddings: bool = True


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Blocks in which every row looks at all rows of its own text, and a CLS row before them, whatever is read.
    Source: specs/pixel.md, sections 2.1 to 2.3.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _positive(self, "num_layers", "hidden_size", "num_attention_heads", "intermediate_size", "layer_norm_eps")
        _positive(self, "initializer_range")
        _share(self, "hidden_dropout", "attention_dropout")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be a multiple of num_attention_heads = "
                f"{self.num_attention_heads}"
            )

    @property
    def num_units(self) -> int:
        """Rows of the position table, CLS not counted: patches or tokens of the longest text."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ViTConfig(EncoderConfig):
    """An encoder of rendered text: patches of a strip, from left to right.

    num_patches: rows of the position table, CLS not counted. num_channels: of the published patch projection; grey
    strips are read as `num_channels` equal channels, without being copied. interpolate_positions: read strips of more
    than num_patches patches by stretching the grid of positions; else they are refused.
    """

    patch_size: int = 16
    num_patches: int = 529
    num_channels: int = 3
    interpolate_positions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "patch_size", "num_patches")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels = {self.num_channels} must be 1 or 3")

    @property
    def num_units(self) -> int:
        return self.num_patches

    @property
    def patch_values(self) -> int:
        """Values of one patch in the published form: rows x columns x channels."""
        return self.patch_size**2 * self.num_channels


@dataclass(frozen=True, kw_only=True)
class ViTMAEConfig(ViTConfig):
    """A masked autoencoder over rendered text (PIXEL, PIXEL-M4): the encoder, and a decoder that paints what it did not
    see. normalise_pixels: the target of each patch has mean 0 and variance 1 (the published `norm_pix_loss`).
    Source: specs/pixel.md, sections 2.1 and 2.5.
    """

    kind: ClassVar[str] = "vit_mae"

    decoder_num_layers: int
    decoder_hidden_size: int
    decoder_num_attention_heads: int
    decoder_intermediate_size: int
    normalise_pixels: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "decoder_num_layers", "decoder_hidden_size", "decoder_num_attention_heads")
        _positive(self, "decoder_intermediate_size")
        if self.decoder_hidden_size % self.decoder_num_attention_heads:
            raise ValueError(
                f"decoder_hidden_size = {self.decoder_hidden_size} must be a multiple of decoder_num_attention_heads = "
                f"{self.decoder_num_attention_heads}"
            )


TASKS = ("sequence", "token", "qa", "parser")


@dataclass(frozen=True, kw_only=True)
class HeadConfig(EncoderConfig):
    """An encoder with the head of a task: "sequence" classifies a text, "token" each of its units (patches or tokens),
    "qa" finds a span, "parser" finds the head of each word and the relation to it. num_labels: classes of a text or
    unit, relations of a parser, 2 for "qa"; 1 of "sequence" is regression; 0, of a preset, as many as the training data
    has. pooling, of "sequence" alone: "mean", "max", "cls" or "pma<k>", with k heads; pooler_norm: a LayerNorm in it
    ("cls" has none). pma_padding, of "pma" alone: "fixed" looks at real units; "published" at padding too, as the
    original does, so that its weights say what they said. mask_heads, of "parser" alone: a word that is not there is
    nobody's head; else it has the score 0, as published. lora: adapters on the maps of the encoder, which stays as it
    is, while the head learns in full.
    Source: specs/pixel.md, section 3.
    """

    task: str
    num_labels: int = 0
    pooling: str = "mean"
    pooler_norm: bool = True
    pma_padding: str = "fixed"
    mask_heads: bool = False
    lora: EncoderLoRAConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels < 0:
            raise ValueError(f"num_labels = {self.num_labels} must not be negative")
        if self.task not in TASKS:
            raise ValueError(f"task = {self.task!r} must be one of {list(TASKS)}")
        if self.task == "qa" and self.num_labels not in (0, 2):
            raise ValueError(f"num_labels = {self.num_labels} must be 2 for qa: a start and an end")
        if self.mask_heads and self.task != "parser":
            raise ValueError(f'mask_heads = true belongs to task = "parser", and the task is {self.task!r}')
        if self.pma_padding not in ("fixed", "published"):
            raise ValueError(f'pma_padding = {self.pma_padding!r} must be "fixed" or "published"')
        heads = self.pooling.removeprefix("pma")
        if self.pooling not in ("mean", "max", "cls") and (heads == self.pooling or not heads.isdecimal()):
            raise ValueError(f'pooling = {self.pooling!r} must be "mean", "max", "cls" or "pma" and a number of heads')
        if heads.isdecimal() and (int(heads) == 0 or self.hidden_size % int(heads)):
            raise ValueError(f"pooling = {self.pooling!r}: the heads must divide hidden_size = {self.hidden_size}")


@dataclass(frozen=True, kw_only=True)
class ViTTaskConfig(HeadConfig, ViTConfig):
    """The encoder of strips with the head of a task."""

    kind: ClassVar[str] = "vit_task"


@dataclass(frozen=True, kw_only=True)
class TokenEncoderConfig(EncoderConfig):
    """An encoder of tokens: that of strips, with an embedding of the vocabulary in place of the patch projection.
    max_tokens: rows of the position table, CLS not counted."""

    vocab_size: int
    max_tokens: int = 529

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "vocab_size", "max_tokens")

    @property
    def num_units(self) -> int:
        return self.max_tokens


@dataclass(frozen=True, kw_only=True)
class TokenMLMConfig(TokenEncoderConfig):
    """The encoder of tokens, and a head that says which tokens were hidden from it."""

    kind: ClassVar[str] = "token_mlm"


@dataclass(frozen=True, kw_only=True)
class TokenTaskConfig(HeadConfig, TokenEncoderConfig):
    """The encoder of tokens with the head of a task."""

    kind: ClassVar[str] = "token_task"


HEADS = ("bernoulli", "mixture", "regression")
VALUES = ("consistent", "published")


@dataclass(frozen=True, kw_only=True)
class PixarTrunkConfig:
    """What reads a strip from left to right, each patch with those before it, whatever is made of what it has read.

    A patch has patch_height rows and patch_height * patch_length columns. max_patches: of a strip, the context.
    start_vector: a learned row before the strip, so that the first patch is predicted too and a strip can be written
    from nothing. Source: specs/pixar.md, sections 2.1 and 2.2.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    patch_height: int = 8
    patch_length: int = 2
    num_channels: int = 1
    max_patches: int = 360
    rope_base: float = 10000.0
    rms_norm_eps: float = 1e-5
    start_vector: bool = False

    def __post_init__(self) -> None:
        _positive(self, "num_layers", "hidden_size", "num_attention_heads", "intermediate_size", "patch_height")
        _positive(self, "patch_length", "max_patches", "rope_base", "rms_norm_eps")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be a multiple of num_attention_heads = "
                f"{self.num_attention_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"the head size {self.head_size} must be even: rotary positions turn pairs of features")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels = {self.num_channels} must be 1 or 3")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def patch_width(self) -> int:
        return self.patch_height * self.patch_length

    @property
    def patch_values(self) -> int:
        """Values of one patch: rows x columns x channels."""
        return self.patch_height * self.patch_width * self.num_channels


@dataclass(frozen=True, kw_only=True)
class PixarConfig(PixarTrunkConfig):
    """A decoder-only language model over the patches of a strip, from left to right (PIXAR).

    head: what is said of the next patch. "bernoulli": the chance of paper for each pixel, all independent given the
    context; "mixture": num_components such patches, and how likely each is; "regression": a number for each value, the
    only head of three channels. values, of "regression" alone: "consistent" ranges from -1 to 1 going in and coming
    out; "published" comes out from 0 to 1, as the weights of the original do.
    Source: specs/pixar.md, sections 2.1 to 2.4.
    """

    kind: ClassVar[str] = "pixar"

    head: str = "bernoulli"
    num_components: int = 1
    values: str = "consistent"

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "num_components")
        if self.head not in HEADS:
            raise ValueError(f"head = {self.head!r} must be one of {list(HEADS)}")
        if self.values not in VALUES:
            raise ValueError(f"values = {self.values!r} must be one of {list(VALUES)}")
        if self.num_channels == 3 and self.head != "regression":
            raise ValueError(
                f'num_channels = 3 goes with head = "regression" alone, not {self.head!r}: a chance of paper has no '
                "colour"
            )
        if (self.num_components > 1) != (self.head == "mixture"):
            raise ValueError(
                f"num_components = {self.num_components} with head = {self.head!r}: it must be at least 2 for "
                '"mixture", and 1 for any other head'
            )
        if self.values == "published" and self.head != "regression":
            raise ValueError(f'values = "published" goes with head = "regression" alone, not {self.head!r}')


POOLINGS = ("end", "end_mlp", "mean", "attention")


def _check_classifier(num_labels: int, pooling: str) -> None:
    if num_labels < 0:
        raise ValueError(f"num_labels = {num_labels} must not be negative")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling = {pooling!r} must be one of {list(POOLINGS)}")


@dataclass(frozen=True, kw_only=True)
class PixarTaskConfig(PixarTrunkConfig):
    """What has learned to write strips, as a classifier of them. num_labels: classes; 1 is regression; 0, of a preset,
    as many as the training data has. pooling: what of a strip is classified. "end": the state of its end patch, which
    has seen all of it, as published; "end_mlp": that, through one hidden layer; "mean": the mean of all states;
    "attention": their mean, weighed by a learned score of each. lora: adapters on the maps of the trunk, which stays as
    it is. Source: specs/pixar.md, section 5.1.
    """

    kind: ClassVar[str] = "pixar_task"

    num_labels: int = 0
    pooling: str = "end"
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_classifier(self.num_labels, self.pooling)


@dataclass(frozen=True, kw_only=True)
class DecoderTaskConfig(DecoderTrunkConfig):
    """A decoder of tokens as a classifier of texts. num_labels and pooling: as of `PixarTaskConfig`, with the last
    token in place of the end patch."""

    kind: ClassVar[str] = "decoder_task"

    num_labels: int = 0
    pooling: str = "end"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_classifier(self.num_labels, self.pooling)


ModelConfig = (
    DecoderConfig
    | ViTMAEConfig
    | ViTTaskConfig
    | TokenMLMConfig
    | TokenTaskConfig
    | PixarConfig
    | PixarTaskConfig
    | DecoderTaskConfig
)
MODEL_CONFIGS: dict[str, type[ModelConfig]] = {
    "decoder": DecoderConfig,
    "vit_mae": ViTMAEConfig,
    "vit_task": ViTTaskConfig,
    "token_mlm": TokenMLMConfig,
    "token_task": TokenTaskConfig,
    "pixar": PixarConfig,
    "pixar_task": PixarTaskConfig,
    "decoder_task": DecoderTaskConfig,
}
