"""The render configuration: every field has a rule, a mistake is one line that names it, and no field is dead."""

import ast
import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

import render
from render import RenderConfig, RenderError
from render.config import CHOICES, NAMED, points

FOLDER = Path(render.__file__).parent
NUMBERS = {"height": (4, 256), "patch_width": (1, 4096), "max_patches": (2, 1 << 20), "lift": (-256, 256)}


def failing(**table: Any) -> str:
    with pytest.raises(RenderError) as caught:
        RenderConfig(**table)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_there_is_not_is_answered_with_those_there_are(name: str):
    expected = f"render.{name} = 'other'; it must be one of {', '.join(CHOICES[name])}"
    assert failing(**{name: "other"}) == expected
    assert failing(**{name: None}).startswith(f"render.{name} = None;")
    assert failing(**{name: ["notdef"]}).startswith(f"render.{name} = ['notdef'];")


@pytest.mark.parametrize("name, lowest, highest", [(name, *ends) for name, ends in NUMBERS.items()])
def test_a_whole_number_is_checked_against_its_range(name: str, lowest: int, highest: int):
    for value in (lowest, highest):
        assert getattr(RenderConfig.from_dict({name: value}), name) == value
    rule = f"it must be a whole number from {lowest} to {highest}"
    for value in (lowest - 1, highest + 1, float(lowest), True, "8", None):
        assert failing(**{name: value}) == f"render.{name} = {value!r}; {rule}"


def test_the_pad_is_checked_against_its_range():
    assert RenderConfig(layout="continuous", pad=4096).pad == 4096
    for value in (-1, 4097, 2.0, True):
        assert failing(layout="continuous", pad=value).startswith(f"render.pad = {value!r}; it must be a whole number")


@pytest.mark.parametrize("value", [1.9, 512.5, 0, -13, float("nan"), float("inf"), True, "13", None])
def test_the_size_is_a_number_of_pixels(value: object):
    assert failing(size=value) == f"render.size = {value!r}; it must be a number of pixels from 2 to 512"


@pytest.mark.parametrize("value", [2, 512, 13.5])
def test_the_size_may_be_any_number_of_its_range(value: float):
    assert RenderConfig(size=value).size == value


@pytest.mark.parametrize("value", ["one.ttf", {"one.ttf": 1}, None, 3])
def test_fonts_are_a_list(value: object):
    assert failing(fonts=value).startswith(f"render.fonts = {value!r}")


def test_a_font_is_a_name_or_a_path():
    config = RenderConfig(fonts=[Path("folder") / "one.ttf", "builtin"])  # type: ignore[arg-type]
    assert config.fonts == ("folder/one.ttf", "builtin")
    for font in (None, 3, ""):
        assert failing(fonts=["one.ttf", font]) == f"render.fonts[1] = {font!r}; it must be a path or a name"


@pytest.mark.parametrize("layout", ["continuous", "words", "sentences", "adaptive"])
@pytest.mark.parametrize("change", [{"unit": "code-point"}, {"word_gap": "none"}])
def test_what_bigrams_alone_have_is_refused_elsewhere(layout: str, change: dict[str, str]):
    assert failing(layout=layout, **change).endswith(f"belong to the layout bigrams, not to {layout}")


@pytest.mark.parametrize("layout", ["bigrams", "adaptive"])
def test_a_pad_is_refused_where_no_layout_reads_it(layout: str):
    told = f"render.pad = 2 belongs to layouts continuous, words, sentences, not to {layout}"
    assert failing(layout=layout, pad=2) == told


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        RenderConfig().height = 8  # type: ignore[misc]


def test_a_copy_is_checked_like_the_first():
    config = RenderConfig()
    assert config.replace(height=32).height == 32 and config.height == 16
    with pytest.raises(RenderError, match="render.height = 1"):
        config.replace(height=1)


def test_equal_configurations_are_equal_and_one_key():
    assert RenderConfig(fonts=["a.ttf"]) == RenderConfig(fonts=("a.ttf",))  # type: ignore[arg-type]
    assert len({RenderConfig(), RenderConfig(), RenderConfig(height=32)}) == 2


# ---- tables and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMED)
def test_a_configuration_survives_a_table_of_plain_values(name: str):
    config = RenderConfig.named(name, fonts=["a.ttf", "b.ttc#2"])
    assert RenderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "key, hint",
    [("heigth", "did you mean 'height'?"), ("font", "did you mean 'fonts'?"), ("zzz", "there are layout, unit,")],
)
def test_an_unknown_key_is_answered_with_the_nearest(key: str, hint: str):
    with pytest.raises(RenderError, match="unknown key") as caught:
        RenderConfig.from_dict({"height": 16, key: 1})
    assert str(caught.value).startswith(f"render: unknown key {key!r}; ") and hint in str(caught.value)


def test_a_named_configuration_can_be_changed():
    config = RenderConfig.named("pixel", max_patches=100)
    assert config == RenderConfig.named("pixel").replace(max_patches=100)
    with pytest.raises(RenderError, match="unknown key 'max_patch'; did you mean 'max_patches'"):
        RenderConfig.named("pixel", max_patch=100)


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(
        RenderError, match="unknown render configuration 'm4'; there are pixel, pixel-m4, pixar, default"
    ):
        RenderConfig.named("m4")


def test_the_named_configurations_are_what_the_published_models_saw():
    assert RenderConfig.named("default") == RenderConfig()
    pixel, m4, pixar = (RenderConfig.named(name) for name in ("pixel", "pixel-m4", "pixar"))
    originals = {"baseline": "line", "overflow": "clip", "missing": "notdef", "color": "grey"}
    for config in (pixel, m4):
        shape = (config.height, config.patch_width, config.max_patches, round(config.size, 3), config.hinting)
        assert shape == (16, 16, 529, 13.333, "light")
        assert {name: getattr(config, name) for name in originals} == originals
    assert (pixel.layout, pixel.pad, pixel.lift) == ("continuous", 2, 2)
    assert (m4.layout, m4.unit, m4.word_gap, m4.pad, m4.lift) == ("bigrams", "code-point", "none", 0, 2)
    assert (pixar.layout, pixar.color, pixar.hinting, pixar.pad, pixar.lift) == ("continuous", "binary", "none", 2, 1)
    assert (pixar.height, pixar.patch_width, pixar.max_patches, round(pixar.size, 3)) == (8, 16, 360, 8.889)


def test_points_become_pixels_by_the_resolution():
    assert (points(8, 72), points(8, 144)) == (8, 16)


@pytest.mark.parametrize("color, channels", [("grey", 1), ("binary", 1), ("rgb", 3)])
def test_only_rgb_has_three_channels(color: str, channels: int):
    assert RenderConfig(color=color).channels == channels


def test_every_field_is_read_outside_the_configuration():
    read = set()
    for file in FOLDER.rglob("*.py"):
        if file.name != "config.py":
            tree = ast.parse(file.read_text(encoding="utf-8"))
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    dead = [field.name for field in fields(RenderConfig) if field.name not in read]
    assert not dead


def test_every_field_is_explained():
    text = RenderConfig.__doc__ or ""
    unexplained = [field.name for field in fields(RenderConfig) if field.name not in text.replace(",", ":")]
    assert not unexplained
