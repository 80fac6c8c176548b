"""How text becomes pixels, as data: everything that decides a pixel is a field here, or a font file that it names.

Two renderers with equal configurations and equal fonts draw equal strips. Four configurations have names. `pixel`,
`pixel-m4` and `pixar` draw what the published models of those names were trained on, peculiarities included; `default`
is what we recommend where no published weights have to be matched (docs/rendering.md lists every difference).
"""

from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from os import PathLike
from typing import Any

from render.errors import RenderError

CHOICES = {
    "layout": ("continuous", "words", "sentences", "bigrams", "adaptive"),
    "unit": ("code-point", "grapheme"),
    "word_gap": ("none", "space"),
    "color": ("grey", "rgb", "binary"),
    "hinting": ("light", "none"),
    "baseline": ("line", "fixed"),
    "overflow": ("clip", "cluster"),
    "missing": ("notdef", "box"),
    "direction": ("auto", "ltr", "rtl"),
}
PADDED = ("continuous", "words", "sentences")  # layouts that read render.pad
_POINTS_PER_INCH = 72


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """Everything that a strip depends on. Lengths are pixels unless said otherwise.

    layout: where text goes on the patches, see render/layouts.
    unit, word_gap: of `bigrams` only: what a pair is made of, and whether a space stands between two words.
    height, patch_width: of a patch; a strip is `height` rows.
    max_patches: of a strip, end patch included; any number from 2 up.
    fonts: files in the order in which they are asked for a character: `a.ttf`, `b.ttc#2`, `c.ttf#wght=400`, folders,
        `system:NAME`, `builtin`. None: the font of this project.
    size: of the em square.
    hinting: FreeType's light autohinter, or none.
    color: binary strips hold 0 and 255 only; ink is what is darker than the middle.
    pad: columns left of a text, and right of it before the end patch, of the layouts in PADDED.
    lift: rows by which a line stands above the middle of the strip.
    baseline: `line`: of each line from the fonts that it uses, as Pango does: one character of another font moves the
        whole line; `fixed`: from the first font alone.
    overflow: `clip`: the end patch covers what does not fit, as the originals do; `cluster`: what does not fit is left
        out, by whole clusters.
    missing: a character that no font has: glyph 0 of the first font, or a box with its code point.
    direction: of the text; `auto` takes it from the first strong character.
    """

    layout: str = "adaptive"
    unit: str = "grapheme"
    word_gap: str = "space"
    height: int = 16
    patch_width: int = 16
    max_patches: int = 529
    fonts: tuple[str, ...] = ()
    size: float = 8 * 120 / _POINTS_PER_INCH
    hinting: str = "light"
    color: str = "grey"
    pad: int = 0
    lift: int = 2
    baseline: str = "fixed"
    overflow: str = "cluster"
    missing: str = "box"
    direction: str = "auto"

    def __post_init__(self):
        if isinstance(self.fonts, str):
            raise RenderError(f"render.fonts = {self.fonts!r} is one string; give a list of fonts")
        if not isinstance(self.fonts, list | tuple):
            raise RenderError(f"render.fonts = {self.fonts!r}; it must be a list of fonts")
        for i, font in enumerate(self.fonts):
            if not isinstance(font, str | PathLike) or not str(font):
                raise RenderError(f"render.fonts[{i}] = {font!r}; it must be a path or a name")
        object.__setattr__(self, "fonts", tuple(map(str, self.fonts)))
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise RenderError(f"render.{name} = {value!r}; it must be one of {', '.join(choices)}")
        for name, lowest, highest in [
            ("height", 4, 256),
            ("patch_width", 1, 4096),
            ("max_patches", 2, 1 << 20),
            ("pad", 0, 4096),
            ("lift", -256, 256),
        ]:
            value = getattr(self, name)
            if type(value) is not int or not lowest <= value <= highest:
                raise RenderError(f"render.{name} = {value!r}; it must be a whole number from {lowest} to {highest}")
        if isinstance(self.size, bool) or not isinstance(self.size, int | float) or not 2 <= self.size <= 512:
            raise RenderError(f"render.size = {self.size!r}; it must be a number of pixels from 2 to 512")
        if self.layout != "bigrams" and (self.unit != "grapheme" or self.word_gap != "space"):
            raise RenderError(f"render.unit and render.word_gap belong to the layout bigrams, not to {self.layout}")
        if self.pad and self.layout not in PADDED:
            raise RenderError(f"render.pad = {self.pad} belongs to layouts {', '.join(PADDED)}, not to {self.layout}")

    @property
    def channels(self) -> int:
        """Values of a pixel: 3 for rgb, else 1."""
        return 3 if self.color == "rgb" else 1

    @classmethod
    def named(cls, name: str, **changes: Any) -> "RenderConfig":
        """One of the named configurations, with some fields changed: `RenderConfig.named("pixel", fonts=[...])`.

        Raises RenderError for an unknown name or field.
        """
        if name not in NAMED:
            raise RenderError(f"unknown render configuration {name!r}; there are {', '.join(NAMED)}")
        return cls.from_dict({**NAMED[name], **changes})

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> "RenderConfig":
        """The configuration that to_dict wrote. Raises RenderError naming an unknown key and the nearest known one."""
        known = [field.name for field in fields(cls)]
        for key in table:
            if key not in known:
                near = get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                raise RenderError(f"render: unknown key {key!r}; {hint}")
        return cls(**table)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and TOML."""
        return {**asdict(self), "fonts": list(self.fonts)}

    def replace(self, **changes: Any) -> "RenderConfig":
        """A copy with some fields changed."""
        return replace(self, **changes)


def points(size: float, dpi: float) -> float:
    """Pixels of a font size in points."""
    return size * dpi / _POINTS_PER_INCH


# specs: PIXEL 1.1-1.3, PIXEL-M4 1.4, PIXAR 1.1-1.2
_AS_PANGO: dict[str, Any] = {"baseline": "line", "overflow": "clip", "missing": "notdef"}
NAMED: dict[str, dict[str, Any]] = {
    "pixel": {**_AS_PANGO, "layout": "continuous", "pad": 2, "size": points(8, 120)},
    "pixel-m4": {
        **_AS_PANGO,
        "layout": "bigrams",
        "unit": "code-point",
        "word_gap": "none",
        "size": points(8, 120),
    },
    "pixar": {
        **_AS_PANGO,
        "layout": "continuous",
        "height": 8,
        "patch_width": 16,
        "max_patches": 360,
        "size": points(8, 80),
        "hinting": "none",
        "color": "binary",
        "pad": 2,
        "lift": 1,
    },
    "default": {},
}
