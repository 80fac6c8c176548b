"""The fused records: for each operation of the models, and of a step of generation, the kernel that does it."""

from kernels import (
    add_norm,
    attention,
    cross_entropy,
    decode_attention,
    dropout,
    gelu,
    glu,
    mixture_bce,
    patch_embed,
    pixel_bce,
    pixel_mse,
    split_rope,
    step_attend_project,
    step_next_patch,
    step_norm_glu,
    step_norm_logits,
    step_norm_qkv,
    step_project_add,
    step_sample_token,
    unshuffle,
)
from kernels.adamw import adamw
from pixelcore.ops import Ops
from pixelcore.step_ops import StepOps

FUSED = Ops(
    add_norm=add_norm.fused,
    split_rope=split_rope.fused,
    attention=attention.fused,
    glu=glu.fused,
    gelu=gelu.fused,
    dropout=dropout.fused,
    cross_entropy=cross_entropy.fused,
    patch_embed=patch_embed.fused,
    unshuffle=unshuffle.fused,
    pixel_mse=pixel_mse.fused,
    pixel_bce=pixel_bce.fused,
    mixture_bce=mixture_bce.fused,
    decode_attention=decode_attention.decode_attention,
    adamw=adamw,
)
STEP_FUSED = StepOps(
    norm_qkv=step_norm_qkv.norm_qkv,
    attend_project=step_attend_project.fused,
    norm_glu=step_norm_glu.fused,
    project_add=step_project_add.fused,
    norm_logits=step_norm_logits.fused,
    sample_token=step_sample_token.sample_token,
    next_patch=step_next_patch.fused,
)
