"""Scripts of characters, with fontTools as a witness, and the runs that are shaped together."""

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from render.scripts import script_of, script_runs


@pytest.mark.parametrize(
    "character, script",
    [
        ("a", "Latn"), ("я", "Cyrl"), ("ש", "Hebr"), ("ا", "Arab"), ("क", "Deva"), ("漢", "Hani"), ("か", "Hira"),
        ("カ", "Kana"), ("한", "Hang"), ("1", None), (" ", None), ("。", None), ("ー", None), ("👍", None),
        ("\u0301", None), ("\u200d", None), ("\u0378", None), ("\ud800", None), ("\x00", None),
    ],
    ids=lambda value: f"U+{ord(value):04X}" if isinstance(value, str) and len(value) == 1 else str(value),
)  # fmt: skip
def test_characters_have_the_script_of_unicode(character: str, script: str | None) -> None:
    assert script_of(character) == script


def test_fonttools_knows_the_same_scripts() -> None:
    witness = pytest.importorskip("fontTools.unicodedata", reason="fontTools is not installed: nothing to compare with")
    without = ("Zyyy", "Zinh", "Zzzz")
    known = [chr(code) for code in range(0x20000) if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
    expected = {c: None if (script := witness.script(c)) in without else script for c in known}

    assert [f"U+{ord(c):04X}" for c in known if script_of(c) != expected[c]] == []


RUNS = [
    ("no text", []),
    ("no letters", [("12 + 3 = …", None)]),
    ("ASCII", [("Hello, world 1!", "Latn")]),
    ("ASCII without letters", [("12:30", None)]),
    ("Latin", [("Grüße 1!", "Latn")]),
    ("surrogate", [("\ud800", None)]),
    ("Common goes with what precedes", [("Hello, ", "Latn"), ("мир!", "Cyrl")]),
    ("Common at the start goes with the first letter", [("«12. мир» ", "Cyrl"), ("x", "Latn")]),
    ("Japanese", [("漢字", "Hani"), ("かな、", "Hira"), ("カタカナー。", "Kana")]),
    ("Arabic digits and marks are shared", [("سَلام، ١٢ ", "Arab"), ("ok", "Latn")]),
    ("accents stay", [("e\u0301", "Latn"), ("я\u0301", "Cyrl")]),
    ("joiners stay", [("می\u200cخواهم ", "Arab"), ("a\u200d", "Latn"), ("я", "Cyrl")]),
    ("closing bracket goes with the opening one", [("ab (", "Latn"), ("мир", "Cyrl"), (") ", "Latn"), ("да", "Cyrl")]),
    ("quotation marks too", [("мир “", "Cyrl"), ("ab", "Latn"), ("”, 5", "Cyrl")]),
    ("nested", [("ש (", "Hebr"), ("ab [", "Latn"), ("я", "Cyrl"), ("] ", "Latn"), (") 1", "Hebr")]),
    ("inner bracket left open", [("ש (", "Hebr"), ("ab [c", "Latn"), (").", "Hebr")]),
    ("closing bracket alone", [("ab ", "Latn"), ("я) ", "Cyrl"), ("c", "Latn")]),
    ("bracket before the first letter", [("(ab ", "Latn"), ("я", "Cyrl"), (").", "Latn")]),
    ("apostrophe", [("don’t ", "Latn"), ("я", "Cyrl")]),
    ("mark takes a base without a script", [("x ", "Latn"), ("◌\u093f", "Deva")]),
    ("mark takes base and joiner", [("x ", "Latn"), ("◌\u200d\u093fक", "Deva")]),
    ("mark follows a base with a script", [("x\u093fy", "Latn")]),
    ("mark follows, letters do not", [("x\u093f", "Latn"), ("क", "Deva")]),
    ("mark at the start", [("\u093f ", "Deva"), ("я", "Cyrl")]),
    ("mark behind a closing bracket", [("ש (", "Hebr"), ("ab", "Latn"), (")\u05b0 x"[:2], "Hebr"), (" x"[1:], "Latn")]),
]


@pytest.mark.parametrize("pieces", [pytest.param(pieces, id=name) for name, pieces in RUNS])
def test_runs_are_of_one_script(pieces: list[tuple[str, str | None]]) -> None:
    text = "".join(piece for piece, _ in pieces)

    assert [(text[start:end], script) for start, end, script in script_runs(text)] == pieces


@given(
    st.text(
        st.one_of(st.sampled_from("ab яש(「)」[]“”’ \u0301\u093f\u05b0\u200d1"), st.characters(exclude_categories=[]))
    )
)
def test_runs_cover_every_text(text: str) -> None:
    runs = script_runs(text)

    assert [start for start, _, _ in runs] == [0, *(end for _, end, _ in runs)][: len(runs)]
    assert runs[-1][1] == len(text) if text else not runs
    assert all(start < end for start, end, _ in runs)
    assert all(before[2] != after[2] for before, after in pairwise(runs))
    assert all(script is not None for _, _, script in runs) or len(runs) == 1


@pytest.mark.parametrize(
    "text, count",
    [
        ("é" * 1_000_000, 1),
        ("क" + "\u0301" * 200_000 + "я", 2),
        ("я\u093f\u09be" + "\u093f\u09be" * 50_000, 1),
        ("(" * 100_000 + "éя" + "]" * 100_000, 2),
        ("(é)[я]" * 20_000, 40_001),
    ],
    ids=["one word", "marks", "marks of two scripts", "brackets", "bracket pairs"],
)
def test_time_is_linear(text: str, count: int) -> None:
    """No figure is asserted: quadratic time would not come back at all."""
    assert len(script_runs(text)) == count
