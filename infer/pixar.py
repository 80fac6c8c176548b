"""From a path to a model that writes strips, ready to run, and from a prompt to the patches that it reads.

What a prompt is follows from how such a model was trained: strips are drawn from the left, and the next patch goes
where the black end patch of the prompt would stand. Running text is moved sideways first, so that the next letter
belongs exactly there (render/prompt.py). In the other layouts words or sentences stand on patch edges anyway, and the
prompt stays as it was drawn.

A model with a start vector writes from nothing, so its prompt may be empty. How strips are drawn comes from the model,
as for every model of strips (`infer/pixels.py`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from infer.load import PIXAR_MODELS, choose_device, choose_dtype, read
from infer.pixels import draw_within, renderer_of
from kernels import choose_ops
from pixelcore.checkpoint import build_model
from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar
from pixelcore.stored import Stored
from render import Reader, RenderConfig, Renderer, Strip
from render.prompt import align_prompt
from render.strip import Geometry

_LISTED = 8  # missing characters that an error names
_TRAILING = 3  # white columns between a prompt and its first new patch


class LoadedPixar(NamedTuple):
    """A model in eval mode, the renderer of its strips, and the record they were read from."""

    model: Pixar
    renderer: Renderer
    stored: Stored


def load_pixar(
    path: str | Path | Stored | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    ops: str = "auto",
    fonts: Sequence[str | Path] = (),
    render: Mapping[str, Any] | None = None,
    accept_changed: bool = False,
) -> LoadedPixar:
    """Read a model that writes strips, and its renderer.

    path, device, dtype, ops: as of `infer.load`; None is the newest run of such a model. fonts, render, accept_changed:
    as of `infer.load_pixels`. A published folder does not say how its strips were drawn: PIXAR's renderer is taken, and
    a warning says that the font is a guess unless one is given.
    Raises UserError where something is missing, damaged or does not fit, and for a model of another kind.
    """
    chosen_device = choose_device(device)
    chosen_ops = choose_ops(chosen_device, ops)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    stored = read(path, kinds=PIXAR_MODELS)
    renderer = renderer_of(stored, fonts=fonts, render=render, accept_changed=accept_changed)
    model = build_model(stored, chosen_device, chosen_dtype, chosen_ops)
    assert isinstance(model, Pixar)
    return LoadedPixar(model, renderer, stored)


# ------------------------------------------------------------------ prompts


def prompt_patches(renderer: Renderer, text: str, config: PixarConfig, what: str = "the prompt") -> NDArray[np.uint8]:
    """The patches of a text to write on from: uint8 [P, A], values by row, column, channel, without an end patch.

    At least one patch of the context is left free. what: names the text in errors.
    Raises UserError for an empty prompt of a model without a start vector, for one without ink, one that no font has a
    character for, and one that is too long. What the fonts lack besides is named in a warning.
    """
    if not text:
        if config.start_vector:
            return np.zeros((0, config.patch_values), np.uint8)
        raise UserError(
            f"{what} is empty, and the model has no start vector to write from: give at least one character that is "
            "not a space"
        )
    strip = draw_within(renderer, config.max_patches, text, what)
    missing = strip.missing_glyphs
    if missing and not {character for character in text if not character.isspace()} - missing.keys():
        named = ", ".join(f"U+{ord(character):04X}" for character in list(missing)[:_LISTED])
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise UserError(
            f"{what}: no font of the model has any of its characters ({named}{more}): write it in a script that the "
            "model was trained on, or name a font with --font FILE"
        )
    running = renderer.config.layout == "continuous"
    pixels = align_prompt(strip, _TRAILING) if running else strip.pixels[:, : -renderer.config.patch_width]
    return patches_of(pixels, renderer.config.patch_width, config.num_channels)


def patches_of(pixels: NDArray[np.uint8], patch_width: int, channels: int) -> NDArray[np.uint8]:
    """A picture of whole patches as [P, A]; grey for colour becomes equal channels."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], channels, axis=2)
    height, width, _ = pixels.shape
    cells = pixels.reshape(height, width // patch_width, patch_width, channels).swapaxes(0, 1)
    return np.ascontiguousarray(cells).reshape(width // patch_width, -1)


def strip_of(patches: NDArray[np.uint8], config: RenderConfig) -> NDArray[np.uint8]:
    """Patches [P, A] side by side: uint8 [height, width], or [height, width, 3] of three channels, as the renderer
    draws a strip and a reader takes it."""
    count, channels = len(patches), patches.shape[1] // (config.height * config.patch_width)
    cells = patches.reshape(count, config.height, config.patch_width, channels)
    pixels = cells.swapaxes(0, 1).reshape(config.height, count * config.patch_width, channels)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def as_strip(patches: NDArray[np.uint8], config: RenderConfig) -> Strip:
    """The same as a strip of the renderer, for whatever shows strips; which characters stand where is not known."""
    count, channels = len(patches), patches.shape[1] // (config.height * config.patch_width)
    cells = patches.reshape(count, config.height, config.patch_width, channels)
    columns = cells.swapaxes(1, 2).reshape(count * config.patch_width, config.height * channels)
    geometry = Geometry(config.height, config.patch_width, channels)
    return Strip(geometry, columns, [], tuple(np.flatnonzero((patches == 0).all(1)).tolist()), None, ())


def read_written(
    reader: Reader, renderer: Renderer, text: str, prompt: NDArray[np.uint8], written: NDArray[np.uint8]
) -> str:
    """What was written behind a prompt: the reader looks at the whole strip, and what begins before the first new patch
    is left out.

    text: what the prompt says. prompt, written: patches [P, A] of `prompt_patches` and of `infer.write_strip`, without
    an end patch. An empty string where there is no ink.
    """
    config = renderer.config
    pixels = strip_of(np.concatenate([prompt, written]), config)
    edge = len(prompt) * config.patch_width
    if not (pixels[:, edge:] < 128).any():
        return ""
    if config.layout == "continuous" and text:
        # back to where the renderer drew it: the reader expects a text to begin there
        moved = _first_ink(strip_of(prompt, config)) - _first_ink(renderer(text, len(prompt) + 1).pixels)
        white = np.full_like(pixels[:, : max(0, -moved)], 255)
        pixels, edge = np.concatenate([white, pixels[:, max(0, moved) :]], axis=1), edge - moved
    characters = reader(pixels).characters
    return "".join(one.text for one in characters if one.column > edge - _TRAILING).strip()


def _first_ink(pixels: NDArray[np.uint8]) -> int:
    """The first column that is not white."""
    return int((pixels < 255).reshape(len(pixels), pixels.shape[1], -1).any((0, 2)).argmax())
