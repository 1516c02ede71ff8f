"""A comparison for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lossdoctor.messages import text
from lossdoctor.report.comparison import Comparison, Shift
from lossdoctor.report.wording import number, visible
from lossdoctor.rules import Finding


class Sides:
    """A comparison that rich can print. shown: curves listed, None for all that differ."""

    def __init__(self, found: Comparison, a: str, b: str, lang: str = "en", *, shown: int | None = None) -> None:
        self._found = found
        self._names = visible(a), visible(b)
        self._lang = lang
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found, lang = self._found, self._lang
        a, b = self._names
        yield Text(f"A  {a}\nB  {b}", style="bold")
        for key, findings in (("only_a", found.only_a), ("only_b", found.only_b), ("both", found.both)):
            yield from self._findings(key, findings)
        if not (found.only_a or found.only_b or found.both):
            yield Text(text("compare.no_findings", lang))
        differing = [one for one in found.shifts if one.differs]
        yield ""
        yield Text(text("compare.curves", lang, differing=len(differing), common=len(found.shifts)), style="bold")
        if differing:
            yield self._curves(differing[: self._shown])
        if self._shown is not None and len(differing) > self._shown:
            yield Text(text("compare.more", lang, n=len(differing) - self._shown), style="dim")
        for key, names in (("missing_a", found.missing_a), ("missing_b", found.missing_b)):
            if names:
                some = ", ".join(map(visible, names[:8])) + (", ..." if len(names) > 8 else "")
                yield Text(text(f"compare.{key}", lang, n=len(names), names=some), style="dim")

    def _findings(self, key: str, findings: Sequence[Finding]) -> Iterator[RenderableType]:
        if not findings:
            return
        yield ""
        yield Text(text(f"compare.{key}", self._lang), style="bold")
        for one in findings:
            yield Padding(Text(f"{one.code} {one.name}: {visible(one.message.text(self._lang))}"), (0, 0, 0, 2))

    def _curves(self, shifts: Sequence[Shift]) -> Table:
        rows = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        rows.add_column(text("column.metric", self._lang), overflow="fold")
        for label in ("A", "B"):
            rows.add_column(label, justify="right", no_wrap=True)
        rows.add_column(text("compare.interval", self._lang), justify="right", no_wrap=True)
        # All listed differ; how surely is for those who ask for everything, the names need the room.
        if self._shown is None:
            rows.add_column("p", justify="right", no_wrap=True)
        rows.add_column(text("compare.better", self._lang), no_wrap=True)
        for one in shifts:
            between = f"{number(one.low, digits=2)} .. {number(one.high, digits=2)}"
            surely = [f"{one.p:.1g}"] if self._shown is None else []
            rows.add_row(Text(visible(one.name)), number(one.a), number(one.b), between, *surely, one.better.upper())
        return rows
