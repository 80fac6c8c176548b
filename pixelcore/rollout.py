"""Fakes that stand behind the model's own patches: a discriminator judges the last of a few steps, not the first.

A fake of PIXAR's second stage is one step ahead of real text, while in writing a model reads what it wrote itself. Here
it writes the patches before each fake as well: of R steps the first R - 1 are decided, pixel by pixel, and put into a
copy of the strip, without a gradient; the last is the fake, which has one. Places are thinned so that the written
patches of two fakes of a strip never overlap (`spaced`).

All places take their first step in one pass over the strips, then all their second, and so on. What was written for an
earlier place stays in the copy, so a later fake of the strip stands behind that too. R = 1 is the published way, and
then nothing of this runs.

Source: an open question of specs/pixar.md, section 7; the design is ours.
"""

import numpy as np
import torch
from torch import Tensor

from pixelcore.adversarial import FakePlaces, fake_patches
from pixelcore.models.pixar import Pixar
from pixelcore.next_patches import NextPatches, arrange_next

_GOLDEN = (5**0.5 - 1) / 2  # a step by it, around a circle, never comes close to where it was


def spaced(places: FakePlaces, steps: int) -> FakePlaces:
    """Those places that are at least `steps` patches behind the one kept before them in their strip."""
    kept, last = [], (-1, 0)
    for index, (strip, before) in enumerate(zip(places.strips.tolist(), places.before.tolist(), strict=True)):
        if last[0] != strip or before - last[1] >= steps:
            kept.append(index)
            last = (strip, before)
    return FakePlaces(places.strips[kept], places.before[kept], places.draws[kept])


@torch.no_grad()
def roll_out(model: Pixar, pixels_PA: Tensor, lengths: tuple[int, ...], places: FakePlaces, steps: int) -> Tensor:
    """A copy of the strips, uint8 [P, A], in which the steps - 1 patches before each place are the model's own.

    pixels: uint8 [P, A], strips of these lengths end to end. Fewer are written where a strip begins: what no row
    foretells, the first patch of a model without a start vector, stays real.
    """
    start = model.config.start_vector
    own_PA = pixels_PA.clone()
    length_M = np.asarray(lengths, dtype=np.int64)
    first_M = length_M.cumsum() - length_M
    for step in range(steps - 1, 0, -1):
        there = places.before - step >= 1 - int(start)
        draws = (places.draws[there] + step * _GOLDEN) % 1.0
        now = FakePlaces(places.strips[there], places.before[there] - step, draws)
        patches = arrange_next(own_PA, lengths, start, real=lengths, device=own_PA.device)
        out = model(patches)
        rows_F = now.rows(patches.packed.lengths, start)
        written_FA = fake_patches(out, rows_F, "straight-through", now.draws)
        at_F = torch.from_numpy(first_M[now.strips] + now.before).to(own_PA.device)
        own_PA[at_F] = (written_FA * 255).to(torch.uint8)
    return own_PA


def beside(pixels_PA: Tensor, own_PA: Tensor, lengths: tuple[int, ...], start_vector: bool) -> NextPatches:
    """The strips and their copies as one micro-batch, the copies last: a row for every patch, and the real patches of
    the strips alone as targets, so that one pass gives the likelihood's loss and the predictions that become fakes."""
    twice = [*lengths, *lengths]
    both = arrange_next(torch.cat((pixels_PA, own_PA)), twice, start_vector, real=twice, device=pixels_PA.device)
    counts = both.counts[: len(lengths)]
    count = sum(counts)
    return NextPatches(both.pixels, both.packed, both.rows, both.scored_rows[:count], both.targets[:count], counts)
