"""One frame of the live view in a terminal: how far the run is, what each loss does, what was found, the headlines.

Findings stand above the headlines: on a low screen the end is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lossdoctor.messages import text
from lossdoctor.report.digest import Digest, Line
from lossdoctor.report.pulse import Pulse
from lossdoctor.report.terminal import lines_table
from lossdoctor.report.verdict.wording import follows, subject
from lossdoctor.report.wording import (
    Glyphs,
    duration,
    glyphs_for,
    number,
    percent,
    plain,
    small_curve,
    trouble,
    visible,
)
from lossdoctor.rules import Finding

BAR = 12
_STYLE = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}
_STATE = {"growing": "green", "ended": "bold", "silent": "yellow", "deleted": "red", "unreadable": "red"}


@dataclass(frozen=True, slots=True)
class Sight:
    """What there is to see of a run. digest: None while there is nothing. judged: steps the rules were last asked at.

    findings: groups, leader first.
    """

    name: str
    pulse: Pulse
    digest: Digest | None = None
    findings: tuple[tuple[Finding, ...], ...] = ()
    judged: int | None = None


class Frame:
    """A sight that rich can print."""

    def __init__(self, sight: Sight, lang: str = "en") -> None:
        self._sight, self._lang = sight, lang

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sight, lang, glyphs = self._sight, self._lang, glyphs_for(options.encoding)
        yield Text.assemble(
            (visible(sight.name), "bold"), "  ", (condition(sight.pulse, lang), _STATE.get(sight.pulse.state, ""))
        )
        if sight.digest is None:
            return
        yield Text(extent(sight, lang), style="dim")
        if sight.digest.losses:
            yield ""
            yield _losses(sight.digest, glyphs, lang, options.max_width)
        yield ""
        yield from self._findings()
        for event in sight.digest.troubles[-3:]:
            yield Text(f"- {trouble(event, lang)}", style="red")
        headlines = [line for line in sight.digest.lines if line.key.family != "loss" and not _per_loss(line)]
        if headlines:
            yield ""
            yield lines_table(headlines, glyphs, lang)

    def _findings(self) -> Iterator[RenderableType]:
        sight, lang = self._sight, self._lang
        if not sight.findings:
            key = "live.not_judged" if sight.judged is None else "live.nothing_found"
            yield Text(text(key, lang, step=f"{sight.judged or 0:,}"), style="dim")
            return
        for group in sight.findings:
            yield headed(group[0], lang)
            yield Padding(Text(visible(group[0].message.text(lang))), (0, 0, 0, 2))
            if group[1:]:
                yield Padding(Text(follows(group[1:], lang), style="dim"), (0, 0, 0, 2))


def headed(finding: Finding, lang: str) -> Text:
    """The line above the sentence of a finding."""
    head = Text(text(f"severity.{finding.severity}", lang), style=_STYLE[finding.severity])
    about = f" · {subject(finding)}" if subject(finding) else ""
    head.append(f"  {finding.code} {finding.name}{about}", style="bold")
    head.append(f"  {text(f'certainty.{finding.certainty}', lang)}", style="dim not bold")
    return head


def condition(pulse: Pulse, lang: str) -> str:
    """The state of a run in words, with how long it has been silent where that is news."""
    told = text(f"live.state.{pulse.state}", lang)
    if pulse.state == "silent" and pulse.quiet is not None:
        told += " " + text("live.since", lang, time=duration(pulse.quiet, lang))
    return f"{told}: {visible(pulse.why)}" if pulse.why else told


def extent(sight: Sight, lang: str) -> str:
    """Steps, measured steps and the rate now."""
    assert sight.digest is not None
    told = [
        text("report.steps", lang, steps=f"{sight.digest.steps:,}"),
        text("report.measured", lang, measured=f"{sight.digest.measured:,}"),
    ]
    if sight.pulse.rate is not None:
        told.append(text("progress.rate", lang, rate=number(sight.pulse.rate)))
    return ", ".join(told)


def told_plainly(sight: Sight, lang: str) -> str:
    """The frame as one line, for a log."""
    if sight.digest is None:
        return f"{visible(sight.name)}: {condition(sight.pulse, lang)}"
    ends = ((loss.name, _loss_line(sight.digest, loss.name).end) for loss in sight.digest.losses)
    values = "  ".join(f"{visible(name)} {number(end)}" for name, end in ends)
    told = f"{condition(sight.pulse, lang)}: {extent(sight, lang)}"
    return f"{told}; {values}" if values else told


def _losses(digest: Digest, glyphs: Glyphs, lang: str, width: int) -> Table:
    """Loss, value, curve, weight, gradient and share; the narrower, the fewer."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(text("column.loss", lang), overflow="fold")
    table.add_column(text("live.value", lang), justify="right", no_wrap=True)
    wide, curve = width >= 72, bool(glyphs.heights) and width >= 44
    if curve:
        table.add_column(text("column.curve", lang), style="cyan", no_wrap=True)
    if wide:
        for column in ("weight", "gradient", "weighted"):
            table.add_column(text(f"column.{column}", lang), justify="right", no_wrap=True)
    table.add_column(text("column.share", lang), justify="right", no_wrap=True)
    if wide:
        table.add_column("", no_wrap=True)
    for loss in digest.losses:
        line = _loss_line(digest, loss.name)
        cells = [visible(loss.name), number(line.end)]
        cells += [small_curve(line.shape, glyphs)] if curve else []
        sizes = (number(value, glyphs.nothing) for value in (loss.gradient, loss.weighted))
        cells += [plain(loss.weight, glyphs.nothing), *sizes] if wide else []
        cells.append(percent(loss.share, glyphs.nothing))
        cells += [_bar(loss.share, glyphs)] if wide else []
        table.add_row(*map(Text, cells))
    return table


def _bar(share: float | None, glyphs: Glyphs) -> str:
    if share is None or not math.isfinite(share):
        return ""
    return glyphs.bar * round(BAR * min(max(share, 0.0), 1.0))


def _loss_line(digest: Digest, loss: str) -> Line:
    return next(line for line in digest.lines if line.name == f"loss/{loss}")


def _per_loss(line: Line) -> bool:
    """Told in the table of losses already."""
    return line.key.pattern == "grad/<loss>"
