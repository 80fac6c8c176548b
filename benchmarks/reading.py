"""How well rendered text is read back: errors, speed, and how often something that is no text passes for it.

    python -m benchmarks.reading [--lines N] [--quick] [--languages] [--noise] [--ocr] [--json] [--out FILE]
    python -m benchmarks.reading --calibrate

Lines of 40 to 60 characters are cut from LAMBADA's contexts (English) and, with --languages, from SIB-200; each is
rendered, read, and compared. CER is edit distance over length, summed over all lines; a line whose reading renders to
exactly the same pixels counts as read without error, because no reader could do better. --noise flips 1, 3 and 6 % of
the pixels of binary strips (and adds normal noise to grey ones). --ocr puts rapidocr and tesseract beside, on as many
lines as are asked for with --ocr-lines, which know the font of none of these strips.

Non-text is made from the same lines, so that it has their amount of ink: each pixel drawn anew with the line's share of
ink (of grey, pixels shuffled), columns shuffled, patches shuffled. The share of these strips that the reader calls
readable is its false-readable rate. Shuffled patches are another matter: each holds letters that can be read, and where
patches are wide most of the line can; their share is given for the record and is no mistake of the threshold.
--calibrate prints the shares of ink that stay unexplained (percentiles 0, 1, 50, 99, 100), by kind, from which the
threshold in render/reader.py comes.

Fonts and texts come from the folder of reference data ($PIXELCORE_SHARED, else ../shared). Of each font the first fifty
lines warm the reader's caches and are not timed.
"""

import argparse
import csv
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import publish, record
from render import RenderConfig, Renderer, RenderError
from render.ocr import independent
from render.reader import UNEXPLAINED, Reader

SHARED = Path(os.environ.get("PIXELCORE_SHARED") or Path(__file__).resolve().parent.parent.parent / "shared")
FLIPS = (0.01, 0.03, 0.06)
WARM = 50
CHAIN = (
    "noto/NotoSans-Regular.ttf",
    "noto/NotoSansDevanagari-Regular.ttf",
    "noto/NotoSansArabic-Regular.ttf",
    "noto/NotoSansTamil-Regular.ttf",
    "noto/NotoSansSymbols2-Regular.ttf",
    "dejavu/DejaVuSans.ttf",
    "noto/NotoSansCJK-Regular.ttc",
)
# scripts of each SIB-200 language, and its name for tesseract
LANGUAGES = {
    "eng_Latn": (("Latn",), "eng"),
    "deu_Latn": (("Latn",), "deu"),
    "tur_Latn": (("Latn",), "tur"),
    "ukr_Cyrl": (("Cyrl", "Latn"), "ukr"),
    "arb_Arab": (("Arab", "Latn"), "ara"),
    "hin_Deva": (("Deva", "Latn"), "hin"),
    "tam_Taml": (("Taml", "Latn"), "tam"),
    "zho_Hans": (("Hani", "Latn"), "chi_sim"),
    "jpn_Jpan": (("Hani", "Hira", "Kana", "Latn"), "jpn"),
    "kor_Hang": (("Hang", "Latn"), "kor"),
}
NON_TEXT = ("uniform noise", "columns shuffled", "patches shuffled")


def configs() -> dict[str, RenderConfig]:
    """The strips that English is read from."""

    def fonts(name: str) -> tuple[str, ...]:
        return (str(SHARED / "fonts" / name),)

    pixeloid = fonts("pixeloid/PixeloidSans-mLxMm.ttf")
    return {
        "Pixeloid 9 px, 8 rows": RenderConfig.named("pixar", fonts=pixeloid, size=9),
        "Pixeloid as PIXAR": RenderConfig.named("pixar", fonts=pixeloid),
        "Press Start 8 px, 8 rows": RenderConfig.named(
            "pixar", fonts=fonts("press-start-2p/PressStart2P-Regular.ttf"), size=8
        ),
        "Noto 13.3 px, grey": RenderConfig.named("pixel", fonts=fonts("noto/NotoSans-Regular.ttf")),
        "built-in, 8 rows": RenderConfig(layout="continuous", height=8, color="binary"),
        "built-in, adaptive": RenderConfig(),
    }


def english(number: int, seed: int = 0) -> list[str]:
    """Lines of 40 to 60 characters of LAMBADA."""
    chance, lines = random.Random(seed), []
    with (SHARED / "data/lambada/lambada_openai.jsonl").open(encoding="utf-8") as file:
        for row in file:
            text = json.loads(row)
            lines.append(_cut(f"{text['context']} {text['continuation']}", chance))
            if len(lines) == number:
                break
    return lines


def sib200(language: str, number: int, seed: int = 0) -> list[str]:
    """Lines of 40 to 60 characters of SIB-200."""
    chance, lines = random.Random(seed), []
    for split in ("test", "dev", "train"):
        with (SHARED / f"data/sib200/{language}/{split}.tsv").open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            lines += [_cut(row["text"], chance) for row in rows]
    return lines[:number]


def _cut(text: str, chance: random.Random) -> str:
    """40 to 60 characters of a text, from and to a space where it has spaces: never inside a syllable."""
    text = " ".join(text.split())
    length = chance.randint(40, 60)
    if len(text) <= length:
        return text
    start = chance.randrange(len(text) - length)
    if text.count(" ") * 20 > len(text):
        start = text.rfind(" ", 0, start) + 1
        line = text[start : start + length]
        return line[: line.rfind(" ")] if len(text) > start + length and " " in line else line
    return text[start : start + length]


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements from one text to another."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def noisy(pixels: np.ndarray, config: RenderConfig, share: float, rng: np.random.Generator) -> np.ndarray:
    """A strip, not its end patch, with a share of its pixels flipped; grey: normal noise, of 4 times that deviation."""
    pixels = pixels.copy()
    body = pixels[:, : -config.patch_width]
    if config.color == "binary":
        body[rng.random(body.shape) < share] ^= 255
    else:
        body[:] = np.clip(body + rng.normal(0, 4 * share * 255, body.shape), 0, 255)
    return pixels


def non_text(pixels: np.ndarray, config: RenderConfig, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Strips with the ink of a text and none of its letters: kind, pixels."""
    patch = config.patch_width
    body, end = pixels[:, :-patch], pixels[:, -patch:]
    if config.color == "binary":
        noise = np.where(rng.random(body.shape) < (body == 0).mean(), 0, 255).astype(np.uint8)
    else:
        noise = rng.permutation(body.ravel()).reshape(body.shape)
    columns = body[:, rng.permutation(body.shape[1])]
    patches = body.reshape(len(body), -1, patch)[:, rng.permutation(body.shape[1] // patch)].reshape(body.shape)
    for kind, strip in zip(NON_TEXT, (noise, columns, patches), strict=True):
        yield kind, np.concatenate([strip, end], 1)


def measure(
    config: RenderConfig, lines: list[str], scripts: tuple[str, ...] | None, share: float = 0.0
) -> dict[str, Any]:
    """Read lines back: errors, and speed of one core once the caches are warm."""
    renderer, rng = Renderer(config), np.random.default_rng(0)
    start = time.perf_counter()
    reader = Reader(config, scripts=scripts)
    reader.prepare()
    built = time.perf_counter() - start
    errors = characters = exact = readable = 0
    seconds: list[float] = []
    for line in lines:
        clean = renderer(line).pixels
        pixels = noisy(clean, config, share, rng) if share else clean
        start = time.perf_counter()
        reading = reader(pixels)
        seconds.append(time.perf_counter() - start)
        same = reading.text == line or _equal(renderer(reading.text).pixels, clean)
        errors += 0 if same else edit_distance(reading.text, line)
        characters += len(line)
        exact += same
        readable += reading.readable
    timed = seconds[WARM:] if len(seconds) > 2 * WARM else seconds[len(seconds) // 2 :]
    return {
        "lines": len(lines),
        "cer": errors / characters,
        "equal_lines": exact / len(lines),
        "rejected": 1 - readable / len(lines),
        "lines_per_second": len(timed) / sum(timed),
        "slowest_ms": 1000 * max(timed),
        "build_seconds": built,
    }


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def rejection(config: RenderConfig, lines: list[str], scripts: tuple[str, ...] | None) -> dict[str, Any]:
    """Of each kind of strip: the share called readable, and percentiles of the ink that stays unexplained."""
    renderer, reader, rng = Renderer(config), Reader(config, scripts=scripts), np.random.default_rng(1)
    found: dict[str, list[tuple[bool, float]]] = {}
    for line in lines:
        pixels = renderer(line).pixels
        strips = [("clean", pixels), *((f"{share:.0%} noise", noisy(pixels, config, share, rng)) for share in FLIPS)]
        for kind, strip in [*strips, *non_text(pixels, config, rng)]:
            reading = reader(strip)
            found.setdefault(kind, []).append((reading.readable, reading.unexplained))
    return {
        kind: {
            "strips": len(rows),
            "readable": sum(readable for readable, _ in rows) / len(rows),
            "unexplained": [
                round(float(x), 3) for x in np.percentile([share for _, share in rows], [0, 1, 50, 99, 100])
            ],
        }
        for kind, rows in found.items()
    }


def ocr(name: str, config: RenderConfig, lines: list[str], language: str) -> dict[str, Any]:
    """An independent reader on the same strips."""
    try:
        read: Callable[[np.ndarray], str] = independent(name, config.patch_width, language)
        renderer, errors, seconds = Renderer(config), 0, 0.0
        for line in lines:
            pixels = renderer(line).pixels
            start = time.perf_counter()
            text = read(pixels)
            seconds += time.perf_counter() - start
            errors += edit_distance(text, line)
    except RenderError as cause:
        return {"absent": str(cause)}
    return {
        "lines": len(lines),
        "cer": errors / sum(map(len, lines)),
        "lines_per_second": len(lines) / seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1000, help="clean lines of each font (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--noise", action="store_true", help="also noisy strips and non-text")
    parser.add_argument("--languages", action="store_true", help="also the ten languages of SIB-200")
    parser.add_argument("--language-lines", type=int, default=300, help="lines of each language (%(default)s)")
    parser.add_argument("--noise-lines", type=int, default=100, help="lines at each level of noise (%(default)s)")
    parser.add_argument("--ocr", action="store_true", help="also the independent readers")
    parser.add_argument("--ocr-lines", type=int, default=40, help="lines that they read (%(default)s)")
    parser.add_argument("--calibrate", action="store_true", help="only what the threshold is taken from")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()
    scale = 10 if options.quick else 1
    number, noise_number = max(2, options.lines // scale), max(2, options.noise_lines // scale)

    result: dict[str, Any] = record(["numpy", "uharfbuzz", "freetype-py"], threads=1)
    result |= {"threshold": UNEXPLAINED, "english": {}, "noise": {}, "rejection": {}, "languages": {}, "ocr": {}}
    rows: list[str] = []
    for name, config in configs().items():
        if not options.calibrate:
            result["english"][name] = found = measure(config, english(number), ("Latn",))
            rows.append(_row(name, found))
        if options.calibrate or options.noise:
            for share in FLIPS if not options.calibrate else ():
                found = measure(config, english(noise_number, seed=2), ("Latn",), share)
                result["noise"][f"{name}, {share:.0%}"] = found
                rows.append(_row(f"{name}, {share:.0%} noise", found))
            result["rejection"][name] = found = rejection(config, english(noise_number, seed=3), ("Latn",))
            rows += [
                f"{name + ': ' + kind:44} readable {row['readable']:7.1%}  unexplained {row['unexplained']}"
                for kind, row in found.items()
            ]
        if options.ocr and not options.calibrate:
            for reader in ("rapidocr", "tesseract"):
                found = ocr(reader, config, english(max(2, options.ocr_lines // scale)), "eng")
                result["ocr"][f"{reader}: {name}"] = found
                rows.append(_row(f"{reader}: {name}", found))
    if options.languages and not options.calibrate:
        config = RenderConfig.named("pixel", fonts=[str(SHARED / "fonts" / font) for font in CHAIN])
        for language, (scripts, tesseract) in LANGUAGES.items():
            lines = sib200(language, max(2, options.language_lines // scale))
            result["languages"][language] = found = measure(config, lines, scripts)
            rows.append(_row(language, found))
            if options.ocr:
                for reader in ("rapidocr", "tesseract"):
                    found = ocr(reader, config, lines[: max(2, options.ocr_lines // scale)], tesseract)
                    result["ocr"][f"{reader}: {language}"] = found
                    rows.append(_row(f"{reader}: {language}", found))
    publish(result, "\n".join(rows), options.json, options.out)
    return 0


def _row(name: str, found: dict[str, Any]) -> str:
    if "absent" in found:
        return f"{name:44} {found['absent']}"
    row = f"{name:44} {found['lines']:5} lines  CER {found['cer']:.4f}  {found['lines_per_second']:7.1f} lines/s"
    if "equal_lines" in found:
        row += f"  equal {found['equal_lines']:6.1%}  rejected {found['rejected']:5.1%}"
        row += f"  slowest {found['slowest_ms']:.0f} ms  built in {found['build_seconds']:.2f} s"
    return row


if __name__ == "__main__":
    sys.exit(main())
