"""`python -m infer attack`: what an attack does to a prompt, to look at before a model is measured under it."""

import argparse
import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.arguments import Parser, check_picture, nearest, read_standard_input, save_picture, setting, write
from infer.attack_figure import rows_of
from infer.attack_files import run_attack_file
from infer.attack_flags import KINDS, add_attacks, attacks_of, check_attacks, table_of
from infer.attacks import Attack, AttackedPrompt, attacked_prompt, drawn_prompt
from infer.confusables import STRATA
from infer.figure import Panel, stack
from infer.pixar import as_strip
from pixelcore.errors import UserError
from render import RenderConfig, Renderer, RenderError
from render.config import NAMED
from render.preview import mode_of, preview

_RATIOS = (0.2,)
_LISTED = 8  # replacements that are shown one by one


def run_attack(argv: Sequence[str]) -> int:
    """Show what an attack does, or attack a file."""
    if any(one.partition("=")[0] == "--data" for one in argv):
        return run_attack_file(argv)
    parser = Parser(
        prog="python -m infer attack",
        description="Attack a prompt and show it: the text, which characters were replaced and whether that can be "
        "seen, and the strip. Needs no model; the renderer is PIXAR's unless another is named. With --data FILE the "
        "words of a task's file are attacked instead: python -m infer attack --data FILE --help.",
        epilog=f"""{KINDS}
examples:
  python -m infer attack --text "Mary went to the" --attack confusables --ratio 0.5
  python -m infer attack --text "Mary went to the" --attack flips --attack columns --ratio 0.1 --out attacked.png
  python -m infer attack --text "Mary went to the" --attack confusables --font PixeloidSans.ttf --json""",
    )
    add = parser.add_argument
    add("--text", required=True, metavar="T", help='the text to attack; "-" reads standard input (less one line end)')
    add_attacks(parser, ", ".join(map(str, _RATIOS)))
    add("--preset", default="pixar", metavar="P", help=f"how it is drawn: {', '.join(NAMED)} (%(default)s)")
    add("--font", action="append", default=[], metavar="F", help="a font file; may be repeated: a chain")
    add("--set", action="append", default=[], metavar="A=V", help="a field of the configuration, as in render.height=8")
    add("--json", action="store_true", help="one JSON object on standard output")
    add("--out", metavar="FILE", help="a picture of the clean strip and the attacked ones, a PNG")
    options = parser.parse_args(argv)
    check_picture(options.out)
    check_attacks(options)
    renderer = _renderer(options)
    text = read_standard_input() if options.text == "-" else options.text
    if not text.strip():
        raise UserError("--text is empty: give at least one character that is not a space")
    channels, most = renderer.config.channels, renderer.config.max_patches
    clean = drawn_prompt(renderer, text, channels)
    if len(clean) > most:
        raise UserError(f"--text needs {len(clean)} patches, more than render.max_patches = {most}: shorten it")
    attacks = attacks_of(options, renderer, table_of(options), _RATIOS, apart=False)
    found = [attacked_prompt(attack, renderer, text, 0, channels, most) for attack in attacks]
    if options.out is not None:
        named = [("clean", clean, len(clean))]
        named += [(str(attack), one.patches, len(one.patches)) for attack, one in zip(attacks, found, strict=True)]
        save_picture(options.out, stack([Panel(rows_of(named, renderer.config))]))
    reports = [_report(attack, one, text, clean) for attack, one in zip(attacks, found, strict=True)]
    if options.json:
        write(json.dumps({"text": text, "attacks": reports}, ensure_ascii=False, indent=2), None)
        return 0
    lines = []
    for report, one in zip(reports, found, strict=True):
        lines += [*_shown(report, one), preview(as_strip(one.patches, renderer.config), mode_of(sys.stdout))]
    write("\n".join(lines), None)
    return 0


def _renderer(options: argparse.Namespace) -> Renderer:
    if options.preset not in NAMED:
        near = nearest(options.preset, list(NAMED))
        raise UserError(f"--preset {options.preset}: unknown{near}; choose {', '.join(NAMED)}")
    changes = dict(setting(item) for item in options.set) | ({"fonts": options.font} if options.font else {})
    try:
        return Renderer(RenderConfig.named(options.preset, **changes))
    except (RenderError, OSError) as cause:
        raise UserError(f"the text cannot be drawn: {cause}") from cause


def _report(attack: Attack, found: AttackedPrompt, text: str, clean: NDArray[np.uint8]) -> dict[str, Any]:
    """Plain values, for JSON. changed_pixels: absent where the strips differ in length."""
    same_length = len(clean) == len(found.patches)
    report: dict[str, Any] = {
        "attack": attack.name,
        "strength": attack.strength,
        "patches": len(found.patches),
        "values": int(found.patches.size),
        "changed_values": int((clean != found.patches).sum()) if same_length else None,
        "text": text,
    }
    if found.confused is not None:
        counted = Counter(one.stratum for one in found.confused.replacements)
        report |= {
            "text": found.confused.text,
            "eligible": found.confused.eligible,
            "strata": {stratum: counted[stratum] for stratum in STRATA},
            "replacements": [one._asdict() for one in found.confused.replacements],
        }
    return report


def _shown(report: dict[str, Any], found: AttackedPrompt) -> list[str]:
    changed = report["changed_values"]
    pixels = f"{changed} of {report['values']} values changed" if changed is not None else "of another length"
    lines = [f"==> {report['attack']} {report['strength']}".rstrip() + f": {report['patches']} patches, {pixels}"]
    if found.confused is None:
        return lines
    replaced = found.confused.replacements
    strata = ", ".join(f"{count} {stratum}" for stratum, count in report["strata"].items())
    lines += [found.confused.text, f"{len(replaced)} of {found.confused.eligible} characters replaced: {strata}"]
    for one in replaced[:_LISTED]:
        names = " + ".join(f"U+{ord(sign):04X} {unicodedata.name(sign, 'unnamed')}" for sign in one.by)
        lines.append(f"  {one.index:>4}  {one.character}  {names}, {one.stratum}")
    return lines + ([f"  and {len(replaced) - _LISTED} more"] if len(replaced) > _LISTED else [])
