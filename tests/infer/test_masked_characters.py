"""Masked-character accuracy: what perfect, blank and bad predictions score, and that the truth never leaks."""

import functools

import numpy as np
import pytest
import torch

from infer.benchmarks.masked_characters import MaskedCharacters, as_text, interval, masked_characters, predictor
from infer.denormalise import paste, paste_with_oracle, sharpened
from pixelcore.errors import UserError
from render import RenderConfig, Renderer

TRAIN = [
    "The quick brown fox jumps over the lazy dog, and nobody knows why it did so again and again.",
    "In 1907 Why Have Jack Vexley (a baker) quit; 38 of 52 people saw him go home: was it 6, or 4?",
] * 3
HELD = [
    "Nobody knows why the baker saw a brown dog jump over the people again and again in 1907.",
    "The lazy fox did so at home, and Jack was very quick to go with him to the other end.",
    "Why did it jump? He was a baker, and people like that go home over and over again.",
]


def masks_of(config, texts=HELD):
    """Holes of 1 to 4 patches, parted by 1 to 5 visible ones."""
    rng, renderer, masks = np.random.default_rng(0), Renderer(config), []
    for text in texts:
        steps = rng.integers(1, [6, 5], (600, 2)).ravel()
        masks.append(np.repeat(np.arange(len(steps)) % 2 == 1, steps)[: renderer(text).num_patches])
    return masks


@functools.cache
def board(config):
    return MaskedCharacters(config, TRAIN, HELD, masks_of(config))


def perfect(rows):
    return [row.pixels_PA[row.hidden_P] / 255 for row in rows]


def blank(rows):
    return [np.ones_like(predictions) for predictions in perfect(rows)]


def normalised(rows):
    """What a model of normalised pixels with three channels would say if it knew everything."""
    targets = []
    for values_MA in perfect(rows):
        values_MO = values_MA.repeat(3, axis=1)
        deviation_M1 = np.sqrt(values_MO.var(1, ddof=1, keepdims=True) + 1e-6)
        targets.append((values_MO - values_MO.mean(1, keepdims=True)) / deviation_M1)
    return targets


BUILTIN = [
    RenderConfig(layout="continuous"),
    RenderConfig(layout="adaptive"),
    RenderConfig(layout="bigrams", unit="code-point", word_gap="none"),
    RenderConfig(layout="continuous", color="binary", height=8, pad=2),
    RenderConfig(layout="words"),
    RenderConfig(layout="continuous", color="rgb"),
]


@pytest.mark.parametrize("config", BUILTIN, ids=lambda config: f"{config.layout}-{config.color}")
def test_perfect_predictions_restore_everything_and_blank_ones_nothing(config):
    masked = board(config)
    result = masked.score(perfect, normalised=False)
    assert result.count >= 40
    assert result.accuracy >= 0.99
    assert result.ceiling == result.accuracy
    assert masked.score(blank, normalised=False).accuracy <= 0.05
    assert result.nearest < 0.3


@pytest.mark.parametrize("preset", ["pixel", "pixel-m4"])
def test_perfect_predictions_restore_everything_in_noto_sans(shared, preset):
    config = RenderConfig.named(preset, fonts=[shared / "fonts/noto/NotoSans-Regular.ttf"])
    masked = board(config)
    assert masked.score(perfect, normalised=False).accuracy >= 0.99
    assert masked.score(blank, normalised=False).accuracy <= 0.05


def test_the_contrast_of_visible_patches_is_enough_to_read_normalised_predictions():
    masked = board(RenderConfig(layout="adaptive"))
    assert masked.score(normalised, normalised=True).accuracy >= 0.99


def test_undecided_predictions_are_read_at_full_contrast():
    masked = board(RenderConfig(layout="adaptive"))
    undecided = [0.2 * predictions + 0.1 for predictions in normalised(masked.rows)]
    assert masked.score(lambda _: undecided, normalised=True).accuracy >= 0.99


def test_full_contrast_is_mean_zero_and_variance_one_and_leaves_blank_patches():
    predictions_MO = np.stack([np.linspace(-1, 3, 12), np.full(12, 0.7)])
    sharp_MO = sharpened(predictions_MO)
    assert sharp_MO[0].mean() == pytest.approx(0, abs=1e-12) and sharp_MO[0].var(ddof=1) == pytest.approx(1)
    assert np.array_equal(sharp_MO[1], predictions_MO[1])


def test_moderate_noise_is_read_through():
    masked = board(RenderConfig(layout="continuous"))
    rng = np.random.default_rng(0)
    noisy = [predictions + rng.normal(0, 0.15, predictions.shape) for predictions in perfect(masked.rows)]
    assert masked.score(lambda _: noisy, normalised=False).accuracy >= 0.95


def test_predictions_of_another_text_are_read_as_that_text():
    config = RenderConfig(layout="adaptive")
    text, hidden = "many dogs go home", slice(5, 9)  # the patches of "dogs", and of "cats" in the other text
    mask = np.zeros(Renderer(config)(text).num_patches, bool)
    mask[hidden] = True
    masked = MaskedCharacters(config, TRAIN, [text], [mask])
    painted = masked.rows[0].pixels_PA.copy()
    painted[hidden] = Renderer(config)("many cats do").patches.reshape(-1, painted.shape[1])[hidden]
    (window,) = masked.read([painted])
    assert "cats" in "".join(window[column][0] for column in sorted(window))
    # both end in an s, 2 px apart
    assert masked.restored([painted]).tolist() == [False, False, False, True]


@pytest.mark.parametrize("is_normalised", [False, True])
def test_what_is_read_does_not_depend_on_the_hidden_truth(is_normalised):
    config = RenderConfig(layout="continuous")
    masked = board(config)
    painted = [predictions[::-1].copy() for predictions in perfect(masked.rows)]
    pasted, tampered = [], []
    for row, predictions in zip(masked.rows, painted, strict=True):
        pasted.append(paste(row.pixels_PA, row.hidden_P, predictions, 1, is_normalised))
        changed = row.pixels_PA.copy()
        changed[row.hidden_P] = np.random.default_rng(1).integers(0, 256, changed[row.hidden_P].shape, np.uint8)
        tampered.append(paste(changed, row.hidden_P, predictions, 1, is_normalised))
    assert all(np.array_equal(one, other) for one, other in zip(pasted, tampered, strict=True))
    assert masked.read(pasted) == masked.read(tampered)


def test_characters_count_only_where_all_their_columns_are_hidden():
    config = RenderConfig(layout="continuous")
    text = "lazy dogs over there"
    strip = Renderer(config)(text)
    mask = np.zeros(strip.num_patches, bool)
    mask[2:5] = True
    masked = MaskedCharacters(config, TRAIN, [text], [mask])
    inside = [
        text[first:end]
        for _, first, end, begin, stop in strip.clusters().tolist()
        if begin >= 32 and stop <= 80 and text[first:end] != " "
    ]
    assert masked.score(perfect, normalised=False).count == len(inside)
    hidden = masked.hidden_characters(0)
    assert "".join(c for c, is_hidden in zip(text, hidden, strict=True) if is_hidden and c != " ") == "".join(inside)


def test_a_space_that_is_not_drawn_is_hidden_between_hidden_neighbours():
    config = RenderConfig(layout="bigrams", unit="code-point", word_gap="none")
    masked = MaskedCharacters(config, TRAIN, ["ab cd ef"], [np.arange(7) % 6 >= 2])
    assert masked.hidden_characters(0).tolist() == [False, False, False, True, True, True, True, True]


def test_the_ngram_model_knows_a_text_that_it_has_seen_and_fills_no_more_than_the_holes():
    config = RenderConfig(layout="adaptive")
    texts = [TRAIN[0]]
    masked = MaskedCharacters(config, TRAIN, texts, masks_of(config, texts))
    result = masked.score(blank, normalised=False)
    assert result.ngram > 0.6
    assert 0 < result.most_frequent < 0.4
    assert result.most_frequent_character in "aeo"


def test_the_interval_holds_the_share_and_narrows_with_rows():
    few = interval(np.array([5, 9, 7]), np.array([10, 10, 10]))
    many = interval(np.array([5, 9, 7] * 40), np.array([10, 10, 10] * 40))
    assert 0 <= few[0] < 0.7 < few[1] <= 1
    assert few[0] < many[0] < 0.7 < many[1] < few[1]
    # rows that are all right or all wrong say less than as many characters
    together = interval(np.array([10, 0] * 10), np.array([10] * 20))
    apart = interval(np.array([5, 5] * 10), np.array([10] * 20))
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])
    assert interval(np.array([20]), np.array([20]))[0] < 0.9


def test_a_model_is_asked_through_micro_batches():
    config = RenderConfig(layout="adaptive")
    masks = masks_of(config)
    seen = []

    def model(patches):
        seen.append(patches.num_patches)
        return patches.pixels[patches.scored].float() / 255

    result = masked_characters(model, config, HELD, [torch.from_numpy(mask) for mask in masks], TRAIN, normalised=False)
    assert result.accuracy >= 0.99
    assert "masked characters" in as_text(result)
    small = predictor(model, patches_per_pass=50)
    masked = board(config)
    for one, other in zip(small(masked.rows), predictor(model)(masked.rows), strict=True):
        assert np.array_equal(one, other)
    assert len(seen) > 3


def test_masks_that_do_not_fit_and_rows_without_characters_are_refused():
    config = RenderConfig(layout="adaptive")
    with pytest.raises(UserError, match="row 0: a mask of"):
        MaskedCharacters(config, TRAIN, ["abcd"], [np.ones(9, bool)])
    with pytest.raises(UserError, match="no character lies wholly"):
        MaskedCharacters(config, TRAIN, ["abcd"], [np.arange(5) == 4])


def test_pasting_clips_rounds_and_averages_channels():
    pixels_PA = np.array([[0, 255], [255, 255], [10, 20]], np.uint8)
    hidden_P = np.array([False, False, True])
    three = np.array([[0.0, 0.3, 0.6, 1.5, 1.2, 1.8]])
    assert paste(pixels_PA, hidden_P, three, 1, False).tolist() == [[0, 255], [255, 255], [76, 255]]
    # the blank patch says nothing of contrast: mean 0.5, deviation of (0, 1) counted three times
    scaled = paste(pixels_PA, hidden_P, np.array([[0.0, 0.0, 0.0, 0.5, 0.5, 0.5]]), 1, True)
    assert scaled[2].tolist() == [128, round(255 * (0.5 + 0.5 * np.std([0, 0, 0, 1, 1, 1], ddof=1)))]
    true = paste_with_oracle(pixels_PA, hidden_P, np.array([[-1.0, 1.0]]), 1)[2]
    assert abs(true.astype(int) - [15 - 7.07, 15 + 7.07]).max() < 1
    with pytest.raises(UserError, match=r"predictions \[1, 5\]"):
        paste(pixels_PA, hidden_P, np.zeros((1, 5)), 1, False)


def test_normalised_predictions_beside_blank_patches_become_paper():
    pixels_PA = np.array([[255, 255], [9, 200]], np.uint8)
    assert paste(pixels_PA, np.array([False, True]), np.ones((1, 2)), 1, True)[1].tolist() == [255, 255]
