"""Where a patch stands in its strip, as a vector: the sin-cos table that PIXEL inherits from masked autoencoders.

A strip of text is one line of patches, yet its positions are those of a square picture: patch i stands in column
i mod g and row i div g of a grid whose side is g = floor(sqrt(num_patches)), 23 for 529 patches. Half of the features
encode the column and half the row. The published weights were trained with it, so it stays. A count that is no square
leaves the last row of the grid unfinished, or begins another, which does no harm: the formula asks for nothing else.

Row 0 of a table is CLS and all zero; patch i is row i + 1. A shorter strip uses the first rows of the table, never a
smaller grid. A longer one is read only where the configuration asks for it: then the grid is stretched to the smallest
square that holds the strip, by bicubic interpolation. (The original stretches to a grid of one row, where all rows
collapse into one; nothing published relies on it.) The stretch depends on the length of the strip alone, so that a
strip means the same whatever shares its micro-batch.

Source: specs/pixel.md, sections 2.2 and 3.1; He et al., arXiv:2111.06377; Dosovitskiy et al., arXiv:2010.11929.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelcore.errors import UserError


def sincos_table(num_patches: int, width: int) -> Tensor:
    """fp32 [num_patches + 1, width], computed in fp64: zeros for CLS, then [column half, row half] of each patch, each
    half [sines, cosines] of place * 10000^(-2j / half)."""
    if width % 4:
        raise ValueError(
            f"a position table of width {width}: the width must be a multiple of 4, for the sine and the "
            "cosine of a column and a row"
        )
    side = math.isqrt(num_patches)
    place_L = torch.arange(num_patches)
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    parts = [torch.zeros(num_patches, 0, dtype=torch.float64)]
    for grid_L in (place_L % side, place_L // side):
        angle = grid_L[:, None] * frequency
        parts += [angle.sin(), angle.cos()]
    return F.pad(torch.cat(parts, dim=1), (0, 0, 1, 0)).float()


def stretch(
    table_LD: Tensor, places_N: Tensor, rows: Sequence[int], num_patches: Sequence[int], allowed: bool
) -> tuple[Tensor, Tensor]:
    """The table and the places to use for strips of these numbers of patches, of which `rows` rows each stand in
    places_N. Strips that fit keep their places; each larger grid that the others need is appended to the table.

    Raises UserError if a strip has more patches than the table and that is not allowed.
    """
    held = len(table_LD) - 1
    longest = max(num_patches)
    if longest <= held:
        return table_LD, places_N
    if not allowed:
        raise UserError(
            f"a strip of {longest} patches is longer than the model's num_patches = {held}: cut it, or set "
            "interpolate_positions = true in the model's configuration, which stretches the table"
        )
    sides = [math.isqrt(count - 1) + 1 if count > held else 0 for count in num_patches]
    tables, first = [table_LD], {0: 0}
    for side in sorted(set(sides) - {0}):
        first[side] = sum(map(len, tables))
        tables.append(_grown(table_LD, side))
    shift_M = torch.tensor([first[side] for side in sides])
    shift_N = torch.repeat_interleave(shift_M, torch.tensor(rows))
    return torch.cat(tables), places_N + shift_N.to(places_N.device)


def _grown(table_LD: Tensor, side: int) -> Tensor:
    """The square grid within the table as a larger one of `side` columns and rows, CLS before it."""
    old = math.isqrt(len(table_LD) - 1)
    grid_1DYX = table_LD[1 : old * old + 1].unflatten(0, (old, old)).permute(2, 0, 1)[None]
    grown_1DYX = F.interpolate(grid_1DYX, (side, side), mode="bicubic", align_corners=False)
    return torch.cat((table_LD[:1], grown_1DYX[0].flatten(1).T))
