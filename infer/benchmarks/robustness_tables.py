"""The result of infer/benchmarks/robustness.py as tables for people.

The first has both measures of every attack, the second what the confusables were, the third the decoder of tokens
beside the model of strips, where there is one.
"""

from collections.abc import Sequence

from infer.benchmarks.robustness import Change, Robustness, Row
from infer.confusables import STRATA


def as_text(result: Robustness) -> str:
    """The result as tables."""
    width = 2 + max(len(_name(row)) for row in result.rows)
    cut = [f"{_name(row)} ({row.num_cut})" for row in result.rows if row.num_cut]
    lines = [
        f"{result.count:,} items; {result.num_cut} clean prompts lost words on the left to fit the context",
        *_measures(result.rows, width),
        *_strata([row for row in result.rows if row.replacements is not None], width),
        *_beside([row for row in result.rows if row.tokens is not None], width),
        *(["", f"prompts that grew and lost patches on the left: {', '.join(cut)}"] if cut else []),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _measures(rows: Sequence[Row], width: int) -> list[str]:
    lines = [
        "",
        f"{'prompt':<{width}}{'right':>6}  {'95 %':<15}{'change':>7}  {'95 %':<17}"
        f"{'bits/patch':>10}{'change':>9}  {'95 %':<18}{'same pixels':>12}",
    ]
    for row in rows:
        bits = " " * 39 if row.bits is None else f"{row.bits.per_patch:>10.2f}{_change(row.bits.change, 9, 2, 18)}"
        lines.append(
            f"{_name(row):<{width}}{row.right.share:>6.3f}  {f'{row.right.low:.3f} to {row.right.high:.3f}':<15}"
            f"{_change(row.right_change, 7, 3, 17)}{bits}{row.same_pixels.share:>12.3f}"
        )
    return lines


def _strata(rows: Sequence[Row], width: int) -> list[str]:
    if not rows:
        return []
    heads = "".join(f"{stratum:>11}" for stratum in STRATA)
    lines = ["", f"{'':<{width + 10}}{'replacements':>33}{'share of prompts':>33}"]
    lines.append(f"{'look-alikes':<{width}}{'replaced':>10}{heads}{heads}")
    for row in rows:
        assert row.replacements is not None and row.prompts is not None
        counts = "".join(f"{row.replacements[stratum]:>11,}" for stratum in STRATA)
        shares = "".join(f"{row.prompts[stratum].share:>11.3f}" for stratum in STRATA)
        lines.append(f"{_name(row):<{width}}{row.replaced:>10.3f}{counts}{shares}")
    return lines


def _beside(rows: Sequence[Row], width: int) -> list[str]:
    if not rows:
        return []
    lines = ["", "bits per character of the word, its space counted"]
    lines.append(f"{'prompt':<{width}}{'strips':>8}{'tokens':>9}{'change':>8}  95 %")
    for row in rows:
        assert row.tokens is not None
        strips = "" if row.bits is None else f"{row.bits.per_character:.3f}"
        tokens = f"{row.tokens.per_character:>9.3f}{_change(row.tokens.change, 8, 3, 17)}"
        lines.append(f"{_name(row):<{width}}{strips:>8}{tokens}")
    return lines


def _name(row: Row) -> str:
    return f"{row.attack} {row.strength}".strip()


def _change(change: Change | None, width: int, digits: int, interval_width: int) -> str:
    if change is None:
        return " " * (width + 2 + interval_width)
    interval = "" if change.low is None else f"{change.low:+.{digits}f} to {change.high:+.{digits}f}"
    return f"{change.difference:>+{width}.{digits}f}  {interval:<{interval_width}}"
