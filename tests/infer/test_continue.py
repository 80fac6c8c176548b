"""Strips that are filled in passes: what is hidden, in which order it is filled, and what is read of it."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from infer import continue_strip
from infer.continue_strip import certainty, figure, fill
from pixelcore.errors import UserError
from render import RenderConfig, Renderer
from tests.infer.tiny_pixels import CONFIG, RENDER, TEXT, classifier, mae, stored, write_run


@pytest.fixture(scope="module")
def model():
    return mae()


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(RENDER)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "strips", stored(mae()))


# ------------------------------------------------------------------ what is hidden


def test_a_tail_stands_between_the_text_and_the_end_patch(model, renderer):
    text = renderer("Hello").patches
    found = continue_strip(model, renderer, "Hello", patches=3)
    assert np.flatnonzero(found.hidden).tolist() == [len(text) - 1, len(text), len(text) + 1]
    np.testing.assert_array_equal(found.patches[~found.hidden], text)


def test_a_marker_is_replaced_by_hidden_patches(model, renderer):
    before, after = renderer("Hello ").patches, renderer(" you").patches
    found = continue_strip(model, renderer, "Hello [...] you", patches=2)
    assert np.flatnonzero(found.hidden).tolist() == [len(before) - 1, len(before)]
    np.testing.assert_array_equal(found.patches[~found.hidden], np.concatenate([before[:-1], after]))


def test_a_marker_may_stand_at_either_end(model, renderer):
    ended = continue_strip(model, renderer, "Hello [...]", patches=2)
    assert ended.hidden[-3:-1].all() and (ended.patches[-1] == 0).all()
    begun = continue_strip(model, renderer, "[...] you", patches=2)
    assert begun.hidden[:2].all() and not begun.hidden[2:].any()


def test_a_gap_keeps_the_length_and_what_stood_there_is_not_used(model, renderer):
    texts = ("Hello iii there", "Hello lll there")
    strips = [renderer(text).patches for text in texts]
    (differ,) = np.nonzero((strips[0] != strips[1]).any(axis=(1, 2)))
    gap = f"{differ.min()}-{differ.max()}"
    one, other = (continue_strip(model, renderer, text, gap=gap, passes=2) for text in texts)
    assert len(one.hidden) == len(strips[0])
    np.testing.assert_array_equal(one.patches, other.patches)
    assert (one.given[one.hidden] == 255).all()


# ------------------------------------------------------------------ in which order


def test_every_patch_is_filled_once_in_as_many_passes_as_asked_for(model, renderer):
    found = continue_strip(model, renderer, "Hello", patches=7, passes=3)
    assert [len(one.pasted) for one in found.passes] == [3, 2, 2]
    together = np.concatenate([one.pasted for one in found.passes])
    assert sorted(together.tolist()) == np.flatnonzero(found.hidden).tolist()


def test_there_are_no_more_passes_than_patches(model, renderer):
    assert len(continue_strip(model, renderer, "Hello", patches=2, passes=9).passes) == 2


def test_the_most_certain_come_first(model, renderer, monkeypatch):
    """With predictions that do not change between passes, certainty falls from pass to pass."""
    scales = np.linspace(0.1, 1, 6, dtype=np.float32)
    given = np.full((9, 16, 16), 255, np.uint8)
    given[:2, 4:] = 0
    hidden = np.array([0, 0, *[1] * 6, 0], bool)

    def constant(_, patches, masks):
        return [np.repeat(scales[np.flatnonzero(masks[0]) - 2, None], model.config.patch_values, 1)]

    monkeypatch.setattr(sys.modules["infer.continue_strip"], "predict", constant)
    assert [one.pasted.tolist() for one in fill(model, given, hidden, 3)] == [[6, 7], [4, 5], [2, 3]]


def test_later_passes_see_what_earlier_ones_have_pasted(model, renderer, monkeypatch):
    module, seen = sys.modules["infer.continue_strip"], []
    predict = module.predict

    def spy(model, patches, masks):
        seen.append((patches[0].copy(), masks[0].copy()))
        return predict(model, patches, masks)

    monkeypatch.setattr(module, "predict", spy)
    found = continue_strip(model, renderer, "Hello", patches=4, passes=4)
    for one, (patches, hidden) in zip(found.passes[:-1], seen[1:], strict=True):
        assert not hidden[one.pasted].any()
        np.testing.assert_array_equal(patches[one.pasted], one.patches[one.pasted])
    np.testing.assert_array_equal(
        found.passes[0].patches[found.passes[0].pasted], found.patches[found.passes[0].pasted]
    )


def test_one_minus_the_certainty_is_the_loss_of_a_calibrated_prediction(model):
    """The mean of many normalised patches is the best prediction of them; its expected loss is 1 - mean square."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(200, model.config.patch_values, generator=generator).double()
    patches[:, ::2] += 1.0  # what they agree on
    patches = (patches - patches.mean(1, keepdim=True)) / patches.std(1, correction=0, keepdim=True)
    best = patches.mean(0)
    loss = (patches - best).square().mean().item()
    assert 1 - certainty(model, best[None].float().numpy())[0] == pytest.approx(loss, abs=1e-5)


def test_a_model_of_raw_pixels_is_certain_where_there_is_contrast():
    values = CONFIG.patch_values
    flat, sharp = np.full((1, values), 0.5, np.float32), np.tile([0, 1], (1, values // 2)).astype(np.float32)
    found = certainty(mae(normalise_pixels=False), np.concatenate([flat, sharp]))
    assert found[0] == 0 < found[1]


# ------------------------------------------------------------------ what is read


def test_what_is_painted_is_read(renderer, monkeypatch):
    """A model that paints the truth is read as the truth."""
    model, truth = mae(normalise_pixels=False), renderer(TEXT).patches

    def perfect(_, patches, masks):
        return [np.repeat(truth[masks[0]].reshape(int(masks[0].sum()), -1) / 255, 3, 1).astype(np.float32)]

    monkeypatch.setattr(sys.modules["infer.continue_strip"], "predict", perfect)
    found = continue_strip(model, renderer, TEXT, gap="6-11", passes=3)
    np.testing.assert_array_equal(found.patches, truth)
    assert "brown fox" in found.read[0]  # letters that the edge of the gap cuts may be read as others
    assert found.line.strip() == TEXT


@pytest.mark.parametrize("layout", ["words", "bigrams", "adaptive"])
@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_any_layout_and_colour_is_filled(model, layout, color):
    renderer = Renderer(RenderConfig(layout=layout, color=color, max_patches=36))
    found = continue_strip(model, renderer, "Hi you", patches=2, passes=2)
    assert found.patches.shape[1:] == ((16, 16) if color == "grey" else (16, 16, 3))
    assert figure([found]).shape[2] == 3


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("Hello", {}, "how much to write is not said"),
        ("Hello", {"patches": 0}, "patches = 0: must be at least 1"),
        ("Hello", {"patches": 3, "passes": 0}, "passes = 0"),
        ("Hello", {"patches": 3, "gap": "1"}, "give one of them"),
        ("a [...] b", {"gap": "1"}, "give one of them"),
        ("a [...] b [...]", {"patches": 1}, "2 times: leave one"),
        (" [...] ", {"patches": 1}, "the text is empty"),
        ("", {"patches": 1}, "the text is empty"),
        ("Hello", {"gap": "0-60"}, "is beyond the strip"),
        ("Hello", {"gap": "5-2"}, "ends before it begins"),
        ("Hello", {"patches": 40}, "the model has positions for 36: shorten the text or fill fewer"),
        (TEXT * 9, {"patches": 1}, "more than the 36 patches"),
    ],
)
def test_what_cannot_be_filled_is_one_line(model, renderer, text, options, message):
    with pytest.raises(UserError, match=message):
        continue_strip(model, renderer, text, **options)


# ------------------------------------------------------------------ the command


def test_the_command_prints_what_it_read_and_writes_every_pass(run, command, tmp_path):
    out = tmp_path / "passes.png"
    status, said, _ = command(
        *("continue", "--model", run, "--text", "Hello", "--patches", 4, "--passes", 2, "--json", "--out", out)
    )
    report = json.loads(said)
    assert status == 0
    assert [len(one["patches"]) for one in report["passes"]] == [2, 2]
    assert len(report["filled"]) == 4 and len(report["read"]) == 1
    with Image.open(out) as picture:
        assert picture.height > 3 * 16
    status, said, _ = command("continue", "--model", run, "--text", "Hello", "--gap", "1-2")
    assert (status, said.count("\n")) == (0, 1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "give --patches N or --gap A-B"),
        (("--patches", "0"), "--patches 0: must be at least 1"),
        (("--patches", "99"), "the model has positions for 36"),
        (("--gap", "x"), "write them like 3-8,12"),
        (("--patches", "2", "--passes", "0"), "--passes 0: must be at least 1"),
        (("--patches", "2", "--out", "x.gif"), "let the name end in .png"),
        (("--patches", "2", "--prompt", "x"), "--prompt is for models that foretell patches"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, refused, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in argv else ("--out", "fig.png")
    assert message in refused("continue", "--model", run, "--text", "Hello", *argv, *out)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_paint_is_one_line(refused, tmp_path):
    run = write_run(tmp_path / "task", stored(classifier()))
    assert "paints none: use predict, evaluate or embed" in refused(
        "continue", "--model", run, "--text", "Hello", "--patches", 1
    )
