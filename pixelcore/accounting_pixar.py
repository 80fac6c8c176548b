"""What a language model over patches costs, from its configuration alone: parameters, arithmetic and memory of a step.

Rows are patches, and a row is read, passed through the layers and predicted from; without a start vector the last patch
of a strip is a target and no row.
"""

from pixelcore.accounting_vit import adapter_parameters
from pixelcore.config import DecoderTaskConfig, PixarConfig, PixarTaskConfig, PixarTrunkConfig


def pixar_parameters(config: PixarTrunkConfig) -> int:
    """Exact number of trainable parameters."""
    width = config.hidden_size
    per_layer = 4 * width**2 + 3 * width * config.intermediate_size + 2 * width
    if isinstance(config, PixarTaskConfig):
        per_layer += adapter_parameters(config.lora, width, config.intermediate_size)
    total = config.num_layers * per_layer + width + width * config.patch_values
    total += pooled_parameters(config) if isinstance(config, PixarTaskConfig) else _row_head_parameters(config)
    return total + (width if config.start_vector else 0)


def flops_per_patch(config: PixarTrunkConfig, length: int) -> float:
    """Floating point operations of one training step for one row: forward and backward (twice the forward) of every
    matrix product that runs, and causal attention over strips of `length` rows; of a classifier without its head, which
    has one row a strip."""
    width = config.hidden_size
    multiplies = config.num_layers * (4 * width**2 + 3 * width * config.intermediate_size)
    multiplies += _row_head_parameters(config)
    # scores and their product with the values, each row seeing length / 2 others on average
    multiplies += config.num_layers * 2 * width * length / 2
    # pixels need no gradient: the projection runs backward once
    projection = width * config.patch_values
    return 2 * (3 * multiplies + 2 * projection)


def pixar_training_bytes(
    config: PixarTrunkConfig, num_rows: int, *, bytes_per_value: int, recompute: bool = False
) -> int:
    """Estimated peak memory of a step with micro-batches of num_rows: parameters, gradients, two moments (fp32), the
    activations kept for the backward pass, and the predictions with their losses and gradient."""
    width, hidden = config.hidden_size, config.intermediate_size
    # two norms in and out, q k v before and after rotation, attention out, gate, up, their product, activation
    per_layer = 7 * width + 2 * 3 * width + 4 * hidden
    kept = width * config.num_layers + per_layer if recompute else per_layer * config.num_layers
    predicted = config.num_components * config.patch_values * 4 * 3 if isinstance(config, PixarConfig) else 0
    return 16 * pixar_parameters(config) + num_rows * (kept * bytes_per_value + predicted)


def pooled_parameters(config: PixarTaskConfig | DecoderTaskConfig) -> int:
    """Of the head of a classifier, whose rows are one a text."""
    width = config.hidden_size
    inner = {"end_mlp": width * (width + 1), "attention": width}
    return inner.get(config.pooling, 0) + config.num_labels * (width + 1)


def _row_head_parameters(config: PixarTrunkConfig) -> int:
    """Of the head that every row has."""
    if not isinstance(config, PixarConfig):
        return 0
    scores = config.num_components if config.head == "mixture" else 0
    return config.hidden_size * (config.num_components * config.patch_values + scores)
