"""The digest for a terminal: 80 columns, plain text where there is no colour or no Unicode."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lossdoctor.keys import FAMILIES
from lossdoctor.messages import text
from lossdoctor.report.digest import Digest, Line, Loss
from lossdoctor.report.grids import Grid
from lossdoctor.report.wording import (
    Glyphs,
    broken,
    column_name,
    course,
    facts,
    glyphs_for,
    improves,
    number,
    percent,
    plain,
    progress,
    small_curve,
    trouble,
    visible,
)

_COLOUR = {True: "green", False: "red", None: ""}


class Summary:
    """A digest that rich can print: `console.print(Summary(digest, lang))`."""

    def __init__(self, digest: Digest, lang: str = "en") -> None:
        self._digest = digest
        self._lang = lang

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        digest, lang = self._digest, self._lang
        glyphs = glyphs_for(options.encoding)
        yield Text(progress(digest, lang), style="bold")
        if digest.facts:
            yield Text(facts(digest, lang), style="dim")
        if digest.losses:
            yield _title("report.losses", lang)
            yield _losses(digest.losses, glyphs, lang)
        if digest.lines:
            yield ""
            yield lines_table(digest.lines, glyphs, lang)
        for grid in digest.grids:
            yield _title(f"grid.{grid.code}", lang)
            yield _grid(grid, glyphs, lang)
        if digest.absent:
            yield _title("report.absent", lang)
            yield _absent(digest.absent, lang)
        if digest.troubles:
            yield _title("report.troubles", lang)
            yield from (Text(f"- {trouble(event, lang)}", style="red") for event in digest.troubles)
        yield ""
        yield Text(text("report.no_verdict", lang), style="bold")


def _title(key: str, lang: str) -> RenderableType:
    return Padding(Text(text(key, lang), style="bold cyan"), (1, 0, 0, 0))


def _table(gap: int = 2) -> Table:
    return Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim")


def _losses(losses: tuple[Loss, ...], glyphs: Glyphs, lang: str) -> Table:
    table = _table()
    table.add_column(text("column.loss", lang), overflow="fold")
    table.add_column(text("column.kind", lang), no_wrap=True)
    for column in ("weight", "gradient", "weighted", "share"):
        table.add_column(text(f"column.{column}", lang), justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for loss in losses:
        known = loss.share is not None and math.isfinite(loss.share)
        length = round(16 * min(max(loss.share or 0.0, 0.0), 1.0)) if known else 0
        table.add_row(
            Text(visible(loss.name)),
            text(f"kind.{loss.kind}", lang),
            plain(loss.weight, glyphs.nothing),
            *(number(value, glyphs.nothing) for value in (loss.gradient, loss.weighted)),
            percent(loss.share, glyphs.nothing),
            glyphs.bar * length,
        )
    return table


def lines_table(lines: Sequence[Line], glyphs: Glyphs, lang: str) -> Table:
    """One table for all families, so that the eye finds the same thing in the same place."""
    table = _table()
    table.add_column(text("column.metric", lang), overflow="fold")
    table.add_column(text("column.start", lang), justify="right", no_wrap=True, min_width=8)
    table.add_column(text("column.end", lang), justify="right", no_wrap=True, min_width=8)
    if glyphs.heights:
        table.add_column(text("column.curve", lang), style="cyan", no_wrap=True)
    table.add_column(text("column.trend", lang))
    for family in FAMILIES:
        own = [line for line in lines if line.key.family == family]
        if own:
            table.add_row(Text(text(f"family.{family}", lang), style="bold cyan"))
        for line in own:
            word = Text.assemble(
                (course(line, glyphs, lang), _COLOUR[improves(line)]), " ", (broken(line, lang), "bold red")
            )
            curve = [small_curve(line.shape, glyphs)] if glyphs.heights else []
            start = number(line.start) if line.count > 1 else ""
            table.add_row(Text(f"  {visible(line.name)}"), start, number(line.end), *curve, word)
    return table


def _grid(grid: Grid, glyphs: Glyphs, lang: str) -> Table:
    # Ten columns fit into 80 with a gap of one and two digits.
    dense = len(grid.columns) > 6
    table = _table(gap=1 if dense else 2)
    table.add_column(text(f"grid.{grid.code}.rows", lang), overflow="fold")
    for column in grid.columns:
        table.add_column(column_name(grid, column, lang), justify="right", overflow="fold")
    for row, values in zip(grid.rows, grid.values, strict=True):
        table.add_row(
            Text(visible(row)), *(number(value, glyphs.nothing, digits=2 if dense else 3) for value in values)
        )
    return table


def _absent(codes: Sequence[str], lang: str) -> Table:
    table = _table()
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column()
    for code in codes:
        table.add_row(text(f"absent.{code}", lang), Text(text(f"absent.{code}.todo", lang)))
    return table
