"""An interval beside its 0, as a small drawing and in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossdoctor.report.page.markup import element, escaped
from lossdoctor.report.wording import number

WIDE, TALL, EDGE = 150, 16, 5


def interval(effect: Mapping[str, Any]) -> str:
    """The 95 % interval of an effect: low and high, None where nothing is known of the spread; difference."""
    low, high, middle = effect["low"], effect["high"], effect["difference"]
    far = max(abs(value) for value in (low, high, middle) if value is not None) or 1.0

    def at(value: float) -> str:
        return f"{WIDE / 2 + value / far * (WIDE / 2 - EDGE):.1f}"

    parts = [element("line", x1=WIDE / 2, x2=WIDE / 2, y1=0, y2=TALL, class_="zero")]
    told = ""
    if low is not None:
        told = f"{number(low, digits=2)} .. {number(high, digits=2)}"
        kind = "clear" if low > 0 or high < 0 else "open"
        parts.append(element("line", x1=at(low), x2=at(high), y1=TALL / 2, y2=TALL / 2, class_=kind))
    parts.append(element("circle", cx=at(middle), cy=TALL / 2, r=3))
    drawn = element(
        "svg",
        "".join(parts),
        viewBox=f"0 0 {WIDE} {TALL}",
        width=WIDE,
        height=TALL,
        class_="interval",
        aria_hidden="true",
    )
    return element("span", drawn + element("span", escaped(told)), class_="between")
