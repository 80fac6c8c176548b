"""`python -m infer read`: pictures in, text out; a mistake is one line."""

import json

import numpy as np
import pytest
from PIL import Image

from infer import read
from infer.cli import main
from pixelcore.errors import UserError
from render import RenderConfig, Renderer
from render.picture import save

BINARY = RenderConfig(layout="continuous", height=8, color="binary", pad=2)


@pytest.fixture
def picture(tmp_path):
    """Draws a text into a PNG that says how it was drawn."""

    def draw(text, config=BINARY, **options):
        renderer = Renderer(config)
        save(tmp_path / "strip.png", renderer(text), renderer, **options)
        return tmp_path / "strip.png"

    return draw


@pytest.fixture
def command(capsys):
    def call(*argv: object) -> tuple[int, str, str]:
        status = main(["read", *map(str, argv)])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.mark.parametrize("columns", [3, None])
def test_a_picture_says_itself_how_it_is_read(picture, command, columns):
    file = picture("Hello, folded world", columns=columns, scale=2)
    status, out, _ = command(file, "--scripts", "Latn")
    assert (status, out) == (0, "Hello, folded world\n")


def test_a_bare_strip_is_read_by_flags(tmp_path, command):
    file = tmp_path / "bare.png"
    Image.fromarray(np.ascontiguousarray(Renderer(BINARY)("plain").pixels)).save(file)
    flags = ["--layout", "continuous", "--set", "render.height=8", "--set", "color=binary", "--set", "pad=2"]
    assert command(file, *flags, "--scripts", "Latn")[:2] == (0, "plain\n")


def test_json_tells_confidences_and_false_readable_rates(picture, command):
    status, out, _ = command(picture(("one", "two")), "--json", "--scripts", "Latn")
    report = json.loads(out)
    assert status == 0
    assert report["texts"] == ["one", "two"] and report["readable"] and report["exact"] and report["confidence"] == 1
    assert [c["text"] for c in report["characters"]] == list("onetwo")
    assert report["false_readable"] and all(rate <= 0.01 for rate in report["false_readable"].values())


def test_arrays_are_read_too():
    assert read(Renderer(BINARY)("array").pixels, BINARY, scripts=["Latn"]).text == "array"


def test_noise_is_reported_as_unreadable(tmp_path, command):
    file = tmp_path / "noise.png"
    noise = np.where(np.random.default_rng(0).random((8, 320)) < 0.3, 0, 255).astype(np.uint8)
    Image.fromarray(noise).save(file)
    flags = ["--layout", "continuous", "--set", "height=8", "--set", "color=binary", "--scripts", "Latn"]
    status, out, _ = command(file, *flags, "--json")
    assert status == 0 and json.loads(out)["readable"] is False
    assert "not readable" in command(file, *flags)[2]


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--reader", "nobody"], "unknown; choose builtin"),
        (["--reader", "tesseract", "--scripts", "Latn"], "leave them out"),
        (["--preset", "pixle"], "did you mean pixel"),
        (["--set", "height"], "not of the form"),
        (["--set", "model.width=3"], "not of the form"),
        (["--set", "hight=8"], "did you mean 'height'"),
        (["--set", "render.height=9"], "render.height = 9"),
        (["--font", "nowhere.ttf"], "not found"),
        (["--scripts", "Zzzz"], "Zzzz"),
        (["--wrong"], "unknown argument"),
    ],
)
def test_mistakes_are_one_line(picture, command, flags, told):
    status, out, err = command(picture("text"), *flags)
    assert (status, out) == (2, "") and told in err and err.count("\n") == 1


def test_files_that_are_no_pictures_are_one_line(tmp_path, command, picture):
    (tmp_path / "text.png").write_text("not a picture")
    truncated = tmp_path / "cut.png"
    truncated.write_bytes(picture("text").read_bytes()[:60])
    for file in (tmp_path / "text.png", tmp_path / "missing.png", tmp_path, truncated):
        status, out, err = command(file)
        assert (status, out) == (2, "") and err.count("\n") == 1, err


def test_an_unknown_reader_is_refused_before_work():
    with pytest.raises(UserError, match="choose"):
        read("missing.png", reader="nobody")


def test_independent_readers_say_what_to_install(picture, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="tesseract is not on this machine"):
        read(picture("text"), reader="tesseract")
