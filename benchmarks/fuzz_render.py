"""Does any text break the renderer? Random texts of every awkward kind, for as many minutes as one likes.

    python -m benchmarks.fuzz_render [--minutes 10] [--seed 0] [--json] [--out FILE]

Every text is drawn by a renderer of every kind (layouts, named configurations, grey, RGB and binary, the font of this
project and, where the reference fonts are at hand, a chain of font files), and each strip is held against what is
promised of all strips: `problems_of` lists it. Texts are made from the seed and the number of the text alone, so a
finding is repeated by its number: --seed 0 --only 1234. The slowest inputs are listed, because a text that takes
minutes is a finding too.

tests/render/test_bad_input.py holds strips against the same promises.
"""

import argparse
import pickle
import random
import re
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gallery import FONTS, shared_fonts
from benchmarks.record import publish, record
from render import RenderConfig, Renderer, RenderError, Strip

Text = str | tuple[str, str] | list[str]

SLOWEST = 10
LIMIT_S = 5.0  # for one text of at most a few thousand characters

# name -> changes of the default, or of a named configuration
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("default", {}),
    "adaptive, short": ("default", {"max_patches": 6}),
    "continuous": ("default", {"layout": "continuous", "pad": 2, "max_patches": 40}),
    "words": ("default", {"layout": "words", "max_patches": 40}),
    "sentences": ("default", {"layout": "sentences", "pad": 1, "max_patches": 40}),
    "bigrams": ("default", {"layout": "bigrams", "max_patches": 40}),
    "bigrams, no gap": ("default", {"layout": "bigrams", "word_gap": "none", "direction": "rtl"}),
    "code points": ("default", {"layout": "bigrams", "unit": "code-point", "word_gap": "none", "color": "binary"}),
    "rgb": ("default", {"color": "rgb", "max_patches": 40, "direction": "ltr"}),
    "pixel": ("pixel", {}),
    "pixel, short": ("pixel", {"max_patches": 6}),
    "pixel words": ("pixel", {"layout": "words", "max_patches": 20}),
    "pixel-m4": ("pixel-m4", {}),
    "pixel-m4, short": ("pixel-m4", {"max_patches": 6}),
    "pixar": ("pixar", {}),
    "pixar, wide": ("pixar", {"patch_width": 40, "max_patches": 12}),
}


def renderers(fonts: tuple[str, ...]) -> dict[str, Renderer]:
    """One renderer of each kind, for one chain of fonts; none = the font of this project."""
    return {name: Renderer(RenderConfig.named(base, fonts=fonts, **set_)) for name, (base, set_) in KINDS.items()}


def problems_of(renderer: Renderer, text: Text, again: bool = True) -> list[str]:
    """What a strip breaks of the promises made for all of them; empty for a good one.

    again: also whether a second drawing and a pickled copy have the same bytes.
    """
    strip, config = renderer(text), renderer.config
    found: list[str] = []

    def check(holds: bool, what: str) -> None:
        if not holds:
            found.append(what)

    pixels, spans, starts = strip.pixels, strip.char_spans, strip.word_starts
    size = (config.height, strip.num_patches * config.patch_width, *([3] if config.channels == 3 else []))
    check(1 <= strip.num_patches <= config.max_patches, f"{strip.num_patches} patches of {config.max_patches}")
    check(pixels.dtype == np.uint8, f"pixels are {pixels.dtype}")
    check(pixels.shape == size, f"pixels are {pixels.shape}, not {size}")
    check(not strip.patches[-1].any(), "the end patch is not black")
    check(not strip.patches[list(strip.separators)].any(), "a separator is not black")
    check(config.color != "binary" or bool(np.isin(pixels, (0, 255)).all()), "grey in a binary strip")
    check(list(strip.separators) == sorted(set(strip.separators)), f"separators {strip.separators} out of order")
    check(strip.separators[-1] == strip.num_patches - 1, f"the last separator {strip.separators} is not the end patch")
    check(spans.shape == (strip.num_patches, 3) and spans.dtype == np.int32, f"spans are {spans.dtype} {spans.shape}")
    found += _spans(strip, text)
    if starts is not None:
        check(starts.dtype == np.int32, f"word starts are {starts.dtype}")
        check(bool((np.diff(starts) >= 0).all()), f"word starts {starts} go back")
        check(len(starts) > 0 and starts[0] >= 0 and starts[-1] < strip.num_patches, f"word starts {starts} leave it")
    if isinstance(text, list) and starts is not None:
        check(len(starts) == strip.drawn[0] + 1, f"{len(starts)} word starts for {strip.drawn[0]} words")
    if isinstance(text, str) and not text:
        expected = 2 if config.pad else 1
        check(strip.num_patches == expected, f"an empty text has {strip.num_patches} patches, not {expected}")
    if again:
        check(np.array_equal(renderer(text).pixels, pixels), "drawn again, it differs")
        copy: Strip = pickle.loads(pickle.dumps(strip))
        check(np.array_equal(copy.pixels, pixels), "pickled, its pixels differ")
        check(np.array_equal(copy.char_spans, spans), "pickled, its spans differ")
        check(copy.missing == strip.missing, "pickled, its missing characters differ")
    return found


def _spans(strip: Strip, text: Text) -> Iterator[str]:
    lengths = [len(" ".join(text))] if isinstance(text, list) else [len(text)] if isinstance(text, str) else []
    lengths = lengths or [len(part) for part in text]
    for patch, (which, start, end) in enumerate(strip.char_spans.tolist()):
        if patch in strip.separators:
            if (which, start, end) != (-1, -1, -1):
                yield f"separator {patch} has span {which, start, end}"
        elif not 0 <= which < len(lengths) or not 0 <= start <= end <= lengths[which]:
            yield f"patch {patch} has span {which, start, end} in texts of {lengths} characters"
    for which, index, character in strip.missing:
        if isinstance(text, str) and text[index : index + 1] != character:
            yield f"missing {which, index} is {character!r}, the text has {text[index : index + 1]!r} there"


# ---- texts -----------------------------------------------------------------------------------------------------------

_SCRIPTS = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x700, 0x74F),
    (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE7F), (0x1000, 0x109F), (0x10A0, 0x10FF),
    (0x1100, 0x11FF), (0x1200, 0x137F), (0x1780, 0x17FF), (0x1800, 0x18AF), (0x3040, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0x1E900, 0x1E95F), (0x1F300, 0x1FAFF),
)  # fmt: skip
_INVISIBLE = "\u00ad\u034f\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u3164\ufe0e\ufe0f\ufeff\U000e0020"
_DIRECTION = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_SPACES = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000"
_VIRAMAS = "\u094d\u09cd\u0bcd\u0c4d\u1039\u17d2"


def _characters(low: int, high: int) -> Callable[[random.Random], str]:
    return lambda rng: chr(rng.randint(low, high))


def _words(rng: random.Random, draw: Callable[[random.Random], str], count: int) -> str:
    return "".join(" " if rng.random() < 0.15 else draw(rng) for _ in range(count))


def _script(rng: random.Random) -> str:
    return _words(rng, _characters(*rng.choice(_SCRIPTS)), rng.randint(0, 120))


def _mixed(rng: random.Random) -> str:
    return "".join(
        _words(rng, _characters(*rng.choice(_SCRIPTS)), rng.randint(0, 9)) for _ in range(rng.randint(1, 12))
    )


def _any(rng: random.Random) -> str:
    return "".join(chr(rng.randint(0, 0x10FFFF)) for _ in range(rng.randint(0, 80)))


def _surrogates(rng: random.Random) -> str:
    return "".join(chr(rng.randint(0xD7F0, 0xE00F)) for _ in range(rng.randint(1, 40)))


def _controls(rng: random.Random) -> str:
    return "".join(chr(rng.choice([*range(32), *range(0x7F, 0xA0), 0x41])) for _ in range(rng.randint(1, 60)))


def _directions(rng: random.Random) -> str:
    return "".join(rng.choice([*_DIRECTION, "a", "1", " ", ".", "(", ")", "א", "ب"]) for _ in range(rng.randint(1, 90)))


def _joiners(rng: random.Random) -> str:
    return "".join(rng.choice([*_INVISIBLE, "क", "ن", "👩", "a", " ", *_VIRAMAS]) for _ in range(rng.randint(1, 60)))


def _marks(rng: random.Random) -> str:
    marks = [c for c in map(chr, range(0x300, 0x1AFF)) if unicodedata.category(c) in ("Mn", "Mc", "Me")]
    return rng.choice(["", "a", "अ", "א", " "]) + "".join(rng.choices(marks, k=rng.choice([1, 20, 300, 3000])))


def _spaces(rng: random.Random) -> str:
    return "".join(rng.choice([*_SPACES, "x"]) for _ in range(rng.randint(0, 90)))


def _unassigned(rng: random.Random) -> str:
    return "".join(
        chr(rng.choice([0x378, 0x1FFFE, 0xE0FFF, 0xFDD0, 0x10FFFF, 0xE000])) for _ in range(rng.randint(1, 30))
    )


def _long_word(rng: random.Random) -> str:
    return _characters(*rng.choice(_SCRIPTS))(rng) * rng.choice([100, 1000, 5000])


TEXTS: dict[str, Callable[[random.Random], str]] = {
    "one script": _script,
    "mixed scripts": _mixed,
    "any code point": _any,
    "surrogates": _surrogates,
    "controls": _controls,
    "directions": _directions,
    "joiners": _joiners,
    "marks": _marks,
    "spaces": _spaces,
    "unassigned": _unassigned,
    "long word": _long_word,
}


def text_number(seed: int, number: int) -> tuple[str, Text]:
    """The kind and the text of a number: a string, sometimes a pair or a list of words."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(list(TEXTS))
    text = TEXTS[kind](rng)
    form = rng.random()
    if form < 0.7:
        return kind, text
    if form < 0.85:
        return kind, (text, TEXTS[rng.choice(list(TEXTS))](rng))
    return kind, [text[i : i + 5] for i in range(0, len(text), 5)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="draw one text again, and show it")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    options = parser.parse_args(argv)
    folder = shared_fonts()
    chains = {"built-in": renderers(())}
    if folder is not None:
        chains["files"] = renderers(tuple(str(folder / font) for font in FONTS))
    numbers: Iterator[int] = iter(range(1 << 60)) if options.only is None else iter([options.only])
    result = fuzz(chains, options.seed, numbers, options.minutes * 60)
    if options.only is not None:
        print(f"{text_number(options.seed, options.only)[1]!a}", file=sys.stderr)
    result = {**record(("uharfbuzz", "freetype-py", "numpy")), "seed": options.seed, **result}
    publish(result, table_of(result), options.json, options.out)
    return 1 if result["findings"] else 0


def fuzz(chains: dict[str, dict[str, Renderer]], seed: int, numbers: Iterator[int], seconds: float) -> dict[str, Any]:
    """Draw texts until the time is over. Counts by kind of text, findings, the slowest drawings."""
    counts: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    slowest: list[tuple[float, int, str]] = []
    begin = time.monotonic()
    refused = 0
    for number in numbers:
        if time.monotonic() - begin > seconds:
            break
        kind, text = text_number(seed, number)
        counts[kind] += 1
        for chain, kinds in chains.items():
            for name, renderer in kinds.items():
                where = f"{name}, {chain} font"
                start = time.process_time()  # a machine that is busy otherwise is no finding
                try:
                    found = problems_of(renderer, text)
                except RenderError as cause:  # refused by rule, which is allowed: one line that says why
                    refused += 1
                    found = [] if "\n" not in str(cause) else [f"refused in several lines: {cause}"]
                except Exception as cause:  # a crash is what is looked for here
                    found = [f"{type(cause).__name__}: {cause}"]
                took = time.process_time() - start
                if took > LIMIT_S:
                    found.append(f"took {took:.1f} s")
                slowest = sorted([*slowest, (took, number, where)], reverse=True)[:SLOWEST]
                findings += [{"number": number, "kind": kind, "where": where, "what": what} for what in found]
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "texts": dict(counts),
        "strips": counts.total() * sum(map(len, chains.values())),
        "refused": refused,
        "findings": findings,
        "slowest": [
            {"seconds": round(took, 3), "number": number, "where": where, "kind": text_number(seed, number)[0]}
            for took, number, where in slowest
        ],
    }


def table_of(result: dict[str, Any]) -> str:
    """The result as lines to read."""
    texts, seconds = sum(result["texts"].values()), result["seconds"]
    lines = [f"{texts} texts as {result['strips']} strips in {seconds:.0f} s, seed {result['seed']}"]
    lines += [f"  {count:>7}  {kind}" for kind, count in sorted(result["texts"].items())]
    lines.append(f"refused by rule: {result['refused']}; findings: {len(result['findings'])}")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for finding in result["findings"]:
        rule = re.sub(r"[\[(][^\])]*[\])]|'[^']*'|\d+(\.\d+)?", "#", finding["what"])[:80]
        groups.setdefault((rule, finding["where"].split(",")[0]), []).append(finding)
    for (_, where), group in sorted(groups.items(), key=lambda item: -len(item[1]))[:30]:
        lines.append(f"  {len(group):>6} x {where}: {group[0]['what'][:140]} (text {group[0]['number']})")
    lines.append("slowest, three drawings each:")
    lines += [
        f"  {row['seconds']:>8.3f} s  text {row['number']}, {row['kind']}: {row['where']}" for row in result["slowest"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
