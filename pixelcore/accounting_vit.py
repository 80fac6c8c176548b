"""What a model of strips costs, from its configuration alone: parameters, arithmetic and memory of a training step.

A masked autoencoder reads the patches that are left and paints on rows for all of them, so a strip costs what its
numbers of patches and of hidden patches say. Its token partner reads all tokens and says which the hidden ones were.
"""

from pixelcore.config import (
    HeadConfig,
    LoRAConfig,
    TokenEncoderConfig,
    TokenMLMConfig,
    TokenTaskConfig,
    ViTConfig,
    ViTMAEConfig,
    ViTTaskConfig,
)


def vit_parameters(config: ViTMAEConfig | ViTTaskConfig) -> int:
    """Exact number of trainable parameters. The positions of a masked autoencoder are no parameters; those of a task
    model are."""
    width = config.hidden_size
    total = width + width * (config.patch_values + 1)  # CLS, the patch projection
    total += _trunk_parameters(config.num_layers, width, config.intermediate_size, config.qkv_bias)
    if isinstance(config, ViTTaskConfig):
        return total + (config.num_patches + 1) * width + _head_parameters(config) + _encoder_adapters(config)
    decoder_width = config.decoder_hidden_size
    total += decoder_width * (width + 1) + decoder_width  # from the encoder's width; the mask token
    total += _trunk_parameters(
        config.decoder_num_layers, decoder_width, config.decoder_intermediate_size, config.qkv_bias
    )
    return total + config.patch_values * (decoder_width + 1)


def token_parameters(config: TokenMLMConfig | TokenTaskConfig) -> int:
    """The same for the token partner; the matrix that scores tokens is that of the embedding and counts once."""
    width = config.hidden_size
    total = width + config.vocab_size * width  # CLS, the embedding
    total += _trunk_parameters(config.num_layers, width, config.intermediate_size, config.qkv_bias)
    if isinstance(config, TokenTaskConfig):
        return total + (config.max_tokens + 1) * width + _head_parameters(config) + _encoder_adapters(config)
    return total + width + width * (width + 1) + 2 * width + config.vocab_size  # mask token; layer, norm, bias


def published_parameters(config: ViTMAEConfig | ViTTaskConfig) -> int:
    """The number that model cards give: fixed tables of positions count too."""
    tables = 0
    if isinstance(config, ViTMAEConfig):
        tables = (config.num_patches + 1) * (config.hidden_size + config.decoder_hidden_size)
    return vit_parameters(config) + tables


def strip_flops(config: ViTMAEConfig, num_patches: int, num_hidden: int, num_channels: int = 1) -> float:
    """Floating point operations of one training step for one strip: forward and backward (twice the forward) of every
    matrix product that runs, attention included. num_channels: of the strip, 1 for grey.

    The encoder runs on CLS and what is not hidden, the decoder on CLS and every patch; its last block ends, and the
    pixels are predicted, on hidden patches alone.
    """
    kept, whole = num_patches - num_hidden + 1, num_patches + 1
    width, decoder_width = config.hidden_size, config.decoder_hidden_size
    multiplies = kept * width * decoder_width + num_hidden * decoder_width * config.patch_values
    multiplies += config.num_layers * _block_multiplies(kept, kept, width, config.intermediate_size)
    multiplies += (config.decoder_num_layers - 1) * _block_multiplies(
        whole, whole, decoder_width, config.decoder_intermediate_size
    )
    multiplies += _block_multiplies(whole, num_hidden, decoder_width, config.decoder_intermediate_size)
    # pixels need no gradient: the projection runs backward once
    projection = kept * width * config.patch_size**2 * num_channels
    return 2 * (3 * multiplies + 2 * projection)


def strip_training_bytes(
    config: ViTMAEConfig,
    num_strips: int,
    num_patches: int,
    num_hidden: int,
    *,
    bytes_per_value: int,
    recompute: bool = False,
    weights_kept: bool = False,
) -> int:
    """Estimated peak memory of a step with micro-batches of strips of these numbers of patches: parameters, gradients,
    two moments (fp32), the activations kept for the backward pass, and the predictions with their target and gradient.

    weights_kept: attention runs by its formula, as the reference does when it drops weights, and keeps them.
    """
    kept, whole = num_patches - num_hidden + 1, num_patches + 1
    encoder = (kept, config.hidden_size, config.intermediate_size, config.num_attention_heads)
    decoder = (
        whole,
        config.decoder_hidden_size,
        config.decoder_intermediate_size,
        config.decoder_num_attention_heads,
    )
    layers = [encoder] * config.num_layers + [decoder] * config.decoder_num_layers
    per_strip = _kept_bytes(layers, bytes_per_value, recompute, weights_kept)
    per_strip += num_hidden * config.patch_values * 4 * 3
    return 16 * vit_parameters(config) + num_strips * per_strip


def tokens_flops(config: TokenMLMConfig, num_tokens: int, num_hidden: int) -> float:
    """The same as `strip_flops` for a text of so many tokens; looking a token up is no arithmetic."""
    rows, width, hidden = num_tokens + 1, config.hidden_size, config.intermediate_size
    multiplies = (config.num_layers - 1) * _block_multiplies(rows, rows, width, hidden)
    multiplies += _block_multiplies(rows, num_hidden, width, hidden)
    return 6 * (multiplies + num_hidden * width * (width + config.vocab_size))


def tokens_training_bytes(
    config: TokenMLMConfig,
    num_texts: int,
    num_tokens: int,
    num_hidden: int,
    *,
    bytes_per_value: int,
    recompute: bool = False,
    weights_kept: bool = False,
) -> int:
    """The same as `strip_training_bytes` for texts of these numbers of tokens."""
    encoder = (num_tokens + 1, config.hidden_size, config.intermediate_size, config.num_attention_heads)
    per_text = _kept_bytes([encoder] * config.num_layers, bytes_per_value, recompute, weights_kept)
    return 16 * token_parameters(config) + num_texts * (per_text + num_hidden * config.vocab_size * 4 * 3)


def task_flops(config: ViTTaskConfig | TokenTaskConfig, num_units: int, num_channels: int = 1) -> float:
    """The same as `strip_flops` for the encoder of a task on so many patches or tokens; the head is left out."""
    rows, width = num_units + 1, config.hidden_size
    multiplies = config.num_layers * _block_multiplies(rows, rows, width, config.intermediate_size)
    projection = 0
    if isinstance(config, ViTConfig):
        projection = rows * width * config.patch_size**2 * num_channels
    return 2 * (3 * multiplies + 2 * projection)


def task_training_bytes(
    config: ViTTaskConfig | TokenTaskConfig,
    num_texts: int,
    num_units: int,
    *,
    bytes_per_value: int,
    recompute: bool = False,
    weights_kept: bool = False,
) -> int:
    """The same as `strip_training_bytes` for a task model, with its scores and their gradient."""
    rows, labels = num_units + 1, config.num_labels
    encoder = (rows, config.hidden_size, config.intermediate_size, config.num_attention_heads)
    per_text = _kept_bytes([encoder] * config.num_layers, bytes_per_value, recompute, weights_kept)
    scores = labels if config.task == "sequence" else rows * labels
    if config.task == "parser":  # every pair of words, and one side of it times each matrix
        scores = rows * rows * (labels + 1) + rows * labels * config.hidden_size
    parameters = token_parameters(config) if isinstance(config, TokenEncoderConfig) else vit_parameters(config)
    return 16 * parameters + num_texts * (per_text + scores * 4 * 3)


def _kept_bytes(
    layers: list[tuple[int, int, int, int]], bytes_per_value: int, recompute: bool, weights_kept: bool
) -> int:
    """What a strip keeps for the backward pass in layers of (rows, width, feed-forward width, heads)."""
    inside = []
    for rows, width, hidden, num_heads in layers:
        # two norms in and out, q k v, attention out twice (as heads and as rows), the GELU in and out
        values = rows * (9 * width + 2 * hidden) * bytes_per_value
        # the softmax, the bits, what is left of it
        weights = num_heads * rows**2 * (4 + 1 + bytes_per_value) if weights_kept else 0
        inside.append(values + weights)
    # the stream and the branch that enter a block; one block at a time is whole again
    entering = sum(2 * rows * width * bytes_per_value for rows, width, _, _ in layers)
    return entering + max(inside) if recompute else sum(inside)


def adapter_parameters(lora: LoRAConfig | None, width: int, hidden: int) -> int:
    """Of the adapters of one layer, whose attention maps are square."""
    if lora is None:
        return 0
    wide = {"gate_proj", "up_proj", "down_proj"}
    return lora.rank * sum(width + (hidden if name in wide else width) for name in lora.target_modules)


def _encoder_adapters(config: HeadConfig) -> int:
    return config.num_layers * adapter_parameters(config.lora, config.hidden_size, config.intermediate_size)


def _trunk_parameters(num_layers: int, width: int, hidden: int, qkv_bias: bool) -> int:
    block = 4 * width + 4 * width * width + width + (3 * width if qkv_bias else 0)  # norms; q, k, v, out; biases
    block += width * hidden + hidden + hidden * width + width
    return num_layers * block + 2 * width


def _head_parameters(config: HeadConfig) -> int:
    width, labels = config.hidden_size, config.num_labels
    square = width * (width + 1)
    if config.task == "parser":
        return square + (width + 1) * width + labels * (width + 1) ** 2
    classifier = labels * (width + 1)
    if config.task != "sequence":
        return classifier
    if config.pooling == "cls":
        return square + classifier
    norm = 2 * width if config.pooler_norm else 0
    pooling = width + 4 * square if config.pooling.startswith("pma") else square
    return norm + pooling + classifier


def _block_multiplies(rows: int, finished: int, width: int, hidden: int) -> int:
    """q, k, v and attention of all rows of a strip; output projection and feed-forward of those that are finished."""
    return rows * 3 * width * width + 2 * rows * rows * width + finished * (width * width + 2 * width * hidden)
