"""The losses and figures of a run over its steps, as pictures inside the page."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_WIDTH, _HEIGHT = 512, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 30
_COLORS = ("#2e7d50", "#c0392b", "#2962a8", "#8e5aa8", "#b8860b", "#4a5568", "#00838f", "#ad1457")
_LOSSES = ("loss", "valid_loss")
_SHARES = ("valid_truncated", "valid_missing_glyphs")

Series = dict[str, list[tuple[float, float]]]


def metrics_of(checkpoint: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of the run that a checkpoint is of; none where there is no such file."""
    file = checkpoint.parent.parent / "metrics.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def curves(metrics: Sequence[Mapping[str, Any]], step: int) -> str:
    """Losses, and the figures of the dev file. step: of the checkpoint that the page is about."""
    series: Series = {}
    for row in metrics:
        for name, value in row.items():
            wanted = name in _LOSSES or (name.startswith("valid_") and name not in _SHARES)
            if wanted and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, []).append((float(row["step"]), float(value)))
    figures = {name.removeprefix("valid_"): points for name, points in series.items() if name not in _LOSSES}
    losses = {name: series[name] for name in _LOSSES if name in series}
    shown = [("loss", losses), ("figures of the dev file", figures)]
    return "".join(_chart(title, found, step) for title, found in shown if found)


def _chart(title: str, series: Series, step: int) -> str:
    points = [point for found in series.values() for point in found]
    last = max(x for x, _ in points) or 1.0
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def place(x: float, y: float) -> str:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / last
        down = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (y - low) / ((high - low) or 1)
        return f"{across:.1f},{down:.1f}"

    parts = []
    for tick in ticks:
        y = place(0, tick).partition(",")[2]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(0, last):
        if tick <= last:
            x = place(tick, low).partition(",")[0]
            parts.append(f'<text class="tick" x="{x}" y="{_HEIGHT - 10}" text-anchor="middle">{tick:g}</text>')
    if 0 < step <= last:
        x = place(step, low).partition(",")[0]
        parts.append(f'<line class="chosen" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    keys = []
    for color, (name, found) in zip(_COLORS * (1 + len(series) // len(_COLORS)), series.items()):
        line = " ".join(place(*point) for point in found)
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="{line}"/>')
        if len(found) < 30:
            dots = (place(*point).split(",") for point in found)
            parts += [f'<circle cx="{x}" cy="{y}" r="2.4" fill="{color}"/>' for x, y in dots]
        keys.append(f'<span><i style="background:{color}"></i>{html.escape(name)} {found[-1][1]:.4g}</span>')
    said = html.escape(title)
    picture = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
    below = f'<div class="keys">{"".join(keys)}</div>'
    return f'<figure class="chart"><figcaption>{said} by step</figcaption>{picture}{below}</figure>'


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers that reach from low to high."""
    span = (high - low) or 1.0
    raw = span / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * number, 10) for number in range(first, last + 1)]
