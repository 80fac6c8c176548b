"""From a path to a model of strips that is ready to run, with the renderer that drew what it was trained on.

A pixel model without its renderer is what a token model is without its tokenizer: with another font, another size or
another layout the same sentence is another picture, and nothing fails. So how strips are drawn comes from the model:

    a checkpoint or export of ours   the renderer that stands in it, fonts compared by hash and probe texts pixel by
                                     pixel; another one is refused unless the caller accepts the change
    a published PIXEL folder         text_renderer_config.json, which says size, patches and font but not the layout
    a published PIXAR folder         PIXAR's own renderer, in patches of the model's size; the font is not in it
    anything else                    the default renderer, with a warning

The published file names a class, and the same class draws running text for PIXEL and pairs of letters for PIXEL-M4 and
PIXEL-bigrams (specs/pixel.md, sections 1.1 and 1.4); the list of fonts in it is that of the machine that wrote it. So
neither is asked: strips are drawn as PIXEL's unless the name of the model has "m4" or "bigrams" in it, the log says
which, and `render.layout` decides otherwise.

Models that write strips from left to right have a file of their own for the rest, `infer/pixar.py`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from infer.load import PIXEL_MODELS, choose_device, choose_dtype, read
from kernels import choose_ops
from pixelcore.checkpoint import build_model
from pixelcore.config import PixarConfig, PixarTrunkConfig, ViTConfig
from pixelcore.convert import text_renderer
from pixelcore.errors import UserError
from pixelcore.models.heads import ViTTask
from pixelcore.models.vit_mae import ViTMAE
from pixelcore.stored import Stored
from render import RenderConfig, Renderer, RenderError, Strip
from render.config import NAMED, points
from render.renderer import changes

_BIGRAMS = re.compile(r"(?<![a-z0-9])m4(?![a-z0-9])|bigram", re.I)
_DENSEST = 64  # characters in a patch: no script comes near, so a text with more cannot fit
_LISTED = 3  # differences of two renderers that an error names

_log = logging.getLogger(__name__)


class LoadedPixels(NamedTuple):
    """A model in eval mode, the renderer of its strips, and the record they were read from."""

    model: ViTMAE | ViTTask
    renderer: Renderer
    stored: Stored

    @property
    def mae(self) -> ViTMAE:
        """The model where it can paint. Raises UserError for one that was fine-tuned and has no decoder any more."""
        if not isinstance(self.model, ViTMAE):
            raise UserError(
                f"{self.stored.path}: a {self.stored.config.kind} model paints nothing: give a vit_mae model"
            )
        return self.model


def load_pixels(
    path: str | Path | Stored | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    ops: str = "auto",
    fonts: Sequence[str | Path] = (),
    render: Mapping[str, Any] | None = None,
    accept_changed: bool = False,
    kinds: Sequence[str] = PIXEL_MODELS,
) -> LoadedPixels:
    """Read a model of strips and its renderer.

    path, device, dtype, ops: as of `infer.load`; None is the newest run of a model of these kinds. fonts: instead of
    those that the model names, as where they lie elsewhere on this machine. render: other changes of the render
    configuration, by field. accept_changed: go on although strips are then drawn otherwise than those that the model
    has seen. Of a published classifier that does not say how it pools, only the encoder is of use.
    Raises UserError where something is missing, damaged or does not fit, and for a decoder of tokens.
    """
    chosen_device = choose_device(device)
    chosen_ops = choose_ops(chosen_device, ops)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    stored = read(path, kinds=kinds)
    renderer = renderer_of(stored, fonts=fonts, render=render, accept_changed=accept_changed)
    poolings = stored.details.get("poolings", ())
    assert isinstance(poolings, tuple)
    pooling = str(poolings[0]).replace("<heads>", "1") if poolings else None
    model = build_model(stored, chosen_device, chosen_dtype, chosen_ops, pooling)
    assert isinstance(model, ViTMAE | ViTTask)
    return LoadedPixels(model, renderer, stored)


# ------------------------------------------------------------------ the renderer


def renderer_of(
    stored: Stored,
    *,
    fonts: Sequence[str | Path] = (),
    render: Mapping[str, Any] | None = None,
    accept_changed: bool = False,
) -> Renderer:
    """The renderer of a model of strips, as the head of this file says. Raises UserError where there is none that fits.

    fonts, render, accept_changed: as of `load_pixels`.
    """
    changed = dict(render or {}) | ({"fonts": [str(font) for font in fonts]} if fonts else {})
    where = str(stored.path)
    own = stored.renderer
    published = stored.details.get("text_renderer")
    try:
        if own is not None:
            renderer = Renderer(RenderConfig.from_dict({**own["config"], **changed}))
        elif isinstance(published, Mapping):
            renderer = Renderer(_published(stored, published, changed))
        elif isinstance(stored.config, PixarTrunkConfig):
            renderer = Renderer(_of_pixar(stored, stored.config, changed))
        else:
            _log.warning(
                "%s does not say how its strips were drawn: using the default renderer; --set render.x=v changes it",
                where,
            )
            renderer = Renderer(RenderConfig.from_dict(changed))
    except (RenderError, OSError) as cause:
        name = "--font FILE" if "font" in str(cause) else "--set render.FIELD=VALUE"
        raise UserError(f"{where}: its strips cannot be drawn: {cause}; {name} says otherwise") from cause
    _check_fits(stored, renderer.config)
    if own is not None:
        # texts that prove a renderer are cut at the longest strip, so both are drawn with the same limit
        limit = own["config"]["max_patches"]
        same = renderer.config.max_patches == limit
        drawn_alike = renderer if same else Renderer(renderer.config.replace(max_patches=limit))
        check_renderer(own["identity"], drawn_alike, accept_changed, where)
    return renderer


def check_renderer(identity: dict[str, Any], renderer: Renderer, accept_changed: bool, where: str) -> None:
    """Refuse strips that are drawn otherwise than those that a model has seen, unless the change is accepted.

    identity: what `Renderer.identity` said then. Raises UserError naming the differences. How long a strip may be is no
    difference, but the drawings that identify a renderer are cut by it.
    """
    alike = Renderer(renderer.config.replace(max_patches=identity["config"]["max_patches"]))
    found = changes(identity, alike.identity())
    if not found:
        return
    if not accept_changed:
        more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise UserError(
            f"{where}: the model has seen strips of another renderer ({'; '.join(found[:_LISTED])}{more}): draw them "
            "alike, or --set render.accept_changed=true"
        )
    _log.warning("%s: strips are drawn otherwise than those that the model has seen: %s", where, "; ".join(found))


def _published(stored: Stored, table: Mapping[str, Any], changed: Mapping[str, Any]) -> RenderConfig:
    """What a published text_renderer_config.json says, completed by the named configuration of its layout."""
    file = stored.path / text_renderer.FILE
    named = "pixel-m4" if _BIGRAMS.search(f"{stored.name} {stored.path.resolve().name}") else "pixel"
    layout = changed.get("layout")
    if layout is None:
        _log.info(
            "%s: strips in the layout %s, by the model's name: --set render.layout=%s for the other one",
            stored.path,
            *(("continuous", "bigrams") if named == "pixel" else ("bigrams", "continuous")),
        )
    elif layout in ("bigrams", "adaptive"):
        named = "pixel-m4" if layout == "bigrams" else "default"
    else:
        named = "pixel"
    patch = _whole_number(table, "pixels_per_patch", 16, file)
    size = points(_number(table, "font_size", 8, file), _number(table, "dpi", 120, file))
    found: dict[str, Any] = dict(NAMED[named]) | {
        "height": patch,
        "patch_width": patch,
        "size": size,
        "max_patches": _whole_number(table, "max_seq_length", 529, file),
        "color": "rgb" if table.get("rgb") is True else "grey",
        "fonts": _published_fonts(stored, table, changed),
    }
    return RenderConfig.from_dict({**found, **changed})


def _of_pixar(stored: Stored, model: PixarTrunkConfig, changed: Mapping[str, Any]) -> RenderConfig:
    """PIXAR's renderer in patches of this model; what its own folder does not say. Source: specs/pixar.md, 1.1."""
    if "fonts" not in changed:
        _log.warning(
            "%s does not say how its strips were drawn: drawing them as PIXAR's, in the built-in font, which the model "
            "may never have seen; --font FILE names the right one",
            stored.path,
        )
    of_numbers = isinstance(model, PixarConfig) and model.head == "regression"
    colors = {1: "grey", 3: "rgb"}
    fitting: dict[str, Any] = {
        "height": model.patch_height,
        "patch_width": model.patch_width,
        "max_patches": model.max_patches,
        "color": colors[model.num_channels] if of_numbers else "binary",
    }
    return RenderConfig.named("pixar", **{**fitting, **changed})


def _published_fonts(stored: Stored, table: Mapping[str, Any], changed: Mapping[str, Any]) -> list[str]:
    name = table.get("font_file")
    if "fonts" in changed:
        return list(changed["fonts"])
    if isinstance(name, str) and (stored.path / name).is_file():
        return [str(stored.path / name)]
    _log.warning(
        "%s: the font of its strips, %s, is not there: drawing with the built-in one, which the model has never seen; "
        "--font FILE names the right one",
        stored.path,
        name or "which its files do not name",
    )
    return []


def _number(table: Mapping[str, Any], key: str, default: float, file: Path) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{file}: {key} = {value!r} must be a positive number: restore the file")
    return value


def _whole_number(table: Mapping[str, Any], key: str, default: int, file: Path) -> int:
    value = _number(table, key, default, file)
    if value != int(value):
        raise UserError(f"{file}: {key} = {value!r} must be a whole number: restore the file")
    return int(value)


def _check_fits(stored: Stored, config: RenderConfig) -> None:
    model = stored.config
    assert isinstance(model, ViTConfig | PixarTrunkConfig)
    square = isinstance(model, ViTConfig)
    rows, width = (model.patch_size, model.patch_size) if square else (model.patch_height, model.patch_width)
    if (config.height, config.patch_width) != (rows, width):
        raise UserError(
            f"{stored.path}: strips of {config.height} rows in patches {config.patch_width} wide, and the model reads "
            f"patches of {rows} x {width}: --set render.height={rows} --set render.patch_width={width}"
        )
    if config.channels > model.num_channels:
        raise UserError(f"{stored.path}: coloured strips, and the model reads grey ones: --set render.color=grey")


# ------------------------------------------------------------------ strips


def draw(renderer: Renderer, config: ViTConfig, text: str | list[str], what: str = "the text") -> Strip:
    """A text, or the words of one, as a strip that the model can read whole.

    what: names the text in errors. Raises UserError for a text without ink, and for one that the model's table of
    positions has no place for.
    """
    return draw_within(renderer, longest_strip(renderer, config), text, what)


def draw_within(renderer: Renderer, room: int, text: str | list[str], what: str = "the text") -> Strip:
    """The same for a model with positions for `room` patches."""
    if not (text.strip() if isinstance(text, str) else text):
        raise UserError(f"{what} is empty: give at least one character that is not a space")
    if isinstance(text, list) and not all(map(str.strip, text)):
        raise UserError(f"{what}: one of its words is empty: leave it out")
    too_long = f"more than the {room} patches that the model has positions for: shorten it"
    if len(text) > _DENSEST * room:
        raise UserError(f"{what} has {len(text)} {'characters' if isinstance(text, str) else 'words'}, {too_long}")
    try:
        # drawn with more room than there is: of a strip that was cut, the layouts do not all say so
        strip = renderer(text, _DENSEST * room)
    except RenderError as cause:
        raise UserError(f"{what} cannot be drawn: {cause}") from cause
    if strip.num_patches > room:
        raise UserError(f"{what} needs {strip.num_patches} patches, {too_long}")
    if not (np.delete(strip.patches, list(strip.separators), axis=0) < 255).any():
        raise UserError(f"{what} has no ink: give at least one character that can be seen")
    if strip.missing_glyphs:
        missing = ", ".join(f"U+{ord(character):04X}" for character in strip.missing_glyphs)
        _log.warning("%s: no font has %s", what, missing)
    return strip


def longest_strip(renderer: Renderer, config: ViTConfig) -> int:
    """Patches that a strip may have: the table of positions, or what the renderer allows where the table stretches."""
    if config.interpolate_positions:
        return max(config.num_patches, renderer.config.max_patches)
    return config.num_patches


def patch_values(patches: np.ndarray) -> Tensor:
    """Patches uint8 [L, Y, X] or [L, Y, X, 3] as the model takes them, [L, A]: values by row, column, channel."""
    return torch.from_numpy(np.ascontiguousarray(patches).reshape(len(patches), -1))
