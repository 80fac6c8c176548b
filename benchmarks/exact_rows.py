"""Rows drawn through the caches beside the same rows shaped and drawn at once: how many differ, in pixels or in spans.

    python -m benchmarks.exact_rows

Paragraphs of six novels in six fonts and configurations, then lines of SIB-200 in eight languages with seven fonts.
"""

import gzip
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.reading import CHAIN, SHARED, sib200
from render import RenderConfig, Renderer
from render.pieces import line_of
from render.strip import Draft, Geometry

_CASES = [
    ("pixel", "noto/NotoSans-Regular.ttf"),
    ("pixel", "dejavu/DejaVuSans.ttf"),
    ("pixar", "pixeloid/PixeloidSans-mLxMm.ttf"),
    ("pixar", "press-start-2p/PressStart2P-Regular.ttf"),
    ("pixel", "builtin"),
    ("pixar", "builtin"),
]
_LANGUAGES = ["jpn_Jpan", "zho_Hans", "kor_Hang", "ukr_Cyrl", "hin_Deva", "tam_Taml", "tur_Latn", "deu_Latn"]


def num_different(config: RenderConfig, lines: Iterable[str]) -> tuple[int, int]:
    """How many lines there are, and of how many the pixels or the spans differ."""
    through, at_once, pad = Renderer(config), Renderer(config), config.pad
    geometry = Geometry(config.height, config.patch_width, config.channels)
    lines = list(lines)
    different = 0
    for line in lines:
        draft = Draft(geometry, 1 << 30, clips=True)
        draft.end = draft.edge(draft.add(line_of([at_once.setter.draw(line, 0, None)]), pad) + pad)
        one, other = through(line), draft.finish((len(line),))
        same = one.columns.tobytes() == other.columns.tobytes() and one.char_spans.tolist() == other.char_spans.tolist()
        different += not same
    return len(lines), different


def paragraphs(num_works: int = 6) -> list[str]:
    """Up to 1,200 characters of each of 300 paragraphs of each work."""
    found = []
    for file in sorted((SHARED / "data/text/en_books").iterdir())[:num_works]:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
        found += [line.strip()[:1200] for line in text.split("\n")[100:400] if line.strip()]
    return found


def main() -> int:
    novels = paragraphs()
    for name, font in _CASES:
        path = font if font == "builtin" else str(SHARED / "fonts" / font)
        lines, different = num_different(RenderConfig.named(name, fonts=[path], max_patches=3000), novels)
        print(f"{name:8}{font:44}{lines:6} rows {different:4} differ")
    chain = [str(SHARED / "fonts" / font) for font in CHAIN]
    for language in _LANGUAGES:
        config = RenderConfig.named("pixel", fonts=chain, max_patches=3000)
        lines, different = num_different(config, sib200(language, 400))
        print(f"{'pixel':8}{language:44}{lines:6} rows {different:4} differ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
