"""Which letters are drawn by their neighbours alone, in small fonts with one rule each."""

from pathlib import Path

import pytest
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString

from render.fonts import FontFile
from tests.render.tiny_fonts import font_of, name_of, saved

LETTERS = "abcdef "
BOX = [(0, 0, 4, 8)]


def local_letters(rules: str, folder: Path) -> str:
    """Letters that a font with these rules draws by their neighbours alone; /a stands for the glyph of a."""
    font = font_of(dict.fromkeys(LETTERS, (5, BOX)))
    for letter in LETTERS.strip():
        rules = rules.replace(f"/{letter}", name_of(letter))
    if rules:
        addOpenTypeFeaturesFromString(font, rules)
    path = saved(font, folder / "rules.ttf")
    return "".join(FontFile(path, 0, {}, 16, "none").local_characters(LETTERS))


@pytest.mark.parametrize(
    ("rules", "far"),
    [
        ("", ""),
        ("feature kern { pos /a /b -1; pos /b /c 2; } kern;", ""),
        ("feature liga { sub /a /b by /c; } liga;", ""),
        ("feature liga { sub /a /b /c by /d; } liga;", ""),  # seen: its letters share a cluster
        ("feature liga { sub /a /b /c /d by /e; } liga;", "a"),
        ("feature liga { sub /a /b /c /d by /e; } liga; feature kern { pos /e /f -1; } kern;", "a"),
        ("lookup x { sub /b by /f; } x; feature calt { sub /a /b' lookup x; } calt;", ""),  # two glyphs
        ("lookup x { sub /b by /f; } x; feature calt { sub /a /a /b' lookup x; } calt;", "b"),
        ("lookup x { sub /a by /f; } x; feature calt { sub [/b /c] /a' lookup x [/b /c]; } calt;", "a"),
        ("feature ss01 { sub /a /b /c /d by /e; } ss01;", ""),  # off by default
        ("feature dlig { sub /a /b /c /d by /e; } dlig;", ""),
    ],
    ids=lambda value: None if "/" in value else value or "none",
)
def test_only_glyphs_of_rules_that_look_further_are_left_out(rules: str, far: str, tmp_path: Path):
    assert set(LETTERS) - set(local_letters(rules, tmp_path)) == set(far)


def test_of_the_l_l_of_catalan_only_the_dot_is_left_out(shared: Path):
    font = FontFile(shared / "fonts/noto/NotoSans-Regular.ttf", 0, {}, 16, "none")
    assert font.local_characters("aelLij·") == list("aelLij")
