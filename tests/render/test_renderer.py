"""The renderer: the same text is the same strip, whatever was drawn before, by whom and where."""

import gzip
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from hypothesis import example, given, settings
from hypothesis import strategies as st

from render import RenderConfig, Renderer, RenderError, Strip
from render.pieces import merge
from render.renderer import PROBE, changes
from tests.render.tiny_fonts import font_of, saved

LAYOUTS: dict[str, dict[str, Any]] = {
    "continuous": {"layout": "continuous", "pad": 2},
    "words": {"layout": "words"},
    "sentences": {"layout": "sentences", "pad": 1},
    "pairs": {"layout": "bigrams"},
    "original": {"layout": "bigrams", "unit": "code-point", "word_gap": "none"},
    "adaptive": {"layout": "adaptive"},
}
TEXTS: list[Any] = [
    "The quick brown fox jumps over the lazy dog.",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich",
    "Жебракують філософи при ґанку церкви",
    "Ξεσκεπάζω την ψυχοφθόρα",
    "\u0646\u0635 \u062d\u0643\u064a\u0645 (12) \u0442\u0435\u043a\u0441\u0442",
    "\u6211\u559c\u6b22 \ub2e4\ub78c\uc950 \u0915\u094d\u0937\u0924\u094d\u0930\u093f\u092f \U0001f600",
    ("A question?", "And its context."),
    ["given", "word", "by", "word"],
]


def of(name: str, **fields: Any) -> Renderer:
    return Renderer(RenderConfig.from_dict({**LAYOUTS[name], **fields}))


def digest(strip: Strip) -> str:
    return hashlib.sha256(str(strip.pixels.shape).encode() + strip.columns.tobytes()).hexdigest()


# ---- what can be rendered --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, found",
    [
        (b"bytes", "bytes"),
        (None, "NoneType"),
        (3, "int"),
        (("one",), "tuple of 1"),
        (("one", "two", "three"), "tuple of 3"),
        (("one", None), "tuple of 2"),
        (["one", 2], "list"),
        (np.array(["one"]), "ndarray"),
    ],
)
def test_anything_but_a_text_a_pair_or_words_is_a_type_error(text: Any, found: str):
    with pytest.raises(
        TypeError, match=f"cannot render a {found}; give a string, a pair of strings, or a list of words"
    ):
        of("adaptive")(text)


@pytest.mark.parametrize("max_patches", [1, 0, -3])
def test_a_strip_has_at_least_two_patches(max_patches: int):
    with pytest.raises(RenderError, match=f"max_patches = {max_patches}; a strip has at least 2"):
        of("adaptive")("text", max_patches)


def test_the_limit_is_that_of_the_configuration_if_none_is_given():
    render = of("adaptive", max_patches=7)
    assert (render("long " * 20).num_patches, render("long " * 20, 9).num_patches) == (7, 9)


def test_a_batch_is_what_each_text_gives_in_their_order():
    render = of("adaptive")
    assert [digest(strip) for strip in render.batch(TEXTS, 20)] == [digest(render(text, 20)) for text in TEXTS]


def test_a_batch_draws_a_text_when_it_is_asked_for():
    def texts() -> Iterator[str]:
        yield "first"
        raise AssertionError("too early")

    assert next(of("adaptive").batch(texts())).num_patches > 1


def test_an_error_in_a_batch_names_the_text_by_its_number():
    class Fussy(Renderer):
        def __call__(self, text: Any, max_patches: int | None = None) -> Strip:
            if text == "bad":
                raise RenderError("a reason")
            return super().__call__(text, max_patches)

    strips = Fussy(RenderConfig()).batch(["good", "good", "bad"])
    assert [next(strips).drawn, next(strips).drawn] == [(4,), (4,)]
    with pytest.raises(RenderError, match="^text 2: a reason$"):
        next(strips)
    with pytest.raises(RenderError, match="^text 0: max_patches = 1;"):
        list(of("adaptive").batch(["a"], 1))
    with pytest.raises(TypeError, match="^text 1: cannot render a bytes"):
        list(of("adaptive").batch(["a", b"b"]))  # type: ignore[list-item]


# ---- the same text is the same strip ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_strip_does_not_depend_on_what_was_drawn_before(name: str):
    used = of(name)
    alone = [digest(of(name)(text)) for text in TEXTS]
    assert [digest(used(text)) for text in TEXTS] == alone
    assert [digest(used(text)) for text in reversed(TEXTS)] == alone[::-1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_strip_does_not_depend_on_what_the_cache_has_dropped(name: str, monkeypatch: pytest.MonkeyPatch):
    expected = [digest(of(name)(text)) for text in TEXTS]
    monkeypatch.setattr("render.typesetter._CACHE_BYTES", 20_000)
    monkeypatch.setattr("render.ink._GLYPH_BYTES", 2_000)
    small = of(name)
    for _ in range(3):
        assert [digest(small(text)) for text in TEXTS] == expected


_OTHER_PROCESS = """
import hashlib, json, pickle, sys
renderers, texts = pickle.load(sys.stdin.buffer)
drawn = {}
for name, renderer in renderers.items():
    strips = [renderer(text) for text in reversed(texts)][::-1]
    hashes = [hashlib.sha256(str(s.pixels.shape).encode() + s.columns.tobytes()).hexdigest() for s in strips]
    drawn[name] = hashes, renderer.identity()
json.dump(drawn, sys.stdout)
"""


def test_a_pickled_renderer_draws_the_same_in_another_process_and_is_the_same(tmp_path: Path):
    font = saved(kerned_font(), tmp_path / "kerned.ttf")
    renderers = {name: of(name) for name in LAYOUTS}
    renderers["font"] = of("continuous", fonts=[str(font)], color="rgb")
    expected = {
        name: [[digest(renderer(text)) for text in TEXTS], renderer.identity()] for name, renderer in renderers.items()
    }
    ran = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS],
        input=pickle.dumps((renderers, TEXTS)),
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1", "LC_ALL": "C"},
    )
    found = json.loads(ran.stdout)
    assert found == json.loads(json.dumps(expected))
    for name, renderer in renderers.items():
        assert changes(renderer.identity(), found[name][1]) == []


# ---- words from the cache are those of the line ----------------------------------------------------------------------


def line_at_once(renderer: Renderer, text: str) -> np.ndarray:
    """Columns of a line that is shaped and drawn as one run, without any cached word."""
    size, pad, patch = renderer.setter.column_bytes, renderer.config.pad, renderer.config.patch_width
    piece = renderer.setter.draw(text, 0, None)
    end = -(-(2 * pad + len(piece.strip) // size) // patch) * patch
    columns = np.full((end + patch, size), 255, np.uint8)
    merge(columns, piece.before + piece.strip + piece.after, pad - len(piece.before) // size)
    columns[end:] = 0
    return columns


def different(renderer: Renderer, lines: Iterable[str]) -> list[str]:
    """Lines that words from the cache draw otherwise than the line at once."""
    found = []
    for line in lines:
        columns = renderer(line, 1 << 14).columns
        if columns.tobytes() != line_at_once(renderer, line).tobytes():
            found.append(line)
    return found


_FEATURES = """
feature kern {
  pos u0061 u0062 -2; pos u006A u0066 -3; pos u0062 u002C -2; pos u005E u0061 1; pos u0061 u0024 -1; pos u0022 u006A 2;
} kern;
feature liga { sub u0066 u0066 u0069 by uFB03; sub u0066 u0069 by uFB01; } liga;
lookup other { sub u0063 by u00E7; } other;
feature calt { sub u0061 u0063' lookup other u0062; sub u0062 u0062 u0063' lookup other; } calt;
"""


def kerned_font(more: str = ""):
    """A font that does what real ones do: kerning, ligatures, rules that look further, ink outside its box."""
    square = [(0, 0, 4, 5)]
    glyphs = dict.fromkeys('abcfi.^$"-', (5, square)) | {
        ",": (2, [(0, 0, 1, 2)]),
        " ": (4, []),
        "j": (3, [(-2, -3, 2, 6)]),
        "t": (4, [(0, 0, 6, 7)]),
        "T": (3, [(0, 0, 8, 8)]),
        "W": (3, [(-4, 0, 8, 8)]),
        "\u00e7": (7, [(0, -3, 6, 5)]),
        "\ufb01": (8, [(0, 0, 7, 8)]),
        "\ufb03": (11, [(0, 0, 10, 9)]),
    }
    font = font_of(glyphs)
    addOpenTypeFeaturesFromString(font, _FEATURES + more)
    return font


ALPHABETS = [" abc", " ab,", " aTb,", ' aj"f', " at-", " a^$j", " W,a", " ffi", ' abcfijtTW,.^$"-']


@pytest.fixture(scope="module")
def kerned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Renderer]:
    """Renderers by name: words stand alone; a letter kerns with the space; the font draws grey at an odd size."""
    folder = tmp_path_factory.mktemp("kerned")
    saved(kerned_font(), folder / "words.ttf")
    saved(kerned_font("feature kern { pos u0061 u0020 -2; pos u0020 u006A -1; } kern;"), folder / "spaces.ttf")
    table: dict[str, Any] = {"hinting": "none", "max_patches": 1 << 14}
    words, spaces = [str(folder / "words.ttf")], [str(folder / "spaces.ttf")]
    return {
        "words": of("continuous", size=16, fonts=words, **table),
        "no pad": of("continuous", **{"pad": 0, "size": 16, "fonts": words, **table}),
        "spaces": of("continuous", size=16, fonts=spaces, **table),
        "grey": of("continuous", size=11.3, fonts=words, **table),
        "hinted": of("continuous", size=13.4, fonts=words, max_patches=1 << 14),
        "rgb": of("continuous", size=11.3, fonts=words, color="rgb", **table),
        # on the grid: where grey edges of two words meet, a line drawn at once adds them up before the threshold
        "binary": of("continuous", size=32, fonts=words, color="binary", **table),
    }


@pytest.mark.parametrize("name", ["words", "no pad", "spaces", "grey", "hinted", "rgb", "binary"])
@settings(max_examples=150)
@given(text=st.sampled_from(ALPHABETS).flatmap(lambda letters: st.text(letters, max_size=16)))
@example(text="j$ a$ ^a")
@example(text="acb bbc abbc")
@example(text="T,a T,, a,,b")
def test_words_from_the_cache_are_those_of_the_line(name: str, text: str, kerned: dict[str, Renderer]):
    """A word that is not plain sends its line another way, so texts have few kinds of letters."""
    assert different(kerned[name], [text]) == []


@settings(max_examples=150)
@given(text=st.text(st.characters(codec="utf-8", max_codepoint=0x17F, categories=["L", "N", "P", "S", "Zs"])))
def test_words_from_the_cache_are_those_of_the_line_in_the_font_of_this_project(text: str):
    assert different(_BUILTIN, [text.replace("\xa0", " ")]) == []


_BUILTIN = of("continuous")

_EN = ["en_books/*.gz", "en_wikitext2_test.txt", "en_tinyshakespeare.txt"]
# font, size, texts
REAL = {
    "English, Noto Sans": ("noto/NotoSans-Regular.ttf", 40 / 3, _EN),
    "English, DejaVu Sans": ("dejavu/DejaVuSans.ttf", 40 / 3, _EN),
    "English, Pixeloid": ("pixeloid/PixeloidSans-mLxMm.ttf", 9, _EN),
    "English, Press Start": ("press-start-2p/PressStart2P-Regular.ttf", 8, _EN),
    "Ukrainian, Noto Sans": ("noto/NotoSans-Regular.ttf", 40 / 3, ["uk_uagec.txt.gz"]),
    "Hindi, Noto Sans Devanagari": ("noto/NotoSansDevanagari-Regular.ttf", 40 / 3, ["hi_pratham.txt.gz"]),
    "Tamil, Noto Sans Tamil": ("noto/NotoSansTamil-Regular.ttf", 40 / 3, ["ta_pratham.txt.gz"]),
}
GREEK = [PROBE["Grek"], "Ο ποιητής, που έγραψε «Άσμα ηρωικό», γεννήθηκε το 1911. — Ναι; «Όχι!» ΰ ΐ ᾳ ῷ"]


def lines_of(folder: Path, patterns: list[str], count: int) -> list[str]:
    """Lines spread evenly over the files."""
    lines: list[str] = []
    for pattern in patterns:
        path = min(folder.glob(pattern))
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        long = [line.strip()[:200] for line in text.split("\n") if len(line) > 20]
        lines += long[:: len(long) // (count // len(patterns))]
    return lines


@pytest.mark.parametrize("name", REAL)
def test_words_from_the_cache_are_those_of_the_line_in_real_text(name: str, shared: Path):
    font, size, patterns = REAL[name]
    render = of("continuous", fonts=[str(shared / "fonts" / font)], size=size, hinting="light")
    lines = lines_of(shared / "data/text", patterns, 300)
    assert len(lines) >= 300
    # where a line mixes scripts, a word is set in its own: a quotation mark before it has the script of the word, and
    # in the line at once that of the word before the mark
    mixed = {line for line in lines if "uk" in patterns[0] and any(c.isascii() and c.isalpha() for c in line)}
    assert different(render, [line for line in lines if line not in mixed]) == []


def test_words_from_the_cache_are_those_of_the_line_in_greek(shared: Path):
    render = of("continuous", fonts=[str(shared / "fonts/noto/NotoSans-Regular.ttf")])
    assert different(render, GREEK) == []


# ---- identity --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def identity() -> dict[str, Any]:
    return of("adaptive").identity()


def test_an_identity_is_plain_data_and_names_what_decides_the_pixels(identity: dict[str, Any]):
    assert json.loads(json.dumps(identity)) == identity
    assert set(identity) == {"config", "fonts", "probes", "versions"}
    assert set(identity["probes"]) == set(PROBE)
    assert set(identity["versions"]) == {"freetype", "harfbuzz", "unicode", "python"}
    (font,) = identity["fonts"]
    assert len(font["sha256"]) == 64


def test_an_identity_holds_no_path(tmp_path: Path):
    """Another machine has the font elsewhere: its bytes count."""
    identities = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "kerned.ttf"
        path.write_bytes((tmp_path / "one/kerned.ttf").read_bytes() if folder == "two" else b"")
        if folder == "one":
            saved(kerned_font(), path)
        identities.append(of("adaptive", fonts=[str(path)]).identity())
    assert identities[0] == identities[1]


def test_equal_renderers_have_no_changes(identity: dict[str, Any]):
    assert changes(identity, of("adaptive").identity()) == []


def test_a_changed_field_is_named(identity: dict[str, Any]):
    other = of("adaptive", lift=1, color="binary").identity()
    assert changes(identity, other) == ["render.color: 'grey' against 'binary'", "render.lift: 2 against 1"]


def test_a_changed_font_is_named(identity: dict[str, Any], tmp_path: Path):
    (line,) = changes(identity, of("adaptive", fonts=[str(saved(kerned_font(), tmp_path / "kerned.ttf"))]).identity())
    assert line.startswith("fonts: [('builtin") and "against [('kerned.ttf', '" in line


def test_the_order_of_fonts_is_part_of_the_identity(tmp_path: Path):
    fonts = [str(saved(kerned_font(), tmp_path / "kerned.ttf")), "builtin"]
    one, other = (of("adaptive", fonts=order).identity() for order in (fonts, fonts[::-1]))
    assert len(changes(one, other)) == 1


def test_a_changed_pixel_of_a_script_is_named(identity: dict[str, Any]):
    other = {**identity, "probes": {**identity["probes"], "Deva": "other", "Grek": "other"}}
    (line,) = changes(identity, other)
    assert line.startswith("pixels of Grek, Deva, from other library versions: {'freetype'")


def test_other_versions_alone_are_no_change(identity: dict[str, Any]):
    assert changes(identity, {**identity, "versions": {"freetype": "1.0"}}) == []


def test_a_field_that_the_other_does_not_have_is_named(identity: dict[str, Any]):
    config = {key: value for key, value in identity["config"].items() if key != "lift"}
    assert changes(identity, {**identity, "config": config}) == ["render.lift: 2 against None"]


# ---- strips that travel with the project -----------------------------------------------------------------------------

# First digits of the hash of each strip of TEXTS. A change here is a change of pixels: published weights, rendered data
# and the identity of every renderer depend on them.
GOLDEN: dict[str, str] = {
    "continuous": (
        "4a0831ae7d5d b7bd9ab091a3 2e8657e2976d a22046a01adb 5698fc5641d6 952e223ffccf 2d9c30ec4f89 eb01862c152c"
    ),
    "words": (
        "7db0df1c968b 4bc86d660405 252eb12a54d8 9da21efd7268 1678a5160b33 bdf640f99dfc b1c6bb7e582c 145acee78939"
    ),
    "sentences": (
        "a28f3f74ab1a b747bf12f4a7 e4ce35925468 903f235eb4b4 4312aee9bcf2 aa31f592706f 5a48238d8751 0fc01b616efe"
    ),
    "pairs": (
        "8ea04e514c09 6a9fecd87a36 ff7f11e559d0 c2cc5ac052f9 98f4f58465e4 e76c36e0c9e1 d650fc7ade23 61f6b6b1f49a"
    ),
    "original": (
        "6b023c196dfe aaeb3c8a9a8a 4618524e66ba b5e1c7110821 ed574db28213 2e9c57f2c1ba 2bdab4c6e649 b1c53301b7cd"
    ),
    "adaptive": (
        "8ea04e514c09 6a9fecd87a36 ff7f11e559d0 c2cc5ac052f9 5036d3aebd50 6bc8b2581ea1 d650fc7ade23 61f6b6b1f49a"
    ),
}
# of strips in the reference fonts, drawn by the pinned libraries
GOLDEN_FONTS: dict[str, str] = {
    "noto/NotoSans-Regular.ttf": (
        "71f3afdbf12b 34cbc4d9b403 c65d491af6a8 9b4b3992991b 5ddf2ee501c8 9ea06ac5ea21 37c2a67bff63 9cb9552e7ba4"
    ),
    "noto/NotoSansDevanagari-Regular.ttf": (
        "732914c6d7b2 d834a1d5b168 17108b624144 4644105f2d1f ece5f319cc26 62c6b0303bb9 0ebddb436473 33c25edc5d32"
    ),
    "noto/NotoSansArabic-Regular.ttf": (
        "50ac19c41626 53bb09641f79 993c30c2a57c bd3a988f2d6a 0699f9aaa280 1a7a34d5f2fc d1b6790fe99c 35e64a3c9843"
    ),
    "noto/NotoSansCJK-Regular.ttc": (
        "e81416475d55 dff611944a03 e27af119aa84 1534909f58ff 19f6ef00f598 069a73a5326f a39e64b9c170 94557049eea4"
    ),
    "dejavu/DejaVuSans.ttf": (
        "86acb0677d35 6d0d7d30ce74 4ad655cc69b6 09fcc002b122 39d0afafbf98 8d06226217af 1538673e52ac 22dd97aa70c8"
    ),
    "pixeloid/PixeloidSans-mLxMm.ttf": (
        "e07766427faa 16d6880392cb 0830ab187196 a2696e2c90d7 a1ab89951682 06cf6b59300c b5dc91562fe1 4be36ea9576d"
    ),
    "press-start-2p/PressStart2P-Regular.ttf": (
        "2b84167d412e ab45a9b21879 3c924000578d 0c14eebd2826 5680a0e6a27a cb5eaa4109af 3d7de590511b 08e255857124"
    ),
}
REFERENCE: dict[str, dict[str, Any]] = {
    "noto/NotoSans-Regular.ttf": {"layout": "continuous", "pad": 2},
    "noto/NotoSansDevanagari-Regular.ttf": {"layout": "adaptive"},
    "noto/NotoSansArabic-Regular.ttf": {"layout": "adaptive"},
    "noto/NotoSansCJK-Regular.ttc": {"layout": "adaptive"},
    "dejavu/DejaVuSans.ttf": {"layout": "bigrams"},
    "pixeloid/PixeloidSans-mLxMm.ttf": {"layout": "continuous", "size": 9, "color": "binary", "height": 8},
    "press-start-2p/PressStart2P-Regular.ttf": {"layout": "words", "size": 8, "color": "binary"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_font_of_this_project_draws_the_same_everywhere(name: str):
    render = of(name)
    assert [digest(render(text))[:12] for text in TEXTS] == GOLDEN[name].split()


@pytest.mark.parametrize("font", REFERENCE)
def test_the_reference_fonts_draw_the_same_everywhere(font: str, shared: Path):
    render = Renderer(RenderConfig.from_dict({**REFERENCE[font], "fonts": [str(shared / "fonts" / font)]}))
    assert [digest(render(text))[:12] for text in TEXTS] == GOLDEN_FONTS[font].split()


@pytest.mark.parametrize("language", ["jpn_Jpan", "kor_Hang"])
def test_kana_and_hangul_are_kerned_and_spaced_as_in_the_line_at_once(language: str, shared: Path):
    """Kana kern with the punctuation after them, and Hangul widens its spaces, in Noto Sans CJK."""
    with (shared / f"data/sib200/{language}/dev.tsv").open(encoding="utf-8") as file:
        lines = [row.rstrip("\n").split("\t")[2] for row in file][1:]
    fonts = [str(shared / "fonts/noto" / name) for name in ("NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc")]
    renderer = Renderer(RenderConfig.named("pixel", fonts=fonts))
    assert len(lines) == 99
    assert not different(renderer, lines)
