"""Every kernel's file by the name of its operation, for the workshop, which checks, inspects and times them all."""

from kernels import (
    adamw,
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
from kernels.workshop.cases import Kernel

KERNELS: dict[str, Kernel] = {
    "adamw": adamw,
    "add_norm": add_norm,
    "cross_entropy": cross_entropy,
    "dropout": dropout,
    "gelu": gelu,
    "glu": glu,
    "mixture_bce": mixture_bce,
    "patch_embed": patch_embed,
    "pixel_bce": pixel_bce,
    "pixel_mse": pixel_mse,
    "split_rope": split_rope,
    "unshuffle": unshuffle,
}
