"""The fused record: for each operation of the models the kernel that does it.

Attention and the step of decoding have none yet and are the reference's, which runs the library's own kernels.
"""

import logging
from functools import cache

from kernels import (
    add_norm,
    cross_entropy,
    dropout,
    gelu,
    glu,
    mixture_bce,
    patch_embed,
    pixel_bce,
    pixel_mse,
    split_rope,
    unshuffle,
)
from kernels.adamw import adamw
from pixelcore.ops import REFERENCE, Ops

FUSED = Ops(
    add_norm=add_norm.fused,
    split_rope=split_rope.fused,
    attention=REFERENCE.attention,
    glu=glu.fused,
    gelu=gelu.fused,
    dropout=dropout.fused,
    cross_entropy=cross_entropy.fused,
    patch_embed=patch_embed.fused,
    unshuffle=unshuffle.fused,
    pixel_mse=pixel_mse.fused,
    pixel_bce=pixel_bce.fused,
    mixture_bce=mixture_bce.fused,
    decode_attention=REFERENCE.decode_attention,
    adamw=adamw,
)
_log = logging.getLogger(__name__)


@cache
def fused_record() -> Ops:
    """`FUSED`; the first time, the log says what of it is not fused."""
    _log.warning("--ops fused: attention and decode_attention are not fused yet, the reference runs them")
    return FUSED
