"""What defines a model: frozen, keyword-only records, checked once when they are made.

A record holds everything that decides the shape and the arithmetic of a model and nothing that changes while it trains.
Field names of the decoder are those of the original bundle (specs/decoder.md, section 1), so that a published
configuration reads straight into one; its two switches for experts and adapters became records that are there or not.
"""

from dataclasses import dataclass
from typing import ClassVar

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    target_modules: tuple[str, ...] = LORA_TARGETS

    def __post_init__(self) -> None:
        _positive(self, "rank", "alpha")
        _share(self, "dropout")
        unknown = sorted(set(self.target_modules) - set(LORA_TARGETS))
        if unknown or not self.target_modules:
            raise ValueError(f"target_modules = {list(self.target_modules)} must be some of {list(LORA_TARGETS)}")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only token language model. Source: specs/decoder.md, sections 1 and 2."""

    kind: ClassVar[str] = "decoder"

    vocab_size: int
    context_length: int
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    rope_base: float = 500000.0
    tie_word_embeddings: bool = True
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


MODEL_CONFIGS = {"decoder": DecoderConfig}
