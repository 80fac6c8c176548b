"""Rows: full, never too long, never across documents, and no character lost without being counted."""

import pickle
import subprocess
import sys

import pytest

from render import RenderConfig, Renderer
from tests.conftest import ROOT
from tests.train.conftest import small_text
from train.data.strips.drawing import hash_of
from train.data.strips.rows import RowMaker

LINES = small_text(40, seed=3).replace("\n\n", "\n")
SENTENCES = LINES.replace(". ", ".\n").strip().split("\n")  # all shorter than a row
RIGHT_TO_LEFT = "דג סקרן שט בים מאוכזב ולפתע מצא לו חברה " * 12
UNBROKEN = "我喜欢在早上喝一杯热茶" * 20
CONFIGS = {name: RenderConfig.named(name, fonts=()) for name in ("default", "pixel", "pixel-m4")}
RENDERERS = {name: Renderer(config) for name, config in CONFIGS.items()}


def maker(name: str = "default", row_patches: int = 60, min_patches: int = 2, clean: tuple[str, ...] = ()) -> RowMaker:
    return RowMaker(renderer=RENDERERS[name], clean=clean, row_patches=row_patches, min_patches=min_patches)


def letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize(
    "document",
    [LINES, LINES.replace("\n", " "), RIGHT_TO_LEFT, f"A word.\n{UNBROKEN}\n{UNBROKEN} more", f"{'x' * 500} end"],
    ids=["lines", "one line", "right to left", "unbroken", "one long word"],
)
def test_every_character_is_in_one_row_and_every_row_fits(name: str, document: str):
    made = maker(name)(document)
    assert len(made.rows) > 2
    assert letters("".join(row.text for row in made.rows)) == letters(document)
    for row in made.rows:
        strip = RENDERERS[name](row.text, 60)  # as a step draws it
        assert (strip.num_patches, hash_of(strip)) == (row.num_patches, row.pixels_hash)
        assert row.num_patches <= 60
        assert row.text == " ".join(row.text.split())
    assert made.counts["rows"] == len(made.rows)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_row_takes_every_paragraph_that_fits(name: str):
    made = maker(name)("\n".join(SENTENCES))
    assert made.counts["cut_paragraphs"] == 0
    expected = [""]
    for sentence in SENTENCES:
        longer = f"{expected[-1]} {sentence}".strip()
        if RENDERERS[name](longer, 1 << 20).num_patches <= 60:
            expected[-1] = longer
        else:
            expected.append(sentence)
    assert [row.text for row in made.rows] == expected


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_paragraph_wider_than_a_row_is_cut_between_words_and_fills_its_rows(name: str):
    text = LINES.replace("\n", " ").strip()
    made = maker(name)(f"Heading\n{text}\nEnd")
    assert made.counts["cut_paragraphs"] == 1
    assert " ".join(row.text for row in made.rows) == f"Heading {text} End"
    widest = max(RENDERERS[name](word, 60).num_patches for word in text.split())
    assert all(60 - row.num_patches <= widest for row in made.rows[:-1])


def test_a_word_wider_than_a_row_is_cut_between_clusters():
    flags = "\U0001f1e9\U0001f1ea" * 70
    rows = maker("default")(flags).rows
    assert len(rows) > 1
    assert all(len(row.text) % 2 == 0 for row in rows), "a flag was cut into its two letters"


def test_a_cluster_wider_than_a_row_is_left_out_and_counted():
    syllable = "\u1100" * 100  # leading consonants without end are one cluster
    made = maker("default", row_patches=10)(f"before {syllable} after")
    assert " ".join(row.text for row in made.rows) == "before after"
    assert made.counts["wide_characters"] == 100


def test_short_rows_are_left_out_and_counted():
    document = "Short."
    width = RENDERERS["default"](document).num_patches
    assert [row.text for row in maker(min_patches=width)(document).rows] == [document]
    made = maker(min_patches=width + 1)(document)
    assert made.rows == []
    assert (made.counts["rows"], made.counts["short_rows"], made.counts["short_characters"]) == (0, 1, len(document))


def test_characters_of_a_document_add_up():
    made = maker(min_patches=59, clean=("unassigned", "unrenderable"))(f"{LINES}\ue000\n\n  \n{UNBROKEN}")
    counts = made.counts
    assert (counts["documents"], counts["paragraphs"]) == (1, 40)
    assert (counts["unassigned"], counts["unrenderable"]) == (1, len(UNBROKEN))
    assert counts["short_rows"] > 0
    kept = sum(len(row.text) for row in made.rows)
    joins = counts["characters"] - kept - counts["short_characters"]
    # nothing is missing but spaces: a join of paragraphs adds one, the end of a row within a paragraph drops one
    assert -counts["paragraphs"] < joins < counts["rows"] + counts["short_rows"]


def test_the_width_of_a_text_is_found_with_about_two_drawings(monkeypatch: pytest.MonkeyPatch):
    drawn = 0
    real = Renderer.__call__

    def counted(self: Renderer, text: str, max_patches: int):
        nonlocal drawn
        strip = real(self, text, max_patches)
        drawn += strip.num_patches
        return strip

    monkeypatch.setattr(Renderer, "__call__", counted)
    for document in (LINES, LINES.replace("\n", " ")):
        drawn = 0
        made = maker("pixel", row_patches=200, clean=("unassigned", "unrenderable"))(document)
        assert drawn < 2.5 * sum(row.num_patches for row in made.rows)


def test_a_maker_can_be_sent_and_makes_the_same_rows():
    one = maker("pixel")
    assert pickle.loads(pickle.dumps(one))(LINES) == one(LINES)


def test_what_a_worker_imports_is_free_of_torch():
    script = "import sys, train.data.strips.rows, train.data.strips.drawing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
