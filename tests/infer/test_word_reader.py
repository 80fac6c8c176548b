"""The first word of written patches: what is drawn is read, noise is not, and only what was written is looked at."""

import numpy as np
import pytest

from infer.benchmarks.drawn_words import drawn_words
from infer.benchmarks.ocr_readers import OcrReader, canvas
from infer.benchmarks.word_reader import WordReader, leading_letters
from infer.pixar import patches_of, prompt_patches
from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from render import RenderConfig, Renderer
from tests.infer.tiny_pixar import CONFIG, RENDER

CONTEXT = "He came home and she said"
WORDS = ["signs", "Jack", "a", "William", "quiet", "fly", "jump", "I"]


def sized(config: RenderConfig) -> PixarConfig:
    """A model of patches as large as those of this renderer."""
    return PixarConfig(
        num_layers=1,
        hidden_size=16,
        num_attention_heads=1,
        intermediate_size=16,
        patch_height=config.height,
        patch_length=config.patch_width // config.height,
    )


def drawn(config: RenderConfig, words: list[str], patches: int) -> list[np.ndarray]:
    return [one.patches for one in drawn_words(Renderer(config), sized(config), CONTEXT, words, patches)]


@pytest.mark.parametrize(
    "config",
    [
        RENDER,
        RENDER.replace(layout="words"),
        RenderConfig(layout="continuous", pad=2),
        RenderConfig(layout="bigrams"),
        RenderConfig(),
    ],
    ids=lambda config: f"{config.layout}-{config.color}",
)
def test_words_as_the_renderer_draws_them_are_read(config):
    assert WordReader(config).read(drawn(config, WORDS, 8)) == WORDS


def test_only_the_first_word_is_read_and_a_sign_before_it_is_none():
    reader = WordReader(RENDER)
    assert reader.read(drawn(RENDER, ["one two", "said,", "don't", '"Yes', "(no)"], 4)) == [
        "one",
        "said",
        "don",
        "",
        "",
    ]


def test_a_space_that_a_patch_edge_makes_ends_a_word():
    config = RENDER.replace(layout="words")
    assert WordReader(config).read(drawn(config, ["Wade and", "deals are"], 6)) == ["Wade", "deals"]


def test_what_reaches_over_the_last_patch_is_missing_from_the_word():
    [read] = WordReader(RENDER).read(drawn(RENDER, ["extraordinarily"], 3))
    assert read != "extraordinarily"
    assert read.startswith("extraordi")


def test_nothing_is_read_of_noise_of_paper_and_of_an_end_patch():
    draw = np.random.default_rng(0)
    noise = [draw.choice([0, 255], (4, 128)).astype(np.uint8) for _ in range(100)]
    reader = WordReader(RENDER)
    assert sum(word != "" for word in reader.read(noise)) <= 3
    paper, black = np.full((4, 128), 255, np.uint8), np.zeros((1, 128), np.uint8)
    assert reader.read([paper, black, np.concatenate([paper, black])]) == ["", "", ""]


@pytest.mark.parametrize("layout", ["continuous", "words", "bigrams", "adaptive"])
def test_a_strip_that_ends_at_once_says_no_word(layout):
    config = RENDER.replace(layout=layout, pad=0)
    end = np.zeros((1, config.height * config.patch_width), np.uint8)
    assert WordReader(config).read([end, end[:0]]) == ["", ""]


def test_what_follows_a_black_patch_is_not_read():
    [word] = drawn(RENDER, ["home"], 2)
    [other] = drawn(RENDER, ["stead"], 2)
    assert WordReader(RENDER).read([np.concatenate([word, np.zeros_like(word[:1]), other])]) == ["home"]


def test_a_few_flipped_pixels_change_no_word():
    draw = np.random.default_rng(0)
    flipped = []
    for patches in drawn(RENDER, WORDS, 4):
        flips = draw.random(patches.shape) < 0.01
        flipped.append(np.where(flips, 255 - patches, patches).astype(np.uint8))
    read = WordReader(RENDER).read(flipped)
    assert sum(one == word for one, word in zip(read, WORDS, strict=True)) >= len(WORDS) - 1


def test_leading_letters_keep_marks_and_stop_at_anything_else():
    assert [leading_letters(text) for text in ("sign.", "don't", "", "7th", "कि, ")] == ["sign", "don", "", "", "कि"]


def test_a_drawn_word_goes_on_where_its_aligned_prompt_ends():
    renderer = Renderer(RENDER)
    prompt = prompt_patches(renderer, CONTEXT, CONFIG)
    [word] = drawn_words(renderer, CONFIG, CONTEXT, ["signs"])
    both = renderer(f"{CONTEXT} signs")
    columns = np.concatenate([prompt, word.patches]).reshape(-1, 8, 16).swapaxes(0, 1).reshape(8, -1)
    inked = np.flatnonzero((columns == 0).any(0))
    whole = both.pixels[:, : -RENDER.patch_width]
    drawn_ink = np.flatnonzero((whole == 0).any(0))
    ours, theirs = columns[:, inked[0] : inked[-1] + 1], whole[:, drawn_ink[0] : drawn_ink[-1] + 1]
    np.testing.assert_array_equal(ours, theirs)
    # 5 letters of 5 columns, one of them after an "i" of 2, behind one more column of the space before
    assert word.columns == 1 + int(renderer("signs").clusters()[:, 4].max()) - RENDER.pad + 3


def test_the_published_canvas_is_a_square_with_the_patches_in_its_middle():
    page = np.asarray(canvas(np.zeros((8, 64), np.uint8)))
    assert page.shape == (249, 249)  # 3 x int(1.3 x 64)
    inked = np.flatnonzero((page < 128).any(0))
    assert inked[0] == 27
    assert inked[-1] == 249 - 31  # 19 px are free: 9 on the left and 10 on the right
    colours = np.zeros((8, 64, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(canvas(colours)), page)


def test_an_engine_that_is_unknown_or_absent_is_named(monkeypatch):
    monkeypatch.setattr("infer.benchmarks.ocr_readers.shutil.which", lambda name: None)
    with pytest.raises(UserError, match="tesseract: is not on this machine"):
        OcrReader("tesseract", RENDER)
    with pytest.raises(UserError, match="--reader x: unknown; choose own, rapidocr, tesseract"):
        OcrReader("x", RENDER)


def test_patches_of_a_picture_are_those_of_the_strip():
    strip = Renderer(RENDER)("Hello")
    np.testing.assert_array_equal(patches_of(strip.pixels, 16, 1), strip.patches.reshape(strip.num_patches, -1))
