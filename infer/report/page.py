"""The page itself: one HTML file with everything in it, for a browser without a network.

There is no script in it and nothing is fetched, so it can be sent to somebody, or opened years later. Texts of the data
are escaped and written in the direction that they have.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.evaluate_task import Figure
from infer.predict import TaskModel
from infer.relevancy import Relevancy
from infer.report.cases import Case, Label, arguments_of
from infer.report.confusion import confusion
from infer.report.curves import curves
from infer.report.strips import strip
from infer.task_rows import TaskRows

_OUTPUTS_EACH = 3  # heat maps of one example

_STYLE = """
:root { color-scheme: light; --ink: #1f2430; --faint: #6b7280; --line: #e2e5ea; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1136px; padding: 28px 40px 80px; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0 0 2px; overflow-wrap: anywhere; } h2 { font-size: 17px; margin: 36px 0 10px; }
p { margin: 4px 0 10px; } .faint { color: var(--faint); font-size: 13px; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.figures td, table.figures th { padding: 3px 18px 3px 0; text-align: left; border-bottom: 1px solid var(--line); }
table.figures th { font-weight: 500; } table.figures td.number { text-align: right; }
.charts { display: flex; flex-wrap: wrap; gap: 24px; }
figure.chart { margin: 0; width: 512px; }
figcaption, caption { color: var(--faint); font-size: 13px; text-align: left; }
svg { width: 100%; height: auto; display: block; } svg .grid { stroke: var(--line); }
svg .tick { font-size: 11px; fill: #6b7280; } svg .chosen { stroke: #9aa1ad; stroke-dasharray: 3 3; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 12px; padding-left: 52px; }
.keys i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
.scroll { overflow-x: auto; }
table.confusion { font-size: 12px; } table.confusion caption { padding-bottom: 4px; white-space: nowrap; }
table.confusion td { min-width: 30px; height: 24px; padding: 0 5px; text-align: right; border: 1px solid #f0f1f4; }
table.confusion td.light { color: #fff; } table.confusion td.total { color: var(--faint); }
table.confusion th[scope=row] { text-align: right; padding: 0 8px 0 0; font-weight: 500; }
table.confusion th.column { font-weight: 500; vertical-align: bottom; padding: 0 0 4px; }
table.confusion th.column span { writing-mode: vertical-rl; transform: rotate(180deg); }
.case { padding: 16px 0 8px; border-top: 1px solid var(--line); }
.case .head { display: flex; gap: 12px; align-items: baseline; font-size: 13px; }
.case .note { font-size: 14px; margin: 2px 0 8px; overflow-wrap: anywhere; }
.verdict { font-weight: 600; } .verdict.wrong { color: #b02a1d; } .verdict.right { color: #24663f; }
.line { margin: 0 0 12px; border-left: 1px solid var(--line); }
.line img { image-rendering: pixelated; display: block; }
.labels { position: relative; height: 17px; }
.label { position: absolute; top: 1px; height: 15px; overflow: hidden; white-space: nowrap; padding-left: 2px;
  font: 10px/14px "DejaVu Sans Condensed", "Noto Sans", system-ui, sans-serif; letter-spacing: -0.2px;
  border-top: 1.5px solid #c3c8d1; color: var(--faint); }
.said .label { color: var(--ink); }
.said .label.right { border-color: #3c9a63; color: #24663f; }
.said .label.wrong { border-color: #c0392b; background: #fbe6e3; color: #8f1f14; font-weight: 600; }
.numbers .label { border-color: transparent; }
.about { height: 6px; } .about .label { border-top: 3px solid #2962a8; }
details { margin: 2px 0 10px; font-size: 13px; } summary { cursor: pointer; color: var(--faint); }
.heat { margin: 6px 0 2px; }
"""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page shows. shown: of the cases, the first so many. heated: of these, those with heat maps."""

    loaded: TaskModel
    data: str
    cases: Sequence[Case]
    rows: TaskRows
    figures: Mapping[str, Figure]
    metrics: Sequence[Mapping[str, Any]]
    shown: int
    heated: int


def as_html(page: Page) -> str:
    """The whole file."""
    loaded = page.loaded
    name = f"{loaded.stored.name or loaded.stored.path.name}: {loaded.kind}"
    pairs = [pair for case in page.cases for pair in case.pairs]
    is_number = not len(loaded.known)
    parts = [f"<h1>{html.escape(name)}</h1>", _about(page), _figures(page)]
    charts = curves(page.metrics, loaded.stored.step)
    if charts:
        note = f"The dashed line is the step of this checkpoint, {loaded.stored.step}."
        parts.append(f'<h2>The run</h2><div class="charts">{charts}</div><p class="faint">{note}</p>')
    if pairs and not is_number:
        parts.append(f'<h2>What was taken for what</h2><div class="scroll">{confusion(pairs)}</div>')
    parts.append(_cases(page))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(name)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _about(page: Page) -> str:
    shares = page.rows.shares()
    said = [
        f"{page.loaded.stored.path}, step {page.loaded.stored.step}",
        f"{page.data}: {len(page.cases)} examples",
        f"{100 * shares['truncated']:.2f} % of the strips do not show all of their text",
        f"no font has {100 * shares['missing_glyphs']:.2f} % of the characters",
    ]
    return f'<p class="faint">{"<br>".join(map(html.escape, said))}</p>'


def _figures(page: Page) -> str:
    if not page.figures:
        return '<p class="faint">The data has no labels, so there are no figures.</p>'
    rows = "".join(
        f'<tr><th>{html.escape(name.replace("_", " "))}</th><td class="number">{100 * one.value:.2f} %</td>'
        f'<td class="faint">[{100 * one.low:.2f}, {100 * one.high:.2f}]</td></tr>'
        for name, one in page.figures.items()
    )
    note = "In brackets: 95 % intervals over the examples."
    return f'<table class="figures">{rows}</table><p class="faint">{note}</p>'


# ------------------------------------------------------------------ examples


def _cases(page: Page) -> str:
    wrong = sum(case.wrong for case in page.cases)
    said = f"{wrong} of {len(page.cases)} examples have an error. "
    said += "Those come first, beginning with the one that the model was most sure of; then the others, the least sure "
    said += "first. "
    said += f"Shown are {min(page.shown, len(page.cases))}. Under each strip: what is right, then what was said."
    relevancy = Relevancy(page.loaded) if page.heated else None
    parts = [f'<h2>Examples</h2><p class="faint">{said}</p>']
    for place, case in enumerate(page.cases[: page.shown]):
        parts.append(_case(page, case, relevancy if place < page.heated else None))
    return "\n".join(parts)


def _case(page: Page, case: Case, relevancy: Relevancy | None) -> str:
    patches = _patches(page, case)
    labels = [("gold", case.gold), ("said", case.said)]
    judged = any(label.right is not None for label in case.said)
    verdict = "error" if case.wrong else "right"
    head = f'<span class="verdict {"wrong" if case.wrong else "right"}">{verdict}</span>' if judged else ""
    sure = "sure of the worst error" if case.wrong else "least sure"
    for text in (case.id, f"{sure}: {100 * case.sure:.1f} %" if case.sure >= 0 else ""):
        head += f'<span class="faint">{html.escape(text)}</span>'
    if page.loaded.kind == "parse":
        numbers = [Label(label.first, label.end, str(place)) for place, label in enumerate(case.said, start=1)]
        labels.insert(0, ("numbers", tuple(numbers)))
    parts = [f'<div class="head">{head}</div><div class="note" dir="auto">{html.escape(case.note)}</div>']
    parts.append(strip(patches, [(name, row) for name, row in labels if row], _starts(case), alt=case.note))
    if relevancy is not None and case.outputs:
        parts.append(_heat(page, case, patches, relevancy))
    return f'<div class="case">{"".join(parts)}</div>'


def _heat(page: Page, case: Case, patches: NDArray[np.uint8], relevancy: Relevancy) -> str:
    outputs = case.outputs[:_OUTPUTS_EACH]
    wanted = [(output.score, output.patches) for output in outputs]
    heats = relevancy.heats(arguments_of(page.loaded, page.rows, case.number), wanted)
    parts = []
    for output, heat_L in zip(outputs, heats, strict=True):
        most = float(heat_L.max())
        scaled = heat_L / most if most > 0 else heat_L
        is_local = output.end - output.first < len(patches)
        marked = [("about", (Label(output.first, output.end, ""),))] if is_local else []
        parts.append(f'<div class="heat">{html.escape(output.name)}</div>')
        parts.append(strip(patches, marked, _starts(case), scaled, alt=f"heat of {output.name}"))
    said = "where it comes from: attention times its gradient, over all layers; underlined: what it is about"
    return f"<details open><summary>{said}</summary>{''.join(parts)}</details>"


def _starts(case: Case) -> set[int]:
    return {label.first for label in case.said}


def _patches(page: Page, case: Case) -> NDArray[np.uint8]:
    """[L, Y, X], or [L, Y, X, 3], of the columns that the row holds."""
    renderer = page.loaded.renderer
    assert renderer is not None
    columns = page.rows.row(case.number).units
    return columns.reshape(-1, renderer.config.patch_width, *columns.shape[1:]).swapaxes(1, 2)
