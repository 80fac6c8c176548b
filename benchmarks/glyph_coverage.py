"""Which characters a chain of fonts leaves out: of real text in ten languages, and of each script.

    python -m benchmarks.glyph_coverage [--fonts DIR] [--sib DIR] [--json] [--out FILE]

The first table renders every sentence of SIB-200 (all splits) and counts what comes out missing. The second takes each
script: how many characters Unicode assigns to it, how many the fonts claim, and how many of the claimed ones are
missing when they are rendered one by one, which has to be none. The fonts are Noto and DejaVu under shared/fonts.
"""

import argparse
import csv
import sys
import unicodedata
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import publish, record
from benchmarks.render import SHARED
from render import RenderConfig, Renderer
from render.fonts import FontFile
from render.scripts import script_of

_FIRST = ("NotoSans-Regular.ttf",)  # asked before the others, which follow by name; the large collection comes last
_LAST = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf")


def font_files(folder: Path) -> list[str]:
    """All scalable fonts under a folder, the general one first."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".ttf", ".otf", ".ttc"))
    noto = [file for file in files if file.name.startswith(("NotoSans", "DejaVu"))]
    return [
        str(file) for file in sorted(noto, key=lambda file: (file.name not in _FIRST, file.name in _LAST, file.name))
    ]


def of_sentences(renderer: Renderer, folder: Path) -> list[dict]:
    """One row for each language: sentences, characters, missing ones."""
    rows = []
    for language in sorted(path for path in folder.iterdir() if path.is_dir()):
        sentences: list[str] = []
        for file in sorted(language.glob("*.tsv")):
            with file.open(encoding="utf-8", newline="") as lines:
                sentences += [row["text"] for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]
        missing: Counter[str] = Counter()
        for sentence in sentences:
            missing.update(renderer(sentence, 4096).missing_glyphs)
        characters = sum(map(len, sentences))
        rows.append(
            {
                "language": language.name,
                "sentences": len(sentences),
                "characters": characters,
                "missing": missing.total(),
                "which": "".join(sorted(missing)),
            }
        )
    return rows


def of_scripts(renderer: Renderer) -> list[dict]:
    """One row for each script of which the fonts claim a character."""
    claimed: set[int] = set()
    for face in renderer.setter.chain.faces:
        if isinstance(face, FontFile):
            claimed |= face.characters
    assigned, by_script = Counter(), {}
    for code in range(0x20, 0x110000):
        character = chr(code)
        if unicodedata.category(character) in ("Cn", "Co", "Cs", "Cc"):
            continue
        script = script_of(character) or "Zyyy"
        assigned[script] += 1
        if code in claimed:
            by_script.setdefault(script, []).append(character)
    rows = []
    for script, characters in sorted(by_script.items(), key=lambda entry: -len(entry[1])):
        missing = sum(bool(renderer(character).missing_glyphs) for character in characters)
        rows.append(
            {"script": script, "assigned": assigned[script], "claimed": len(characters), "claimed_missing": missing}
        )
    return rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fonts", type=Path, default=SHARED / "fonts")
    parser.add_argument("--sib", type=Path, default=SHARED / "data/sib200")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, help="write the record to this file")
    given = parser.parse_args(argv)
    renderer = Renderer(RenderConfig.named("pixel", fonts=font_files(given.fonts), max_patches=4096))
    languages, scripts = of_sentences(renderer, given.sib), of_scripts(renderer)
    result = {"benchmark": "glyph_coverage", "languages": languages, "scripts": scripts}
    result |= record(("uharfbuzz", "freetype-py"))
    publish(result, _table(languages, scripts), given.json, given.out)
    return 0


def _table(languages: list[dict], scripts: list[dict]) -> str:
    lines = [f"{'language':12}{'sentences':>10}{'characters':>12}{'missing':>9}"]
    for row in languages:
        counts = f"{row['sentences']:10}{row['characters']:12}{row['missing']:9}"
        lines.append(f"{row['language']:12}{counts} {row['which']}".rstrip())
    lines.append(f"\n{'script':8}{'assigned':>9}{'claimed':>9}{'without':>9}{'claimed but missing':>21}")
    for row in scripts:
        without = 1 - row["claimed"] / row["assigned"]
        lines.append(f"{row['script']:8}{row['assigned']:9}{row['claimed']:9}{without:9.1%}{row['claimed_missing']:21}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
