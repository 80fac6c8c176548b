"""Reading pictures of text: from a PNG to what it says, by the font's own reader or by an independent one.

A picture that `python -m render --out` wrote says in itself how it was drawn and folded. Any other PNG is taken as one
strip, in the configuration that the caller names. What comes back says how far it can be trusted: whether the renderer
would draw exactly these pixels, how much of the ink the text leaves unexplained, and how often something that is no
text at all would pass for readable at that threshold.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixelcore.errors import UserError
from render import RenderConfig, RenderError
from render.ocr import READERS, independent
from render.picture import CHUNK, strip_pixels_of
from render.reader import FALSE_READABLE, Character, Reader

BUILTIN = "builtin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadText:
    """What was read. Of an independent reader only the texts are known."""

    reader: str
    texts: tuple[str, ...]  # two for a pair
    readable: bool | None = None
    exact: bool | None = None  # the renderer draws these texts as exactly these pixels
    confidence: float | None = None  # of the line, 0 to 1
    characters: tuple[Character, ...] = ()
    false_readable: dict[str, float] = dataclasses.field(default_factory=dict)  # of non-text, by kind

    @property
    def text(self) -> str:
        """The text; of a pair, both with a line break between them."""
        return "\n".join(self.texts)


def read(
    picture: str | Path | np.ndarray,
    config: RenderConfig | None = None,
    *,
    changes: dict[str, Any] | None = None,
    scripts: Sequence[str] | None = None,
    reader: str = BUILTIN,
) -> ReadText:
    """Read a PNG file, or a strip uint8 [height, width] (or [..., 3]).

    config: how it was drawn; None = as the picture itself says, else the default. changes: of that configuration, by
    field. scripts: ISO 15924 codes of the scripts that may occur; None = those that the fonts are for. reader:
    `builtin`, `rapidocr` or `tesseract`. Raises UserError where something is missing, damaged or does not fit.
    """
    if reader != BUILTIN and reader not in READERS:
        raise UserError(f"reader {reader}: unknown; choose {', '.join([BUILTIN, *READERS])}")
    if reader != BUILTIN and scripts is not None:
        raise UserError(f"scripts are for the builtin reader: leave them out, or the reader {reader}")
    try:
        if isinstance(picture, np.ndarray):
            pixels, own = picture, None
        else:
            pixels, own = _open(Path(picture))
        table = (config or own or RenderConfig()).to_dict()
        used = RenderConfig.from_dict({**table, **(changes or {})})
        if reader != BUILTIN:
            return ReadText(reader=reader, texts=(independent(reader, used.patch_width)(pixels),))
        found = Reader(used, scripts=scripts)(pixels)
    except RenderError as cause:
        where = "" if isinstance(picture, np.ndarray) or str(cause).startswith(str(picture)) else f"{picture}: "
        raise UserError(f"{where}{cause}") from cause
    return ReadText(
        reader=reader,
        texts=found.texts,
        readable=found.readable,
        exact=found.exact,
        confidence=found.confidence,
        characters=found.characters,
        false_readable=dict(FALSE_READABLE),
    )


def _open(path: Path) -> tuple[np.ndarray, RenderConfig | None]:
    """Pixels of a picture, and the configuration that it carries."""
    if path.is_dir():
        raise RenderError(f"{path}: this is a folder; name a PNG file")
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            ours = CHUNK in opened.info
            pixels = None if ours else np.array(opened.convert("RGB" if opened.mode in ("RGB", "RGBA", "P") else "L"))
    except FileNotFoundError as cause:
        raise RenderError(f"{path}: no such file; name a PNG") from cause
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        raise RenderError(f"{path}: cannot be read as PNG ({' '.join(str(cause).split())})") from cause
    if pixels is not None:
        return pixels, None
    pixels, metadata = strip_pixels_of(path)
    return pixels, RenderConfig.from_dict(metadata["config"])


def as_report(found: ReadText) -> dict[str, Any]:
    """Plain values, for JSON."""
    table = dataclasses.asdict(found) | {"text": found.text}
    if found.reader != BUILTIN:
        return {"reader": found.reader, "text": found.text, "texts": list(found.texts)}
    table["confidence"] = round(found.confidence or 0.0, 4)
    table["characters"] = [
        {"text": c.text, "column": c.column, "confidence": round(c.confidence, 4)} for c in found.characters
    ]
    return table
