"""A micro-batch of strips as a vision transformer reads it: patches end to end, and index tensors instead of masks.

A strip is cut into square patches from left to right. Strips have different lengths, and a masked autoencoder reads a
part of each patch sequence and paints the rest, so a dense batch is mostly padding and masks. Here the patches of all
strips stand end to end, once, and what would be a mask is a list of row numbers, made on the host before the step:

    kept    rows that the encoder reads: of each strip CLS and the patches that are not hidden
    whole   rows that the decoder works on: of each strip CLS and all patches, the hidden ones as mask tokens
    scored  patches that the loss asks for: hidden, and not padding

The pixels stay bytes until the patch projection; the same bytes are the target of the loss. Only a dense call has
padding: its `visible` says how many patches of a strip are real, and rows behind them look but are not looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcore.config import ViTConfig
from pixelcore.errors import UserError
from pixelcore.packed import Packed


@dataclass(frozen=True)
class Patches:
    """Everything that the forward pass of a vision transformer needs of its micro-batch.

    pixels: [P, A] uint8 (0 ink, 255 paper) or float in [0, 1]; the values of a patch in the order row, column, channel.
    kept: structure of the N rows of the encoder. kept_rows: int64 [N], the patch of each row, -1 for CLS.
    kept_places: int64 [N], the row of the position table, 0 for CLS.
    whole: structure of the R rows of the decoder; None when nothing is hidden, since it would equal `kept`.
    restore: int64 [R], the row of `kept` that each row repeats, -1 where it is hidden. places: int64 [R], like
    kept_places. scored_rows: int64 [M], rows of `whole` that the loss counts; scored: int64 [M], their patches.
    """

    pixels: Tensor
    kept: Packed
    kept_rows: Tensor
    kept_places: Tensor
    whole: Packed | None
    restore: Tensor
    places: Tensor
    scored_rows: Tensor
    scored: Tensor

    @property
    def decoded(self) -> Packed:
        """The structure of the decoder's rows, whether patches are hidden or not."""
        return self.kept if self.whole is None else self.whole

    @property
    def num_patches(self) -> list[int]:
        """Patches of each strip, hidden ones and padding included."""
        return [rows - 1 for rows in self.decoded.lengths]

    def to(self, device: torch.device | str) -> "Patches":
        """The same micro-batch on another device."""
        tensors = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        whole = None if self.whole is None else self.whole.to(device)
        return Patches(kept=self.kept.to(device), whole=whole, **tensors)


def arrange(
    pixels: Tensor,
    lengths: Sequence[int],
    hidden: Tensor | None = None,
    documents: Sequence[int] | None = None,
    visible: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    columns: Tensor | None = None,
) -> Patches:
    """Index a micro-batch of strips and move it to the device.

    pixels: [P, A], the patches of strips of these lengths end to end. hidden: bool [P] on the host, what the encoder
    must not see. documents: names of the strips for dropout, else their number in the micro-batch. visible: how many
    patches of each strip, its first ones, are real. columns: int64 [P] on the host, the place of each patch in its
    strip where patches do not stand in order.
    Raises UserError if a strip has no real patch, if all its real patches are hidden, or if no real patch of any strip
    is hidden although `hidden` was given.
    """
    length_M = torch.tensor(lengths, dtype=torch.int64)
    visible_M = length_M if visible is None else torch.tensor(visible, dtype=torch.int64)
    num_patches = int(length_M.sum())
    if len(pixels) != num_patches:
        raise ValueError(f"{len(pixels)} patches for strips of {num_patches}: lengths = {list(lengths)}")
    strip_P = torch.repeat_interleave(torch.arange(len(length_M)), length_M)
    place_P = torch.arange(num_patches) - (length_M.cumsum(0) - length_M)[strip_P]
    real_P = place_P < visible_M[strip_P]
    hidden_P = torch.zeros(num_patches, dtype=torch.bool) if hidden is None else hidden
    seen_M = torch.bincount(strip_P[real_P & ~hidden_P], minlength=len(length_M))
    _check_masks(visible_M, seen_M, hidden is not None)

    # the rows of whole strips: patch p of strip m is row p + m + 1, behind the CLS rows of strips 0 to m
    row_P = torch.arange(num_patches) + strip_P + 1
    num_rows = num_patches + len(length_M)
    patch_R, place_R = torch.full((num_rows,), -1), torch.zeros(num_rows, dtype=torch.int64)
    patch_R[row_P] = torch.arange(num_patches)
    place_R[row_P] = (place_P if columns is None else columns) + 1
    kept_R = torch.ones(num_rows, dtype=torch.bool)
    kept_R[row_P] = ~hidden_P
    scored = (hidden_P & real_P).nonzero()[:, 0]

    names = range(len(length_M)) if documents is None else documents
    kept_lengths = (torch.bincount(strip_P[~hidden_P], minlength=len(length_M)) + 1).tolist()
    kept = Packed.from_lengths(kept_lengths, names, device, (seen_M + 1).tolist())
    whole = Packed.from_lengths((length_M + 1).tolist(), names, device, (visible_M + 1).tolist())
    return Patches(
        pixels=pixels.to(device, non_blocking=True),
        kept=kept,
        kept_rows=patch_R[kept_R].to(device, non_blocking=True),
        kept_places=place_R[kept_R].to(device, non_blocking=True),
        whole=None if hidden is None else whole,
        restore=torch.where(kept_R, kept_R.cumsum(0) - 1, -1).to(device, non_blocking=True),
        places=place_R.to(device, non_blocking=True),
        scored_rows=row_P[scored].to(device, non_blocking=True),
        scored=scored.to(device, non_blocking=True),
    )


def _check_masks(visible_M: Tensor, seen_M: Tensor, masked: bool) -> None:
    empty = (visible_M == 0).nonzero()
    if len(empty):
        raise UserError(f"strip {int(empty[0])} has no real patch: leave it out, or correct its attention mask")
    if not masked:
        return
    unseen = (seen_M == 0).nonzero()
    if len(unseen):
        strip = int(unseen[0])
        raise UserError(
            f"the mask of strip {strip} hides all of its {int(visible_M[strip])} real patches: leave at least one"
        )
    if torch.equal(seen_M, visible_M):
        raise UserError("the masks hide no real patch, so there is nothing to predict: hide one, or pass no mask")


def arrange_dense(
    pixel_values: Tensor,
    config: ViTConfig,
    attention_mask: Tensor | None = None,
    patch_mask: Tensor | None = None,
    documents: Sequence[int] | None = None,
) -> tuple[Patches, Tensor, Tensor | None]:
    """A dense batch as a micro-batch, padding kept: of each strip the real patches first, then the padding.

    pixel_values: [B, C, patch, patch * L], uint8 or float in [0, 1], C the channels of the configuration or 1.
    attention_mask: [B, L], 1 where a patch is real, all of them when absent. patch_mask: [B, L], 1 where one is hidden.
    documents: names of the strips for dropout, else their number in the batch.
    Returns the micro-batch, the order of its patches int64 [B, L] and the patch mask as bool [B, L], on the device of
    the pixels. Raises UserError for pixels and masks that do not fit the configuration or each other.
    """
    if pixel_values.dim() != 4 or pixel_values.shape[1] not in (1, config.num_channels):
        raise UserError(
            f"pixel_values {list(pixel_values.shape)} must be [batch, channels, {config.patch_size}, width] with "
            f"{' or '.join(str(number) for number in sorted({1, config.num_channels}))} channels"
        )
    if pixel_values.dtype != torch.uint8 and not pixel_values.is_floating_point():
        raise UserError(f"pixel_values are {pixel_values.dtype}; they must be uint8, or float in [0, 1]")
    pixels_BLA = patchify(pixel_values, config.patch_size)
    shape = pixels_BLA.shape[:2]
    for name, mask in (("attention_mask", attention_mask), ("patch_mask", patch_mask)):
        if mask is not None and mask.shape != shape:
            raise UserError(f"{name} {list(mask.shape)} must be [batch, patches] of the pixels, {list(shape)}")
    # indices are made on the host, from masks that are small
    real_BL = torch.ones(shape, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    order_BL = real_BL.logical_not().long().argsort(dim=1, stable=True)
    hidden_BL = None if patch_mask is None else patch_mask.cpu().bool()
    device = pixel_values.device
    patches = arrange(
        torch.take_along_dim(pixels_BLA, order_BL.to(device)[..., None], 1).flatten(0, 1),
        [shape[1]] * shape[0],
        hidden=None if hidden_BL is None else hidden_BL.gather(1, order_BL).flatten(),
        documents=documents,
        visible=real_BL.sum(1).tolist(),
        device=device,
        columns=order_BL.flatten(),
    )
    return patches, order_BL.to(device), None if hidden_BL is None else hidden_BL.to(device)


def patchify(pixel_values: Tensor, patch: int, patch_width: int | None = None) -> Tensor:
    """Strips [B, C, Y, X] as patches [B, L, A], L = X / patch_width: the values of each in the order row, column,
    channel. patch: rows of a patch, and its columns where patch_width does not say otherwise."""
    batch, channels, height, width = pixel_values.shape
    columns = patch_width or patch
    if height != patch or width % columns or width == 0:
        multiple = "it" if columns == patch else str(columns)
        raise UserError(
            f"strips of {height} x {width} pixels do not divide into patches of {patch} x {columns}: the height must "
            f"be {patch} and the width a multiple of {multiple}"
        )
    return (
        pixel_values.unflatten(3, (width // columns, columns))
        .permute(0, 3, 2, 4, 1)
        .reshape(batch, width // columns, patch * columns * channels)
    )


def unpatchify(patches_BLA: Tensor, patch: int, patch_width: int | None = None) -> Tensor:
    """Patches [B, L, A] as strips [B, C, Y, X]: `patchify` backwards, C what is left of A."""
    batch, length, values = patches_BLA.shape
    columns = patch_width or patch
    channels = values // (patch * columns)
    return (
        patches_BLA.reshape(batch, length, patch, columns, channels)
        .permute(0, 4, 2, 1, 3)
        .reshape(batch, channels, patch, length * columns)
    )
