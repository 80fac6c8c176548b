"""The second training stage of PIXAR, as mathematics: which predictions a discriminator judges, what it is shown of
them, what both sides lose, and how hard the discriminator may push.

Likelihood makes a model hedge: where two words are equally likely, it paints both. A discriminator is shown single
predictions, each behind the real patches that it was made from, and the model is rewarded where they pass for real.
A fake is a prediction one step ahead of real text; nothing that was written is fed back.

How hard that pushes is measured where both gradients meet, at the model's last linear map: the adversarial loss is
multiplied by the ratio of their mean absolute values, so that a strength of 1 means equal shares (`balance`).

Published are one draw of places for all strips (`draw_shared_fakes`) and the chances of paper themselves as the fake
("soft"). Ours is a draw for each strip among the places that it has, a function of the strip's seed alone. Fakes of
several steps are in `rollout.py`; noise on real patches is the caller's.

Source: PIXAR, arXiv:2401.03321; specs/pixar.md, section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pixelcore.masking import mix_seed
from pixelcore.models.pixar import PixarOutput
from pixelcore.ops import cross_entropy

FAKES = ("soft", "straight-through")
REAL = 1  # the class; fake is 0
_LEAST_GRADIENT = 1e-8


@dataclass(frozen=True)
class FakePlaces:
    """Where F fakes stand in the strips of a micro-batch, in the order of strips and places. On the host.

    strips: int64 [F]. before: int64 [F], real patches of the strip before the fake, which stands in place of the patch
    of this number; 0 only where a start vector foretells the first patch. draws: float64 [F] in [0, 1), what chooses
    the component of a mixture.
    """

    strips: NDArray[np.int64]
    before: NDArray[np.int64]
    draws: NDArray[np.float64]

    @staticmethod
    def none() -> "FakePlaces":
        """No fake at all."""
        return FakePlaces(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))

    def __len__(self) -> int:
        return len(self.strips)

    def rows(self, row_lengths: Sequence[int], start_vector: bool) -> Tensor:
        """int64 [F]: the generator's rows that foretell these patches, of strips of so many rows end to end
        (`NextPatches.packed.lengths`)."""
        length_M = np.asarray(row_lengths, dtype=np.int64)
        row_F = self.before - 1 + int(start_vector)
        beyond = np.flatnonzero(row_F >= length_M[self.strips])
        if len(beyond):
            raise ValueError(
                f"strip {self.strips[beyond[0]]} has {length_M[self.strips[beyond[0]]]} rows and none foretells patch "
                f"{self.before[beyond[0]]}: ask the generator for a row for every patch, arrange_next(real=lengths)"
            )
        return torch.from_numpy((length_M.cumsum() - length_M)[self.strips] + row_F)


def draw_fakes(lengths_B: ArrayLike, start_vector: bool, per_strip: int, seeds_B: ArrayLike) -> FakePlaces:
    """Choose the predictions that become fakes: per_strip different ones of each strip, or all where it has fewer.

    lengths_B: real patches of each strip, the end patch included. Every patch may be replaced but the first, and the
    first too with a start vector. seeds_B: int64, `pixelcore.masking.mix_seed`; strip b depends on nothing but its own
    length and seed.
    Deviates from the published draw (specs/pixar.md, section 4.6), which `draw_shared_fakes` is.
    """
    lengths, seeds = np.asarray(lengths_B, dtype=np.int64), np.asarray(seeds_B, dtype=np.int64)
    assert lengths.shape == seeds.shape and per_strip > 0, f"{len(lengths)} lengths, {len(seeds)} seeds, {per_strip}"
    first = 1 - int(start_vector)
    chosen = [
        first + _smallest(int(seed), int(length) - first, per_strip)
        for length, seed in zip(lengths, seeds, strict=True)
    ]
    return _places(chosen, seeds)


def draw_shared_fakes(lengths_B: ArrayLike, per_strip: int, max_patches: int, seed: int) -> FakePlaces:
    """The published draw: per_strip different patches out of max_patches, the same ones of all strips; of each strip
    those count that it has.

    A chosen patch i stands for the prediction that follows it. So the one after the end patch, which likelihood never
    trained, counts as well: the published weights are those of patch i and not of patch i + 1. May be empty.
    Source: specs/pixar.md, section 4.1.
    """
    lengths = np.asarray(lengths_B, dtype=np.int64)
    shared = _smallest(seed, max_patches, per_strip)
    seeds = mix_seed(seed, np.arange(len(lengths)))
    return _places([shared[shared < length] + 1 for length in lengths], seeds)


def _smallest(seed: int, size: int, count: int) -> NDArray[np.int64]:
    """`count` of the numbers below `size`, or all, in order."""
    return np.sort(np.argsort(mix_seed(seed, np.arange(size)))[:count])


def _places(chosen: list[NDArray[np.int64]], seeds: NDArray[np.int64]) -> FakePlaces:
    # the draw of places hashed numbers from 0 up, so this hashes their complements; 53 bits fill a double
    bits = [mix_seed(int(seed), ~places).view(np.uint64) for seed, places in zip(seeds, chosen, strict=True)]
    return FakePlaces(
        strips=np.repeat(np.arange(len(chosen)), [len(places) for places in chosen]),
        before=np.concatenate(chosen),
        draws=(np.concatenate(bits) >> np.uint64(11)).astype(np.float64) * 2**-53,
    )


def fake_patches(out: PixarOutput, rows_F: Tensor, how: str, draws_F: NDArray[np.float64]) -> Tensor:
    """What the discriminator is shown of these predictions: fp32 [F, A], 1 for paper, 0 for ink.

    rows_F, draws_F: `FakePlaces.rows` and its draws. how: "soft", the chance of paper of each pixel, as published;
    "straight-through", the likelier of paper and ink, with the gradient of the chance.
    Of a mixture one component is drawn by its scores, as in writing. Its pixels learn; how likely it is remains with
    the likelihood, because a draw has no gradient. Source: specs/pixar.md, section 4.1.
    """
    assert how in FAKES, how
    rows_F = rows_F.to(out.components.device, non_blocking=True)
    logits_FZA = out.components[rows_F]
    logits_FA = logits_FZA[:, 0]
    if out.scores is not None:
        likely_FZ = out.scores.detach()[rows_F].double().softmax(1).cumsum(1)
        draw_F1 = torch.from_numpy(draws_F)[:, None].to(likely_FZ.device, non_blocking=True)
        component_F = (likely_FZ[:, :-1] <= draw_F1).sum(1)
        logits_FA = logits_FZA[torch.arange(len(rows_F), device=component_F.device), component_F]
    soft_FA = logits_FA.to(torch.promote_types(logits_FA.dtype, torch.float32)).sigmoid()
    if how == "soft":
        return soft_FA
    return (logits_FA > 0).to(soft_FA.dtype) + (soft_FA - soft_FA.detach())  # in this order: exactly 0 and 1


def adversarial_loss(logits_FO: Tensor, real: bool, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of scale * cross entropy of a discriminator's answers, and their number, if all were to be `real` or fake.

    The discriminator learns real of what is real and fake of fakes; the generator learns from its fakes judged as if
    they were to be real, -log p(real), which does not vanish where the discriminator is sure.
    scale: a scalar on the device, 1 / (answers of the whole step), of the discriminator half of it: real patches and
    fakes are averaged apart and weigh alike. Source: specs/pixar.md, section 4.1.
    """
    class_F = torch.full((len(logits_FO),), REAL if real else 1 - REAL, device=logits_FO.device)
    return cross_entropy(logits_FO, class_F, scale)


def balance(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """What the adversarial loss is multiplied by to push as hard as the likelihood: mean |r| / (mean |a| + 1e-8), a
    scalar, of the gradients of the two losses for the weight of the last linear map, each averaged over the ranks.
    Source: specs/pixar.md, section 4.1, item 6."""
    return reconstruction.abs().mean() / (adversarial.abs().mean() + _LEAST_GRADIENT)
