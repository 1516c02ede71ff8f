"""Comma-separated values with a header: a column per metric, or `step,name,value`.

Read are Lightning's metrics.csv (also by its folder), what W&B exports from a chart or from `run.history()`, pandas'
`to_csv`, and the CSV of lossdoctor's own sink. Semicolons and tabs separate as well as commas.
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.exchange import table
from lossdoctor.exchange.cells import number
from lossdoctor.exchange.source import Notes, Source
from lossdoctor.record import Record

LIGHTNING = "metrics.csv"
_LINE = 1 << 20
"""Characters of a line that are looked at to find out what separates its cells."""
_SEPARATORS = ",;\t"
_LOW, _HIGH = "__MIN", "__MAX"
"""What W&B adds to the name of a curve, in two more columns."""
_CHART = " - "
"""Between the name of a run and the metric, in a chart exported from W&B."""


def recognises(path: Path, head: bytes) -> bool:
    """Whether the first line is several words in UTF-8, or the folder has a metrics.csv."""
    if path.is_dir():
        return bool(_logs(path))
    try:
        first = head.partition(b"\n")[0].decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return "\0" not in first and not first.startswith(("{", "[")) and any(sign in first for sign in _SEPARATORS)


def records(source: Source) -> Iterator[Record]:
    """Every row as a record."""
    if source.path.is_dir():
        logs = _logs(source.path)
        source = replace(source, path=logs[source.choose(dict.fromkeys(logs, ()))], run=None)
    with _opened(source.path) as file:
        first = file.readline(_LINE)
        separator = _separator([first, file.readline(_LINE)])
        file.seek(0)
        header = next(_rows_of(csv.reader(file, delimiter=separator), Notes()), [])
    if not header or all(number(cell) is not None for cell in header):
        raise UsageError(
            mismatch(
                "The file has no header.",
                "names of columns in the first row, such as step,loss",
                f"{source.path}, which begins with {first[:80]!r}",
                "write the names of the columns into the first row",
            )
        )
    columns, source = _named(header, source)
    rows = functools.partial(_table, source.path, separator, header, columns)
    yield from table.records(source, rows, [name for name in columns if name is not None])


def _logs(folder: Path) -> dict[str, Path]:
    """Lightning's logs in a folder, by the folder they are in: its own, or those of its versions."""
    found = [path for path in (folder / LIGHTNING, *sorted(folder.glob(f"*/{LIGHTNING}"))) if path.is_file()]
    return {path.parent.relative_to(folder).as_posix(): path for path in found}


def _opened(path: Path) -> TextIO:
    # What is not UTF-8 in a name stays what it is; a byte order mark, which Excel writes, is no part of the first name.
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _separator(lines: list[str]) -> str:
    """The one that makes as many cells of the second line as of the first; of several the one that makes most."""

    def fits(separator: str) -> tuple[bool, int]:
        counts = [len(row) for row in _rows_of(csv.reader(lines, delimiter=separator), Notes())]
        return len(set(counts)) == 1 and counts[0] > 1, counts[0] if counts else 0

    return max(_SEPARATORS, key=fits)


def _rows_of(reader: Iterator[list[str]], notes: Notes) -> Iterator[list[str]]:
    """Rows that are not empty. A cell longer than any number or name is damage, such as a quote that never ends."""
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            notes.lost["damaged"] += 1
            continue
        if row:
            yield row


def _table(
    path: Path, separator: str, header: Sequence[str], columns: Sequence[str | None], notes: Notes
) -> Iterator[table.Row]:
    """The rows below the header. columns: their names, None for one to leave out."""
    with _opened(path) as file:
        rows = _rows_of(csv.reader(file, delimiter=separator), notes)
        next(rows, None)
        last: list[str] | None = None
        for row in rows:
            if last is not None:
                yield from _row(last, header, columns, notes)
            last = row
    if last is not None:
        if not _ends_whole(path):
            # Half a number looks like another number.
            last = [*last[:-1], *[""] * (len(header) - len(last) + 1)]
            notes.lost["cut_cell"] += 1
        yield from _row(last, header, columns, notes)


def _row(cells: list[str], header: Sequence[str], columns: Sequence[str | None], notes: Notes) -> Iterator[table.Row]:
    if cells == header:
        return  # a script that was started again, and wrote on
    if len(cells) != len(header):
        notes.lost["damaged"] += 1
        return
    yield {name: cell for name, cell in zip(columns, cells, strict=True) if cell and name is not None}


def _named(header: Sequence[str], source: Source) -> tuple[list[str | None], Source]:
    """Names of the columns, None for those to leave out, and the source without what was used up of it."""
    cells = [cell.strip() for cell in header]
    again = [cells[:place].count(cell) for place, cell in enumerate(cells)]
    columns: list[str | None] = [f"{cell}.{count}" if count else cell for cell, count in zip(cells, again, strict=True)]
    if columns[0] in ("", "Unnamed: 0"):
        columns[0] = None  # the row numbers of pandas
    names = [name for name in columns if name is not None]
    curves = [name for name in names if {name + _LOW, name + _HIGH} <= set(names)]
    extremes = {name + end for name in curves for end in (_LOW, _HIGH)}
    columns = [None if name in extremes else name for name in columns]
    runs = dict.fromkeys(curve.partition(_CHART)[0] for curve in curves if _CHART in curve)
    if runs:
        run = source.choose(dict.fromkeys(runs, ()))
        source = replace(source, run=None)
        for place, name in enumerate(columns):
            if name in curves:
                columns[place] = name.partition(_CHART)[2] if name.startswith(run + _CHART) else None
    return columns, source


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        if not file.tell():
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() in (b"\n", b"\r")
