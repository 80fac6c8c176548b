"""The cache: bounded at every moment, and what is in use survives."""

import random
from collections.abc import Iterator

import pytest

from render import RenderConfig, Renderer
from render.cache import Cache

LIMIT = 1600  # a generation is half of it; an entry is kept up to an eighth of that, 100


def cache_of(cost: int = 100, limit: int = LIMIT) -> tuple[Cache, list[str]]:
    """A cache of upper-case words that all cost the same, and what it has built so far."""
    built: list[str] = []

    def build(key: str) -> str:
        built.append(key)
        return key.upper()

    return Cache(build, lambda key, value: cost, limit), built


def test_what_is_there_is_not_built_again():
    cache, built = cache_of()
    assert [cache["a"], cache["b"], cache["a"]] == ["A", "B", "A"]
    assert (built, cache.num_built, cache.num_bytes) == (["a", "b"], 2, 200)


def test_what_is_in_use_survives_any_number_of_others():
    cache, built = cache_of()
    for i in range(100):
        assert cache["used"] == "USED"
        assert cache[str(i)] == str(i)
    assert built.count("used") == 1


def test_what_is_not_asked_for_again_is_dropped_with_its_generation():
    cache, built = cache_of()
    for i in range(17):  # one more than two generations of eight
        cache[str(i)]
    cache["8"]
    assert "8" not in built[17:], "the old generation is still there"
    cache["7"]
    assert built[17:] == ["7"]


def test_an_entry_too_large_to_keep_is_built_each_time():
    cache, built = cache_of(cost=101)
    assert [cache["a"], cache["a"]] == ["A", "A"]
    assert (built, len(cache), cache.num_bytes) == (["a", "a"], 0, 0)


def test_what_was_built_elsewhere_can_be_put_in():
    cache, built = cache_of()
    assert cache.keep("a", "other") == "other"
    assert (cache["a"], built, cache.num_built) == ("other", [], 0)


def test_both_generations_stay_within_the_limit():
    cache, _ = cache_of()
    cache._cost = lambda key, value: 1 + len(key) % 100  # type: ignore[method-assign]
    generator = random.Random(0)
    for _ in range(2000):
        key = "x" * generator.randrange(300)
        assert cache[key] == key.upper()
        assert cache.num_bytes <= LIMIT


def test_bytes_in_use_are_those_of_the_entries():
    cache, _ = cache_of(cost=100)
    for i in range(30):
        cache[str(i)]
        assert cache.num_bytes == 100 * (len(cache) + len(cache._old))


def test_what_is_forgotten_is_built_again():
    cache, built = cache_of()
    cache["a"]
    cache.forget()
    assert (cache.num_bytes, cache.num_built, len(cache)) == (0, 0, 0)
    assert cache["a"] == "A" and built == ["a", "a"]


def test_a_failed_build_leaves_nothing_behind():
    def build(key: str) -> str:
        raise ValueError(key)

    cache = Cache(build, lambda key, value: 1, LIMIT)
    with pytest.raises(ValueError, match="a"):
        cache["a"]
    assert (cache.num_bytes, len(cache)) == (0, 0)


# ---- on trial --------------------------------------------------------------------------------------------------------


def trial_cache() -> tuple[Cache, list[str]]:
    """A cache of words of 50, kept when asked for twice: two generations of twelve, and two of four on trial."""
    built: list[str] = []

    def build(key: str) -> str:
        built.append(key)
        return key.upper()

    return Cache(build, lambda key, value: 50, LIMIT, on_trial=lambda key: True), built


def test_what_is_on_trial_is_kept_when_it_is_asked_for_again():
    cache, built = trial_cache()
    cache["a"]
    assert "a" not in cache
    assert cache["a"] == "A" and "a" in cache
    assert built == ["a"]


def test_what_is_on_trial_waits_until_as_many_others_came_as_a_generation_holds():
    cache, built = trial_cache()
    for key in ["0", "1", "2", "late", "4", "5", "6", "7", "late"]:
        cache[key]
    assert built.count("late") == 1


def test_what_is_asked_for_once_does_not_push_out_what_is_in_use():
    cache, built = trial_cache()
    used = ["a", "b", "c"]
    for key in used:
        assert cache[key] == cache[key]
    for i in range(200):
        cache[str(i)]
    for key in used:
        cache[key]
    assert [built.count(key) for key in used] == [1, 1, 1]


def test_all_generations_and_what_is_on_trial_stay_within_the_limit():
    cache, _ = trial_cache()
    generator = random.Random(0)
    for _ in range(2000):
        key = str(generator.randrange(60))
        assert cache[key] == key
        assert cache.num_bytes <= LIMIT


# ---- of a renderer ---------------------------------------------------------------------------------------------------


def unseen_words() -> Iterator[str]:
    generator = random.Random(0)
    while True:
        yield "".join(generator.choices("abcdefghijklmnopqrstuvwxyzäöüß,.", k=generator.randrange(1, 12)))


@pytest.mark.parametrize("layout", ["continuous", "bigrams", "adaptive"])
def test_a_renderer_stays_within_a_limit_that_it_reaches(layout: str, monkeypatch: pytest.MonkeyPatch):
    limit = 200_000
    monkeypatch.setattr("render.typesetter._CACHE_BYTES", limit)
    monkeypatch.setattr("render.ink._GLYPH_BYTES", limit // 4)
    renderer = Renderer(RenderConfig(layout=layout))
    words, largest = unseen_words(), 0
    for _ in range(200):
        renderer(" ".join(next(words) for _ in range(10)))
        assert renderer.cache_bytes <= limit + limit // 4
        largest = max(largest, renderer.cache_bytes)
    assert largest > limit // 8


def test_the_documented_limit_is_128_mb():
    from render import ink, typesetter

    assert typesetter._CACHE_BYTES + ink._GLYPH_BYTES <= 128 << 20


def test_forgetting_empties_the_caches_and_changes_no_pixel():
    renderer = Renderer(RenderConfig())
    strip = renderer("the same text twice")
    assert renderer.cache_bytes > 0
    renderer.forget()
    assert renderer.cache_bytes == 0
    assert renderer("the same text twice").columns.tobytes() == strip.columns.tobytes()
