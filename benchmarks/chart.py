"""Small line charts as SVG, in colours that can be read on white and on black."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

INK = "#808080"
COLOURS = ("#e0793a", "#3a8fd6", "#4ca35a")
WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 40


class Line(NamedTuple):
    """y with its spread: (low, middle, high) at each x."""

    name: str
    x: Sequence[float]
    y: Sequence[tuple[float, float, float]]


class Panel(NamedTuple):
    title: str
    across: str
    lines: Sequence[Line]
    floor: float
    log_x: bool = False


def chart(panels: Sequence[Panel]) -> str:
    """The panels side by side."""
    drawn = "\n".join(
        f'<g transform="translate({WIDTH * i} 0)">\n{_panel(panel)}\n</g>' for i, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}" '
        f'width="{WIDTH * len(panels)}" font-family="sans-serif" font-size="11" fill="{INK}">\n{drawn}\n</svg>\n'
    )


def _panel(panel: Panel) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    xs = [x for line in panel.lines for x in line.x]
    top = max(panel.floor, *(high for line in panel.lines for _, _, high in line.y))
    step = _step(top - panel.floor)
    ticks = [panel.floor + step * i for i in range(math.ceil(round((top - panel.floor) / step, 6)) + 1)]
    across = _scale([math.log10(x) for x in xs] if panel.log_x else xs, LEFT + 12, right - 12)
    up = _scale([ticks[0], ticks[-1]], bottom, TOP)

    def place(x: float) -> float:
        return across(math.log10(x) if panel.log_x else x)

    parts = [f'<text x="{LEFT}" y="16" font-size="12">{escape(panel.title)}</text>']
    for tick in ticks:
        y = up(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="{INK}" stroke-opacity="0.25"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x in sorted(set(xs)):
        label = f"10{_raised(round(math.log10(x)))}" if panel.log_x else f"{x:g}"
        parts.append(f'<text x="{place(x):.1f}" y="{bottom + 15}" text-anchor="middle">{label}</text>')
    parts.append(
        f'<text x="{(LEFT + right) / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(panel.across)}</text>'
    )
    for line, colour in zip(panel.lines, COLOURS, strict=False):
        dots = [(place(x), *map(up, y)) for x, y in zip(line.x, line.y, strict=True)]
        path = "L".join(f"{x:.1f} {middle:.1f}" for x, _, middle, _ in dots)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, low, middle, high in dots:
            parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-opacity="0.6"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{middle:.1f}" r="3" fill="{colour}"/>')
    names = "\N{EN SPACE}".join(
        f'<tspan fill="{colour}">{escape(line.name)}</tspan>'
        for line, colour in zip(panel.lines, COLOURS, strict=False)
    )
    parts.append(f'<text x="{right}" y="16" text-anchor="end">{names}</text>')
    return "\n".join(parts)


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = min(values), max(values)
    width = high - low or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _step(span: float) -> float:
    """The round number that cuts the span into at most six."""
    if span <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(span / 6))
    return next(unit * factor for factor in (1, 2, 5, 10) if span <= unit * factor * 6)


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
