"""The flags that name attacks, for the commands that measure and show them, and the attacks that they name."""

import argparse
from collections.abc import Sequence

from infer import attacks as attacking
from infer.arguments import nearest
from infer.attacks import BLURS, BY_RATIO, Attack
from infer.confusables import STRATA, Confusables, Strata, built_in, read_confusables
from pixelcore.errors import UserError
from render import Renderer

ATTACKS = (*BY_RATIO, "shift", "blur", "font", "size", "blank")
_SHIFTS = ("1,0", "4,0", "0,1", "0,2")
_BLURS = ("gaussian:0.5", "gaussian:0.7", "gaussian:1")

KINDS = f"""attacks:
  confusables  characters become others that look like them, each with the chance --ratio. Measured for all look-alikes
               and apart for those that the font draws with the same pixels, that it draws otherwise, and that it lacks
  flips        each pixel turns to its opposite with the chance --ratio
  rows         each row of the strip is dropped with that chance; columns: each column
  shift        the picture moves: --shift RIGHT,DOWN ({", ".join(_SHIFTS)}); to the left with --shift=-1,0
  blur         --blur KIND:SIZE, {" or ".join(BLURS)}, px ({", ".join(_BLURS)})
  font, size   the prompt in another font or size: --attack-font FILE, --attack-size PX
  blank        paper in place of the prompt: what the prompt is worth
"""


def add_attacks(parser: argparse.ArgumentParser, ratios: str) -> None:
    """ratios: those that are taken where none is given, for the help."""
    add = parser.add_argument
    add("--attack", action="append", default=[], metavar="A", help=f"{', '.join(ATTACKS)}; may be repeated")
    add("--ratio", action="append", default=[], type=float, metavar="R", help=f"0 to 1; may be repeated ({ratios})")
    add("--confusables", metavar="FILE", help="in place of our table, one in the format of Unicode's confusables.txt")
    add("--shift", action="append", default=[], metavar="X,Y", help="px to the right and down; may be repeated")
    add("--blur", action="append", default=[], metavar="K:X", help="kind and px; may be repeated")
    add("--attack-font", action="append", default=[], metavar="F", help="the font of attack font; may be repeated")
    add("--attack-size", action="append", default=[], type=float, metavar="PX", help="of attack size; may be repeated")
    add("--seed", type=int, default=0, metavar="S", help="of everything that is drawn at random (%(default)s)")


def check_attacks(options: argparse.Namespace) -> None:
    """No attack without what it needs, and no flag without effect."""
    if not options.attack:
        raise UserError(f"--attack: name at least one of {', '.join(ATTACKS)}")
    for name in options.attack:
        if name not in ATTACKS:
            raise UserError(f"--attack {name}: unknown{nearest(name, ATTACKS)}; choose {', '.join(ATTACKS)}")
        if options.attack.count(name) > 1:
            raise UserError(f"--attack {name}: is given twice: leave one out")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be a whole number from 0 on")
    flags = {"ratio": BY_RATIO, "confusables": ("confusables",), "shift": ("shift",), "blur": ("blur",)}
    flags |= {"attack_font": ("font",), "attack_size": ("size",)}
    for flag, names in flags.items():
        if getattr(options, flag) and not set(names) & set(options.attack):
            raise UserError(
                f"--{flag.replace('_', '-')} is for --attack {' or '.join(names)}: add that, or leave it out"
            )
    for name in ("font", "size"):
        if name in options.attack and not getattr(options, f"attack_{name}"):
            raise UserError(f"--attack {name}: needs another {name}: name it with --attack-{name}")


def table_of(options: argparse.Namespace) -> Confusables:
    """The look-alikes that --confusables names, or ours."""
    return built_in() if options.confusables is None else read_confusables(options.confusables)


def attacks_of(
    options: argparse.Namespace, renderer: Renderer, table: Confusables, ratios: Sequence[float], *, apart: bool
) -> list[Attack]:
    """Every attack at each of its strengths. apart: each stratum of confusables besides all of them."""
    ratios = options.ratio or ratios
    seed, config = options.seed, renderer.config
    strata = Strata(renderer, table)
    found: list[Attack] = []
    for name in options.attack:
        if name == "confusables":
            for stratum in (None, *STRATA) if apart else (None,):
                found += [attacking.confusables(strata, ratio, seed, stratum) for ratio in ratios]
        elif name in BY_RATIO:
            make = {"flips": attacking.flips, "rows": attacking.rows, "columns": attacking.columns}[name]
            found += [make(ratio, seed) for ratio in ratios]
        elif name == "shift":
            found += [attacking.shift(*_steps(given)) for given in options.shift or _SHIFTS]
        elif name == "blur":
            found += [attacking.blur(*_kind_and_size(given), config) for given in options.blur or _BLURS]
        elif name == "font":
            found += [attacking.font(file, renderer) for file in options.attack_font]
        elif name == "size":
            found += [attacking.size(px, renderer) for px in options.attack_size]
        else:
            found.append(attacking.blank())
    return found


def _steps(given: str) -> tuple[int, int]:
    try:
        right, down = map(int, given.split(","))
    except ValueError as cause:
        raise UserError(f"--shift {given}: is not of the form RIGHT,DOWN in whole pixels, such as 2,0") from cause
    return right, down


def _kind_and_size(given: str) -> tuple[str, float]:
    kind, _, size = given.partition(":")
    try:
        return kind, float(size)
    except ValueError as cause:
        raise UserError(f"--blur {given}: is not of the form KIND:PX, such as gaussian:0.7") from cause
