"""What is painted where patches are hidden: the losses are the model's, the picture shows what it says."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from infer.figure import SCALE, Panel, Row, stack
from infer.reconstruct import batches, figure, reconstruct, reconstruct_rows, runs
from pixelcore.errors import UserError
from pixelcore.masking import draw_masks
from pixelcore.patches import arrange
from render import RenderConfig, Renderer
from tests.infer.tiny_pixels import RENDER, TEXT, classifier, mae, stored, write_run

LINES = [TEXT, "Hello", "Pack my box"]


@pytest.fixture(scope="module")
def model():
    return mae()


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(RENDER)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "strips", stored(mae()))


# ------------------------------------------------------------------ the figures


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_the_mean_of_the_losses_is_the_loss_of_the_model(normalise, color):
    model, renderer = mae(normalise_pixels=normalise), Renderer(RENDER.replace(color=color))
    found = reconstruct(model, renderer, TEXT, mask="2-4,7")
    patches = np.ascontiguousarray(found.strip.patches)
    pixels = torch.from_numpy(patches.reshape(len(patches), -1))
    with torch.no_grad():
        out = model(arrange(pixels, [len(patches)], torch.from_numpy(found.hidden)))
    assert found.loss == pytest.approx(out.loss.item(), rel=1e-5)
    assert len(found.losses) == len(found.raw_losses) == 4


def test_raw_losses_are_those_of_the_painted_pixels(model, renderer):
    found = reconstruct(model, renderer, TEXT, mask="3")
    truth = found.strip.patches[3].astype(float) / 255
    assert found.raw_losses[0] == pytest.approx(((found.pasted[3] / 255 - truth) ** 2).mean(), rel=1e-5)


def test_visible_patches_are_pasted_as_they_are(model, renderer):
    found = reconstruct(model, renderer, TEXT, mask="2-4,7")
    assert found.hidden.nonzero()[0].tolist() == [2, 3, 4, 7]
    np.testing.assert_array_equal(found.pasted[~found.hidden], found.strip.patches[~found.hidden])
    assert (found.painted != found.strip.patches[found.hidden]).any()
    assert found.spans() == [(2, 5), (7, 8)]


def test_what_is_hidden_never_reaches_the_picture(model, renderer):
    """Two texts that differ only in their hidden patches are painted alike, unless the oracle is asked."""
    one, other = "Hello iii there", "Hello lll there"
    strips = [renderer(text).patches for text in (one, other)]
    (differ,) = np.nonzero((strips[0] != strips[1]).any(axis=(1, 2)))
    mask = f"{differ.min()}-{differ.max()}"
    painted = [reconstruct(model, renderer, text, mask=mask).painted for text in (one, other)]
    np.testing.assert_array_equal(painted[0], painted[1])
    told = [reconstruct(model, renderer, text, mask=mask, oracle=True).painted for text in (one, other)]
    assert (told[0] != told[1]).any()


def test_the_oracle_gives_each_patch_its_own_brightness(model, renderer):
    found = reconstruct(model, renderer, TEXT, mask="2-4", oracle=True)
    expected = found.strip.patches[2:5].mean(axis=(1, 2))
    np.testing.assert_allclose(found.painted.mean(axis=(1, 2)), expected, atol=25)


def test_a_model_of_raw_pixels_needs_no_oracle(renderer):
    model = mae(normalise_pixels=False)
    assert reconstruct(model, renderer, TEXT).brightness == "predicted"
    with pytest.raises(UserError, match="no oracle"):
        reconstruct(model, renderer, TEXT, oracle=True)


def test_the_truth_of_a_span_is_the_text_that_stands_there(model):
    found = reconstruct(model, Renderer(RenderConfig(layout="adaptive", max_patches=36)), "one two six", mask="1")
    starts = found.strip.word_starts
    assert starts is not None
    assert found.truth(int(starts[1]), int(starts[2])).strip() == "two"


# ------------------------------------------------------------------ masks


def test_the_seed_decides_the_mask_and_nothing_else(model, renderer):
    masks = [reconstruct(model, renderer, TEXT, seed=seed).hidden for seed in (1, 1, 2)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


@pytest.mark.parametrize("rule", ["random", "span"])
def test_a_drawn_mask_hides_the_share_that_is_asked_for(model, renderer, rule):
    found = reconstruct(model, renderer, TEXT, rule=rule, ratio=0.5)
    assert found.hidden.sum() == len(found.hidden) - int(len(found.hidden) * 0.5)


def test_the_m4_rule_hides_more_of_a_short_text(model, renderer):
    shares = {
        rule: np.mean([reconstruct(model, renderer, "Hello you", rule=rule, seed=s).hidden.mean() for s in range(40)])
        for rule in ("span", "span-m4")
    }
    assert shares["span-m4"] > shares["span"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "ratio = 0.0 must lie between 0 and 1"),
        ({"ratio": 1.0}, "ratio = 1.0 must lie between 0 and 1"),
        ({"rule": "blocks"}, "mask rule = 'blocks' is unknown"),
        ({"mask": "0-20"}, "is beyond the strip"),
        ({"mask": np.ones(64)}, "is beyond the strip"),
        ({"mask": np.zeros(64)}, "hides none"),
        ({"mask": "2-x"}, "write them like 3-8,12"),
    ],
)
def test_a_mask_that_cannot_be_is_named(model, renderer, options, message):
    with pytest.raises(UserError, match=message):
        reconstruct(model, renderer, TEXT, **options)


def test_a_mask_that_hides_everything_is_named(model, renderer):
    last = renderer(TEXT).num_patches - 1
    with pytest.raises(UserError, match="hides all"):
        reconstruct(model, renderer, TEXT, mask=f"0-{last}")


# ------------------------------------------------------------------ many rows


def test_rows_together_are_painted_as_each_alone(model, renderer, monkeypatch):
    monkeypatch.setattr(sys.modules["infer.reconstruct"], "PATCHES_PER_PASS", 20)  # so that there are several passes
    hidden = draw_masks("span", [renderer(line).num_patches for line in LINES], [1, 2, 3], 0.3)
    for together, line, mask in zip(reconstruct_rows(model, renderer, LINES, hidden), LINES, hidden, strict=True):
        alone = reconstruct(model, renderer, line, mask=mask)
        np.testing.assert_array_equal(together.hidden, alone.hidden)
        np.testing.assert_allclose(together.predictions, alone.predictions, atol=1e-5)


def test_a_row_that_does_not_fit_is_named(model, renderer):
    with pytest.raises(UserError, match="row 1 is empty"):
        reconstruct_rows(model, renderer, ["Hello", ""], [np.array([1, 0, 0, 0, 0])] * 2)
    with pytest.raises(UserError, match="2 rows and 1 masks"):
        reconstruct_rows(model, renderer, LINES[:2], [np.array([1, 0])])


def test_passes_hold_so_many_patches_and_at_least_a_strip():
    assert batches([3000, 1000, 97, 5000, 1]) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert batches([]) == []


def test_runs_of_hidden_patches():
    assert runs(np.array([1, 1, 0, 1, 0, 0, 1], bool)) == [(0, 2), (3, 4), (6, 7)]


# ------------------------------------------------------------------ the picture


def test_a_long_strip_goes_on_in_the_next_line():
    patches = np.full((10, 16, 16), 255, np.uint8)
    patches[7] = 0
    narrow, wide = (stack([Panel([Row("one", patches)])], columns=columns) for columns in (4, 10))
    black = [(picture == 0).all(2).sum() for picture in (narrow, wide)]
    assert black == [16 * 16 * SCALE**2] * 2
    assert len(narrow) > len(wide) and narrow.shape[1] < wide.shape[1]


def test_the_figure_shows_the_original_whole_and_hides_what_was_hidden(model, renderer):
    found = reconstruct(model, renderer, "Hi", mask="0")
    picture = figure([found])
    height = 16 * SCALE
    rows = [top for top in range(len(picture)) if (picture[top] == 0).all(1).sum() >= height]
    # the end patch is black in the rows "original", "masked" and "pasted", and "predicted" has no visible patch
    assert len(rows) == 3 * height
    original, masked = (picture[rows[i * height] : rows[i * height] + height] for i in (0, 1))
    assert (original != masked).any()
    assert len(figure([found, found])) > 1.5 * len(picture)


# ------------------------------------------------------------------ the command


def test_the_command_writes_a_picture_and_says_the_losses(run, command, tmp_path):
    status, out, _ = command("reconstruct", "--model", run, "--text", TEXT, "--out", tmp_path / "fig.png", "--read")
    assert status == 0
    assert "patches hidden; loss" in out and "painted as" in out
    with Image.open(tmp_path / "fig.png") as picture:
        assert picture.mode == "RGB"


def test_json_has_the_losses_of_each_patch(run, command, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(LINES) + "\n")
    status, out, _ = command("reconstruct", "--model", run, "--data", file, "--mask", "random", "--seed", 5, "--json")
    report = json.loads(out)
    assert status == 0
    assert [row["text"] for row in report["texts"]] == LINES
    patches = [patch for row in report["texts"] for patch in row["patches"]]
    assert report["num_hidden"] == len(patches)
    assert report["loss"] == pytest.approx(np.mean([patch["loss"] for patch in patches]))
    assert report["raw_loss"] == pytest.approx(np.mean([patch["raw_loss"] for patch in patches]))
    assert report["settings"] == {"mask": "random", "ratio": 0.25, "seed": 5, "brightness": "visible"}


def test_the_text_may_come_from_standard_input(run, command, monkeypatch):
    monkeypatch.setattr("infer.commands_pixels.read_standard_input", lambda: TEXT)
    status, out, _ = command("reconstruct", "--model", run, "--text", "-", "--mask", "1-2", "--json")
    assert (status, json.loads(out)["texts"][0]["text"]) == (0, TEXT)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--text", ""), "the text is empty"),
        (("--text", "\u200b"), "has no ink"),
        (("--text", TEXT * 9), "more than the 36 patches that the model has positions for"),
        (("--text", "x", "--data", "y"), "give one of them"),
        (("--data", "no_such_file"), "no_such_file"),
        (("--text", TEXT, "--ratio", "0"), "ratio = 0.0 must lie between 0 and 1"),
        (("--text", TEXT, "--ratio", "1"), "ratio = 1.0 must lie between 0 and 1"),
        (("--text", TEXT, "--mask", "spans"), "--mask spans: unknown; choose random, span, span-m4, or patches"),
        (("--text", TEXT, "--mask", "3", "--ratio", "0.5"), "--ratio is for masks that are drawn"),
        (("--text", TEXT, "--mask", "3", "--seed", "1"), "--seed is for masks that are drawn"),
        (("--text", TEXT, "--mask", "60"), "patch 60 is beyond the strip"),
        (("--text", "Hi", "--mask", "0-1"), "hides all"),
        (("--text", TEXT, "--out", "fig.jpg"), "let the name end in .png"),
        (("--text", TEXT, "--out", "no_such_folder/fig.png"), "does not exist"),
        (("--text", TEXT, "--set", "render.size=20"), "another renderer"),
        (("--text", TEXT, "--set", "render.height=24"), "patches of 16 x 16"),
        (("--text", TEXT, "--set", "model.size=20"), "is not of the form render.x=v"),
        (("--text", TEXT, "--set", "render.accept_changed=1"), "must be true or false"),
        (("--text", TEXT, "--font", "no_such_font.ttf"), "no_such_font.ttf"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, refused, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in argv else ("--out", "fig.png")
    assert message in refused("reconstruct", "--model", run, *argv, *out)
    assert not list(tmp_path.iterdir())


def test_a_text_of_a_file_is_named_by_its_number(run, refused, tmp_path):
    (tmp_path / "lines.txt").write_text("Hello\n\nthere\n")
    assert "lines.txt, text 2: the text is empty" in refused(
        "reconstruct", "--model", run, "--data", tmp_path / "lines.txt"
    )


def test_a_model_without_a_painter_is_one_line(refused, tmp_path):
    run = write_run(tmp_path / "task", stored(classifier()))
    assert "paints none: use predict, evaluate or embed" in refused("reconstruct", "--model", run, "--text", TEXT)
