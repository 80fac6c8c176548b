"""Strips are written patch by patch: with the cache or without, alone or with others, the same strip comes out."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from infer.pixar import prompt_patches
from infer.write_strip import WriteConfig, Written, write
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar
from pixelcore.next_patches import arrange_next
from render import Renderer
from tests.infer.tiny_pixar import RENDER, TEXT, bernoulli, pixar

RENDERER = Renderer(RENDER)


def prompt(model: Pixar, text: str = TEXT) -> NDArray[np.uint8]:
    return prompt_patches(RENDERER, text, model.config)


def same(one: list[Written], other: list[Written]) -> bool:
    """Whether two calls wrote the same patches."""
    return all(
        np.array_equal(a.patches, b.patches)
        and a.ended == b.ended
        and math.isclose(a.log_probability, b.log_probability, rel_tol=1e-5)
        for a, b in zip(one, other, strict=True)
    )


def saying(components: list[list[float]], scores: list[float] | None = None, turn: float = 0.0) -> Pixar:
    """A model of patches of 4 x 4 whose first patch has these log-odds, [Z][16] or [Z][1] for all pixels alike.

    turn: what a white patch does to the next one; negative, its log-odds have the other sign.
    """
    head = {"head": "bernoulli", "num_components": 1} if scores is None else {"num_components": len(components)}
    model = pixar(num_layers=1, hidden_size=4, patch_height=4, patch_length=1, **head)
    assert model.start is not None
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.start[0] = 1.0  # after the last norm 2
        model.in_proj.weight[0] = turn
        said = torch.stack([torch.tensor(one).expand(16) for one in components]).reshape(-1, 4, 4) / 2
        model.out_proj.weight[0] = said
        if model.score is not None:
            model.score.weight[:, 0] = torch.tensor(scores) / 2
    return model


def nothing(model: Pixar, times: int = 1) -> list[NDArray[np.uint8]]:
    """Empty prompts."""
    return [np.zeros((0, model.config.patch_values), np.uint8)] * times


# ------------------------------------------------------------------ the cache


@pytest.mark.parametrize(
    ("head", "decode", "seed"),
    [
        ("bernoulli", "threshold", 0),
        ("bernoulli", "sample", 0),
        ("bernoulli", "sample", 5),
        ("mixture", "threshold", 0),
        ("mixture", "mixture", 0),
        ("mixture", "mixture", 5),
        ("mixture", "sample", 5),
    ],
)
def test_with_and_without_the_cache_the_same_strip_is_written(head, decode, seed):
    model = pixar() if head == "mixture" else bernoulli()
    config = WriteConfig(decode=decode, seed=seed, max_patches=12)
    prompts = [prompt(model), prompt(model, ""), prompt(model, "John travelled")]
    written = write(model, prompts, config)
    assert same(written, write(model, prompts, config, cached=False))
    assert len(np.unique(np.concatenate([one.patches for one in written]), axis=0)) > 20  # not the same again and again


def test_prompts_of_a_batch_do_not_see_each_other():
    model = pixar()
    prompts = [prompt(model, text) for text in (TEXT, "", "John", "Sandra went back to the garden")]
    config = WriteConfig(decode="sample", seed=3, max_patches=6)
    together = write(model, prompts, config)
    alone = [write(model, [one], dataclasses.replace(config, seed=3 + index))[0] for index, one in enumerate(prompts)]
    assert same(together, alone)
    assert same(together, write(model, prompts, config, batch=3))


def test_without_a_number_each_strip_fills_its_context():
    model = pixar(max_patches=12)
    prompts = [prompt(model, text) for text in (TEXT, "John", "Sandra went back to the garden")]
    assert [len(one.patches) for one in write(model, prompts)] == [12 - len(one) for one in prompts]


def test_a_strip_that_ends_leaves_the_others_alone():
    model = saying([[9.0]], turn=-1.0)  # white, and after white black
    black, white = np.zeros((1, 16), np.uint8), np.full((1, 16), 255, np.uint8)
    half = np.repeat(np.array([[255, 0]], np.uint8), 8, axis=1)  # neither: its row is 0, and so are the log-odds
    prompts = [white, nothing(model)[0], half, np.concatenate([white, black])]
    written = write(model, prompts, WriteConfig(max_patches=3))
    assert same(written, write(model, prompts, WriteConfig(max_patches=3), cached=False))
    assert [(len(one.patches), one.ended) for one in written] == [(1, True), (2, True), (1, True), (2, True)]


# ------------------------------------------------------------------ the end


def test_writing_stops_at_the_end_patch_and_not_when_told_otherwise():
    model = saying([[9.0]], turn=-1.0)
    (one,) = write(model, nothing(model), WriteConfig())
    assert one.ended and one.patches.tolist() == [[255] * 16, [0] * 16]
    (one,) = write(model, nothing(model), WriteConfig(stop=False, max_patches=4))
    assert not one.ended and [patch[0] for patch in one.patches] == [255, 0, 255, 0]


@pytest.mark.parametrize(("inked", "ended"), [(12, False), (13, True), (16, True)])
def test_a_nearly_black_patch_is_the_end_and_becomes_black(inked, ended):
    model = saying([[-9.0] * inked + [9.0] * (16 - inked)])
    (one,) = write(model, nothing(model), WriteConfig(max_patches=1))
    assert one.ended == ended
    assert one.patches.sum() == (0 if ended else 255 * (16 - inked))


def test_the_first_patch_comes_from_the_start_vector():
    model = pixar()
    (one,) = write(model, nothing(model), WriteConfig(max_patches=1))
    assert model.start is not None
    with torch.no_grad():
        model.start.copy_(-model.start)
    assert not same([one], write(model, nothing(model), WriteConfig(max_patches=1)))


# ------------------------------------------------------------------ what is drawn


@pytest.mark.parametrize("head", ["bernoulli", "mixture"])
def test_the_log_probability_is_that_of_the_loss(head):
    model = pixar() if head == "mixture" else bernoulli()
    before = prompt(model)
    (one,) = write(model, [before], WriteConfig(decode="sample", max_patches=9))

    def nats(patches: NDArray[np.uint8]) -> float:
        with torch.no_grad():
            out = model(arrange_next(torch.from_numpy(patches), [len(patches)], True))
        assert out.loss is not None
        return float(out.loss) * len(patches) * model.config.patch_values

    expected = nats(before) - nats(np.concatenate([before, one.patches]))
    assert one.log_probability == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("decode", ["mixture", "sample"])
def test_components_are_drawn_as_often_as_the_model_says(decode, temperature):
    scores = [1.0, 0.0, -1.0, 0.5]
    sure = 40.0  # of every pixel, so that it is what it is at any temperature
    model = saying([[sure] * (4 * z) + [-sure] * (16 - 4 * z) for z in range(1, 5)], scores)
    config = WriteConfig(decode=decode, temperature=temperature, max_patches=1, seed=11)
    written = write(model, nothing(model, 1000), config, batch=500)
    # so many pixels are paper; the last component is white all over, and none is black enough to be an end
    found = np.bincount([int((one.patches == 255).sum()) // 4 for one in written], minlength=5)[1:]
    expected = 1000 * (torch.tensor(scores) / temperature).softmax(0).numpy()
    assert ((found - expected) ** 2 / expected).sum() < 16.3  # chi square, 3 degrees of freedom: passed by 99.9 %


@pytest.mark.parametrize(("temperature", "chance"), [(1.0, 0.731), (0.5, 0.881), (4.0, 0.562)])
def test_pixels_are_drawn_as_often_as_the_model_says(temperature, chance):
    model = saying([[1.0]])
    config = WriteConfig(decode="sample", temperature=temperature, max_patches=1)
    paper = np.mean([one.patches == 255 for one in write(model, nothing(model, 500), config, batch=500)])
    assert paper == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 8000))


def test_threshold_takes_the_likeliest_component_and_pixels():
    model = saying([[5.0], [-1.0, 2.0] * 8], [0.1, 0.2])
    (one,) = write(model, nothing(model), WriteConfig(max_patches=1))
    assert one.patches.tolist() == [[0, 255] * 8]


def test_a_low_temperature_draws_what_is_likeliest():
    model = pixar()
    cold = write(model, [prompt(model)], WriteConfig(decode="sample", temperature=1e-5, max_patches=8))
    assert same(cold, write(model, [prompt(model)], WriteConfig(max_patches=8)))
    warm = write(model, [prompt(model)], WriteConfig(decode="sample", max_patches=8))
    assert not same(cold, warm)
    assert not same(warm, write(model, [prompt(model)], WriteConfig(decode="sample", seed=1, max_patches=8)))


def test_patches_come_one_by_one():
    model, came = pixar(), []
    written = write(
        model,
        [prompt(model), prompt(model, "")],
        WriteConfig(max_patches=3),
        on_patch=lambda index, patch: came.append((index, patch.copy())),
    )
    assert [index for index, _ in came] == [0, 1] * 3
    for index, one in enumerate(written):
        assert np.array_equal(np.stack([patch for i, patch in came if i == index]), one.patches)


# ------------------------------------------------------------------ regressions


@pytest.mark.parametrize("values", ["consistent", "published"])
def test_a_regression_writes_its_values_as_bytes(values):
    model = pixar(head="regression", num_components=1, values=values, num_channels=3)
    before = prompt(model)
    (one,) = write(model, [before], WriteConfig(max_patches=4))
    assert math.isnan(one.log_probability)
    assert np.array_equal(one.patches, write(model, [before], WriteConfig(max_patches=4), cached=False)[0].patches)
    with torch.no_grad():
        said = model.read(torch.from_numpy(before), [len(before)], last_only=True).components[0, 0].double()
    share = said if values == "published" else (said + 1) / 2
    assert np.array_equal(one.patches[0], (share * 255).round().clamp(0, 255).numpy().astype(np.uint8))
    assert len(np.unique(one.patches[0])) > 2


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"decode": "beam"}, "must be one of threshold, mixture, sample"),
        ({"temperature": 0.5}, "no effect where nothing is drawn"),
        ({"decode": "sample", "temperature": 0.0}, "must be a positive number"),
        ({"seed": -1}, "must be a whole number"),
        ({"max_patches": 0}, "at least 1 new patch"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], expected: str):
    with pytest.raises(UserError, match=expected):
        WriteConfig(**changes)


@pytest.mark.parametrize(
    ("model", "decode", "expected"),
    [
        (bernoulli(), "mixture", "for a mixture head, and the model's is bernoulli: use threshold or sample"),
        (pixar(head="regression", num_components=1), "mixture", "regression: use threshold$"),
        (pixar(head="regression", num_components=1), "sample", "the model's is a regression: use threshold"),
    ],
)
def test_a_decoding_that_the_head_has_not_is_refused(model: Pixar, decode: str, expected: str):
    with pytest.raises(UserError, match=expected):
        write(model, [prompt(model)], WriteConfig(decode=decode))


def test_what_does_not_fit_the_context_is_refused():
    model = pixar()
    with pytest.raises(UserError, match="prompt 2 has 5 patches, and 36 more do not fit the model's context of 40"):
        write(model, [prompt(model, ""), prompt(model)], WriteConfig(max_patches=36))
    with pytest.raises(UserError, match="prompt 1 has 40 patches, and 1 more do not fit"):
        write(model, [np.zeros((40, 128), np.uint8)])
    with pytest.raises(UserError, match="prompt 1 has no patch, and the model no start vector"):
        write(pixar(start_vector=False), nothing(model))


def test_a_model_that_says_nan_is_named():
    model = pixar()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN or infinite values for prompt 1"):
        write(model, nothing(model))
