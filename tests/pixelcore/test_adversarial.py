"""The second stage's mathematics: places are drawn fairly and repeatably, fakes are what would be written, and the
balance is that of two gradients."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from pixelcore.adversarial import (
    FakePlaces,
    adversarial_loss,
    balance,
    draw_fakes,
    draw_shared_fakes,
    fake_patches,
)
from pixelcore.config import PixarConfig
from pixelcore.initialise import initialise
from pixelcore.masking import mix_seed
from pixelcore.models.discriminator import ContextDiscriminator
from pixelcore.models.pixar import Pixar, PixarOutput
from pixelcore.next_patches import arrange_next

LENGTHS = [5, 2, 12, 1, 7]
SEEDS = mix_seed(7, np.arange(5))


def of_strip(places: FakePlaces, strip: int) -> list[int]:
    return places.before[places.strips == strip].tolist()


# ------------------------------------------------------------------ where fakes stand


@pytest.mark.parametrize("start", [False, True])
def test_places_are_different_real_ones_and_as_many_as_asked_for(start):
    for run in range(20):
        places = draw_fakes(LENGTHS, start, 4, mix_seed(run, np.arange(5)))
        assert (np.diff(places.strips) >= 0).all()
        for strip, length in enumerate(LENGTHS):
            found = of_strip(places, strip)
            assert len(found) == min(4, length - 1 + start) and found == sorted(set(found))
            assert all(1 - start <= place < length for place in found)
        assert ((places.draws >= 0) & (places.draws < 1)).all()


def test_places_are_a_function_of_the_strip_and_its_seed():
    whole = draw_fakes(LENGTHS, False, 4, SEEDS)
    for strip in (0, 2, 4):
        alone = draw_fakes([LENGTHS[strip]], False, 4, SEEDS[[strip]])
        assert of_strip(alone, 0) == of_strip(whole, strip)
        assert np.array_equal(alone.draws, whole.draws[whole.strips == strip])
    other = draw_fakes([12] * 50, False, 4, mix_seed(7, np.arange(50)))
    assert len({tuple(of_strip(other, strip)) for strip in range(50)}) > 40


def test_every_place_is_drawn_equally_often():
    places = draw_fakes([6] * 3000, True, 2, mix_seed(1, np.arange(3000)))
    counts = Counter(places.before.tolist())
    assert set(counts) == set(range(6)) and all(abs(count - 1000) < 5 * math.sqrt(667) for count in counts.values())
    assert abs(places.draws.mean() - 0.5) < 5 * 0.29 / math.sqrt(6000)
    assert np.corrcoef(places.draws, places.before)[0, 1] < 0.06


def test_the_published_draw_is_one_for_all_strips_and_reaches_behind_the_end():
    seen = set()
    for seed in range(40):
        places = draw_shared_fakes(LENGTHS, 4, 16, seed)
        longest = set(of_strip(places, 2))
        assert len(longest) <= 4
        for strip, length in enumerate(LENGTHS):
            assert set(of_strip(places, strip)) == {place for place in longest if place <= length}
        seen |= longest
    assert seen == set(range(1, 13))  # the patch behind the end patch, but never the first


@pytest.mark.parametrize("start", [False, True])
def test_rows_are_those_that_foretell_the_patches(start):
    pixels = torch.zeros(sum(LENGTHS), 8, dtype=torch.uint8)
    lengths = [length for length in LENGTHS if length > 1 or start]
    patches = arrange_next(pixels[: sum(lengths)], lengths, start)
    places = draw_fakes(lengths, start, 3, SEEDS[: len(lengths)])
    starts = np.cumsum([0, *lengths])
    rows = places.rows(patches.packed.lengths, start)
    assert patches.targets[rows].tolist() == (starts[places.strips] + places.before).tolist()
    every = arrange_next(pixels[: sum(lengths)], lengths, start, real=lengths)
    shared = draw_shared_fakes(lengths, 16, 16, 0)
    read = every.rows[shared.rows(every.packed.lengths, start)]
    assert read.tolist() == (starts[shared.strips] + shared.before - 1).tolist()
    with pytest.raises(ValueError, match="ask the generator for a row for every patch"):
        shared.rows(patches.packed.lengths, start)


def test_a_row_for_every_patch_changes_no_loss():
    model = Pixar(CONFIG)
    initialise(model, seed=0)
    pixels, scale = draw_pixels(), torch.tensor(0.1)
    usual = model(arrange_next(pixels, [9, 5], False), scale=scale)
    every = model(arrange_next(pixels, [9, 5], False, real=[9, 5]), scale=scale)
    assert len(usual.components) == 12 and len(every.components) == 14 and every.count == usual.count
    torch.testing.assert_close(every.loss, usual.loss)


# ------------------------------------------------------------------ what is shown

LOGITS = torch.tensor([[[2.0, -1.0, 0.5]], [[-3.0, 4.0, 0.0]], [[1.0, 1.0, -1.0]]])


def test_a_soft_fake_is_the_chance_of_paper():
    components = LOGITS.clone().requires_grad_()
    fakes = fake_patches(PixarOutput(components, None, (1, 3)), torch.tensor([2, 0]), "soft", np.zeros(2))
    torch.testing.assert_close(fakes, torch.sigmoid(LOGITS[[2, 0], 0]))
    fakes.sum().backward()
    assert components.grad is not None
    chance = torch.sigmoid(LOGITS)
    expected = chance * (1 - chance) * torch.tensor([1, 0, 1])[:, None, None]
    torch.testing.assert_close(components.grad, expected)
    half = PixarOutput(LOGITS.bfloat16() * 20, None, (1, 3))
    assert fake_patches(half, torch.tensor([0]), "soft", np.zeros(1)).dtype == torch.float32


def test_a_straight_through_fake_is_black_and_white_with_the_soft_gradient():
    gradients, rows = [], torch.tensor([0, 1])
    for how in ("soft", "straight-through"):
        components = LOGITS.clone().requires_grad_()
        fakes = fake_patches(PixarOutput(components, None, (1, 3)), rows, how, np.zeros(2))
        (fakes * torch.arange(3)).sum().backward()
        gradients.append(components.grad)
    assert fakes.tolist() == [[1, 0, 1], [0, 1, 0]]
    torch.testing.assert_close(*gradients)


def test_a_mixture_shows_one_component_as_often_as_its_score_says():
    components = torch.arange(3.0)[None, :, None].expand(4000, 3, 2).clone().requires_grad_()
    scores = torch.tensor([0.2, 0.5, 0.3]).log().expand(4000, 3).clone().requires_grad_()
    places = draw_fakes([2] * 4000, False, 1, mix_seed(3, np.arange(4000)))
    fakes = fake_patches(PixarOutput(components, scores, (1, 2)), torch.arange(4000), "soft", places.draws)
    shown = [(fakes[:, 0] - torch.sigmoid(torch.tensor(float(z)))).abs() < 1e-6 for z in range(3)]
    for share, flags in zip((0.2, 0.5, 0.3), shown, strict=True):
        assert abs(flags.double().mean() - share) < 0.04
    fakes.sum().backward()
    assert scores.grad is None and components.grad is not None
    assert torch.equal(components.grad[:, :, 0] != 0, torch.stack(shown, dim=1))


# ------------------------------------------------------------------ what both lose


def test_the_loss_is_the_cross_entropy_written_out():
    logits = torch.tensor([[1.0, 3.0], [0.0, -1.0]])
    chance = torch.sigmoid(torch.tensor([2.0, -1.0]))  # of real
    scale = torch.tensor(0.25)
    for real, of_class in ((True, chance), (False, 1 - chance)):
        total, count = adversarial_loss(logits, real, scale)
        torch.testing.assert_close(total, -of_class.log().sum() / 4)
        assert count == 2
    assert adversarial_loss(logits[:0], True, scale)[0] == 0


def test_balance_by_hand():
    ratio = balance(torch.tensor([[1.0, -3.0]]), torch.tensor([[0.5, -0.3]]))
    torch.testing.assert_close(ratio, torch.tensor(2 / (0.4 + 1e-8)))
    assert balance(torch.ones(2), torch.zeros(2)) == pytest.approx(1e8)


CONFIG = PixarConfig(
    num_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=24, patch_height=4, max_patches=9
)


def draw_pixels() -> torch.Tensor:
    return torch.randint(2, (14, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8) * 255


@pytest.mark.parametrize("changes", [{}, {"head": "mixture", "num_components": 3, "start_vector": True}])
def test_balanced_gradients_weigh_alike_at_the_last_layer(changes):
    config = replace(CONFIG, **changes)
    generator, judge = Pixar(config), ContextDiscriminator(config)
    initialise(generator, seed=0)
    initialise(judge, seed=1)
    judge.copy_from(generator)
    judge.requires_grad_(False)
    patches = arrange_next(draw_pixels(), [9, 5], config.start_vector)
    out = generator(patches)
    places = draw_fakes([9, 5], config.start_vector, 3, SEEDS[:2])
    fakes = fake_patches(out, places.rows(patches.packed.lengths, config.start_vector), "soft", places.draws)
    answers = judge.of_fakes(patches.pixels, [9, 5], fakes, places)
    adversarial, _ = adversarial_loss(answers, True, torch.tensor(1 / len(places)))
    assert out.loss is not None
    last = generator.out_proj.weight
    (likelihood,) = torch.autograd.grad(out.loss, last, retain_graph=True)
    (pushed,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    weight = balance(likelihood, pushed)
    (scaled,) = torch.autograd.grad(weight * adversarial, last, retain_graph=True)
    torch.testing.assert_close(scaled.abs().mean(), likelihood.abs().mean())
    (out.loss + weight * adversarial).backward()
    assert all(parameter.grad is None for parameter in judge.parameters())
    torch.testing.assert_close(last.grad, likelihood + scaled)
