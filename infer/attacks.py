"""What can happen to a prompt before a model reads it: attacks on its text, on its pixels, and on how it is drawn.

    confusables   characters become others that look like them (infer/confusables.py)
    flips         each pixel turns from ink to paper or back with a chance: noise
    rows          each of the strip's rows is dropped, which leaves paper, with a chance: a worn print head
    columns       the same of the columns
    shift         the picture moves by whole pixels; what leaves it is lost, and paper comes in
    blur          a Gaussian or a box; of a strip in black and white, what is darker than the middle is ink
    font, size    the same text in another font or another size
    blank         paper alone: what the prompt is worth at all

All of them act on the prompt, and none on what a model should write: that stays as it is drawn behind the clean prompt.
A prompt that grows is cut to the context on its left. Everything is drawn from a seed and the number of the item: the
same attack on the same item is the same on every machine, and a higher ratio hits what a lower one hit, and more.

An attack on pixels comes after the prompt was aligned to the patch edge, as damage does; text in another font or size
is aligned like any other. Source: specs/pixar.md, section 6, for the confusables and the ratios; the others are ours,
with arXiv:1903.12261 (corruptions of pictures) in mind.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infer.confusables import Confused, Strata, confuse
from infer.pixar import patches_of, strip_of
from pixelcore.errors import UserError
from render import RenderConfig, Renderer, RenderError
from render.prompt import align_prompt

RATIOS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # as published
BY_RATIO = ("confusables", "flips", "rows", "columns")
BLURS = ("gaussian", "box")
_PAPER = 255
_DENSEST = 64  # characters in a patch: no script comes near
_REACH = 3  # standard deviations of a Gaussian that count

Pixels = NDArray[np.uint8]  # [height, width] or [height, width, 3]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """name, strength: what it is called in tables. Of the rest at most one is there: what it does to a text or to the
    pixels of the item of a number, or the renderer that draws the text instead."""

    name: str
    strength: str
    on_text: Callable[[str, int], Confused] | None = None
    on_pixels: Callable[[Pixels, int], Pixels] | None = None
    renderer: Renderer | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.strength}".strip()


class AttackedPrompt(NamedTuple):
    """patches: uint8 [P, A]. confused: what happened to the text, of an attack on it. was_cut: it was too long then."""

    patches: NDArray[np.uint8]
    confused: Confused | None
    was_cut: bool


def attacked_prompt(
    attack: Attack, renderer: Renderer, text: str, index: int, channels: int, most: int
) -> AttackedPrompt:
    """The prompt that a model gets to read instead of this text. index: of the item. channels: of the model's patches;
    most: how many of them a prompt may have.

    Unlike `infer.pixar.prompt_patches` this draws what no font has, as boxes: that is one of the attacks.
    Raises UserError for a text that cannot be drawn.
    """
    confused = None if attack.on_text is None else attack.on_text(text, index)
    said = text if confused is None else confused.text
    config = renderer.config
    patches = drawn_prompt(attack.renderer or renderer, said, channels)
    was_cut = len(patches) > most
    patches = patches[-most:]
    if attack.on_pixels is not None:
        patches = patches_of(attack.on_pixels(strip_of(patches, config), index), config.patch_width, channels)
    return AttackedPrompt(patches, confused, was_cut)


def drawn_prompt(renderer: Renderer, text: str, channels: int) -> NDArray[np.uint8]:
    """A text as a prompt, uint8 [P, A], whatever the fonts have of it and however long it is."""
    width = renderer.config.patch_width
    try:
        strip = renderer(text, 8 + _DENSEST * len(text))
    except RenderError as cause:
        raise UserError(f"the attacked text {text!r} cannot be drawn: {cause}") from cause
    pixels = align_prompt(strip) if renderer.config.layout == "continuous" else strip.pixels[:, :-width]
    return patches_of(pixels, width, channels)


# ------------------------------------------------------------------ the attacks


def confusables(strata: Strata, ratio: float, seed: int, stratum: str | None = None) -> Attack:
    """Look-alikes, or those of one stratum, in place of characters. Raises UserError for a ratio that is no share."""
    ratio = _share(ratio)

    def on_text(text: str, index: int) -> Confused:
        return confuse(text, ratio, random.Random(f"{seed} {index}"), strata, stratum)

    name = "confusables" + (f", {stratum}" if stratum else "")
    return Attack(name=name, strength=f"{ratio:g}", on_text=on_text)


def flips(ratio: float, seed: int) -> Attack:
    """Each pixel becomes its opposite with a chance."""
    ratio = _share(ratio)

    def on_pixels(pixels: Pixels, index: int) -> Pixels:
        hit = _draw(seed, index).random(pixels.shape[:2]) < ratio
        return np.where(_like(hit, pixels), 255 - pixels, pixels).astype(np.uint8)

    return Attack(name="flips", strength=f"{ratio:g}", on_pixels=on_pixels)


def rows(ratio: float, seed: int) -> Attack:
    """Each row of the strip becomes paper with a chance."""
    return _dropped("rows", 0, ratio, seed)


def columns(ratio: float, seed: int) -> Attack:
    """Each column of the strip becomes paper with a chance."""
    return _dropped("columns", 1, ratio, seed)


def _dropped(name: str, axis: int, ratio: float, seed: int) -> Attack:
    ratio = _share(ratio)

    def on_pixels(pixels: Pixels, index: int) -> Pixels:
        hit = np.flatnonzero(_draw(seed, index).random(pixels.shape[axis]) < ratio)
        left = pixels.copy()
        left.swapaxes(0, axis)[hit] = _PAPER
        return left

    return Attack(name=name, strength=f"{ratio:g}", on_pixels=on_pixels)


def shift(right: int, down: int) -> Attack:
    """The picture moves by whole pixels; negative is left, and up."""

    def on_pixels(pixels: Pixels, index: int) -> Pixels:
        return _moved(pixels, right, down)

    return Attack(name="shift", strength=f"{right},{down}", on_pixels=on_pixels)


def blur(kind: str, size: float, config: RenderConfig) -> Attack:
    """size: standard deviation of a Gaussian, or radius of a box, in pixels. Raises UserError for what is neither.

    The middle between ink and paper decides what is ink of a binary strip; strokes of one pixel are lost to any box,
    and to a Gaussian from about 0.8 on.
    """
    if kind not in BLURS:
        raise UserError(f"--blur {kind}:{size:g}: unknown kind of blur; choose {', '.join(BLURS)}")
    if not 0 < size <= 16 or (kind == "box" and size != int(size)):
        rule = "the radius of a box is a whole number of pixels" if kind == "box" else "give a number of pixels"
        raise UserError(f"--blur {kind}:{size:g}: {rule}, more than 0 and at most 16")
    reach = int(size if kind == "box" else np.ceil(_REACH * size))
    places = np.arange(-reach, reach + 1)
    weights = np.ones(len(places)) if kind == "box" else np.exp(-(places**2) / (2 * size * size))
    weights /= weights.sum()

    def on_pixels(pixels: Pixels, index: int) -> Pixels:
        blurred = pixels.astype(np.float64)
        for axis in (0, 1):
            padding = [(reach, reach) if each == axis else (0, 0) for each in range(pixels.ndim)]
            wide = np.pad(blurred, padding, constant_values=_PAPER)
            parts = [np.take(wide, range(first, first + pixels.shape[axis]), axis) for first in range(len(weights))]
            blurred = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        if config.color == "binary":
            return np.where(blurred < _PAPER / 2, 0, _PAPER).astype(np.uint8)
        return np.rint(blurred).astype(np.uint8)

    return Attack(name="blur", strength=f"{kind}:{size:g}", on_pixels=on_pixels)


def font(file: str, renderer: Renderer) -> Attack:
    """The prompt in another font. Raises UserError for one that cannot be used, and for the same one."""
    return Attack(
        name="font", strength=file.replace("\\", "/").rpartition("/")[2], renderer=_other(renderer, fonts=[file])
    )


def size(px: float, renderer: Renderer) -> Attack:
    """The prompt in another size, of the em square in pixels. Raises UserError for one that cannot be drawn, or that
    draws the same: a font of whole pixels has few sizes."""
    return Attack(name="size", strength=f"{px:g}", renderer=_other(renderer, size=px))


def blank() -> Attack:
    """Paper in place of the prompt."""

    def on_pixels(pixels: Pixels, index: int) -> Pixels:
        return np.full_like(pixels, _PAPER)

    return Attack(name="blank", strength="", on_pixels=on_pixels)


def _other(renderer: Renderer, **changes: object) -> Renderer:
    [(field, value)] = changes.items()
    flag = f"--attack-{field.removesuffix('s')}"
    try:
        other = Renderer(RenderConfig.from_dict(renderer.config.to_dict() | changes))
    except (RenderError, OSError) as cause:
        raise UserError(f"{flag}: prompts cannot be drawn so: {cause}") from cause
    if other.identity()["probes"] == renderer.identity()["probes"]:
        raise UserError(f"{flag}: render.{field} = {value!r} draws texts as they are drawn anyway: name another")
    return other


def _share(ratio: float) -> float:
    if not 0 <= ratio <= 1:
        raise UserError(f"--ratio {ratio:g}: must be a share from 0 to 1")
    return ratio


def _draw(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, index])


def _like(mask: NDArray[np.bool_], pixels: Pixels) -> NDArray[np.bool_]:
    return mask if pixels.ndim == 2 else mask[..., None]


def _moved(pixels: Pixels, right: int, down: int) -> Pixels:
    height, width = pixels.shape[:2]
    right, down = max(-width, min(width, right)), max(-height, min(height, down))
    moved = np.full_like(pixels, _PAPER)
    moved[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = pixels[
        max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
    ]
    return moved
