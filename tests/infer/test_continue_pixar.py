"""`infer continue` with a model that foretells patches: what it prints, and that no flag is without effect."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infer.pixar import prompt_patches
from infer.write_strip import WriteConfig, write
from pixelcore.convert.pixar import write_pixar
from render import Renderer
from tests.infer.tiny_pixar import RENDER, TEXT, bernoulli, pixar, stored
from tests.infer.tiny_pixels import mae, write_run
from tests.infer.tiny_pixels import stored as stored_mae


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "strips", stored(pixar()))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_pixar(folder / "backbone", stored(bernoulli(start_vector=False), None))
    return folder


def test_what_is_written_is_told_as_json(run, command):
    status, said, log = command(
        *("continue", "--model", run, "--prompt", TEXT, "--patches", 5, "--seed", 3, "--read", "--json")
    )
    report = json.loads(said)
    (strip,) = report["strips"]
    model = pixar()
    (one,) = write(
        model,
        [prompt_patches(Renderer(RENDER), TEXT, model.config)],
        WriteConfig(decode="mixture", seed=3, max_patches=5),
    )
    assert status == 0 and "5 patches in" in log
    assert [bytes.fromhex(patch) for patch in strip["patches"]] == [patch.tobytes() for patch in one.patches]
    assert strip["log_probability"] == pytest.approx(one.log_probability)
    assert strip["bits_per_patch"] == pytest.approx(-one.log_probability / np.log(2) / 5)
    assert (strip["ended"], strip["num_patches"], isinstance(strip["text"], str)) == (one.ended, 5, True)
    assert report["settings"]["decode"] == "mixture" and report["patches_per_second"] > 0


def test_the_picture_shows_what_is_new_on_a_tint(run, command, tmp_path):
    out = tmp_path / "strip.png"
    status, said, _ = command("continue", "--model", run, "--prompt", TEXT, "--patches", 4, "--out", out)
    assert status == 0 and said.startswith(f"{out}: 5 + 4 patches")
    with Image.open(out) as picture:
        colours = np.asarray(picture)
    tinted = (colours == (214, 232, 255)).all(2).any(0).nonzero()[0]
    white = (colours == 255).all(2).any(0).nonzero()[0]
    assert white.max() < tinted.min() and tinted.max() - tinted.min() > 3 * 16 * 4


def test_a_batch_from_a_file_continues_as_each_prompt_alone(run, command, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("John\n\nMary went\n")
    arguments = ("continue", "--model", run, "--decode", "sample", "--patches", 3, "--json")
    together = json.loads(command(*arguments, "--prompts", file)[1])["strips"]
    assert [strip["num_prompt_patches"] for strip in together] == [2, 0, 3]
    alone = json.loads(command(*arguments, "--prompt", "Mary went", "--seed", 2)[1])["strips"]
    assert together[2]["patches"] == alone[0]["patches"]


def test_rows_are_shown_while_they_are_written(run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ("continue", "--model", run, "--prompt", TEXT, "--patches", 7)
    status, said, _ = command(*arguments, "--stream")
    assert status == 0 and said.count("\n") == 3 * 4  # 12 patches, 5 in a row of 8 pixels, two in a character
    assert command(*arguments)[1] == said


def test_a_published_folder_writes(published, command):
    status, said, log = command("continue", "--model", published, "--prompt", TEXT, "--patches", 2, "--json")
    assert (status, json.loads(said)["settings"]["decode"]) == (0, "threshold")
    assert "--font FILE names the right one" in log


def test_legal_decoding_says_its_text(run, command):
    status, said, log = command(
        *("continue", "--model", run, "--prompt", "John", "--decode", "legal", "--alphabet", "abc ", "--patches", 2)
    )
    assert status == 0 and said.strip() and set(said) <= set("abc \n")
    assert "of the probability on what is no text" in log


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--text", "x"), "--text is for models that paint"),
        (("--prompt", "x", "--gap", "1-2"), "--gap is for models that paint"),
        (("--prompt", "x", "--decode", "beam"), "--decode beam: unknown; choose threshold, mixture, sample, legal"),
        (("--prompt", "x", "--decode", "threshold", "--temperature", 2), "no effect where nothing is drawn"),
        (("--prompt", "x", "--decode", "threshold", "--seed", 2), "--seed: with --decode threshold nothing is drawn"),
        (("--prompt", "x", "--decode", "legal", "--seed", 2), "--seed: a beam draws nothing"),
        (("--prompt", "x", "--decode", "legal", "--beam", 2, "--temperature", 1), "--beam: with --temperature"),
        (("--prompt", "x", "--decode", "legal", "--read"), "known without reading: leave it out"),
        (("--prompt", "x", "--beam", 2), "--beam is for --decode legal, and this is mixture"),
        (("--prompt", "x", "--patches", 0), "--patches 0: must be at least 1"),
        (("--prompt", "x", "--patches", 40), "1 patches, and 40 more do not fit the model's context of 40"),
        (("--prompt", "x" * 200), "the prompt needs"),
        (("--prompt", " "), "the prompt is empty"),
        (("--prompt", "你好"), "no font of the model has any of its characters"),
        (("--prompt", "x", "--set", "render.patch_width=8"), "the model reads patches of 8 x 16"),
        (("--prompt", "x", "--stream", "--json"), "--stream shows the strip on standard output"),
        (("--prompt", "x", "--out", "strip.gif"), "let the name end in .png"),
    ],
)
def test_a_mistake_is_one_line(run, refused, arguments, expected):
    assert expected in refused("continue", "--model", run, *arguments)


def test_what_the_model_cannot_do_is_one_line(published, refused, tmp_path):
    assert "has no start vector to write from" in refused("continue", "--model", published, "--prompt", "")
    mixture = refused("continue", "--model", published, "--prompt", "x", "--decode", "mixture")
    assert "the model's is bernoulli: use threshold or sample" in mixture
    painter = write_run(tmp_path / "painter", stored_mae(mae()))
    assert "--read is for models that foretell patches" in refused("continue", "--model", painter, "--read")
    assert "use --text" in refused("continue", "--model", painter, "--prompt", "x")
