"""Who judges single patches: real, or invented by the model that is being trained?

The context-aware judge begins as a copy of the generator, its last linear map replaced by one with two answers. It
reads a strip from left to right, and a patch invented for place i + 1 is judged behind the real patches up to i. Taken
literally, that is one forward pass for each fake. But no real row looks at what comes after it, so the real rows are
the same in all these passes. Here all fakes of a strip stand behind its real patches, each with the rotary position of
the place it was made for; each sees the real rows before that place and itself (`reach` of `pixelcore.packed`). One
pass then answers for all fakes, and for the real patches too, which the judge's own training asks for.

The judge without context sees one patch at a time, by a small network of its own.

Neither knows of losses or of turns. Whose parameters learn is the caller's choice (`requires_grad_`), as is whether
gradients pass through the fakes. Class 1 is real. Source: PIXAR, arXiv:2401.03321; specs/pixar.md, sections 4.1, 4.2.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pixelcore.adversarial import FakePlaces
from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from pixelcore.layers import Linear, linear
from pixelcore.models.pixar_trunk import PixarTrunk
from pixelcore.models.vit import Norm
from pixelcore.ops import REFERENCE, Ops
from pixelcore.packed import Packed

POSITIONS = ("next", "same")
NUM_ANSWERS = 2  # fake, real
_NORM_EPS = 1e-5


class ContextDiscriminator(PixarTrunk):
    """Judges a patch by those before it. Uninitialised: `pixelcore.initialise` fills it, `copy_from` makes it a copy.

    positions: the rotary position of a fake; "next", that of the patch whose place it takes, as published; "same", that
    of the last row before it, an ablation.
    Raises UserError for a generator of grey or colour.
    """

    def __init__(self, config: PixarConfig, positions: str = "next", ops: Ops = REFERENCE) -> None:
        assert positions in POSITIONS, positions
        _check_head(config)
        super().__init__(config, ops)
        self.positions = positions
        self.head = Linear(config.hidden_size, NUM_ANSWERS)

    @torch.no_grad()
    def copy_from(self, generator: PixarTrunk | Mapping[str, Tensor]) -> None:
        """Take over what a generator of the same configuration reads with, everything but its head; or what its state
        dict holds of it."""
        state = generator.state_dict() if isinstance(generator, PixarTrunk) else generator
        for name, parameter in self.named_parameters():
            if not name.startswith("head."):
                assert parameter.shape == state[name].shape, name
                parameter.copy_(state[name])

    def forward(
        self, pixels: Tensor, lengths: Sequence[int], fakes: Tensor, places: FakePlaces
    ) -> tuple[Tensor, Tensor]:
        """Answers for the real patches and for the fakes in one pass: [P, 2] and [F, 2].

        pixels: [P, A], uint8 or float in [0, 1], the patches of strips end to end, `lengths` of each. fakes: float
        [F, A] in [0, 1], which stand at `places`. Raises UserError for a strip that is too long.
        """
        rows = _arrange(lengths, places, self.config.start_vector, self.positions, pixels.device)
        self._check_length(max(lengths) + int(self.config.start_vector), self._max_rows)
        row_ND = self._embed(pixels, rows.patches_R)
        if len(places):
            fake_FD = self._embed(fakes, torch.arange(len(fakes), device=fakes.device))
            row_ND = torch.cat((row_ND, fake_FD))[rows.order_N]
        logits_NO = self.head(self._hidden(row_ND, rows.packed))
        return logits_NO[rows.reals_P], logits_NO[rows.fakes_F]

    def of_reals(self, pixels: Tensor, lengths: Sequence[int]) -> Tensor:
        """[P, 2], of every patch of these strips, the end patch included."""
        return self(pixels, lengths, pixels[:0], FakePlaces.none())[0]

    def of_fakes(self, pixels: Tensor, lengths: Sequence[int], fakes: Tensor, places: FakePlaces) -> Tensor:
        """[F, 2], each fake behind the real patches before its place. Arguments as of `forward`."""
        return self(pixels, lengths, fakes, places)[1]


@dataclass(frozen=True)
class _Rows:
    """The rows of a pass: of each strip the start vector, if there is one, its patches, its fakes.

    patches_R: int64, the patch that each real row reads, -1 for the start vector. order_N: where each row stands among
    [real rows, fakes]. reals_P, fakes_F: the rows of the patches and of the fakes.
    """

    packed: Packed
    patches_R: Tensor
    order_N: Tensor
    reals_P: Tensor
    fakes_F: Tensor


def _arrange(
    lengths: Sequence[int], places: FakePlaces, start_vector: bool, positions: str, device: torch.device
) -> _Rows:
    start = int(start_vector)
    strip_F, before_F = torch.from_numpy(places.strips), torch.from_numpy(places.before)
    length_M = torch.tensor(lengths, dtype=torch.int64)
    assert bool(((before_F >= 1 - start) & (before_F <= length_M[strip_F])).all()), "a fake outside of its strip"
    real_M, fake_M = length_M + start, torch.bincount(strip_F, minlength=len(length_M))
    first_M = (real_M + fake_M).cumsum(0) - real_M - fake_M
    place_F = torch.arange(len(strip_F)) - (fake_M.cumsum(0) - fake_M)[strip_F]
    fakes_F = first_M[strip_F] + real_M[strip_F] + place_F
    packed = Packed.from_lengths((real_M + fake_M).tolist(), visible=real_M.tolist())
    is_fake_N = torch.zeros(len(packed.positions), dtype=torch.bool).index_fill_(0, fakes_F, True)
    if len(strip_F):
        reach_F = (before_F - 1 + start).to(torch.int32)
        place_N, reach_N = packed.positions.clone(), packed.positions.clone()
        place_N[fakes_F], reach_N[fakes_F] = reach_F + int(positions == "next"), reach_F
        packed = replace(packed, positions=place_N, reach=reach_N)
    order_N = torch.empty(len(is_fake_N), dtype=torch.int64)
    order_N[~is_fake_N] = torch.arange(int(real_M.sum()))
    order_N[fakes_F] = torch.arange(len(fakes_F)) + real_M.sum()
    patch_N = torch.where(packed.positions < start, -1, 0)[~is_fake_N]
    patches_R = torch.where(patch_N < 0, -1, (patch_N == 0).cumsum(0) - 1)
    reals_P = (~is_fake_N).nonzero()[:, 0][patches_R >= 0]
    tensors = (tensor.to(device, non_blocking=True) for tensor in (patches_R, order_N, reals_P, fakes_F))
    return _Rows(packed.to(device), *tensors)


class PatchDiscriminator(nn.Module):
    """Judges a patch by itself: a linear map, residual blocks of a norm and two linear maps with a GELU each, and two
    answers. Uninitialised: see `pixelcore.initialise`.

    Places and lengths are taken, as by `ContextDiscriminator`, and change nothing. width: 768 in the original. Its
    dropout of 0.2 is left out; and its real patches were all but end patches, though the generator's attempts at those
    were among the fakes: here both have them.
    Raises UserError for a generator of grey or colour.
    """

    def __init__(self, config: PixarConfig, width: int = 768, num_blocks: int = 2, ops: Ops = REFERENCE) -> None:
        super().__init__()
        _check_head(config)
        self.config = config
        self.ops = ops
        self.compute_dtype = torch.float32
        self.embed = Linear(config.patch_values, width)
        self.layers = nn.ModuleList(PatchBlock(width) for _ in range(num_blocks))
        self.head = Linear(width, NUM_ANSWERS)

    def forward(
        self, pixels: Tensor, lengths: Sequence[int], fakes: Tensor, places: FakePlaces
    ) -> tuple[Tensor, Tensor]:
        """Answers for the real patches and for the fakes: [P, 2] and [F, 2]."""
        return self.of_reals(pixels, lengths), self.of_fakes(pixels, lengths, fakes, places)

    def of_reals(self, pixels: Tensor, lengths: Sequence[int]) -> Tensor:
        """[P, 2], of every patch, the end patches included."""
        assert len(pixels) == sum(lengths)
        return self._judge(pixels)

    def of_fakes(self, pixels: Tensor, lengths: Sequence[int], fakes: Tensor, places: FakePlaces) -> Tensor:
        """[F, 2]."""
        assert len(fakes) == len(places)
        return self._judge(fakes)

    def blocks(self) -> Iterable[nn.Module]:
        """What sharding wraps one by one."""
        return self.layers

    def _judge(self, pixels_PA: Tensor) -> Tensor:
        if pixels_PA.dtype == torch.uint8:
            pixels_PA = pixels_PA.float() / 255
        residual_PD, delta_PD = self.embed(pixels_PA.to(self.compute_dtype)), None
        for block in self.layers:
            residual_PD, delta_PD = block(residual_PD, delta_PD, self.ops)
        return self.head(residual_PD if delta_PD is None else residual_PD + delta_PD)


class PatchBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(width)
        self.inner = Linear(width, width)
        self.outer = Linear(width, width)

    def forward(self, residual_PD: Tensor, delta_PD: Tensor | None, ops: Ops) -> tuple[Tensor, Tensor]:
        """The residual stream and the branch not yet added to it."""
        norm = self.norm
        residual_PD, row_PD = ops.add_norm(residual_PD, delta_PD, norm.weight, norm.bias, _NORM_EPS)
        for layer in (self.inner, self.outer):
            assert layer.bias is not None
            row_PD = ops.gelu(linear(row_PD, layer.weight), layer.bias)
        return residual_PD, row_PD


def _check_head(config: PixarConfig) -> None:
    if config.head == "regression":
        raise UserError(
            'head = "regression": a discriminator judges black and white, and grey gives a prediction away: train the '
            'second stage with head = "bernoulli" or "mixture"'
        )


Discriminator = ContextDiscriminator | PatchDiscriminator
