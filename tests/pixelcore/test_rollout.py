"""Fakes behind the model's own patches: which patches are the model's, and that they are what it would write."""

import numpy as np
import pytest
import torch

from pixelcore.adversarial import FakePlaces, draw_fakes, fake_patches
from pixelcore.config import PixarConfig
from pixelcore.initialise import initialise
from pixelcore.masking import mix_seed
from pixelcore.models.pixar import Pixar
from pixelcore.next_patches import arrange_next
from pixelcore.rollout import beside, roll_out, spaced

LENGTHS = (9, 3, 12)


def tiny(start: bool) -> Pixar:
    config = PixarConfig(
        num_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        max_patches=16,
        num_channels=1,
        start_vector=start,
    )
    model = Pixar(config)
    initialise(model, 3)
    with torch.no_grad():  # decided, so that what is written depends on what stands before
        model.out_proj.weight.mul_(40)
    return model.eval()


def strips() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(sum(LENGTHS), 128, generator=generator) > 0.5).to(torch.uint8) * 255


def places_of(strip_places: list[list[int]]) -> FakePlaces:
    strips_F = [strip for strip, places in enumerate(strip_places) for _ in places]
    before_F = [place for places in strip_places for place in places]
    return FakePlaces(np.array(strips_F), np.array(before_F), np.full(len(before_F), 0.5))


def test_places_keep_their_distance_within_a_strip_alone():
    kept = spaced(places_of([[1, 2, 3, 6, 7, 9], [1, 2], [3, 4, 8]]), 3)
    assert list(zip(kept.strips.tolist(), kept.before.tolist(), strict=True)) == [
        (0, 1),
        (0, 6),
        (0, 9),
        (1, 1),
        (2, 3),
        (2, 8),
    ]
    drawn = draw_fakes(LENGTHS, True, 5, mix_seed(1, np.arange(3)))
    assert np.array_equal(spaced(drawn, 1).before, drawn.before), "one step needs no room"


@pytest.mark.parametrize("start", [False, True])
def test_only_the_patches_before_a_place_are_written_and_each_is_what_the_model_says_there(start: bool):
    model, real_PA = tiny(start), strips()
    own_PA = roll_out(model, real_PA, LENGTHS, places_of([[5], [], [2]]), 3)
    changed = set((own_PA != real_PA).any(1).nonzero()[:, 0].tolist())
    # strip 0: patches 3 and 4; strip 2 begins at row 12: patch 1, and patch 0 where a start vector foretells it
    assert changed == {3, 4, 12 + 1} | ({12} if start else set())
    assert torch.equal(own_PA[:3], real_PA[:3])
    # by hand, one patch after the other
    expected_PA = real_PA[:9].clone()
    for place in (3, 4):
        out = model.read(expected_PA[:place], [place])
        said_1A = fake_patches(out, torch.tensor([place - 1 + start]), "straight-through", np.array([0.5]))
        expected_PA[place] = (said_1A[0] * 255).to(torch.uint8)
    assert torch.equal(own_PA[:9], expected_PA)


def test_strips_beside_their_copies_have_the_loss_of_the_strips_alone():
    model, real_PA = tiny(True), strips()
    own_PA = roll_out(model, real_PA, LENGTHS, places_of([[5], [2], [7]]), 2)
    scale = torch.tensor(0.01)
    alone = model(arrange_next(real_PA, LENGTHS, True), scale=scale)
    both = model(beside(real_PA, own_PA, LENGTHS, True), scale=scale)
    torch.testing.assert_close(both.loss, alone.loss, rtol=1e-6, atol=0)
    assert int(both.count) == int(alone.count) == sum(LENGTHS)
    # and the row of a copy says what the copy alone says
    copies = arrange_next(own_PA, LENGTHS, True, real=LENGTHS)
    torch.testing.assert_close(both.components[len(both.components) // 2 :], model(copies).components)
