"""Pictures of strips: what is folded and enlarged comes back as the very same pixels, and what cannot is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from render import RenderConfig, Renderer, RenderError
from render.picture import CHUNK, save, stacked, strip_pixels_of, to_image
from render.preview import COLOR, GREY, PLAIN, mode_of, preview


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(RenderConfig())


CONFIGS = {
    "grey": RenderConfig(),
    "rgb": RenderConfig(color="rgb"),
    "binary": RenderConfig(color="binary", layout="continuous"),
    "pixar": RenderConfig.named("pixar", patch_width=24),
    "odd": RenderConfig(height=11, patch_width=7),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("columns", "scale"), [(None, 1), (None, 3), (1, 1), (4, 2), (1000, 1)])
def test_a_picture_gives_its_strip_back(tmp_path: Path, name: str, columns: int | None, scale: int):
    renderer = Renderer(CONFIGS[name])
    strip = renderer("Any text, déjà vu")
    save(tmp_path / "a.png", strip, renderer, columns=columns, scale=scale, texts=["Any text, déjà vu"])
    pixels, metadata = strip_pixels_of(tmp_path / "a.png")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, strip.pixels)
    assert metadata["num_patches"] == strip.num_patches
    assert metadata["texts"] == ["Any text, déjà vu"]
    assert RenderConfig.from_dict(metadata["config"]) == renderer.config
    assert metadata["fonts"] == [{"name": face.name, "sha256": face.sha256} for face in renderer.setter.chain.faces]
    assert not list(tmp_path.glob(".*")), "temporary file left"


def test_a_strip_of_the_end_patch_alone_comes_back(tmp_path: Path, renderer: Renderer):
    strip = renderer("")
    save(tmp_path / "a.png", strip, renderer)
    assert np.array_equal(strip_pixels_of(tmp_path / "a.png")[0], strip.pixels)


def test_a_long_text_stays_out_of_its_picture(tmp_path: Path, renderer: Renderer):
    save(tmp_path / "a.png", renderer("a"), renderer, texts=["a" * 200_000])
    assert "texts" not in strip_pixels_of(tmp_path / "a.png")[1]


def test_surrogates_in_the_text_do_not_stop_a_picture(tmp_path: Path, renderer: Renderer):
    save(tmp_path / "a.png", renderer("\ud800"), renderer, texts=["\ud800"])
    assert strip_pixels_of(tmp_path / "a.png")[1]["texts"] == ["\ud800"]


def test_a_picture_with_a_grid_cannot_be_turned_back(tmp_path: Path, renderer: Renderer):
    save(tmp_path / "a.png", renderer("abc"), renderer, grid=True)
    with pytest.raises(RenderError, match="grid"):
        strip_pixels_of(tmp_path / "a.png")


def rewrite(path: Path, change) -> None:
    """Write the picture again with the same chunk, after `change` of its pixels or of its chunk."""
    with Image.open(path) as opened:
        chunk, picture = opened.info[CHUNK], opened.copy()
    picture, chunk = change(picture, chunk)
    info = PngImagePlugin.PngInfo()
    if chunk is not None:
        info.add_text(CHUNK, chunk)
    picture.save(path, pnginfo=info)


def with_key(key: str, value: object):
    return lambda picture, chunk: (picture, json.dumps({**json.loads(chunk), key: value}))


def drawn_on(picture: Image.Image, chunk: str) -> tuple[Image.Image, str]:
    picture.putpixel((1, 0), 7)
    return picture, chunk


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda picture, chunk: (picture, None), "no pixelcore-render chunk"),
        (lambda picture, chunk: (picture, "{"), "cannot be used"),
        (lambda picture, chunk: (picture, "[1]"), "cannot be used"),
        (lambda picture, chunk: (picture, '{"grid": false}'), "cannot be used"),
        (lambda picture, chunk: (picture.crop((0, 0, 30, 30)), chunk), "px grey where its"),
        (lambda picture, chunk: (picture.convert("RGB"), chunk), "px RGB where its"),
        (drawn_on, "was changed"),
        (with_key("scale", 0), "numbers that no picture"),
        (with_key("columns", "3"), "numbers that no picture"),
        (with_key("num_patches", 10**9), "px grey where its"),
        (with_key("config", {"layot": 1}), "did you mean 'layout'"),
    ],
)
def test_a_changed_picture_is_refused_in_one_line(tmp_path: Path, renderer: Renderer, change, message: str):
    save(tmp_path / "a.png", renderer("abc"), renderer)
    rewrite(tmp_path / "a.png", change)
    with pytest.raises(RenderError, match=message) as caught:
        strip_pixels_of(tmp_path / "a.png")
    assert str(tmp_path / "a.png") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", "cut"])
def test_what_is_no_png_is_refused(tmp_path: Path, renderer: Renderer, data: bytes | str):
    file = tmp_path / "a.png"
    save(file, renderer("a longer text, to be cut"), renderer)
    file.write_bytes(file.read_bytes()[:-200] if isinstance(data, str) else data)
    with pytest.raises(RenderError, match="cannot be read as PNG"):
        strip_pixels_of(file)


def test_a_picture_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(RenderError, match="no such file"):
        strip_pixels_of(tmp_path / "nowhere.png")


def test_a_picture_is_not_written_where_nothing_can_be(tmp_path: Path, renderer: Renderer):
    with pytest.raises(RenderError, match="cannot be written"):
        save(tmp_path / "nowhere" / "a.png", renderer("a"), renderer)


@pytest.mark.parametrize("number", ["columns", "scale"])
def test_numbers_below_one_are_refused(renderer: Renderer, number: str):
    with pytest.raises(RenderError, match=f"{number} = 0"):
        to_image(renderer("a"), **{number: 0})  # type: ignore[arg-type]


def test_a_row_of_a_picture_is_readable_by_default():
    renderer = Renderer(RenderConfig(layout="continuous"))
    assert to_image(renderer("many words " * 40)).width == 640
    assert to_image(renderer("few")).width < 100


def test_a_grid_marks_words_and_separators_and_leaves_the_pixels():
    renderer = Renderer(RenderConfig(layout="words"))
    strip = renderer("ab cd")
    picture = np.asarray(to_image(strip, grid=True, scale=1, columns=100))
    bars = [tuple(picture[0, 1 + 17 * patch]) for patch in range(strip.num_patches)]
    green, red = bars[0], bars[-1]
    assert green != red
    expected = strip.word_starts
    assert expected is not None
    assert [bar == green for bar in bars] == [patch in expected[:-1] for patch in range(strip.num_patches)]
    assert [bar == red for bar in bars] == [patch in strip.separators for patch in range(strip.num_patches)]
    cells = np.stack([picture[3:19, 1 + 17 * patch : 17 + 17 * patch, 0] for patch in range(strip.num_patches)])
    assert np.array_equal(cells, strip.patches)


def test_stacked_strips_keep_their_order(renderer: Renderer):
    one, other = renderer("ab"), renderer("a longer one")
    picture = stacked([("one", one), ("other", other)], scale=1)
    assert picture.width >= to_image(other).width
    assert picture.height > 32 + 2 * 16


# ---- in a terminal ---------------------------------------------------------------------------------------------------


class Terminal:
    def __init__(self, is_terminal: bool):
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "environment", "mode"),
    [
        (True, {}, GREY),
        (True, {"COLORTERM": "truecolor"}, COLOR),
        (True, {"COLORTERM": "truecolor", "NO_COLOR": "1"}, PLAIN),
        (True, {"COLORTERM": "truecolor", "NO_COLOR": ""}, COLOR),
        (True, {"TERM": "dumb"}, PLAIN),
        (False, {"COLORTERM": "truecolor"}, PLAIN),
    ],
)
def test_colour_is_used_where_it_is_wanted(monkeypatch, is_terminal: bool, environment: dict[str, str], mode: str):
    for name in ("NO_COLOR", "COLORTERM", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert mode_of(Terminal(is_terminal)) == mode  # type: ignore[arg-type]


def test_a_plain_preview_shows_every_pixel_of_a_binary_strip():
    strip = Renderer(RenderConfig(layout="continuous", color="binary"))("Hi, déjà")
    lines = preview(strip, PLAIN, columns=1000).split("\n")
    width = strip.pixels.shape[1] - 16
    shown = np.zeros((16, width), bool)
    for number, line in enumerate(lines):
        for x, character in enumerate(line.ljust(width)[:width]):
            shown[2 * number, x], shown[2 * number + 1, x] = character in "▀█", character in "▄█"
    assert np.array_equal(shown, strip.pixels[:, :width] == 0)
    assert all(line.endswith("▒" * 16) for line in lines)


def test_a_preview_is_as_wide_as_the_terminal(monkeypatch, renderer: Renderer):
    monkeypatch.setenv("COLUMNS", "50")
    strip = renderer("a text that is wider")
    lines = preview(strip, PLAIN).split("\n")
    assert max(map(len, lines)) == 48
    assert len(lines) == 8 * -(-strip.num_patches // 3)
    monkeypatch.setenv("COLUMNS", "5")
    assert len(preview(strip, PLAIN).split("\n")) == 8 * strip.num_patches


def test_a_ruler_marks_words_and_separators():
    strip = Renderer(RenderConfig(layout="words"))("ab cd")
    ruler = preview(strip, PLAIN, columns=100, grid=True).split("\n")[0]
    assert strip.word_starts is not None
    assert [ruler[16 * patch] == "▼" for patch in range(strip.num_patches)] == [
        patch in strip.word_starts[:-1] for patch in range(strip.num_patches)
    ]
    assert ruler.endswith("■" * 16)


@pytest.mark.parametrize("mode", [GREY, COLOR])
@pytest.mark.parametrize("color", ["grey", "rgb"])
@pytest.mark.parametrize("height", [11, 16])
def test_a_coloured_preview_has_a_block_for_each_two_pixels(mode: str, color: str, height: int):
    strip = Renderer(RenderConfig(color=color, height=height))("ab")
    lines = preview(strip, mode, columns=100).split("\n")
    assert len(lines) == (height + 1) // 2
    assert all(line.count("▀") == strip.pixels.shape[1] and line.endswith("\x1b[0m") for line in lines)
