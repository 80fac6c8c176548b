"""Colour fonts: layered outlines and pictures, in strips that are rgb, grey or binary."""

from pathlib import Path

import numpy as np
import pytest
from fontTools.colorLib.builder import buildCOLR
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables.otTables import PaintFormat

from render import RenderConfig, Renderer, Strip
from render.graphemes import clusters
from tests.render.tiny_fonts import LETTERS, font_of, name_of, png_font, saved

RED, BLUE, YELLOW, GREEN = (255, 0, 0), (0, 0, 255), (255, 255, 0), (0, 128, 0)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
FLAG, SUN, LEAF = "\u2691", "\u2600", "\u2618"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    # a flag of 6 x 8 px, blue over red; a sun of one colour that starts a pixel right of its origin
    layers = {
        FLAG: [([(0, 0, 6, 4)], (1, 0, 0, 1)), ([(0, 4, 6, 8)], (0, 0, 1, 1))],
        SUN: [([(1, 0, 7, 8)], (1, 1, 0, 1))],
    }
    shapes = {**LETTERS, FLAG: (7, [(0, 0, 6, 8)]), SUN: (8, [(1, 0, 7, 8)])}
    saved(font_of(shapes, layers), folder / "layers.ttf")
    saved(font_of(LETTERS), folder / "letters.ttf")
    # 32 x 32 px at 32 px to the em: red top left quarter, green elsewhere, the lowest quarter transparent
    picture = np.zeros((32, 32, 4), np.uint8)
    picture[:24] = (*GREEN, 255)
    picture[:16, :16] = (*RED, 255)
    saved(png_font({LEAF: picture}, top=24, advance=34), folder / "pictures.ttf")
    _save_gradient(folder / "paint.ttf")
    return folder


def _save_gradient(path: Path) -> None:
    """A COLRv1 font: a square of 8 px filled by a gradient from red (left) to blue (right)."""
    font = font_of({LEAF: (8, [(0, 0, 8, 8)])})
    stops = {"Extend": "pad", "ColorStop": [(0.0, 0), (1.0, 1)]}
    line = {"x0": 0, "y0": 0, "x1": 8, "y1": 0, "x2": 0, "y2": 8}
    gradient = {"Format": int(PaintFormat.PaintLinearGradient), "ColorLine": stops, **line}
    paint = {"Format": int(PaintFormat.PaintGlyph), "Paint": gradient, "Glyph": name_of(LEAF)}
    FontBuilder(font=font).setupCPAL([[(1, 0, 0, 1), (0, 0, 1, 1)]])
    font["COLR"] = buildCOLR({name_of(LEAF): paint}, version=1, glyphMap=font.getReverseGlyphMap())
    saved(font, path)


def drawn(folder: Path, text: str, color: str, *fonts: str) -> Strip:
    files = tuple(str(folder / font) for font in fonts or ("layers.ttf",))
    config = RenderConfig(layout="continuous", size=16, hinting="none", color=color, fonts=files)
    return Renderer(config)(text)


def colors_of(pixels: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, pixels.reshape(-1, 3).tolist()))


def test_layers_are_drawn_in_their_colours_right_side_up_and_in_place(folder: Path):
    pixels = drawn(folder, FLAG + SUN, "rgb").pixels[:, :16]
    expected = np.full((16, 16, 3), 255, np.uint8)
    expected[5:9, 0:6] = BLUE  # the baseline is row 13
    expected[9:13, 0:6] = RED
    expected[5:13, 8:14] = YELLOW
    assert np.array_equal(pixels, expected)


def test_a_gradient_runs_from_its_first_to_its_last_colour(folder: Path):
    pixels = drawn(folder, LEAF, "rgb", "paint.ttf").pixels.astype(int)
    assert colors_of(pixels[:5, :16]) == {WHITE}, "nothing above the square"
    square = pixels[5:13, :8]
    assert np.array_equal(square, np.broadcast_to(square[:1], square.shape)), "all rows are equal"
    assert (np.diff(square[0, :, 0]) < 0).all() and (np.diff(square[0, :, 2]) > 0).all()
    assert square[0, 0, 0] > 230 and square[0, -1, 2] > 230


def test_a_picture_is_scaled_to_the_size_of_the_strip(folder: Path):
    pixels = drawn(folder, LEAF, "rgb", "letters.ttf", "pictures.ttf").pixels[:, :17]
    expected = np.full((16, 17, 3), 255, np.uint8)
    expected[1:13, :16] = GREEN  # 24 px above the baseline are 12 here; the transparent rows below show paper
    expected[1:9, :8] = RED
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("size, columns", [(8, 8), (32, 32)])
def test_pictures_have_any_size(size: int, columns: int, folder: Path):
    files = (str(folder / "pictures.ttf"),)
    config = RenderConfig(layout="continuous", size=size, height=2 * size, color="rgb", fonts=files)
    pixels = Renderer(config)(LEAF).pixels
    inked = np.argwhere((pixels[:, : columns + 4] != 255).any(2))
    assert (inked.max(0) - inked.min(0) + 1).tolist() == [columns * 3 // 4, columns]


def test_pictures_do_not_move_the_letters_beside_them(folder: Path):
    alone = drawn(folder, "ab ", "grey", "letters.ttf", "pictures.ttf").pixels[:, :16]
    beside = drawn(folder, f"ab {LEAF}", "grey", "letters.ttf", "pictures.ttf").pixels[:, :16]
    assert np.array_equal(alone, beside)


def test_a_grey_strip_has_the_brightness_of_the_colours(folder: Path):
    pixels = drawn(folder, FLAG + SUN, "grey").pixels
    brightness = {pixels[y, x] for y, x in ((5, 0), (9, 0), (5, 8), (4, 0))}
    assert brightness == {29, 76, 225, 255}  # ITU-R BT.601 of blue, red, yellow and white


def test_a_binary_strip_has_what_is_darker_than_the_middle(folder: Path):
    pixels = drawn(folder, FLAG + SUN, "binary").pixels[:, :16]
    assert set(np.unique(pixels)) == {0, 255}
    assert (pixels[5:13, :6] == 0).all(), "blue and red are ink"
    assert (pixels[:, 8:] == 255).all(), "yellow is paper"


@pytest.mark.parametrize("fonts", [("letters.ttf",), ("layers.ttf",), ()])
@pytest.mark.parametrize("layout", ["continuous", "words", "sentences", "bigrams", "adaptive"])
def test_black_glyphs_in_rgb_are_the_grey_strip_three_times(layout: str, fonts: tuple[str, ...], folder: Path):
    config = RenderConfig(layout=layout, fonts=tuple(str(folder / font) for font in fonts))
    text = "abc cab  bac" if fonts else "Ça va? Жук! \u4e00"
    grey = Renderer(config)(text).columns
    rgb = Renderer(config.replace(color="rgb"))(text).columns
    assert rgb.tobytes() == np.repeat(grey, 3).tobytes()


def test_letters_beside_a_colour_are_black_in_rgb(folder: Path):
    pixels = drawn(folder, "a" + FLAG, "rgb").pixels
    assert colors_of(pixels[:, :6]) == {BLACK, WHITE}


def test_a_transparent_layer_lets_paper_through(tmp_path: Path):
    layers = {FLAG: [([(0, 0, 6, 8)], (1.0, 0.0, 0.0, 0.5))]}
    saved(font_of({FLAG: (6, [(0, 0, 6, 8)])}, layers), tmp_path / "half.ttf")
    red, green, blue = drawn(tmp_path, FLAG, "rgb", "half.ttf").pixels[8, 2].tolist()
    assert red == 255 and abs(green - 127) <= 1 and abs(blue - 127) <= 1


@pytest.mark.parametrize("color", ["rgb", "grey", "binary"])
def test_colour_strips_are_the_same_after_pickling_and_in_any_order(color: str, folder: Path):
    files = (str(folder / "layers.ttf"),)
    renderer = Renderer(RenderConfig(color=color, fonts=files))
    first = renderer(f"ab{FLAG} {SUN}c")
    renderer(f"{SUN}{FLAG}")
    assert renderer(f"ab{FLAG} {SUN}c").columns.tobytes() == first.columns.tobytes()


@pytest.mark.parametrize("layout", ["continuous", "words", "sentences", "bigrams", "adaptive"])
def test_an_emoji_of_several_characters_is_one_cluster_in_its_colours(layout: str, tmp_path: Path):
    woman, girl, family = "\U0001f469", "\U0001f467", "\ue000"
    joined = f"{woman}\u200d{girl}"
    assert clusters(joined) == [joined]
    font = font_of(
        {**LETTERS, "\u200d": (0, []), **dict.fromkeys((woman, girl, family), (9, [(0, 0, 8, 8)]))},
        {family: [([(0, 0, 8, 8)], (1, 0, 0, 1))]},
    )
    names = " ".join(map(name_of, joined))
    addOpenTypeFeaturesFromString(font, f"feature ccmp {{ sub {names} by {name_of(family)}; }} ccmp;")
    config = RenderConfig(layout=layout, size=16, color="rgb", fonts=(str(saved(font, tmp_path / "family.ttf")),))
    renderer = Renderer(config)
    strip = renderer(f"ab {joined}")
    assert [span for span in strip.clusters()[:, 1:3].tolist() if span[1] > 3] == [[3, 6]]
    assert strip.pixels.tobytes() == renderer(f"ab {family}").pixels.tobytes()
    assert RED in colors_of(strip.pixels)
