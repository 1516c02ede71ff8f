"""Matrices as inline SVG: drawn without a script, sharp in print, readable by colour and by number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lossdoctor.report.page.markup import element, escaped
from lossdoctor.report.wording import number

CELL, TALL = 64, 26
Cells = Sequence[Sequence[float | None]]


def matrix(rows: Sequence[str], columns: Sequence[str], cells: Cells, *, signed: bool = False) -> str:
    """A heat map with its numbers. signed: colours by value in [-1, 1]; else by size, on a logarithmic scale."""
    left = 12 + 7.2 * max((len(row) for row in rows), default=0)
    sizes = [abs(v) for row in cells for v in row if v is not None and math.isfinite(v) and v != 0]
    low, high = (math.log(min(sizes)), math.log(max(sizes))) if sizes else (0.0, 1.0)
    parts = []
    for x, column in enumerate(columns):
        parts.append(_label(left + (x + 0.5) * CELL, 16, column, "middle"))
    for y, row in enumerate(rows):
        top = 24 + y * TALL
        parts.append(_label(left - 8, top + 17, row, "end"))
        for x, value in enumerate(cells[y]):
            parts.append(_cell(left + x * CELL, top, value, signed=signed, low=low, high=high))
    width, height = left + CELL * len(columns) + 4, 28 + TALL * len(rows)
    return _drawing(width, height, parts, class_="heat")


def over_time(rows: Sequence[str], cells: Cells, first: int, last: int) -> str:
    """Rows of many small cells along the steps of a run, coloured by size on a logarithmic scale."""
    left, wide, tall, across = 52.0, 560.0, 16, max((len(row) for row in cells), default=1)
    sizes = [v for row in cells for v in row if v is not None and math.isfinite(v) and v > 0]
    low, high = (math.log(min(sizes)), math.log(max(sizes))) if sizes else (0.0, 1.0)
    parts = []
    for y, row in enumerate(cells):
        parts.append(_label(left - 8, y * tall + 12, rows[y], "end"))
        for x, value in enumerate(row):
            if value is not None and math.isfinite(value):
                box = f'<rect x="{left + x * wide / across:.1f}" y="{y * tall}" width="{wide / across + 0.3:.1f}"'
                style = f'height="{tall - 1}" class="size" style="--share:{_share(value, low, high):.2f}"'
                parts.append(f"{box} {style}><title>{escaped(number(value))}</title></rect>")
    bottom = tall * len(rows) + 14
    parts += [_label(left, bottom, f"{first:,}", "start"), _label(left + wide, bottom, f"{last:,}", "end")]
    return _drawing(left + wide + 4, bottom + 6, parts, class_="heat")


def _cell(x: float, y: float, value: float | None, *, signed: bool, low: float, high: float) -> str:
    if value is None:
        return _label(x + CELL / 2, y + 17, "·", "middle", class_="faint")
    share = abs(value) if signed else _share(abs(value), low, high)
    kind = ("positive" if value >= 0 else "negative") if signed else "size"
    if not math.isfinite(value):
        kind, share = "broken", 1.0
    box = (
        f'<rect x="{x + 1:.1f}" y="{y}" width="{CELL - 2}" height="{TALL - 2}" rx="3" class="{kind}" '
        f'style="--share:{min(share, 1.0):.2f}"/>'
    )
    return box + _label(x + CELL / 2, y + 17, number(value), "middle")


def _share(value: float, low: float, high: float) -> float:
    if value <= 0:
        return 0.0
    return 0.15 + 0.85 * (math.log(value) - low) / (high - low) if high > low else 0.5


def _label(x: float, y: float, told: str, anchor: str, class_: str | None = None) -> str:
    return element("text", escaped(told), x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def _drawing(width: float, height: float, parts: Sequence[str], class_: str) -> str:
    drawn = element(
        "svg", "".join(parts), viewBox=f"0 0 {width:.0f} {height:.0f}", width=f"{width:.0f}", class_=class_, role="img"
    )
    return element("div", drawn, class_="scroll")
