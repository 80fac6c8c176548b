"""A micro-batch of strips as a language model over patches reads it: each row reads one patch and foretells the next.

A strip of n patches has n - 1 rows, or n with a start vector, which stands before the first patch and foretells it. The
last patch, the black one that ends a text, is a target like any other, and nothing follows it, so it is never read:
attention is causal, and no other row would have looked at it. Strips stand end to end (`pixelcore.packed`), and the
same bytes are what goes in and what is to come out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcore.config import PixarTrunkConfig
from pixelcore.errors import UserError
from pixelcore.packed import Packed
from pixelcore.patches import patchify


@dataclass(frozen=True)
class NextPatches:
    """Everything that the forward pass of a language model over patches needs of its micro-batch.

    pixels: [P, A] uint8 (0 ink, 255 paper) or float in [0, 1]; the values of a patch in the order row, column, channel.
    packed: structure of the N rows. rows: int64 [N], the patch that each row reads, -1 for the start vector.
    scored_rows: int64 [M], rows whose next patch is there; targets: int64 [M], those patches. counts: targets of each
    strip, on the host.
    """

    pixels: Tensor
    packed: Packed
    rows: Tensor
    scored_rows: Tensor
    targets: Tensor
    counts: tuple[int, ...]

    def to(self, device: torch.device | str) -> "NextPatches":
        """The same micro-batch on another device."""
        tensors = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return NextPatches(packed=self.packed.to(device), counts=self.counts, **tensors)


def arrange_next(
    pixels: Tensor,
    lengths: Sequence[int],
    start_vector: bool,
    real: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> NextPatches:
    """Index a micro-batch of strips and move it to the device.

    pixels: [P, A], the patches of strips of these lengths end to end. real: of a caller who asks for a row for every
    patch, padding too, how many patches of each strip, its first ones, are real; without it all are, and the last patch
    of each strip is not read.
    Raises UserError for a strip without a patch, or without one to foretell where `real` does not ask for all rows.
    """
    length_M = torch.tensor(lengths, dtype=torch.int64)
    real_M = length_M if real is None else torch.tensor(real, dtype=torch.int64)
    before = int(start_vector)
    if len(pixels) != int(length_M.sum()):
        raise ValueError(f"{len(pixels)} patches for strips of {int(length_M.sum())}: lengths = {list(lengths)}")
    count_M = real_M - 1 + before
    _check(real_M, count_M, whole=real is not None)
    row_M = count_M if real is None else length_M + before
    strip_N = torch.repeat_interleave(torch.arange(len(row_M)), row_M)
    place_N = torch.arange(len(strip_N)) - (row_M.cumsum(0) - row_M)[strip_N]
    patch_N = (length_M.cumsum(0) - length_M)[strip_N] + place_N - before
    scored_rows = (place_N < count_M[strip_N]).nonzero()[:, 0]
    visible = None if real is None else (real_M + before).tolist()
    return NextPatches(
        pixels=pixels.to(device, non_blocking=True),
        packed=Packed.from_lengths(row_M.tolist(), device=device, visible=visible),
        rows=torch.where(place_N < before, -1, patch_N).to(device, non_blocking=True),
        scored_rows=scored_rows.to(device, non_blocking=True),
        targets=(patch_N[scored_rows] + 1).to(device, non_blocking=True),
        counts=tuple(count_M.tolist()),
    )


def _check(real_M: Tensor, count_M: Tensor, whole: bool) -> None:
    empty = (real_M < 1).nonzero()
    if len(empty):
        raise UserError(f"strip {int(empty[0])} has no real patch: leave it out, or correct its attention mask")
    alone = (count_M < 1).nonzero()
    if len(alone) and not whole:
        raise UserError(
            f"strip {int(alone[0])} has one patch, and the model foretells patches from those before them: leave the "
            "strip out, or train a model with start_vector = true"
        )


def arrange_next_dense(image: Tensor, config: PixarTrunkConfig, attention_mask: Tensor | None = None) -> NextPatches:
    """A dense batch as a micro-batch, padding kept: a row for every patch.

    image, attention_mask: as of `check_dense`. Raises UserError for pixels and masks that do not fit the configuration
    or each other.
    """
    pixels_BLA, real = check_dense(image, config, attention_mask)
    batch, length = pixels_BLA.shape[:2]
    return arrange_next(pixels_BLA.flatten(0, 1), [length] * batch, config.start_vector, real=real, device=image.device)


def check_dense(
    image: Tensor, config: PixarTrunkConfig, attention_mask: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """The patches [B, L, A] of a dense batch, and how many of each strip, its first ones, are real.

    image: [B, C, Y, X], uint8 or float in [0, 1], C the channels of the configuration or 1. attention_mask: [B, L], 1
    where a patch is real, first ones before zeros; all of them when absent.
    Raises UserError for pixels and masks that do not fit the configuration or each other.
    """
    if image.dim() != 4 or image.shape[1] not in (1, config.num_channels):
        raise UserError(
            f"the image {list(image.shape)} must be [batch, channels, {config.patch_height}, width] with "
            f"{' or '.join(str(number) for number in sorted({1, config.num_channels}))} channels"
        )
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise UserError(f"the image is {image.dtype}; it must be uint8, or float in [0, 1]")
    pixels_BLA = patchify(image, config.patch_height, config.patch_width)
    batch, length = pixels_BLA.shape[:2]
    real = [length] * batch
    if attention_mask is not None:
        if attention_mask.shape != (batch, length):
            raise UserError(
                f"attention_mask {list(attention_mask.shape)} must be [batch, patches] of the image, {[batch, length]}"
            )
        mask_BL = attention_mask.cpu().bool()
        real = mask_BL.sum(1).tolist()
        wrong = (mask_BL != (torch.arange(length) < mask_BL.sum(1, keepdim=True))).any(1).nonzero()
        if len(wrong):
            raise UserError(
                f"attention_mask of strip {int(wrong[0])}: padding stands before real patches; it must stand behind "
                "them: move the strip to the left"
            )
    return pixels_BLA, real
