"""The reader: what the renderer drew is read back, exactly where it is clean; what is no text is turned away."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from render import RenderConfig, Renderer, RenderError
from render.reader import Reader

ENGLISH = [
    'She said: "I don\'t know why, Joshua," and left.',
    "12 jazzy quotes (or 30?) vex Bob; Mr. Tradd flew by",
    "office fluff, affine waves: AVATAR To Yo. r, w. f'",
]
BINARY = RenderConfig(layout="continuous", height=8, color="binary", pad=2)
SMALL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,!?'-"


@pytest.fixture(scope="module")
def builtin() -> tuple[Renderer, Reader]:
    return Renderer(BINARY), Reader(BINARY, scripts=["Latn"])


def noto(shared: Path, *others: str) -> tuple[str, ...]:
    return tuple(str(shared / "fonts/noto" / f"NotoSans{name}-Regular.ttf") for name in ("", *others))


def read_back(config: RenderConfig, reader: Reader, text: str) -> None:
    """What is read is the text, or renders to the same pixels."""
    renderer = Renderer(config)
    pixels = renderer(text).pixels
    reading = reader(pixels)
    assert reading.exact and reading.readable, (text, reading.text, reading.unexplained)
    assert reading.text == text or np.array_equal(renderer(reading.text).pixels, pixels), (text, reading.text)


# ---- clean strips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        BINARY,
        RenderConfig(layout="continuous"),
        RenderConfig(layout="words"),
        RenderConfig(layout="sentences"),
        RenderConfig(layout="sentences", pad=2),
        RenderConfig(layout="bigrams"),
        RenderConfig(layout="bigrams", unit="code-point", word_gap="none"),
        RenderConfig(layout="adaptive"),
        RenderConfig(layout="adaptive", color="rgb"),
        RenderConfig.named("pixar"),
    ],
    ids=lambda config: f"{config.layout}-{config.unit}-{config.color}-{config.pad}",
)
def test_every_layout_is_read_back(config):
    reader = Reader(config, scripts=["Latn"])
    for text in ENGLISH:
        read_back(config, reader, text)


@pytest.mark.parametrize("layout", ["continuous", "words", "sentences", "bigrams", "adaptive"])
def test_kerning_ligatures_and_overhanging_ink_are_read_back(shared, layout):
    config = RenderConfig(layout=layout, fonts=noto(shared))
    reader = Reader(config, scripts=["Latn"])
    for text in ENGLISH:
        read_back(config, reader, text)
        assert reader(Renderer(config)(text).pixels).text == text


def test_pixel_fonts_of_pixar_are_read_back(shared):
    for name, size in [
        ("pixeloid/PixeloidSans-mLxMm.ttf", 9),
        ("pixeloid/PixeloidSans-mLxMm.ttf", 80 / 9),
        ("press-start-2p/PressStart2P-Regular.ttf", 8),
    ]:
        config = RenderConfig.named("pixar", fonts=[str(shared / "fonts" / name)], size=size)
        reader = Reader(config, scripts=["Latn"])
        for text in ENGLISH:
            read_back(config, reader, text)


SCRIPTS = [
    ("Cyrl", (), "Жебракують філософи при ґанку, 25 церков"),
    ("Grek", (), "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία"),
    ("Arab", ("Arabic",), "السلام عليكم، كان عددهم 120 (تقريبا) في Paris"),
    ("Hebr", ("Hebrew",), "דג סקרן שט בים מאוכזב 12 פעמים"),
    ("Deva", ("Devanagari",), "नमस्ते दुनिया में आपका स्वागत है।"),
    ("Taml", ("Tamil",), "தமிழ் எழுத்து வரிசை ஒன்று"),
    ("Thai", ("Thai",), "เป็นมนุษย์สุดประเสริฐ"),
]


@pytest.mark.parametrize("script, fonts, text", SCRIPTS)
@pytest.mark.parametrize("layout", ["continuous", "adaptive"])
def test_scripts_are_read_back(shared, script, fonts, text, layout):
    config = RenderConfig(layout=layout, fonts=noto(shared, *fonts), pad=2 if layout == "continuous" else 0)
    read_back(config, Reader(config, alphabet=text + "abc123"), text)


@pytest.mark.slow
@pytest.mark.parametrize("script, fonts, text", SCRIPTS)
def test_scripts_are_read_back_out_of_all_their_clusters(shared, script, fonts, text):
    config = RenderConfig.named("pixel", fonts=noto(shared, *fonts))
    read_back(config, Reader(config, scripts=[script, "Latn"]), text)


def test_han_and_kana_are_read_back_from_what_may_occur(shared):
    config = RenderConfig(fonts=(str(shared / "fonts/noto/NotoSansCJK-Regular.ttc"),))
    alphabet = "".join(map(chr, range(0x4E00, 0x5400))) + "いろはにほへとカタカナ、。ABCabc123"
    read_back(config, Reader(config, alphabet=alphabet), "上下、いろはカタカナ。A2 不丁")


def test_a_line_that_another_font_moves_is_read_on_its_own_baseline(shared):
    config = RenderConfig.named("pixel", fonts=noto(shared, "Devanagari"))
    reader = Reader(config, alphabet="plain Latin हिन्दी and")
    read_back(config, reader, "plain Latin")
    read_back(config, reader, "हिन्दी and Latin")


def test_words_keep_one_script_where_letters_look_alike(shared):
    config = RenderConfig(layout="continuous", fonts=noto(shared))
    reader, renderer = Reader(config), Renderer(config)
    for text in ("A COAT HAT", "НА СТОРОНЕ река"):
        assert reader(renderer(text).pixels).text == text


def test_pairs_and_missing_end_patches(builtin):
    renderer, reader = builtin
    assert reader(renderer(("Who wrote it?", "A printer did.")).pixels).texts == ("Who wrote it?", "A printer did.")
    pixels = renderer("no end patch").pixels
    assert reader(pixels[:, : -BINARY.patch_width]).text == "no end patch"
    assert reader(pixels[:, : -BINARY.patch_width + 5]).text == "no end patch"
    assert reader(np.repeat(pixels[:, :, None], 3, 2)).text == "no end patch"


@given(st.text(SMALL, min_size=1, max_size=30))
@settings(max_examples=60)
def test_any_text_is_read_back(text):
    renderer, reader = _shared_builtin()
    pixels = renderer(text).pixels
    reading = reader(pixels)
    if text.strip():
        assert reading.exact and np.array_equal(renderer(reading.text).pixels, pixels)
        assert reading.text.split() == text.split()


_pair: list[tuple[Renderer, Reader]] = []


def _shared_builtin() -> tuple[Renderer, Reader]:
    if not _pair:
        _pair.append((Renderer(BINARY), Reader(BINARY, scripts=["Latn"])))
    return _pair[0]


def test_a_copy_reads_the_same(builtin):
    renderer, reader = builtin
    copy = pickle.loads(pickle.dumps(reader))
    assert copy(renderer(ENGLISH[0]).pixels).text == reader(renderer(ENGLISH[0]).pixels).text == ENGLISH[0]


# ---- noise and what is no text ---------------------------------------------------------------------------------------


def flipped(pixels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pixels = pixels.copy()
    body = pixels[:, : -BINARY.patch_width]
    body[rng.random(body.shape) < share] ^= 255
    return pixels


def test_noise_costs_confidence_before_it_costs_letters(builtin):
    renderer, reader = builtin
    text = "a plain line of small letters"
    clean, noisy = (reader(flipped(renderer(text).pixels, share)) for share in (0.0, 0.02))
    assert noisy.text == clean.text == text
    assert noisy.readable and not noisy.exact
    assert noisy.confidence < clean.confidence == 1
    assert min(c.confidence for c in clean.characters) > min(c.confidence for c in noisy.characters)
    assert "".join(c.text for c in clean.characters) == text
    assert all(0 <= c.confidence <= 1 for c in noisy.characters)
    assert [c.column for c in clean.characters] == sorted(c.column for c in clean.characters)


def test_non_text_is_turned_away(builtin):
    renderer, reader = builtin
    rng = np.random.default_rng(3)
    for text in ENGLISH:
        pixels = renderer(text).pixels
        body, end = pixels[:, : -BINARY.patch_width], pixels[:, -BINARY.patch_width :]
        noise = np.where(rng.random(body.shape) < (body == 0).mean(), 0, 255).astype(np.uint8)
        for strip in (noise, body[:, rng.permutation(body.shape[1])]):
            assert not reader(np.concatenate([strip, end], 1)).readable


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("width", [1, 16, 100, 160])
def test_blank_and_black_strips_are_empty_and_unreadable(builtin, value, width):
    _, reader = builtin
    reading = reader(np.full((8, width), value, np.uint8))
    assert not reading.readable
    assert width == 1 or not reading.text.strip()


@pytest.mark.parametrize(
    "pixels, told",
    [
        (np.zeros((16, 32), np.uint8), "16 rows"),
        (np.zeros((8, 0), np.uint8), "0 columns"),
        (np.zeros((8, 32), np.float32), "uint8"),
        (np.zeros((8, 32, 4), np.uint8), "uint8"),
        (np.zeros(8, np.uint8), "uint8"),
    ],
)
def test_what_is_no_strip_is_refused_in_one_line(builtin, pixels, told):
    with pytest.raises(RenderError, match=told):
        builtin[1](pixels)


def test_alphabet_and_scripts_are_checked():
    with pytest.raises(RenderError, match="give one of them"):
        Reader(BINARY, alphabet="abc", scripts=["Latn"])
    with pytest.raises(RenderError, match="Zzzz"):
        Reader(BINARY, scripts=["Zzzz"])
    reader = Reader(BINARY, alphabet="abc")
    assert reader(Renderer(BINARY)("cab bac").pixels).text == "cab bac"


@pytest.mark.slow
def test_hundreds_of_lines_are_read_without_error(shared):
    from benchmarks.reading import configs, english, measure

    for config in configs().values():
        assert measure(config, english(300), ("Latn",))["cer"] <= 0.001
