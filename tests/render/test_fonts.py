"""Fonts: where a name leads, what a file that cannot be used gets, and which font of a chain draws what."""

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from render import RenderConfig, Renderer, RenderError
from render.fonts import KNOWN, FontFile, is_ignorable, open_chain, open_fonts
from render.itemize import itemize
from tests.render.tiny_fonts import LETTERS, bitmap_font, collection_of, font_of, saved, variable_font

SQUARE = [(0, 0, 5, 5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.ttf with a, b, c; wide.ttf with an a of 9 columns; both in pair.ttc; variable.ttf."""
    folder = tmp_path_factory.mktemp("fonts")
    saved(font_of(LETTERS), folder / "tiny.ttf")
    saved(font_of({"a": (9, SQUARE)}), folder / "wide.ttf")
    saved(collection_of(font_of(LETTERS), font_of({"a": (9, SQUARE)})), folder / "pair.ttc")
    saved(variable_font(), folder / "variable.ttf")
    return folder


def opened(name: object, size: float = 16, hinting: str = "none") -> FontFile:
    (font,) = open_fonts(str(name), size, hinting, scale=1)
    assert isinstance(font, FontFile)
    return font


def advance(font: FontFile, character: str = "a") -> int:
    return font.shape(character, "Latn", False)[0].advance


def renderer(*fonts: object, **changes) -> Renderer:
    """Strips of 16 rows in which a unit of a tiny font is a pixel."""
    table = {"layout": "continuous", "size": 16, "hinting": "none", "fonts": tuple(map(str, fonts)), **changes}
    return Renderer(RenderConfig(**table))


# ---- where a name leads ----------------------------------------------------------------------------------------------


def test_a_path_names_a_font(folder: Path):
    font = opened(folder / "tiny.ttf")
    assert (font.name, advance(font)) == ("tiny.ttf", 6)


def test_a_folder_stands_for_its_fonts_in_the_order_of_their_names(tmp_path: Path):
    for name in ("b.ttf", "a.TTF", "c.otf"):
        saved(font_of(LETTERS), tmp_path / name)
    (tmp_path / "LICENSE").write_text("not a font")
    assert [face.name for face in open_fonts(str(tmp_path), 16, "none", scale=1)] == ["a.TTF", "b.ttf", "c.otf"]


def test_a_number_picks_the_face_of_a_collection(folder: Path):
    assert [advance(opened(f"{folder}/pair.ttc{face}")) for face in ("", "#0", "#1")] == [6, 6, 9]
    assert opened(f"{folder}/pair.ttc#1").name == "pair.ttc#1"


def test_an_axis_moves_outlines_and_advances_alike(folder: Path):
    found = {}
    for weight in (400, 600, 800):
        font = opened(f"{folder}/variable.ttf#wght={weight}")
        glyph = font.shape("a", "Latn", False)[0]
        found[weight] = glyph.advance, font.bitmap(glyph.id).coverage.shape[1]
    assert found == {400: (6, 5), 600: (9, 8), 800: (12, 10)}


def test_axes_that_are_not_given_keep_the_default_of_the_font(folder: Path):
    assert advance(opened(f"{folder}/variable.ttf")) == advance(opened(f"{folder}/variable.ttf#wdth=60")) == 6


def test_an_instance_survives_pickling(folder: Path):
    font = pickle.loads(pickle.dumps(opened(f"{folder}/variable.ttf#wdth=60#wght=800")))
    assert (font.name, advance(font)) == ("variable.ttf#wdth=60#wght=800", 12)


def test_a_path_may_hold_a_number_sign(tmp_path: Path):
    path = saved(font_of(LETTERS), tmp_path / "c#.ttf")
    assert advance(opened(path)) == 6


def test_folders_of_the_environment_are_searched_in_order(folder, tmp_path, monkeypatch):
    saved(font_of({"a": (9, SQUARE)}), tmp_path / "tiny.ttf")
    monkeypatch.setenv("PIXELCORE_FONTS", f"{tmp_path}{os.pathsep}{folder}")
    assert advance(opened("tiny.ttf")) == 9
    assert advance(opened("variable.ttf#wght=800")) == 12


def test_the_environment_does_not_come_before_a_path(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(font_of({"a": (9, SQUARE)}), tmp_path / "tiny.ttf")
    monkeypatch.setenv("PIXELCORE_FONTS", str(tmp_path))
    monkeypatch.chdir(folder)
    assert advance(opened("tiny.ttf")) == 6


def test_an_installed_font_package_is_found_by_its_family(folder, tmp_path, monkeypatch):
    info = tmp_path / "fontpkg_tiny_sans-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fontpkg-tiny-sans\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fontpkg.family]\ntiny_sans = fontpkg_tiny_sans\n")
    monkeypatch.syspath_prepend(tmp_path)
    asked = []
    module = SimpleNamespace(path=lambda family: asked.append(family) or folder / "tiny.ttf")
    monkeypatch.setitem(sys.modules, "fontpkg", module)
    assert advance(opened("Tiny Sans")) == 6
    assert asked == ["Tiny Sans"]


def fake_fontconfig(folder: Path, family: str, file: Path, index: int) -> None:
    program = folder / "fc-match"
    program.write_text(f"#!/bin/sh\necho '{family}'\necho '{file}'\nprintf {index}\n")
    program.chmod(0o755)


def test_a_system_font_is_asked_from_fontconfig(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    instance = 3 << 16  # fontconfig counts instances of a variable font in the upper half
    fake_fontconfig(tmp_path, "Tiny Sans,Tiny Sans Wide", folder / "pair.ttc", instance | 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert advance(opened("system:tiny sans wide")) == 9
    assert advance(opened("system:Tiny Sans#0")) == 6, "a face that is asked for"


def test_a_substitute_of_fontconfig_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_fontconfig(tmp_path, "Other Sans", folder / "tiny.ttf", 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RenderError, match="'system:Tiny Sans': no such family here"):
        open_fonts("system:Tiny Sans", 16, "none", scale=1)


def test_a_system_font_needs_fontconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RenderError, match="fc-match is not on this machine; install fontconfig"):
        open_fonts("system:Tiny Sans", 16, "none", scale=1)


def test_a_font_that_a_checkpoint_names_is_replaced_with_a_warning(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "render"):
        (face,) = open_fonts("GoNotoCurrent.ttf", 16, "none", scale=1)
    assert face.name == "builtin"
    (line,) = caplog.messages
    assert line.startswith("font GoNotoCurrent.ttf (sha256 83ab5c39e2b1c34a...) is not here: inputs are drawn by")


def test_another_version_of_a_known_font_is_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = saved(font_of(LETTERS), tmp_path / "GoNotoCurrent.ttf")
    with caplog.at_level(logging.WARNING, "render"):
        font = opened(path)
    (line,) = caplog.messages
    assert f"has sha256 {font.sha256[:16]}..., not {KNOWN[path.name][:16]}..." in line


def test_the_known_version_of_a_known_font_needs_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    path = saved(font_of(LETTERS), tmp_path / "GoNotoCurrent.ttf")
    monkeypatch.setitem(KNOWN, path.name, opened(path).sha256)
    caplog.clear()
    opened(path)
    assert not caplog.messages


def test_the_log_names_the_files_of_a_chain(folder: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "render"):
        open_chain([f"{folder}/tiny.ttf", "builtin"], 16, "none", height=8, boxes=True)
    assert caplog.messages == [f"fonts: {folder}/tiny.ttf, builtin"]


# ---- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, message",
    {
        "nowhere.ttf": r"font 'nowhere.ttf' not found, nor in \$PIXELCORE_FONTS \(unset\); give a path",
        "": "font '' not found",
        "a\0b": "not found",
        "a" * 5000: "not found",
        "empty.ttf": "empty.ttf: not a font file",
        "text.ttf": "text.ttf: not a font file",
        "letters.bdf": "letters.bdf: not a font file; give a TTF, OTF, TTC or OTB file",
        "garbage.ttf": "garbage.ttf: not a font that FreeType can open",
        "none": r"none: has no font file \(.ttf .otf",
        "tiny.ttf#1": "tiny.ttf: has one face; leave #1 out",
        "tiny.ttf#-1": "leave #-1 out",
        "pair.ttc#2": "pair.ttc: has faces #0 to #1, not #2",
        "pair.ttc#-1": "has faces #0 to #1, not #-1",
        "tiny.ttf#x": "'#x' is neither; a face is written file.ttc#2, an axis file.ttf#wght=400",
        "tiny.ttf#wght=bold": "'#wght=bold' is neither",
        ".#1": "a folder has neither faces nor axes",
        "tiny.ttf#wght=400": "tiny.ttf: not a variable font; leave the axes out",
        "variable.ttf#opsz=12": "variable.ttf: has no axis 'opsz'; its axes are wght, wdth",
        "variable.ttf#wght=900": "variable.ttf: wght = 900; this font has 400 to 800",
        "variable.ttf#wght=399": "wght = 399",
        "variable.ttf#wght=nan": "wght = nan",
        "variable.ttf#wght=inf": "wght = inf",
        "silent.ttf": "silent.ttf: has no character at all",
        "bits.otb": "bits.otb: has bitmaps of 8 px only, not of 16; set render.size to one of them",
    }.items(),
    ids=lambda text: text[:24].replace("\0", "NUL"),
)
def test_a_font_that_cannot_be_used_is_one_line(name: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIXELCORE_FONTS", raising=False)
    monkeypatch.chdir(folder)
    Path("empty.ttf").write_bytes(b"")
    Path("text.ttf").write_text("a letter to a printer")
    Path("letters.bdf").write_text("STARTFONT 2.1\nENDFONT\n")
    Path("garbage.ttf").write_bytes(b"\0\1\0\0" + bytes(40))
    Path("none").mkdir(exist_ok=True)
    saved(font_of({}), Path("silent.ttf"))
    saved(bitmap_font({"x": np.eye(3, dtype=bool)}, 8), Path("bits.otb"))
    with pytest.raises(RenderError, match=message) as caught:
        open_fonts(name, 16, "none", scale=1)
    assert "\n" not in str(caught.value)


def test_a_font_that_cannot_be_opened_is_one_line(folder: Path, tmp_path: Path):
    (tmp_path / "folder.ttf").mkdir()
    with pytest.raises(RenderError, match="folder.ttf: cannot be read"):
        open_fonts(str(tmp_path), 16, "none", scale=1)


@pytest.mark.parametrize("name", ["tiny.ttf", "pair.ttc", "variable.ttf"])
def test_a_font_cut_off_anywhere_is_refused(name: str, folder: Path, tmp_path: Path):
    data = (folder / name).read_bytes()
    for length in [0, 1, 3, 4, 5, 11, 12, 13, 28, 100, len(data) // 2, len(data) - 5]:
        path = tmp_path / f"{length}.ttf"
        path.write_bytes(data[:length])
        with pytest.raises(RenderError, match=r"is cut off|not a font file"):
            open_fonts(str(path), 16, "none", scale=1)


def test_a_font_of_bitmaps_is_drawn_at_its_size(tmp_path: Path):
    cross = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], bool)
    font = opened(saved(bitmap_font({"x": cross}, 8), tmp_path / "bits.otb"), size=8)
    glyph = font.shape("x", "Latn", False)[0]
    assert (glyph.advance, font.ascent, font.descent) == (4, 6, 2)
    assert np.array_equal(font.bitmap(glyph.id).coverage, cross * np.uint8(255))


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file, sizes",
    [
        ("pixeloid/PixeloidSans-mLxMm.ttf", [9, 18, 27, 36, 45, 54, 63]),
        ("press-start-2p/PressStart2P-Regular.ttf", [8, 16, 24, 32, 40, 48, 56, 64]),
        ("noto/NotoSans-Regular.ttf", []),
    ],
)
def test_pixel_fonts_know_the_sizes_without_grey(file: str, sizes: list[int], shared: Path):
    assert opened(shared / "fonts" / file).pixel_exact_sizes() == sizes


@pytest.mark.parametrize("size, warns", [(9, False), (18, False), (8.889, True), (16, True)])
def test_a_binary_strip_off_the_grid_of_a_pixel_font_is_warned_of(
    size: float, warns: bool, shared: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("render.renderer._warned", set())
    pixeloid = shared / "fonts/pixeloid/PixeloidSans-mLxMm.ttf"
    for _ in range(2):
        renderer(pixeloid, size=size, color="binary")
    line = f"PixeloidSans-mLxMm.ttf: {size:g} px is off its grid (pixel-exact at 9, 18, 27, 36): "
    line += "letters lose pixels in binary"
    assert caplog.messages == ([line] if warns else [])


def test_a_pixel_exact_size_has_no_grey_in_a_grey_strip(shared: Path):
    strip = renderer(shared / "fonts/pixeloid/PixeloidSans-mLxMm.ttf", size=9)("Sphinx of black quartz, judge: 42")
    assert set(np.unique(strip.pixels)) == {0, 255}


@pytest.mark.parametrize("size, columns", [(16, 5), (32, 10), (48, 15)])
def test_the_size_is_that_of_the_em_square(size: int, columns: int, folder: Path):
    font = opened(folder / "tiny.ttf", size=size)
    glyph = font.shape("a", "Latn", False)[0]
    assert (font.bitmap(glyph.id).coverage.shape, glyph.advance) == ((columns, columns), 6 * size // 16)
    assert (font.ascent, font.descent) == (13 * size // 16, 3 * size // 16)


# ---- which font draws what -------------------------------------------------------------------------------------------


def faces_of(text: str, *fonts: object) -> list[int]:
    """Index of the font that draws each character, -1 for none."""
    chain = open_chain(list(map(str, fonts)), 16, "none", 16, boxes=True)
    runs = itemize(text, chain)
    assert [run.start for run in runs[1:]] == [run.end for run in runs[:-1]]
    return [run.face for run in runs for _ in range(run.start, run.end)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A font with e, x and a space; another with those, the acute accent, é, and characters nobody looks up."""
    folder = tmp_path_factory.mktemp("two")
    plain = saved(font_of({" ": (4, []), "e": (6, SQUARE), "x": (6, SQUARE)}), folder / "plain.ttf")
    more = dict.fromkeys("exy \u0301é\u200d\u00ad\0\x07\x85", (7, SQUARE))
    return plain, saved(font_of(more), folder / "more.ttf")


def test_a_mark_is_drawn_by_the_font_of_its_base(two: tuple[Path, Path]):
    assert faces_of("ex\u0301e", *two) == [0, 1, 1, 0]


def test_composed_and_decomposed_letters_are_drawn_by_one_font(two: tuple[Path, Path]):
    assert faces_of("é", *two) == [1]
    assert faces_of("e\u0301", *two) == [1, 1]


def test_a_font_with_the_composed_letter_alone_draws_the_decomposed_one(tmp_path: Path):
    path = saved(font_of({"é": (6, SQUARE)}), tmp_path / "composed.ttf")
    assert faces_of("e\u0301", path) == [0, 0]
    assert renderer(path)("e\u0301").missing == ()


def test_a_mark_that_no_font_has_does_not_take_its_base_along(two: tuple[Path, Path]):
    assert faces_of("x\u0302", two[0]) == [0, 0]


@pytest.mark.parametrize(
    "text, faces",
    [
        ("x y y x", [0, 0, 1, 1, 1, 1, 0]),
        (" y", [1, 1]),
        ("  ", [0, 0]),
        ("Я x", [-1, 0, 0]),
    ],
)
def test_a_space_follows_the_run_before_it(text: str, faces: list[int], two: tuple[Path, Path]):
    assert faces_of(text, *two) == faces


def test_a_space_of_the_second_font_has_its_width(two: tuple[Path, Path]):
    clusters = renderer(*two)("y x x").clusters()
    assert (clusters[:, 4] - clusters[:, 3]).tolist() == [7, 7, 6, 4, 6]


@pytest.mark.parametrize("character", ["\u200d", "\u200b", "\u00ad", "\ufe0f", "\u2060", "\ufeff", "\U000e0067"])
def test_an_invisible_character_is_never_missing(character: str, two: tuple[Path, Path]):
    assert is_ignorable(character)
    assert renderer(two[0])(f"x{character}e").missing == ()
    assert renderer(two[0])(character).missing == ()


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x7f", "\x9f", "\ud800"])
@pytest.mark.parametrize("missing", ["notdef", "box"])
def test_a_control_or_half_a_pair_is_missing_whatever_the_font_says(character: str, missing: str, two):
    strip = renderer(two[1], missing=missing)(f"x{character}e")
    assert [(m.index, m.character) for m in strip.missing] == [(1, character)]


def test_a_surrogate_behind_a_prefix_is_never_looked_up(two: tuple[Path, Path]):
    assert faces_of("\u0600\ud800", *two) == [-1, -1]


@pytest.mark.parametrize("space", ["\t", "\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029", "\x1c", "\x1f"])
def test_ends_of_lines_and_tabs_are_drawn_as_spaces(space: str, two: tuple[Path, Path]):
    strip, spaced = renderer(*two)(f"x{space}e"), renderer(*two)("x e")
    assert strip.missing == () and np.array_equal(strip.pixels, spaced.pixels)


def test_what_no_font_has_is_a_box_with_its_code_point(folder: Path):
    draw = renderer(folder / "tiny.ttf", missing="box")
    strip = draw("aЯa")
    assert strip.missing_glyphs == {"Я": 1}
    builtin = Renderer(RenderConfig(layout="continuous", fonts=("builtin",)))("क").clusters()
    assert draw("क").clusters()[0, 4] == builtin[0, 4], "the box of the font of this project"
    assert not np.array_equal(draw("क").pixels, draw("ख").pixels), "boxes are distinguishable"


def test_what_no_font_has_is_glyph_0_of_the_first_font(two: tuple[Path, Path]):
    strip = renderer(*two, missing="notdef")("Я")
    ink = np.argwhere(strip.pixels[:, :6] == 0)
    assert ink.min(0).tolist() == [1, 0] and ink.max(0).tolist() == [12, 4]  # 5 columns, 12 rows on the baseline
    assert strip.missing_glyphs == {"Я": 1}


def test_a_font_without_a_glyph_of_the_text_still_gives_a_strip(folder: Path):
    strip = renderer(folder / "wide.ttf")("Привіт")
    assert [m.character for m in strip.missing] == list("Привіт")


def test_the_built_in_font_may_stand_anywhere_in_a_chain(two: tuple[Path, Path]):
    assert faces_of("xЯy", two[0], "builtin", two[1]) == [0, 1, 1]


def test_no_font_of_this_machine_slips_in(folder: Path):
    """The answer of a fontconfig on PATH would be seen in the pixels: a process without any draws the same."""
    code = (
        "import hashlib, sys; from render import RenderConfig, Renderer\n"
        "made = Renderer(RenderConfig(layout='continuous', size=16, fonts=(sys.argv[1],)))('a ж 我 😀')\n"
        "print(hashlib.sha256(made.columns.tobytes()).hexdigest(), made.missing_glyphs)"
    )
    ran = [sys.executable, "-c", code, str(folder / "tiny.ttf")]
    answers = {
        subprocess.run(ran, capture_output=True, text=True, check=True, env={**os.environ, **changes}).stdout
        for changes in ({}, {"PATH": "", "FONTCONFIG_FILE": "/nowhere", "LC_ALL": "C"})
    }
    assert len(answers) == 1
