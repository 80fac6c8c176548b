"""What a model costs, from its configuration alone: parameters, arithmetic, memory of a training step.

This file counts the decoder of tokens; `pixelcore.accounting_vit` counts the models that read strips, whose arithmetic
depends on what is hidden, and their token partners, and `pixelcore.accounting_pixar` the one that writes strips.
"""

from pixelcore.accounting_pixar import pixar_parameters, pooled_parameters
from pixelcore.accounting_vit import token_parameters, vit_parameters
from pixelcore.config import (
    DecoderConfig,
    DecoderTaskConfig,
    DecoderTrunkConfig,
    ModelConfig,
    PixarTrunkConfig,
    TokenEncoderConfig,
)


def num_parameters(config: ModelConfig) -> int:
    """Exact number of trainable parameters, norms, experts, adapters and heads included; tied matrices count once."""
    if isinstance(config, DecoderTaskConfig):
        return _decoder_parameters(config) + pooled_parameters(config)
    if isinstance(config, DecoderConfig):
        own_head = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
        return _decoder_parameters(config) + own_head
    if isinstance(config, TokenEncoderConfig):
        return token_parameters(config)
    return pixar_parameters(config) if isinstance(config, PixarTrunkConfig) else vit_parameters(config)


def _decoder_parameters(config: DecoderTrunkConfig) -> int:
    width, hidden = config.hidden_size, config.intermediate_size
    total = config.vocab_size * width
    total += (2 * config.num_layers + 1) * width
    for layer in range(config.num_layers):
        experts = config.moe.num_experts if config.moe is not None and config.is_moe_layer(layer) else 1
        total += sum(rows * columns for rows, columns in _attention_maps(config).values())
        total += experts * 3 * width * hidden
        if config.is_moe_layer(layer):
            total += experts * width
        if config.lora is not None:
            maps = _attention_maps(config)
            feed_forward = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
            for name in config.lora.target_modules:
                copies, shape = (1, maps[name]) if name in maps else (experts, feed_forward[name])
                total += copies * config.lora.rank * sum(shape)
    return total


def card_number(config: DecoderConfig) -> int:
    """The original model card's "approximate" number: no norms, no experts, no adapters, embedding once."""
    width = config.hidden_size
    key_value = 2 * config.num_key_value_heads * config.head_size
    per_layer = width * (2 * width + key_value) + 3 * width * config.intermediate_size
    return config.vocab_size * width + config.num_layers * per_layer


def flops_per_token(config: DecoderConfig | DecoderTaskConfig, length: int) -> float:
    """Floating point operations of one training step for one token: forward and backward (twice the forward) of every
    matrix product that runs, the head over the vocabulary included, and causal attention over documents of `length`
    tokens. The head of a classifier has one row a text and is left out."""
    width, hidden = config.hidden_size, config.intermediate_size
    per_layer = sum(rows * columns for rows, columns in _attention_maps(config).values())
    multiplies = config.num_layers * per_layer + _scored(config) * width
    for layer in range(config.num_layers):
        chosen = config.moe.top_k if config.moe is not None and config.is_moe_layer(layer) else 1
        multiplies += chosen * 3 * width * hidden
    # scores and their product with the values, each token seeing length / 2 others on average
    multiplies += config.num_layers * 2 * width * length / 2
    return 3 * 2 * multiplies


def training_bytes(
    config: DecoderConfig | DecoderTaskConfig, num_tokens: int, *, bytes_per_value: int, recompute: bool = False
) -> int:
    """Estimated peak memory of a step with micro-batches of num_tokens: parameters, gradients, two moments (fp32), the
    activations kept for the backward pass, and the logits with their gradient."""
    width, hidden = config.hidden_size, config.intermediate_size
    key_value = 2 * config.num_key_value_heads * config.head_size
    chosen = config.moe.top_k if config.moe is not None else 1
    # two norms in and out, q k v before and after rotation, attention out, gate, up, their product, activation
    per_layer = 7 * width + 2 * (width + key_value) + 4 * hidden * chosen
    kept = width * config.num_layers + per_layer if recompute else per_layer * config.num_layers
    return 16 * num_parameters(config) + num_tokens * (kept * bytes_per_value + _scored(config) * 4 * 3)


def _scored(config: DecoderTrunkConfig) -> int:
    """Pieces of the vocabulary that every token scores as its next."""
    return config.vocab_size if isinstance(config, DecoderConfig) else 0


def _attention_maps(config: DecoderTrunkConfig) -> dict[str, tuple[int, int]]:
    width, key_value = config.hidden_size, config.num_key_value_heads * config.head_size
    return {
        "q_proj": (width, width),
        "k_proj": (key_value, width),
        "v_proj": (key_value, width),
        "o_proj": (width, width),
    }
