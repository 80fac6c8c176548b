"""Independent readers: programs that know nothing of our fonts and read a strip as they would read a scan.

They answer another question than the reader of this package does. Ours says what the pixels are; these say whether
somebody who has never seen the font would read the same. They do not know letters of 8 rows, so a strip is enlarged
three times with smooth edges and gets a margin first, which serves them best (nearest-neighbour enlargement makes four
times the errors). Both bring models of language along: what they read is better than the pixels where these are
guessable, and worse where they are not.

`rapidocr` (extra `ocr`; English, Chinese, Japanese) runs in the process; `tesseract` is a program that has to be
installed, with its languages.
"""

import io
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from render.errors import RenderError

SCALE = 3
MARGIN = 12  # px around the enlarged strip
_BLACK = 0.8  # mean ink of a separator patch


def independent(name: str, patch_width: int, language: str = "eng") -> Callable[[np.ndarray], str]:
    """A reader by name: from uint8 [height, width] (or [..., 3]) to a line of text.

    patch_width: px, by which the end patch is found and cut off; language: of tesseract, such as `hin` or `chi_sim`.
    Raises RenderError if the name is unknown or what it stands for is not installed.
    """
    if name not in READERS:
        raise RenderError(f"unknown reader {name!r}; there are {', '.join(READERS)}")
    read = READERS[name](language)
    return lambda pixels: read(enlarged(pixels, patch_width))


def enlarged(pixels: np.ndarray, patch_width: int) -> Image.Image:
    """A strip without its end patch, three times as large, with a white margin; grey."""
    if pixels.ndim == 3:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    count = pixels.shape[1] // patch_width
    ink = 255 - pixels[:, : count * patch_width].reshape(len(pixels), count, patch_width)
    black = np.flatnonzero(ink.mean((0, 2)) > 255 * _BLACK)
    end = int(black[0]) * patch_width if len(black) else pixels.shape[1]
    inked = np.flatnonzero((pixels[:, :end] < 128).any(0))
    line = pixels[:, : min(end, int(inked[-1]) + 3) if len(inked) else 1]
    large = Image.fromarray(line).resize((line.shape[1] * SCALE, line.shape[0] * SCALE), Image.Resampling.BICUBIC)
    page = Image.new("L", (large.width + 2 * MARGIN, large.height + 2 * MARGIN), 255)
    page.paste(large, (MARGIN, MARGIN))
    return page


def _rapidocr(language: str) -> Callable[[Image.Image], str]:
    try:
        from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]
    except ImportError as cause:
        raise RenderError("rapidocr is not installed: pip install 'pixelcore[ocr]'") from cause
    engine: Any = RapidOCR(params={"Global.log_level": "error"})

    def read(page: Image.Image) -> str:
        found = engine(np.asarray(page.convert("RGB")), use_det=False, use_cls=False, use_rec=True)
        return " ".join(found.txts or ())

    return read


def _tesseract(language: str) -> Callable[[Image.Image], str]:
    program = shutil.which("tesseract")
    if program is None:
        raise RenderError("tesseract is not on this machine: install it, such as with apt-get install tesseract-ocr")

    def read(page: Image.Image) -> str:
        data = io.BytesIO()
        page.save(data, format="PNG")
        # 7 = the picture is one line of text
        command = [program, "stdin", "stdout", "--psm", "7", "-l", language]
        done = subprocess.run(command, input=data.getvalue(), capture_output=True, timeout=120, check=False)
        if done.returncode:
            told = done.stderr.decode(errors="replace").split("\n")[0]
            raise RenderError(f"tesseract failed ({told}); is its language {language!r} installed?")
        return done.stdout.decode(errors="replace").strip()

    return read


READERS: dict[str, Callable[[str], Callable[[Image.Image], str]]] = {"rapidocr": _rapidocr, "tesseract": _tesseract}
