"""Windows of strips, read in spite of blur."""

import numpy as np
import pytest

from render import RenderConfig, Renderer
from render.reader import Reader

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ,."
TEXT = "Read a part of this, To Valves and Waves AV in it."


def read(reader, pixels, windows):
    return ["".join(cluster.texts[0] for cluster in found) for found in reader.read_windows([pixels], windows)]


@pytest.mark.parametrize("layout", ["continuous", "adaptive", "words", "sentences"])
def test_the_whole_strip_is_a_window(layout):
    config = RenderConfig(layout=layout)
    strip = Renderer(config)(TEXT)
    (text,) = read(Reader(config, alphabet=ALPHABET), strip.pixels, [(0, 0, strip.num_patches - 1)])
    assert text.replace(" ", "") == TEXT.replace(" ", "")


def test_kerned_letters_stand_where_the_strip_has_them(shared):
    config = RenderConfig.named("pixel", fonts=[shared / "fonts/noto/NotoSans-Regular.ttf"])
    strip = Renderer(config)(TEXT)
    ((*found,),) = Reader(config, alphabet=ALPHABET).read_windows([strip.pixels], [(0, 0, strip.num_patches - 1)])
    places = {(TEXT[first:end], column) for _, first, end, column, _ in strip.clusters().tolist()}
    letters = {(cluster.texts[0], cluster.column) for cluster in found if cluster.texts[0] != " "}
    assert letters == {(text, column) for text, column in places if text != " "}


def test_windows_say_what_the_whole_says_at_their_columns():
    config = RenderConfig(layout="continuous")
    strip = Renderer(config)(TEXT)
    reader = Reader(config, alphabet=ALPHABET)
    last = strip.num_patches - 1
    (whole,) = reader.read_windows([strip.pixels], [(0, 0, last)])
    at = {cluster.column: cluster.texts for cluster in whole}
    for first in range(0, last - 4, 3):
        (found,) = reader.read_windows([strip.pixels], [(0, first, first + 4)])
        inside = [c for c in found if 16 * first + 16 <= c.column < 16 * (first + 3)]
        assert inside
        assert all(at[cluster.column] == cluster.texts for cluster in inside)


def test_many_windows_at_once_are_read_as_one_by_one():
    config = RenderConfig(layout="adaptive")
    renderer, reader = Renderer(config), Reader(config, alphabet=ALPHABET)
    rng = np.random.default_rng(0)
    strips = [renderer(text).pixels for text in (TEXT, TEXT[::-1].strip("."), "Quite another text")]
    noisy = [np.clip(s + rng.normal(0, 40, s.shape), 0, 255).astype(np.uint8) for s in strips]
    windows = [(0, 0, 4), (1, 3, 15), (2, 2, 6), (0, 5, 20), (1, 0, 3)]
    together = reader.read_windows(noisy, windows)
    for window, found in zip(windows, together, strict=True):
        assert reader.read_windows(noisy, [window])[0] == found


def test_paper_holds_no_letters():
    config = RenderConfig(layout="continuous")
    reader = Reader(config, alphabet=ALPHABET)
    assert read(reader, np.full((16, 160), 255, np.uint8), [(0, 2, 8)])[0].strip() == ""
