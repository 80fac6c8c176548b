"""The built-in font: what it covers, that nothing looks like something else, that every string has a picture."""

import hashlib
import pickle
import random
import re
import unicodedata
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import render.font
from render.errors import RenderError
from render.face import Face
from render.font import PixelFont
from render.font.__main__ import ink, main, preview
from render.font.pixel import FORM, MARK, MAX_CACHED, MIRRORED
from render.font.source import FILES, load_source, parse_source

FOLDER = Path(render.font.__file__).parent


def named(*ranges: tuple[int, int]) -> str:
    """The assigned characters of ranges, both ends included; a code point without a name is a control or a hole."""
    return "".join(chr(c) for start, end in ranges for c in range(start, end + 1) if unicodedata.name(chr(c), ""))


COVERAGE = {
    "ASCII": named((0x20, 0x7E)),
    "Latin-1": named((0xA0, 0xFF)),
    "Latin Extended-A": named((0x100, 0x17F)),
    "modern Greek": "\u037e" + named((0x384, 0x3CE)),
    "Cyrillic": named((0x400, 0x45F)) + "Ґґ",
    "punctuation": "–—‘’‚“”„†‡•…‰‹›′″€£₴₽™№←↑→↓−×÷≈≠≤≥∞√",
    "spaces": "\xa0\u202f\u2002\u2003\u2009",
    "invisible": "\xad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\ufe00\ufe0e\ufe0f\U000e0100",
    "marks": "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0323\u0326\u0327\u0328",
}
TEXTS = [
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "Portez ce vieux whisky au juge blond qui fume: où êtes-vous, ça, à Noël?",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Pijamalı hasta yağız şoföre çabucak güvendi",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "Жебракують філософи при ґанку церкви в Гадячі, ще й шатро їхнє п'яне",
    "Съешь ещё этих мягких французских булок, да выпей чаю",
    "क्षणिक \U0001f600 \ud800\x00 x\u0301\u0302 \u0301",
]


@pytest.fixture(scope="module")
def font() -> PixelFont:
    return PixelFont()


@pytest.fixture(scope="module")
def covered(font: PixelFont) -> list[str]:
    return font.characters()


@pytest.fixture
def texts() -> dict[str, str]:
    """The files of the font, to be spoilt."""
    return {name: (FOLDER / name).read_text(encoding="utf-8") for name in FILES}


def picture(font: PixelFont, text: str) -> tuple[int, bytes]:
    """What is seen of a text: its width and its pixels."""
    pixels = ink(font, text)
    return pixels.shape[1], pixels.tobytes()


def model(text: str) -> str:
    """A text with every letter replaced by the one whose drawing it shares."""
    source = load_source()
    parts = "".join(source.compositions.get(character, character) for character in text)
    return "".join(source.model.get(part, part) for part in unicodedata.normalize("NFD", parts))


# what is covered


@pytest.mark.parametrize("group", COVERAGE)
def test_every_promised_character_is_covered(font: PixelFont, group: str):
    assert [f"U+{ord(c):04X}" for c in COVERAGE[group] if not font.covers(c)] == []


def test_controls_surrogates_and_other_scripts_are_not_covered(font: PixelFont):
    assert [c for c in "\x00\x1f\x7f\x85\ud800\udfffअ字\U0001f600\uffff\U0010ffff" if font.covers(c)] == []


def test_the_files_of_the_folder_are_the_files_of_the_font():
    assert sorted(path.name for path in FOLDER.glob("*.txt")) == sorted(FILES)


def test_the_font_answers_to_the_protocol_of_faces(font: PixelFont):
    face: Face = font
    assert (face.name, face.ascent, face.descent) == ("builtin", 6, 2)
    assert re.fullmatch("[0-9a-f]{64}", face.sha256)


# what it looks like


def test_characters_look_alike_only_where_that_is_said(font: PixelFont, covered: list[str]):
    groups = defaultdict(list)
    for character in covered:
        # a mark alone may look like the spacing accent
        if character not in load_source().marks:
            groups[picture(font, character)].append(character)
    accidents = [
        group
        for group in groups.values()
        if len({model(character) for character in group}) > 1 and not all(character.isspace() for character in group)
    ]
    assert accidents == []


def test_accents_on_one_letter_differ(font: PixelFont):
    letters = """
        AÀÁÂÃÄÅĀĂĄǍȦẢ EÈÉÊËĒĔĖĘĚẼẺ IÌÍÎÏĨĪĬĮİǏỈ OÒÓÔÕÖŌŎŐØǑȮỎ UÙÚÛÜŨŪŬŮŰŲǓỦ CÇĆĈĊČ GĜĞĠĢǦǴḠ SŚŜŞŠȘṠṢ ZŹŻŽẐẒ NÑŃŅŇṄṆǸ
        TŢŤŦȚṪṬ LĹĻĽĿŁ RŔŖŘ YÝŶŸȲỲỸ DĎĐ HĤĦ ИЙЍ ІЇ ЕЁЀ КЌ УЎ ΑΆ ΙΊΪ ΥΎΫ ΩΏ ιίϊΐ υύϋΰ
    """
    for row in letters.split():
        both = row + row.lower().replace("i\u0307", "ı")
        pictures = {picture(font, letter) for letter in both}
        assert len(pictures) == len(set(both)), row


def test_no_character_looks_like_two_others(font: PixelFont, covered: list[str]):
    """So that a line can be read back in one way only; runs of spaces and of lone accents excepted."""
    columns: dict[tuple[bytes, ...], str] = {}
    for character in covered:
        if not character.isspace():
            strip = ink(font, character)
            if strip.any():
                columns.setdefault(tuple(column.tobytes() for column in strip.T), character)
    letters = {strip for strip, c in columns.items() if unicodedata.category(c)[0] != "M" and c not in "´˙¨˝"}
    doubles = [columns[s] for s in letters for i in range(1, len(s)) if s[:i] in letters and s[i:] in letters]
    assert doubles == []


@pytest.mark.parametrize("pair", ["rn m", "cl d", "vv w", "VV W", "ii u", "IJ U", "lo b", "nn m", "ьı ы", "'' \""])
def test_pairs_of_letters_differ_from_the_letter_they_resemble(font: PixelFont, pair: str):
    two, one = pair.split(" ")
    assert picture(font, two) != picture(font, one)


def test_ink_stays_within_the_advance_and_the_rows(font: PixelFont, covered: list[str]):
    for character in [*covered, "\x00", "字", "\U0001f600"]:
        (glyph,) = font.shape(character, None, False)
        bitmap = font.bitmap(glyph.id)
        rows, columns = bitmap.coverage.shape
        assert bitmap.left >= 0 and bitmap.left + columns <= max(0, glyph.advance - 1), character
        assert bitmap.top <= font.ascent and bitmap.top - rows >= -font.descent, character
        assert glyph.advance >= 0 and (glyph.x, glyph.y) == (0, 0)


def test_sizes_are_the_ones_of_the_design(font: PixelFont):
    tops = {c: font.bitmap(ord(c)).top for c in "xzHE0Ö"}
    assert tops == {"x": 4, "z": 4, "H": 6, "E": 6, "0": 6, "Ö": 6}
    assert [font.bitmap(ord(c)).top - font.bitmap(ord(c)).coverage.shape[0] for c in "xp"] == [0, -2]
    assert {glyph.advance for glyph in font.shape("0123456789", None, False)} == {5}
    assert font.shape(" ", None, False)[0].advance == 3
    assert 4 <= ink(font, TEXTS[0]).shape[1] / len(TEXTS[0]) <= 5


def test_bitmaps_are_cropped_black_or_white_and_read_only(font: PixelFont, covered: list[str]):
    for character in covered:
        coverage = font.bitmap(ord(character)).coverage
        assert coverage.dtype == np.uint8 and set(coverage.ravel().tolist()) <= {0, 255}
        assert not coverage.flags.writeable
        assert coverage.size == 0 or all(edge.any() for edge in (coverage[0], coverage[-1], coverage[:, 0]))
    assert font.bitmap(ord(" ")).coverage.shape == (0, 0)


# composing


def test_decomposed_text_looks_like_composed_text(font: PixelFont):
    for text in TEXTS[1:9]:
        assert picture(font, unicodedata.normalize("NFD", text)) == picture(font, text)


def test_a_mark_stands_over_any_letter_without_advance(font: PixelFont):
    letter, mark = font.shape("x\u0301", None, False)
    assert (letter.id, letter.advance, letter.cluster) == (ord("x"), 5, 0)
    assert (mark.advance, mark.cluster) == (0, 0)
    pixels = ink(font, "x\u0301")
    assert pixels.shape == (8, 5) and pixels[:2].any() and (pixels[2:] == ink(font, "x")[2:]).all()


def test_a_mark_wider_than_its_letter_widens_the_cluster(font: PixelFont):
    stem, tilde = font.shape("ı\u0303", None, False)
    width = font.bitmap(tilde.id).coverage.shape[1]
    assert font.bitmap(stem.id).coverage.shape[1] < width
    assert (stem.x, stem.advance, tilde.x, tilde.advance) == ((width - 1) // 2, width + 1, -width - 1, 0)


def test_a_capital_becomes_low_under_a_mark(font: PixelFont):
    pixels = ink(font, "M\u0303")
    assert pixels[:2].any() and pixels.shape[1] == 6
    assert (pixels[2:6] != ink(font, "M")[2:6]).any()


@pytest.mark.parametrize("text", ["k\u0301", "字\u0301", "1\u0302", "ê\u0301", "x\u0302\u0301", "p\u0327"])
def test_a_mark_that_finds_no_room_stands_beside(font: PixelFont, text: str):
    before, after = ink(font, text[:-1]), ink(font, text)
    width = before.shape[1]
    assert (after[:, :width] == before).all() and after[:, width:].any()


def test_joiners_and_variation_selectors_belong_to_the_character_before(font: PixelFont):
    glyphs = font.shape("a\u200db\ufe0f\u200bc", None, False)
    assert [(glyph.cluster, glyph.advance) for glyph in glyphs] == [(0, 5), (0, 0), (2, 5), (2, 0), (4, 0), (5, 5)]


@pytest.mark.parametrize("rtl", [False, True])
def test_ten_thousand_marks_stay_in_a_small_place(font: PixelFont, rtl: bool):
    text = "x" + "\u0301\u0323\u0308\u0302" * 2500
    glyphs = font.shape(text, None, rtl)
    assert len(glyphs) == 10_001 and {glyph.cluster for glyph in glyphs} == {0}
    assert sum(glyph.advance for glyph in glyphs) < 16
    assert ink(font, text).shape[0] == 8
    assert len(font.shape("\u0301" * 10_000, None, rtl)) == 10_000


# boxes


def test_boxes_of_different_code_points_differ(font: PixelFont):
    rng = random.Random(5)
    points = [*range(32), *range(0xD800, 0xD810), *rng.sample(range(0x500, 0xFFFF), 3000)]
    points += rng.sample(range(0x10000, FORM), 2000)
    points = [point for point in sorted(set(points)) if not font.covers(chr(point))]
    assert len(points) > 4500
    pictures = set()
    for point in points:
        (glyph,) = font.shape(chr(point), None, False)
        assert glyph == (point, 0, 12 if point <= 0xFFFF else 16, 0, 0)
        bitmap = font.bitmap(point)
        assert bitmap.coverage.shape == (8, glyph.advance - 1)
        pictures.add((glyph.advance, bitmap.coverage.tobytes()))
    assert len(pictures) == len(points)


def test_the_digits_of_boxes_differ():
    digits = load_source().digits
    assert len({digit.ink.tobytes() for digit in digits}) == 16


def test_caches_start_anew_when_they_are_full():
    font = PixelFont()
    for point in range(0x4E00, 0x4E00 + MAX_CACHED + 10):
        font.bitmap(point)
    assert len(font._bitmaps) == len(font._cells) == 10


# order


def test_right_to_left_runs_are_reversed_and_mirrored(font: PixelFont):
    glyphs = font.shape("a(x\u0301]", None, True)
    assert [chr(glyph.id % FORM) for glyph in glyphs] == ["[", "x", "\u0301", ")", "a"]
    assert [glyph.cluster for glyph in glyphs] == [4, 2, 2, 1, 0]
    assert glyphs[2].id // FORM >= MARK and glyphs[2].x < 0
    (root,) = font.shape("√", None, True)
    assert root.id == MIRRORED * FORM + ord("√")
    assert (font.bitmap(root.id).coverage == font.bitmap(ord("√")).coverage[:, ::-1]).all()


def test_every_character_belongs_to_one_cluster(font: PixelFont):
    rng = random.Random(7)
    pool = "ab(é字\x00\ud800\n\u0301\u0323\u200d\ufe0f\u200b \xad\u0915\u093f\U0001f600א"
    for _ in range(300):
        text = "".join(rng.choices(pool, k=12))
        for rtl in (False, True):
            glyphs = font.shape(text, "Latn", rtl)
            clusters = [glyph.cluster for glyph in (reversed(glyphs) if rtl else glyphs)]
            assert all(a <= b for a, b in pairwise(clusters)) and clusters[0] == 0
            starts = set(clusters)
            skipped = [character for index, character in enumerate(text) if index not in starts]
            assert all(unicodedata.category(character) in ("Mn", "Cf") for character in skipped)
            assert sum(glyph.advance for glyph in glyphs) >= 0
    assert font.shape("", None, True) == []


def test_an_unknown_glyph_id_is_refused(font: PixelFont):
    for glyph in (-1, FORM + ord("b"), MIRRORED * FORM, 99 * FORM + ord("a")):
        with pytest.raises(RenderError, match="no glyph with the id"):
            font.bitmap(glyph)


# scale, identity


@pytest.mark.parametrize("scale", [2, 3])
def test_scaling_repeats_every_pixel(font: PixelFont, scale: int):
    large = PixelFont(scale=scale)
    assert (large.name, large.ascent, large.descent) == (f"builtin x{scale}", 6 * scale, 2 * scale)
    assert large.sha256 == font.sha256
    for text in TEXTS:
        assert (ink(large, text) == ink(font, text).repeat(scale, 0).repeat(scale, 1)).all()


@pytest.mark.parametrize("scale", [0, -1, 1.5, "2", True, None])
def test_a_scale_that_is_no_whole_number_is_refused(scale: object):
    with pytest.raises(RenderError, match="give a whole number"):
        PixelFont(scale=scale)  # pyright: ignore[reportArgumentType]


def test_a_pickled_font_draws_the_same_and_is_small():
    font = PixelFont(scale=2)
    before = [picture(font, text) for text in TEXTS]
    data = pickle.dumps(font)
    assert len(data) < 100
    again = pickle.loads(data)
    assert (again.name, again.sha256) == (font.name, font.sha256)
    assert [picture(again, text) for text in TEXTS] == before


def test_known_texts_have_known_pixels(font: PixelFont):
    """Whoever redraws a glyph changes what trained models see: the hashes change only on purpose."""
    digests = [hashlib.sha256(repr(picture(font, text)).encode()).hexdigest()[:16] for text in TEXTS]
    assert digests == GOLDEN


GOLDEN = [
    "8d9eeb4aaf692be4",
    "0174cb043e6f2a7c",
    "09f4f037f03c3294",
    "59acf7f81c8f7a37",
    "4a952fabcdedaee6",
    "75623846b93b73c1",
    "4669227e9a179a81",
    "aa9f2aae0139f3f5",
    "8fce34eea126d9c3",
    "aa50641c99dd56c2",
]


# the source


GLYPH = "A\n" + "#\n" * 8


@pytest.mark.parametrize(
    "file, addition, message",
    [
        ("latin.txt", "Ⅷ\n" + "#\n" * 7, "line 3: 7 rows follow the names; a glyph has 8"),
        ("latin.txt", "Ⅷ\n" + "#\n" * 9, "line 3: 9 rows follow the names"),
        ("latin.txt", "Ⅷ  Ⅸ\n" + "#\n" * 8, "line 4: 1 pieces of glyphs under 2 names"),
        ("latin.txt", "Ⅷ\n" + "#.\n" * 7 + "#\n", "line 11: Ⅷ: '#' is 1 px wide, its first row 2"),
        ("latin.txt", "Ⅷ\n#x\n" + "#.\n" * 7, "line 4: Ⅷ: '#x' may hold only # (ink) and . (paper)"),
        ("latin.txt", "Ⅷ\n" + ".\n" * 8, "line 3: Ⅷ has no ink; what has none belongs into spaces.txt"),
        ("latin.txt", GLYPH, "line 3: A is drawn a second time"),
        ("latin.txt", "A:short\n" + "#\n" * 8, "line 3: A:short is drawn a second time"),
        ("latin.txt", "Ⅷ:short\n" + "#\n" * 8, "line 3: Ⅷ:short is the low form of a character that is not drawn"),
        ("latin.txt", "ⅧⅧ\n" + "#\n" * 8, "line 3: 'ⅧⅧ' is not a character"),
        ("latin.txt", "U+110000\n" + "#\n" * 8, "line 3: 'U+110000' is not a character"),
        ("latin.txt", "Ⅷ=\n" + "#\n" * 8, "line 3: '' is not a character"),
        ("marks.txt", "x\n" + "#\n" * 8, "line 3: 'x' is not U+XXXX or U+XXXX+U+XXXX"),
        ("marks.txt", "U+0302\n" + "###\n" * 8, "line 3: U+0302 is drawn twice 3 px wide"),
        ("spaces.txt", "3", "line 3: expected an advance in px and characters"),
        ("spaces.txt", "x U+3001", "line 3: expected an advance in px and characters"),
        ("spaces.txt", "3 U+3002..U+3001", "line 3: the range U+3002..U+3001 ends before it starts"),
        ("spaces.txt", "3 A", "line 3: U+0041 is there a second time"),
        ("compositions.txt", "ķ k", "line 3: expected a character, its base and its marks"),
        ("compositions.txt", "ķ k U+0326", "line 3: ķ is there a second time"),
        ("compositions.txt", "Ⅷ k U+0999", "line 3: Ⅷ is composed of what is not drawn"),
        ("hex.txt", "0\n" + "#\n" * 3, "expected the digits 0 to F, each once, in their order"),
    ],
)
def test_a_malformed_line_is_named(texts: dict[str, str], file: str, addition: str, message: str):
    lines_before = texts[file].rstrip("\n").count("\n") + 1
    texts[file] = texts[file].rstrip("\n") + "\n\n;\n" + addition + "\n"
    # messages count from the end of the file as it is
    shifted = re.sub(r"line (\d+)", lambda match: f"line {int(match[1]) + lines_before}", message)
    with pytest.raises(RenderError) as refusal:
        parse_source(texts)
    assert str(refusal.value).startswith(f"{file}{' ' if message.startswith('line') else ': '}{shifted}")
    assert "\n" not in str(refusal.value)


def test_a_digit_of_another_width_is_refused(texts: dict[str, str]):
    block = ["0 1 2 3 4 5 6 7 8 9 A B C D E F", *["# " * 15 + "##"] * 3]
    texts["hex.txt"] = "\n".join(block)
    with pytest.raises(RenderError, match="hex.txt: expected digits of one width"):
        parse_source(texts)


def test_one_changed_pixel_changes_the_identity(texts: dict[str, str]):
    assert parse_source(texts).sha256 == load_source().sha256
    texts["latin.txt"] = texts["latin.txt"].replace("#", ".", 1)
    assert parse_source(texts).sha256 != load_source().sha256


# looking at it


def test_the_preview_draws_two_rows_of_pixels_per_line(font: PixelFont, capsys: pytest.CaptureFixture[str]):
    assert preview(font, "L") == "█\n█\n█▄▄▄\n"
    assert main(["L"]) == 0
    assert capsys.readouterr().out == "█\n█\n█▄▄▄\n\n"
