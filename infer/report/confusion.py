"""Which label was taken for which: a table, gold in the rows and what was said in the columns.

Colour is the share of the row, so that rare labels show as clearly as frequent ones. Where there are very many labels,
those that are least often there are counted together.
"""

import html
from collections import Counter
from collections.abc import Sequence

from infer.report.cases import LOST

_MOST = 24  # labels with a row of their own
_OTHERS = "others"


def confusion(pairs: Sequence[tuple[str, str]]) -> str:
    """The table; nothing without pairs."""
    if not pairs:
        return ""
    often = Counter(gold for gold, _ in pairs) + Counter(said for _, said in pairs)
    names = sorted((name for name, _ in often.most_common(_MOST)), key=lambda name: (name == LOST, name))
    if len(often) > len(names):
        pairs = [(_known(gold, names), _known(said, names)) for gold, said in pairs]
        names.append(_OTHERS)
    counted = Counter(pairs)
    head = "".join(f'<th class="column"><span>{html.escape(name)}</span></th>' for name in names)
    rows = []
    golds = {gold for gold, _ in pairs}
    for gold in filter(golds.__contains__, names):
        total = sum(counted[gold, said] for said in names)
        cells = "".join(_cell(counted[gold, said], total, gold, said) for said in names)
        rows.append(f'<tr><th scope="row">{html.escape(gold)}</th>{cells}<td class="total">{total}</td></tr>')
    return (
        '<table class="confusion"><caption>gold in the rows, predicted in the columns; colour: share of the row'
        f'</caption><tr><th></th>{head}<th class="column"><span>all</span></th></tr>{"".join(rows)}</table>'
    )


def _known(name: str, names: Sequence[str]) -> str:
    return name if name in names else _OTHERS


def _cell(count: int, total: int, gold: str, said: str) -> str:
    if not count:
        return "<td></td>"
    share = count / total
    color = "46, 125, 80" if gold == said != _OTHERS else "192, 57, 43"
    light = " light" if share > 0.6 else ""
    title = html.escape(f"{gold} as {said}: {count} of {total} ({100 * share:.1f} %)")
    shade = f"background:rgba({color}, {0.08 + 0.82 * share:.2f})"
    return f'<td class="count{light}" style="{shade}" title="{title}">{count}</td>'
