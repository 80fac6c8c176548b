"""Strips as pictures that people can look at, and back.

A strip is one row of patches, hundreds of them, and nothing shows a picture 8,464 pixels wide and 16 high. So a picture
folds the strip like a line of text into rows of whole patches, and enlarges each pixel by a whole number. Both can be
undone: a PNG written here carries how it was made in a text chunk, `pixelcore-render`, and `strip_pixels_of` returns
the strip's own pixels, byte for byte. The chunk is JSON: `config` and `fonts` (what drew it), `num_patches`, `columns`
(patches in a row of the picture), `scale`, `grid`, and `texts` where the writer gave them.

A picture with a grid is for people only. It draws lines between the patches and colours around them, which cannot be
told from ink afterwards: blue lines between patches, a green bar over the first patch of each word, red around
separators.
"""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from render.config import RenderConfig
from render.errors import RenderError
from render.font import PixelFont
from render.renderer import Renderer
from render.strip import Strip

CHUNK = "pixelcore-render"
SCALE = 3  # unless asked otherwise: a strip of 16 rows is then as high as text in print
_ROW_PX = 640  # of a strip in a row of the picture: 40 patches of 16 columns
_LONGEST_TEXT = 100_000  # characters that a picture carries along

_PAPER, _TABLE, _LINE = (255, 255, 255), (238, 238, 242), (170, 195, 235)
_WORD, _SEPARATOR, _LABEL = (30, 150, 80), (215, 40, 40), (60, 60, 70)
_GAP = 4  # px between rows of a picture with a grid, and around a label
_LABEL_SCALE = 2


def default_columns(patch_width: int) -> int:
    """Patches in a row of a picture, unless asked otherwise."""
    return max(1, _ROW_PX // patch_width)


def to_image(strip: Strip, *, columns: int | None = None, scale: int = 1, grid: bool = False) -> Image.Image:
    """A strip folded into rows; grey or RGB, with a grid always RGB.

    columns: patches in a row, default 640 pixels' worth; scale: pixels of the picture for one of the strip, each way;
    grid: lines between patches, words and separators marked. Raises RenderError for a number below 1.
    """
    columns = _row_length(strip, columns)
    if scale < 1:
        raise RenderError(f"scale = {scale}; a picture is enlarged by a whole number from 1 up")
    return _with_grid(strip, columns, scale) if grid else Image.fromarray(_folded(strip.patches, columns, scale))


def save(
    path: str | Path,
    strip: Strip,
    renderer: Renderer,
    *,
    columns: int | None = None,
    scale: int = SCALE,
    grid: bool = False,
    texts: Sequence[str] | None = None,
) -> None:
    """Write a strip as PNG, with the chunk that `strip_pixels_of` needs. renderer: the one that drew the strip.

    texts: what was drawn, to be kept in the picture; left out where longer than 100,000 characters. Raises RenderError
    if the file cannot be written.
    """
    metadata: dict[str, Any] = {
        "config": renderer.config.to_dict(),
        "fonts": [{"name": face.name, "sha256": face.sha256} for face in renderer.setter.chain.faces],
        "num_patches": strip.num_patches,
        "columns": _row_length(strip, columns),
        "scale": scale,
        "grid": grid,
    }
    if texts is not None and sum(map(len, texts)) <= _LONGEST_TEXT:
        metadata["texts"] = list(texts)
    write_png(path, to_image(strip, columns=columns, scale=scale, grid=grid), metadata)


def write_png(path: str | Path, image: Image.Image, metadata: dict[str, Any] | None = None) -> None:
    """Write a picture whole or not at all. Raises RenderError naming the path."""
    path = Path(path)
    chunks = PngImagePlugin.PngInfo()
    if metadata is not None:
        chunks.add_text(CHUNK, json.dumps(metadata))
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True, pnginfo=chunks)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data.getvalue())
        os.replace(beside, path)
    except OSError as cause:
        beside.unlink(missing_ok=True)
        raise RenderError(f"{path}: cannot be written ({cause.strerror}); choose another place") from cause


def _row_length(strip: Strip, columns: int | None) -> int:
    columns = default_columns(strip.patches.shape[2]) if columns is None else columns
    if columns < 1:
        raise RenderError(f"columns = {columns}; a picture has at least one patch in a row")
    return min(columns, strip.num_patches)


def _folded(patches: np.ndarray, columns: int, scale: int) -> np.ndarray:
    """Patches [N, height, width] (or [..., 3]) as rows of a picture; paper where the last row is not full."""
    num_patches, height, width, *channels = patches.shape
    rows = -(-num_patches // columns)
    cells = np.full((rows * columns, height, width, *channels), 255, np.uint8)
    cells[:num_patches] = patches
    cells = cells.reshape(rows, columns, height, width, *channels).swapaxes(1, 2)
    folded = cells.reshape(rows * height, columns * width, *channels)
    return np.repeat(np.repeat(folded, scale, 0), scale, 1)


# ---- for people only -------------------------------------------------------------------------------------------------


def _with_grid(strip: Strip, columns: int, scale: int) -> Image.Image:
    patches = strip.patches
    if patches.ndim == 3:
        patches = np.repeat(patches[..., None], 3, 3)
    num_patches, height, width, _ = patches.shape
    bar = max(2, scale)
    step_x, step_y = width * scale + 1, bar + height * scale + 1 + _GAP
    rows = -(-num_patches // columns)
    canvas = np.empty((rows * step_y - _GAP + 1, columns * step_x + 1, 3), np.uint8)
    canvas[:] = _TABLE
    begins = set() if strip.word_starts is None else set(strip.word_starts[:-1].tolist())
    # separators last, so that their frames are not drawn over by their neighbours'
    for index in sorted(range(num_patches), key=lambda patch: patch in strip.separators):
        y, x = index // columns * step_y, index % columns * step_x
        is_separator = index in strip.separators
        if is_separator or index in begins:
            canvas[y : y + bar, x + 1 : x + step_x] = _SEPARATOR if is_separator else _WORD
        canvas[y + bar : y + bar + height * scale + 2, x : x + step_x + 1] = _SEPARATOR if is_separator else _LINE
        cell = np.repeat(np.repeat(patches[index], scale, 0), scale, 1)
        canvas[y + bar + 1 : y + bar + 1 + height * scale, x + 1 : x + step_x] = cell
    return Image.fromarray(canvas)


def stacked(
    strips: Sequence[tuple[str, Strip]], *, columns: int | None = None, scale: int = SCALE, grid: bool = False
) -> Image.Image:
    """Several strips in one picture, one under another, each with a label over it and its number of patches."""
    pictures = [to_image(strip, columns=columns, scale=scale, grid=grid) for _, strip in strips]
    labels = [_label(f"{label}: {patches_of(strip)}") for label, strip in strips]
    width = max(part.width for part in pictures + labels) + 2 * _GAP
    height = sum(part.height + _GAP for part in pictures + labels) + _GAP
    canvas = Image.new("RGB", (width, height), _PAPER if grid else _TABLE)
    y = _GAP
    for label, picture in zip(labels, pictures):
        canvas.paste(_LABEL, (_GAP, y), label)
        y += label.height + _GAP
        canvas.paste(picture, (_GAP, y))
        y += picture.height + _GAP
    return canvas


def patches_of(strip: Strip) -> str:
    """`1 patch`, `12 patches`; the end patch is counted."""
    return f"{strip.num_patches} patch{'es' * (strip.num_patches != 1)}"


def _label(text: str) -> Image.Image:
    """A line in the font of this project, as a mask: 255 = ink."""
    font = PixelFont(1)
    glyphs = font.shape(text, None, False)
    rows = np.zeros((font.ascent + font.descent, sum(glyph.advance for glyph in glyphs)), np.uint8)
    x = 0
    for glyph in glyphs:
        ink = font.bitmap(glyph.id)
        left, top = x + glyph.x + ink.left, font.ascent - glyph.y - ink.top
        room = rows[top : top + ink.coverage.shape[0], left : left + ink.coverage.shape[1]]
        np.maximum(room, ink.coverage, out=room)
        x += glyph.advance
    return Image.fromarray(np.repeat(np.repeat(rows, _LABEL_SCALE, 0), _LABEL_SCALE, 1))


# ---- and back --------------------------------------------------------------------------------------------------------


def strip_pixels_of(path: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The strip that a picture shows, and the JSON of its chunk.

    Returns uint8 [height, num_patches * patch_width] (or [..., 3] for rgb), equal to `Strip.pixels`. Raises RenderError
    for what is not a picture of ours, has a grid, or was changed since: cropped, resampled, drawn on between pixels.
    """
    path = Path(path)
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            chunk = opened.info.get(CHUNK)
            picture = np.asarray(opened if opened.mode in ("L", "RGB") else opened.convert("L"))
    except FileNotFoundError as cause:
        raise RenderError(f"{path}: no such file; give a PNG of `python -m render --out`") from cause
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        raise RenderError(f"{path}: cannot be read as PNG ({' '.join(str(cause).split())})") from cause
    if not isinstance(chunk, str):
        raise RenderError(f"{path}: no {CHUNK} chunk, so how it was folded is unknown; write it with --out, not a copy")
    metadata, config, num_patches, columns, scale = _read_chunk(path, chunk)
    if metadata["grid"]:
        raise RenderError(f"{path}: has a grid drawn over it, which cannot be taken off; write it without --grid")
    rows = -(-num_patches // columns)
    channels = picture.shape[2:]
    expected = (rows * config.height * scale, columns * config.patch_width * scale)
    if picture.shape[:2] != expected or channels != ((3,) if config.channels == 3 else ()):
        have, want = ("x".join(map(str, shape[1::-1])) for shape in (picture.shape, expected))
        raise RenderError(f"{path}: is {have} px {'grey' if not channels else 'RGB'} where its {CHUNK} says {want}")
    folded = picture[::scale, ::scale]
    if not np.array_equal(np.repeat(np.repeat(folded, scale, 0), scale, 1), picture):
        raise RenderError(f"{path}: was changed after it was written, pixels are not squares of {scale}; write it anew")
    cells = folded.reshape(rows, config.height, columns, config.patch_width, *channels).swapaxes(1, 2)
    patches = cells.reshape(rows * columns, config.height, config.patch_width, *channels)[:num_patches]
    pixels = patches.swapaxes(0, 1).reshape(config.height, num_patches * config.patch_width, *channels)
    return np.ascontiguousarray(pixels), metadata


def _read_chunk(path: Path, chunk: str) -> tuple[dict[str, Any], RenderConfig, int, int, int]:
    try:
        metadata = json.loads(chunk)
        numbers = [metadata[name] for name in ("num_patches", "columns", "scale")]
        config = RenderConfig.from_dict(metadata["config"])
        damaged = not isinstance(metadata["grid"], bool) or any(type(n) is not int or n < 1 for n in numbers)
    except (ValueError, KeyError, TypeError) as cause:
        raise RenderError(f"{path}: its {CHUNK} chunk cannot be used ({cause}); write the picture anew") from cause
    if damaged:
        raise RenderError(f"{path}: its {CHUNK} chunk has numbers that no picture can have; write the picture anew")
    return metadata, config, *numbers
