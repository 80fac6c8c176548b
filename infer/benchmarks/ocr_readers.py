"""The readers of the published evaluation: programs that read written patches as they would read a scan.

Published figures of PIXAR come from two general OCR engines and count a word as right if either reads it: an optimistic
rule, which is why it has a name of its own wherever it is printed here. The engines see the new patches alone, in the
middle of a white square 1.3 times as wide, enlarged three times with smooth edges, and look for lines on it themselves.
The word is the leading run of letters of what they read.

Both know much language and no such font, so they miss right words and mend wrong ones; our own reader, which has the
font, is the measure, and these are there to compare with published figures. The published ones were PaddleOCR 2.7.0.3
and Tesseract; `rapidocr` (extra `ocr`) runs models of PaddleOCR.

Source: specs/pixar.md, section 5.2.
"""

import io
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infer.benchmarks.word_reader import leading_letters
from infer.pixar import strip_of
from pixelcore.errors import UserError
from render import RenderConfig

SCALE = 3
MARGIN = 1.3  # side of the square, in widths of the patches
UNION = "union (PIXAR's rule)"


class OcrReader:
    """Reads the first word of written patches through a program. Raises UserError if it is not installed."""

    def __init__(self, name: str, config: RenderConfig) -> None:
        if name not in ENGINES:
            raise UserError(f"--reader {name}: unknown; choose own, {', '.join(ENGINES)}")
        self.name = name
        self._read = ENGINES[name]()
        self._config = config

    def read(self, patches: Sequence[NDArray[np.uint8]]) -> list[str]:
        """The first word of each: patches uint8 [n, A]; "" where none is read."""
        return [leading_letters(self._read(canvas(strip_of(one, self._config))).strip()) for one in patches]


def canvas(strip: NDArray[np.uint8]) -> Image.Image:
    """A strip [height, width] (or [.., 3]) as the engines are shown it; grey."""
    line = Image.fromarray(strip).convert("L")
    side = int(MARGIN * max(line.size))
    square = Image.new("L", (side, side), 255)
    square.paste(line, ((side - line.width) // 2, (side - line.height) // 2))
    return square.resize((side * SCALE, side * SCALE), Image.Resampling.BICUBIC)


def _rapidocr() -> Callable[[Image.Image], str]:
    try:
        from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]
    except ImportError as cause:
        raise UserError("--reader rapidocr: is not installed: pip install 'pixelcore[ocr]'") from cause
    engine: Any = RapidOCR(params={"Global.log_level": "critical"})

    def read(page: Image.Image) -> str:
        found = engine(np.asarray(page.convert("RGB")), use_det=True, use_cls=False, use_rec=True)
        return "".join(found.txts or ())

    return read


def _tesseract() -> Callable[[Image.Image], str]:
    program = shutil.which("tesseract")
    if program is None:
        raise UserError(
            "--reader tesseract: is not on this machine: install it, such as with apt-get install tesseract-ocr"
        )

    env = os.environ | {"OMP_THREAD_LIMIT": "1"}  # its threads only wait for each other on so small a page

    def read(page: Image.Image) -> str:
        data = io.BytesIO()
        page.save(data, format="PNG")
        command = [program, "stdin", "stdout", "-l", "eng"]
        done = subprocess.run(command, input=data.getvalue(), capture_output=True, timeout=120, check=False, env=env)
        if done.returncode:
            told = done.stderr.decode(errors="replace").split("\n")[0]
            raise UserError(f"--reader tesseract: failed ({told}): is its language eng installed?")
        return done.stdout.decode(errors="replace")

    return read


ENGINES: dict[str, Callable[[], Callable[[Image.Image], str]]] = {"rapidocr": _rapidocr, "tesseract": _tesseract}
