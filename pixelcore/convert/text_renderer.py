"""`text_renderer_config.json`: how a published PIXEL model's strips were drawn, and how ours say the same.

The published file knows one family of renderers: a font of some points at some dots per inch, on square patches. It is
kept as it was found. Of a model trained here it is written in the published words where they can say what was drawn,
that is, where the strips are those of the original renderer; and always with our own complete table under `TABLE`,
which programs that do not know it leave alone. Source: specs/pixel.md, section 1.1.
"""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

FILE = "text_renderer_config.json"
TABLE = "pixelcore"  # the key of our own table in it
_DPI, _POINTS_PER_INCH = 120, 72
# What the original renderer does and its file has no word for. Keys are those of render.config.RenderConfig.
_AS_PUBLISHED = {
    "baseline": "line",
    "overflow": "clip",
    "missing": "notdef",
    "hinting": "light",
    "direction": "auto",
    "lift": 2,
}
_LAYOUTS = {
    "continuous": {"pad": 2},
    "words": {"pad": 2},
    "bigrams": {"pad": 0, "unit": "code-point", "word_gap": "none"},
}


def published_table(renderer: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the file for `Stored.renderer`: the published keys where they can say it, and ours."""
    config = renderer["config"]
    keys = _published_keys(config) if can_say(config) else {}
    return keys | {TABLE: dict(renderer)}


def can_say(config: Mapping[str, Any]) -> bool:
    """Whether the published keys describe the strips of this render configuration."""
    needed = _AS_PUBLISHED | _LAYOUTS.get(config["layout"], {})
    return (
        config["layout"] in _LAYOUTS
        and all(config[key] == value for key, value in needed.items())
        and config["height"] == config["patch_width"]
        and config["color"] in ("grey", "rgb")
        and font_file(config) is not None
    )


def font_file(config: Mapping[str, Any]) -> Path | None:
    """The first font where it is a whole file, which is all that the published key can name."""
    first = next(iter(config["fonts"]), "")
    whole = PurePath(first).suffix.lower() in (".ttf", ".otf", ".ttc") and not first.startswith("system:")
    return Path(first) if whole else None


def _published_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    font = font_file(config)
    assert font is not None
    points = config["size"] * _POINTS_PER_INCH / _DPI
    return {
        "background_color": "white",
        "dpi": _DPI,
        "font_color": "black",
        "font_file": font.name,
        "font_size": int(points) if points == int(points) else points,
        "max_seq_length": config["max_patches"],
        "pad_size": 3,  # no renderer but the first one reads it, and all files have it
        "pixels_per_patch": config["patch_width"],
        "rgb": config["color"] == "rgb",
        "text_renderer_type": "PangoCairoTextRenderer",
    }
