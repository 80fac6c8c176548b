"""Text of ten languages with the fonts at hand: nothing is missing (benchmarks/glyph_coverage.py takes all of it)."""

import csv
from pathlib import Path

import pytest

from benchmarks.glyph_coverage import font_files
from render import RenderConfig, Renderer

LANGUAGES = [
    "arb_Arab",
    "deu_Latn",
    "eng_Latn",
    "hin_Deva",
    "jpn_Jpan",
    "kor_Hang",
    "tam_Taml",
    "tur_Latn",
    "ukr_Cyrl",
    "zho_Hans",
]


@pytest.fixture(scope="module")
def renderer(shared: Path) -> Renderer:
    return Renderer(RenderConfig.named("pixel", fonts=font_files(shared / "fonts"), max_patches=4096))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_character_of_a_language_is_missing(language: str, renderer: Renderer, shared: Path):
    with (shared / "data/sib200" / language / "dev.tsv").open(encoding="utf-8", newline="") as lines:
        sentences = [row["text"] for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert len(sentences) == 99
    missing = [renderer(sentence).missing_glyphs for sentence in sentences]
    assert not any(missing), [entry for entry in missing if entry]


def test_a_character_that_no_font_has_is_counted_and_named(renderer: Renderer):
    strip = renderer("a\u1a00b")  # Buginese
    assert strip.missing_glyphs == {"\u1a00": 1}
    assert [(missing.index, missing.character) for missing in strip.missing] == [(1, "\u1a00")]
