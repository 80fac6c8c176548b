"""What fine-tuning wants to know of a model, by its kind: whose encoder it begins with, and what it fits and costs.

A task model has an encoder, whose architecture is that of the model it begins with, and a head, which is the run's own.
An encoder of PIXEL gives its parameters by the names they have here; what a language model over patches or tokens gives
has no prefix there, and everything but its head is taken.
"""

import logging
from dataclasses import fields, replace

from torch import Tensor

from pixelcore.accounting import flops_per_token, training_bytes
from pixelcore.accounting_pixar import flops_per_patch, pixar_training_bytes
from pixelcore.accounting_vit import task_flops, task_training_bytes
from pixelcore.config import (
    DecoderTaskConfig,
    DecoderTrunkConfig,
    HeadConfig,
    ModelConfig,
    PixarTaskConfig,
    PixarTrunkConfig,
    TokenTaskConfig,
    ViTTaskConfig,
)
from pixelcore.convert.merge import adapters_of, merge_lora
from pixelcore.errors import UserError
from pixelcore.stored import Stored
from render.config import RenderConfig

ENCODER = "encoder."  # the part of a model's parameters that --init gives

TaskModelConfig = ViTTaskConfig | PixarTaskConfig | TokenTaskConfig | DecoderTaskConfig

# what --init may name, by the kind of the model that is fine-tuned
BEGINS_FROM = {
    ViTTaskConfig.kind: ("vit_mae", ViTTaskConfig.kind),
    PixarTaskConfig.kind: ("pixar", PixarTaskConfig.kind),
    TokenTaskConfig.kind: ("token_mlm", TokenTaskConfig.kind),
    DecoderTaskConfig.kind: ("decoder", DecoderTaskConfig.kind),
}

_log = logging.getLogger(__name__)

# what a fine-tuned model has of the encoder that it began with; dropout is the run's own
_OF_ENCODER = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "layer_norm_eps",
    "qkv_bias",
    "initializer_range",
)
_OF_VIT = ("patch_size", "num_patches", "num_channels", *_OF_ENCODER)
_OF_TOKENS = ("vocab_size", "max_tokens", *_OF_ENCODER)
_POSITIONS = ENCODER + "positions"
_OF_PIXAR = tuple(field.name for field in fields(PixarTrunkConfig))
_OF_DECODER = tuple(
    field.name for field in fields(DecoderTrunkConfig) if field.name not in ("dropout", "attention_dropout", "lora")
)
_HEADS = ("out_proj.", "score.", "head.")  # of language models over patches and tokens


def adopted(model: TaskModelConfig, begun: ModelConfig) -> TaskModelConfig:
    """The architecture of the encoder that the run begins with; head, dropout and adapters as the run wants them."""
    if isinstance(model, HeadConfig):
        names = _OF_VIT if isinstance(model, ViTTaskConfig) else _OF_TOKENS
    else:
        names = _OF_PIXAR if isinstance(model, PixarTaskConfig) else _OF_DECODER
    return replace(model, **{name: getattr(begun, name) for name in names})


def with_positions_cut(model: TaskModelConfig, longest: int) -> TaskModelConfig:
    """The model with positions for texts of `longest` units and no more. Raises UserError for one that has no table of
    them, or stretches it."""
    if not isinstance(model, HeadConfig):
        raise UserError(
            f"data.cut_positions = true: a model of kind {model.kind!r} has no table of positions: leave it out"
        )
    if isinstance(model, TokenTaskConfig):
        return replace(model, max_tokens=min(longest, model.max_tokens))
    assert isinstance(model, ViTTaskConfig)
    if model.interpolate_positions:
        raise UserError(
            "data.cut_positions = true takes positions away, and model.interpolate_positions = true stretches the "
            "table of all: leave one of them out"
        )
    return replace(model, num_patches=min(longest, model.num_patches))


def begun_weights(stored: Stored, model: TaskModelConfig) -> dict[str, Tensor]:
    """What a task model takes from the model it begins with: the encoder, positions among it. Adapters of that model
    are folded into its weights: the run has none, or begins its own. Of the positions the first are kept, as many as
    `model` has: as in the original, a patch stands where it stood (specs/pixel.md, section 3.1)."""
    if adapters_of(stored.config) is not None:
        _log.info("%s: folding its adapters into the weights", stored.path)
        stored = merge_lora(stored)
    if stored.config.kind in ("pixar", "decoder"):
        taken = {ENCODER + name: tensor for name, tensor in stored.weights.items() if not name.startswith(_HEADS)}
    else:
        taken = {name: tensor for name, tensor in stored.weights.items() if name.startswith(ENCODER)}
    if isinstance(model, HeadConfig):
        table_LD = taken[_POSITIONS]
        taken[_POSITIONS] = table_LD[: model.num_units + 1]  # that of CLS stands before them
        if len(taken[_POSITIONS]) < len(table_LD):
            _log.info("%s: kept the first %d of %d positions", stored.path, model.num_units, len(table_LD) - 1)
    _log.info(
        "%s: took the encoder, %d tensors of %s values, and left out %d others; the head begins fresh",
        stored.path,
        len(taken),
        f"{sum(tensor.numel() for tensor in taken.values()):,}",
        len(stored.weights) - len(taken),
    )
    return taken


def check_head(model: TaskModelConfig, kind: str, head: str) -> None:
    """Raise UserError for a model whose head is not the one of the task. kind: of the objective. head: `task` of a
    `HeadConfig`; the others have one for texts alone."""
    found = model.task if isinstance(model, HeadConfig) else "sequence"
    if found != head:
        raise UserError(
            f"objective.kind = {kind!r} needs model.task = {head!r}, not {found!r}: edit [model]"
            if isinstance(model, HeadConfig)
            else f"objective.kind = {kind!r} with model.kind = {model.kind!r}, which classifies whole texts: take a "
            "preset of kind vit_task"
        )


def check_strips(model: TaskModelConfig, render: RenderConfig, max_patches: int) -> None:
    """Raise UserError for strips that the model cannot read."""
    assert not isinstance(model, TokenTaskConfig | DecoderTaskConfig), "it reads no strips"
    if isinstance(model, ViTTaskConfig):
        rows, columns, field, longest = model.patch_size, model.patch_size, "num_patches", model.num_patches
        sizes = f"must be model.patch_size = {rows}"
    else:
        rows, columns, field, longest = model.patch_height, model.patch_width, "max_patches", model.max_patches
        sizes = f"must be {rows} and {columns}, as model.patch_height and model.patch_length say"
    if (render.height, render.patch_width) != (rows, columns):
        raise UserError(
            f"render.height = {render.height} and render.patch_width = {render.patch_width} {sizes}: edit [render] or "
            "[model]"
        )
    if render.channels == 3 and model.num_channels == 1:
        raise UserError("render.color = 'rgb' needs model.num_channels = 3: edit [render] or [model]")
    if max_patches > longest and not (isinstance(model, ViTTaskConfig) and model.interpolate_positions):
        others = ", or model.interpolate_positions = true"
        raise UserError(
            f"data.max_patches = {max_patches} must not exceed model.{field} = {longest}: cut strips earlier, set "
            f"data.max_patches = {longest}{others if isinstance(model, ViTTaskConfig) else ''}"
        )


def check_tokens(model: TaskModelConfig, max_tokens: int) -> None:
    """Raise UserError for texts that the model cannot read."""
    assert isinstance(model, TokenTaskConfig | DecoderTaskConfig), "it reads no tokens"
    is_encoder = isinstance(model, TokenTaskConfig)
    field, longest = ("max_tokens", model.max_tokens) if is_encoder else ("context_length", model.context_length)
    if max_tokens > longest:
        raise UserError(
            f"data.max_patches = {max_tokens} must not exceed model.{field} = {longest}: cut texts earlier, set "
            f"data.max_patches = {longest}"
        )


def row_flops(model: TaskModelConfig, units: int, num_channels: int) -> float:
    """Floating point operations of one step on one row of so many patches or tokens."""
    if isinstance(model, HeadConfig):
        return task_flops(model, units, num_channels)
    each = flops_per_patch(model, units) if isinstance(model, PixarTaskConfig) else flops_per_token(model, units)
    return units * each


def step_bytes(model: TaskModelConfig, rows: int, units: int, bytes_per_value: int, recompute: bool) -> float:
    """Estimated peak memory of a training step with micro-batches of so many full rows."""
    if isinstance(model, HeadConfig):
        return task_training_bytes(
            model,
            rows,
            units,
            bytes_per_value=bytes_per_value,
            recompute=recompute,
            weights_kept=model.attention_dropout > 0,
        )
    if isinstance(model, PixarTaskConfig):
        return pixar_training_bytes(model, rows * units, bytes_per_value=bytes_per_value, recompute=recompute)
    return training_bytes(model, rows * units, bytes_per_value=bytes_per_value, recompute=recompute)
