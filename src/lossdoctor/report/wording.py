"""Numbers, durations and trends as every report writes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lossdoctor.messages import text
from lossdoctor.messages.numbers import readable
from lossdoctor.report.digest import Digest, Line
from lossdoctor.report.grids import Grid


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Signs a medium can show: eight heights for small curves, arrows by direction, a bar, and "nothing here"."""

    heights: str
    arrows: dict[str, str]
    bar: str
    nothing: str
    times: str


UNICODE = Glyphs("▁▂▃▄▅▆▇█", {"up": "↗", "down": "↘", "flat": "→", "unknown": " "}, bar="█", nothing="·", times="×")
ASCII = Glyphs("", {"up": "^", "down": "v", "flat": "-", "unknown": " "}, bar="#", nothing=".", times="x")

_JITTER = 0.01
"""A curve that moves by less than this share of its size is drawn level: its wiggles would look like news."""


def glyphs_for(encoding: str) -> Glyphs:
    """The signs a terminal of this encoding can show."""
    try:
        "".join([UNICODE.heights, *UNICODE.arrows.values(), UNICODE.nothing, UNICODE.times]).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def number(value: float | None, nothing: str = "", digits: int = 3) -> str:
    """A few significant digits, without an exponent where it reads well: 0.0123, 12.3, 1,230, 1.2e-6."""
    return nothing if value is None else readable(value, digits, padded=True)


def plain(value: float | None, nothing: str = "") -> str:
    """A number that a person has chosen, as it was chosen: 1, 0.5, 0.01."""
    return nothing if value is None else readable(value, 6).replace(",", "")


def percent(value: float | None, nothing: str = "") -> str:
    """A share as a whole percentage, small ones with what they have: 71 %, -2 %, 0.04 %."""
    if value is None:
        return nothing
    if not math.isfinite(value):
        return f"{value:g}"
    hundredths = 100 * value
    if hundredths == 0 or abs(hundredths) >= 0.95:
        return f"{hundredths:,.0f} %"
    return f"{readable(hundredths, 1)} %"


def duration(seconds: float, lang: str) -> str:
    """Seconds as people say them: 850 ms, 12 s, 2 min 41 s, 3 h 5 min."""
    if seconds < 1:
        return text("duration.milliseconds", lang, ms=number(1000 * seconds))
    if seconds < 10:
        return text("duration.seconds", lang, s=number(seconds))
    whole = round(seconds)
    if whole < 60:
        return text("duration.seconds", lang, s=whole)
    if whole < 3600:
        return text("duration.minutes", lang, min=whole // 60, s=whole % 60)
    return text("duration.hours", lang, h=whole // 3600, min=whole % 3600 // 60)


def small_curve(shape: tuple[float, ...], glyphs: Glyphs) -> str:
    """A curve in one line of text, lowest to highest value; empty where the signs for it are missing."""
    if not glyphs.heights or len(shape) < 2:
        return ""
    low, high = min(shape), max(shape)
    top = len(glyphs.heights) - 1
    if high - low <= _JITTER * max(abs(low), abs(high)):
        return glyphs.heights[top // 2] * len(shape)
    # Divided first: the range of two huge numbers of opposite sign would overflow.
    size = max(abs(low), abs(high))
    span = high / size - low / size
    return "".join(glyphs.heights[round(top * ((value / size - low / size) / span))] for value in shape)


def course(line: Line, glyphs: Glyphs, lang: str) -> str:
    """Where a metric goes, as an arrow and a word: never a colour alone. Nothing for one that has broken off."""
    if not math.isfinite(line.end):
        return ""
    if line.count == 1:
        return text("trend.once", lang)
    direction = line.trend.direction
    return f"{glyphs.arrows[direction]} {text(f'trend.{direction}', lang)}".strip()


def broken(line: Line, lang: str) -> str:
    """How many of the values are NaN or infinite; nothing when none is."""
    return text("report.broken", lang, count=line.broken) if line.broken else ""


def improves(line: Line) -> bool | None:
    """Whether a metric gets better; None without a trend, or where no direction is better as such."""
    if line.key.better == "none" or line.trend.direction not in ("up", "down") or not math.isfinite(line.end):
        return None
    return line.trend.direction == line.key.better


def column_name(grid: Grid, column: str, lang: str) -> str:
    """What stands over a column of a grid: a tenth of [0, 1] by its start, a number of steps, a name as it is."""
    if grid.code == "times":
        return f"{int(column) / 10:.1f}"
    if grid.code == "endpoint":
        return text("column.floor", lang) if column == "floor" else text("column.steps", lang, steps=column)
    return column


def progress(digest: Digest, lang: str) -> str:
    """How far the run went, how much of it was measured, and how fast it was, in one line."""
    told = [text("report.steps", lang, steps=f"{digest.steps:,}")]
    told.append(text("report.measured", lang, measured=f"{digest.measured:,}"))
    if digest.seconds is not None:
        told.append(text("report.time", lang, time=duration(digest.seconds, lang)))
    if digest.pace is not None:
        told.append(text("report.pace", lang, pace=duration(digest.pace, lang)))
    return ", ".join(told)


def facts(digest: Digest, lang: str) -> str:
    """What was trained, in one line; empty when nothing is known."""
    return ", ".join(f"{text(f'fact.{code}', lang)} {visible(value)}" for code, value in digest.facts.items())


def trouble(event: dict[str, Any], lang: str) -> str:
    """One sentence on an event that tells of something gone wrong."""
    known = {"step": "?", "measurement": "?", "sink": "?", "metric": "?", "error": "?", "reason": "?", **event}
    told = text(f"trouble.{event['kind']}", lang, **known)
    ranks = ", ".join(str(rank) for rank in event.get("ranks") or ())
    return visible(text("trouble.ranks", lang, ranks=ranks, told=told) if ranks else told)


def visible(name: str) -> str:
    """A name on one line: it may be any text, also one that no terminal can print."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in name)
