"""Judges of single patches: one pass for all fakes is the literal one pass for each, and a fake knows what it may."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixelcore.adversarial import FakePlaces, draw_fakes
from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.discriminator import ContextDiscriminator, PatchBlock, PatchDiscriminator
from pixelcore.models.pixar import Pixar

LENGTHS = [5, 2, 9, 9, 1]
CONFIG = PixarConfig(
    num_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=48, patch_height=4, max_patches=9
)


def make(start: bool = False, positions: str = "next", **changes: Any) -> ContextDiscriminator:
    """A discriminator whose answers differ, norms not at one."""
    model = ContextDiscriminator(replace(CONFIG, start_vector=start, **changes), positions)
    fill(model)
    return model


def fill(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + ("norm" in name))


def draw_pixels(count: int = sum(LENGTHS), seed: int = 0) -> Tensor:
    return torch.randint(2, (count, 32), generator=torch.Generator().manual_seed(seed)).to(torch.uint8) * 255


def draw_soft(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 32, generator=torch.Generator().manual_seed(seed))


def some_places(start: bool) -> FakePlaces:
    """First and last places, the one behind the end patch, two of one place, a strip without any."""
    strips, before = [0, 0, 0, 0, 2, 2, 2, 3], [1, 4, 4, 5, 1, 5, 8, 9]
    if start:
        strips, before = [0, *strips, 4, 4], [0, *before, 0, 1]
    return FakePlaces(np.array(strips), np.array(before), np.zeros(len(strips)))


def literal(
    model: ContextDiscriminator, pixels: Tensor, fakes: Tensor, places: FakePlaces, dtype: torch.dtype
) -> Tensor:
    """The definition: for each fake the real patches before it, then the fake, by the causal pass over whole strips."""
    starts = np.cumsum([0, *LENGTHS])
    answers = []
    for strip, before, fake in zip(places.strips, places.before, fakes, strict=True):
        real = pixels[starts[strip] : starts[strip] + before].to(dtype) / 255
        strip_LA = torch.cat((real, fake[None].to(dtype)))
        wide = model if len(strip_LA) <= 9 else longer(model)
        answers.append(wide.of_reals(strip_LA, [len(strip_LA)])[-1])
    return torch.stack(answers)


def longer(model: ContextDiscriminator) -> ContextDiscriminator:
    """The same parameters in a model with room for one patch more."""
    assert isinstance(model.config, PixarConfig)
    wide = ContextDiscriminator(replace(model.config, max_patches=10), model.positions)
    for name, parameter in model.named_parameters():
        *path, last = name.split(".")
        owner = wide.get_submodule(".".join(path))
        setattr(owner, last, parameter)
    wide.compute_dtype = model.compute_dtype
    return wide


def learn(answers: Tensor, model: nn.Module, fakes: Tensor) -> list[Tensor]:
    """The answers, and the gradients of a sum that weighs each differently."""
    weights = torch.linspace(-1, 2, answers.numel(), dtype=answers.dtype).view_as(answers)
    wanted = [fakes, *model.parameters()]
    gradients = torch.autograd.grad((answers * weights).sum(), wanted, allow_unused=True)
    found = [torch.zeros_like(one) if gradient is None else gradient for one, gradient in zip(wanted, gradients)]
    return [answers.detach(), *found]


# ------------------------------------------------------------------ one pass


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_one_pass_is_one_pass_for_each_fake(start, dtype, tolerance):
    model = make(start).to(dtype)
    model.compute_dtype = dtype
    places, pixels = some_places(start), draw_pixels()
    fakes = draw_soft(len(places)).to(dtype).requires_grad_()
    expected = learn(literal(model, pixels, fakes, places, dtype), model, fakes)
    found = learn(model.of_fakes(pixels, LENGTHS, fakes, places), model, fakes)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert expected[0].std() > 0.1 and expected[1].abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("start", [False, True])
def test_drawn_fakes_of_one_pass_are_the_literal_ones(start):
    model, pixels = make(start), draw_pixels()
    places = draw_fakes(LENGTHS, start, 4, [3, 1, 4, 1, 5])
    fakes = draw_soft(len(places))
    expected = literal(model, pixels, fakes, places, torch.float32)
    torch.testing.assert_close(model.of_fakes(pixels, LENGTHS, fakes, places), expected, rtol=1e-5, atol=1e-5)


def test_real_patches_are_judged_in_the_same_pass():
    model, places, pixels = make(True), some_places(True), draw_pixels()
    fakes = draw_soft(len(places)).requires_grad_()
    reals, invented = model(pixels, LENGTHS, fakes, places)
    assert reals.shape == (sum(LENGTHS), 2) and invented.shape == (len(places), 2)
    apart = learn(torch.cat((model.of_reals(pixels, LENGTHS), invented)), model, fakes)
    for one, other in zip(learn(torch.cat(model(pixels, LENGTHS, fakes, places)), model, fakes), apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_real_patch_judged_as_a_fake_is_itself():
    model, pixels = make(), draw_pixels()
    starts = np.cumsum([0, *LENGTHS])
    places = draw_fakes(LENGTHS, False, 3, np.arange(5))
    patches = torch.from_numpy(starts[places.strips] + places.before)
    found = model.of_fakes(pixels, LENGTHS, pixels[patches].float() / 255, places)
    torch.testing.assert_close(found, model.of_reals(pixels, LENGTHS)[patches], rtol=1e-5, atol=1e-5)
    same = make(positions="same").of_fakes(pixels, LENGTHS, pixels[patches].float() / 255, places)
    assert (same - found).abs().max() > 1e-3


@torch.no_grad()
def test_a_fake_knows_what_stands_before_it_and_nothing_else():
    model, places, pixels = make(), some_places(False), draw_pixels()
    fakes = draw_soft(len(places))
    found = model.of_fakes(pixels, LENGTHS, fakes, places)
    for strip, patch in ((0, 2), (2, 5), (3, 8)):
        changed = pixels.clone()
        changed[sum(LENGTHS[:strip]) + patch] ^= 255
        moved = (model.of_fakes(changed, LENGTHS, fakes, places) - found).abs().amax(1) > 1e-5
        assert np.array_equal(moved.numpy(), (places.strips == strip) & (places.before > patch))
    other = fakes.clone()
    other[2] = 1 - other[2]  # of two at one place
    moved = (model.of_fakes(pixels, LENGTHS, other, places) - found).abs().amax(1) > 1e-5
    assert moved.nonzero().flatten().tolist() == [2]


def test_strips_without_fakes_have_no_answers():
    model, pixels = make(), draw_pixels()
    reals, invented = model(pixels, LENGTHS, torch.zeros(0, 32), FakePlaces.none())
    assert torch.equal(reals, model.of_reals(pixels, LENGTHS)) and invented.shape == (0, 2)
    invented.sum().backward()  # a rank that has none takes part in the step
    assert model.head.weight.grad is not None and not model.head.weight.grad.any()


def test_recomputing_changes_no_gradient():
    model, places, pixels = make(), some_places(False), draw_pixels()
    fakes = draw_soft(len(places)).requires_grad_()
    kept = learn(model.of_fakes(pixels, LENGTHS, fakes, places), model, fakes)
    model.recompute = True
    again = learn(model.of_fakes(pixels, LENGTHS, fakes, places), model, fakes)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_a_strip_that_is_too_long_is_refused():
    with pytest.raises(UserError, match="a strip of 10 patches is longer than the model's max_patches = 9"):
        make().of_reals(draw_pixels(10), [10])


# ------------------------------------------------------------------ both judges


def make_both() -> list[ContextDiscriminator | PatchDiscriminator]:
    alone = PatchDiscriminator(CONFIG, width=24)
    fill(alone)
    return [make(), alone]


@pytest.mark.parametrize("model", make_both(), ids=["context", "patch"])
def test_in_half_precision_answers_are_near_and_fakes_learn(model):
    places, pixels = some_places(False), draw_pixels()
    exact = draw_soft(len(places)).requires_grad_()
    kept = model.of_fakes(pixels, LENGTHS, exact, places)
    (expected,) = torch.autograd.grad(kept[:, 1].sum(), exact)
    model.compute_dtype = torch.bfloat16
    rounded = model.of_fakes(pixels, LENGTHS, exact, places)
    (gradient,) = torch.autograd.grad(rounded[:, 1].sum(), exact)
    model.compute_dtype = torch.float32
    assert rounded.dtype == torch.bfloat16 and gradient.dtype == torch.float32
    assert 1e-4 < (rounded.float() - kept).norm() / kept.norm() < 0.05
    assert (gradient - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize("model", make_both(), ids=["context", "patch"])
def test_bytes_and_floats_are_the_same_pixels(model):
    pixels = draw_pixels()
    torch.testing.assert_close(model.of_reals(pixels, LENGTHS), model.of_reals(pixels.float() / 255, LENGTHS))


@pytest.mark.parametrize("model", make_both(), ids=["context", "patch"])
def test_a_few_steps_tell_real_from_grey(model):
    initialise(model, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    places, pixels = some_places(False), draw_pixels()
    fakes = draw_soft(len(places))
    for _ in range(30):
        reals, invented = model(pixels, LENGTHS, fakes, places)
        loss = reals.log_softmax(1)[:, 1].mean() + invented.log_softmax(1)[:, 0].mean()
        optimizer.zero_grad()
        (-loss).backward()
        optimizer.step()
    assert -loss.item() < 0.1


@pytest.mark.parametrize("kind", [ContextDiscriminator, PatchDiscriminator])
def test_grey_and_colour_have_no_judge(kind):
    with pytest.raises(UserError, match='head = "regression": a discriminator judges black and white'):
        kind(replace(CONFIG, head="regression"))


# ------------------------------------------------------------------ the judge without context


def test_the_patch_judge_ignores_what_stands_around():
    model = PatchDiscriminator(CONFIG, width=24)
    fill(model)
    pixels, places = draw_pixels(), some_places(False)
    fakes = draw_soft(len(places))
    reals, invented = model(pixels, LENGTHS, fakes, places)
    assert torch.equal(invented, model.of_fakes(draw_pixels(seed=9), LENGTHS, fakes, places))
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.of_reals(pixels[order], [len(pixels)]), reals[order])


def test_the_patch_judge_is_its_formula():
    model = PatchDiscriminator(CONFIG, width=24)
    fill(model)
    pixels = draw_pixels()
    x = model.embed(pixels.float() / 255)
    for block in model.layers:
        assert isinstance(block, PatchBlock)
        centred = x - x.mean(1, keepdim=True)
        normed = centred / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt() * block.norm.weight + block.norm.bias
        x = x + nn.functional.gelu(block.outer(nn.functional.gelu(block.inner(normed))))
    torch.testing.assert_close(model.of_reals(pixels, LENGTHS), model.head(x), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ the beginning


@pytest.mark.parametrize("changes", [{}, {"start_vector": True, "head": "mixture", "num_components": 3}])
def test_a_copy_reads_as_the_generator_does(changes):
    generator = Pixar(replace(CONFIG, **changes))
    initialise(generator, seed=1)
    for source in (generator, generator.state_dict()):
        model = ContextDiscriminator(generator.config)
        initialise(model, seed=2)
        head = model.head.weight.clone()
        model.copy_from(source)
        state = generator.state_dict()
        names = {
            name for name, tensor in model.state_dict().items() if name in state and torch.equal(tensor, state[name])
        }
        assert names == set(state) - {"out_proj.weight", "score.weight"}
        assert set(model.state_dict()) - names == {"head.weight", "head.bias"}
        assert torch.equal(model.head.weight, head)
    with torch.no_grad():
        model.norm.weight.zero_()
    assert (generator.norm.weight == 1).all()  # its own parameters from now on


def test_judges_begin_as_the_originals_do():
    config = replace(CONFIG, hidden_size=256)
    context = ContextDiscriminator(config)
    initialise(context, seed=3)
    assert 0.018 < context.head.weight.std() < 0.022
    assert context.head.bias is not None and not context.head.bias.any()
    alone = PatchDiscriminator(config, width=256)
    initialise(alone, seed=3)
    for name, tensor in alone.state_dict().items():
        if "norm" in name:
            assert (tensor == float("weight" in name)).all()
        else:
            bound = (32 if "embed" in name else 256) ** -0.5
            assert 0.9 * bound < tensor.abs().max() <= bound or tensor.numel() == 2, name
    again = PatchDiscriminator(config, width=256)
    initialise(again, seed=3)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in alone.state_dict().items())
