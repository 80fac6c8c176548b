"""The pictures of the documentation: lines in many scripts, each in every layout.

    python -m benchmarks.gallery [--out docs/gallery]

One picture for each script, drawn by the reference fonts (looked for in $PIXELCORE_SHARED, or in shared/ beside this
repository), and one by the font of this project. `strip.png` is the strip that the guide begins with, `pair.png` two
texts in one strip, `boxes.png` what a text without any font looks like. Pictures are looked at after every change of
the renderer: what reads wrong to a person is wrong.

The lines are of our own making and say about the same in every language: writing is a picture that can be read.
"""

import argparse
import os
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from render import RenderConfig, Renderer, RenderError
from render.cli import every_layout
from render.picture import stacked, to_image, write_png

# Asked in this order; Arabic before CJK, whose digits and punctuation would be drawn otherwise
FONTS = (
    "noto/NotoSans-Regular.ttf",
    "noto/NotoSansArabic-Regular.ttf",
    "noto/NotoSansHebrew-Regular.ttf",
    "noto/NotoSansDevanagari-Regular.ttf",
    "noto/NotoSansBengali-Regular.ttf",
    "noto/NotoSansTamil-Regular.ttf",
    "noto/NotoSansTelugu-Regular.ttf",
    "noto/NotoSansThai-Regular.ttf",
    "noto/NotoSansGeorgian-Regular.ttf",
    "noto/NotoSansArmenian-Regular.ttf",
    "noto/NotoSansEthiopic-Regular.ttf",
    "noto/NotoSansSymbols2-Regular.ttf",
    "noto/NotoSansCJK-Regular.ttc",
)

LINES = {
    "latin": "Où l’écriture est déjà une image, façon Ångström.",
    "greek": "Η γραφή είναι μια εικόνα.",
    "cyrillic": "Письмо — это картинка, їжак.",
    "arabic": "الكتابة صورة نقرؤها (PIXEL 2026).",
    "hebrew": "הכתב הוא תמונה (PIXEL 2026).",
    "devanagari": "लिखावट एक चित्र है, क्षत्रिय।",
    "bengali": "লেখা একটি ছবি, ক্ষুদ্র শক্তি।",
    "tamil": "எழுத்து ஒரு படம், கொடி.",
    "telugu": "రాత ఒక చిత్రం, స్త్రీ.",
    "thai": "ตัวหนังสือก็เป็นภาพ ที่นี่",
    "georgian": "წერა სურათია.",
    "armenian": "Գիրը պատկեր է։",
    "ethiopic": "ጽሑፍ ሥዕል ነው።",
    "han": "文字就是图画，可以读。",
    "kana": "もじは えです。ガラスのペン",
    "hangul": "글자는 그림이다.",
}
BUILTIN_LINE = "Writing is a picture, déjà. Γράμμα. Їжак: 漢字"
SCALE = 3
COLUMNS = 24


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"), metavar="FOLDER")
    options = parser.parse_args(argv)
    folder = shared_fonts()
    if folder is None:
        print(
            "error: the reference fonts are not here; set PIXELCORE_SHARED to the folder above fonts/", file=sys.stderr
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, picture in pictures(folder).items():
        file = options.out / f"{name}.png"
        # a grid has a dozen colours and letters a few greys: a palette halves the file and loses nothing that shows
        write_png(file, picture.quantize(64, dither=Image.Dither.NONE))
        total += file.stat().st_size
        print(f"{file}: {picture.width} x {picture.height}, {file.stat().st_size:,} bytes")
    print(f"{total:,} bytes")
    return 0


def shared_fonts() -> Path | None:
    """The folder of the reference fonts, if it is here."""
    root = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("PIXELCORE_SHARED") or root.parent / "shared") / "fonts"
    return folder if (folder / FONTS[0]).is_file() else None


def pictures(folder: Path) -> dict[str, Image.Image]:
    """All pictures by name. Raises RenderError where a line has a character that no font has."""
    fonts = tuple(str(folder / font) for font in FONTS)
    layouts = {label: Renderer(config) for label, config in every_layout(RenderConfig(fonts=fonts)).items()}
    found = {name: _every_layout(layouts, line) for name, line in LINES.items()}
    builtin = {label: Renderer(config) for label, config in every_layout(RenderConfig()).items()}
    found["builtin"] = _every_layout(builtin, BUILTIN_LINE, may_miss=True)
    found["strip"] = to_image(layouts["adaptive"]("Words become pictures: 文字 और صورة."), scale=SCALE, grid=True)
    found["pair"] = to_image(layouts["adaptive"](("Who wrote it?", "A printer did.")), scale=SCALE, grid=True)
    found["boxes"] = to_image(builtin["continuous"]("कखग 漢字 😀"), scale=SCALE, grid=True)
    return found


def _every_layout(renderers: dict[str, Renderer], line: str, may_miss: bool = False) -> Image.Image:
    strips = [(label, renderer(line)) for label, renderer in renderers.items()]
    missing = {character for _, strip in strips for character in strip.missing_glyphs}
    if missing and not may_miss:
        raise RenderError(f"{line}: no font has {', '.join(map(repr, sorted(missing)))}; add one to FONTS")
    return stacked(strips, columns=COLUMNS, scale=SCALE, grid=True)


if __name__ == "__main__":
    sys.exit(main())
