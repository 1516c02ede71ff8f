"""A log that is a table: rows with a step, a column per metric or one metric per row.

A table does not say what its columns mean. It is guessed from their names, and only as far as the cells agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.exchange.cells import clock, number, whole
from lossdoctor.exchange.source import Notes, Source, listed, near
from lossdoctor.record import Record

Row = Mapping[str, object]
"""One row: the cells that are not empty, by column."""

STEPS = (
    "step",
    "global_step",
    "trainer/global_step",  # what Lightning logs to trackers that count their own calls, as W&B does in _step
    "train/global_step",
    "_step",
    "iteration",
    "epoch",
)
"""Columns that hold the step, best first. An epoch is a step only where there is nothing else."""
CLOCKS = ("_timestamp", "timestamp", "wall_time", "wall time", "time")
RUNS = ("run_name", "run", "run_id")
NAMES = ("metric", "name", "tag", "key")
VALUES = ("value",)


@dataclass(frozen=True)
class Layout:
    """Which columns mean what. name and value: where a row holds one metric; else every other column is one."""

    step: str
    clock: str | None = None
    run: str | None = None
    chosen: str | None = None
    name: str | None = None
    value: str | None = None
    begin: float | None = None
    """The first moment that is told."""

    @property
    def taken(self) -> frozenset[str]:
        """Columns that are no metrics."""
        return frozenset(column for column in (self.step, self.clock, self.run) if column is not None)


def records(source: Source, rows: Callable[[Notes], Iterator[Row]], columns: Iterable[str] = ()) -> Iterator[Record]:
    """A record per row that has a step.

    rows: gives the rows from the start, every time it is called. columns: those that are known, empty ones too.
    """
    layout = _survey(source, rows(Notes()), columns)
    source.notes.step = layout.step
    now, taken = source.clock if layout.begin is None else layout.begin, layout.taken
    for row in rows(source.notes):
        if layout.run is not None and layout.run in row and _text(row[layout.run]) != layout.chosen:
            continue
        step = whole(row.get(layout.step))
        if step is None:
            source.notes.lost["no_step"] += any(column not in taken for column in row)
            continue
        if layout.clock is not None and (moment := _moment(row.get(layout.clock), layout)) is not None:
            now = moment
        values = {k: v for k, v in row.items() if k not in taken} if layout.name is None else _one(row, layout)
        yield Record(step, _numbers(values, source.notes), time=now)


def _numbers(values: Row, notes: Notes) -> dict[str, float]:
    found = {}
    for name, cell in values.items():
        value = number(cell)
        if value is None:
            notes.ignored[name] += 1
        else:
            found[name] = value
    return found


def _one(row: Row, layout: Layout) -> Row:
    """The one metric of a row; a metric may well be called "step", or nothing at all."""
    assert layout.name is not None
    assert layout.value is not None
    name = _text(row.get(layout.name, ""))
    return {name: row[layout.value]} if layout.value in row else {}


def _moment(cell: object, layout: Layout) -> float | None:
    """In a long table a column of time is nothing but a time, also one that began at 0."""
    return clock(cell) or (None if layout.name is None else number(cell))


def _text(cell: object) -> str:
    return cell if isinstance(cell, str) else repr(cell)


# The first pass


class _Seen:
    """What the cells of the columns with a known name are, over all rows."""

    def __init__(self, step: str | None, columns: Iterable[str]) -> None:
        self.columns = {column: column.strip().lower() for column in columns}
        """Every column, with the name it is known by."""
        self.rows = 0
        self.whole: Counter[str] = Counter()
        self.moments: dict[str, float] = {}
        """The first moment of each column that tells the time."""
        self.no_moments: set[str] = set()
        self.runs: dict[str, dict[str, None]] = {}
        self._step = step

    def add(self, row: Row) -> None:
        self.rows += 1
        for column, cell in row.items():
            if column not in self.columns:
                self.columns[column] = column.strip().lower()
            known = self.columns[column]
            if known in STEPS or column == self._step:
                self.whole[column] += whole(cell) is not None
            elif known in CLOCKS:
                moment = clock(cell)
                if moment is None:
                    self.no_moments.add(column)
                else:
                    self.moments.setdefault(column, moment)
            elif known in RUNS:
                self.runs.setdefault(column, {})[_text(cell)] = None

    def first(self, known: Sequence[str]) -> str | None:
        """The column with the best of these names."""
        found = [column for column, name in self.columns.items() if name in known]
        return min(found, key=lambda column: known.index(self.columns[column]), default=None)


def _survey(source: Source, rows: Iterator[Row], columns: Iterable[str]) -> Layout:
    seen = _Seen(source.step, columns)
    for row in rows:
        seen.add(row)
    if not (seen.rows and seen.columns):
        return Layout(STEPS[0])  # there is nothing to choose
    step = _step(source, seen)
    run = min(seen.runs, key=lambda column: RUNS.index(seen.columns[column]), default=None)
    if run is None:
        source.one_run()
    chosen = None if run is None else source.choose(dict.fromkeys(seen.runs[run], ()))
    name, value = seen.first(NAMES), seen.first(VALUES)
    others = [column for column, known in seen.columns.items() if known not in (*STEPS, *CLOCKS, *RUNS)]
    if name is not None and value is not None and {step, name, value}.issuperset(others):
        return Layout(step, seen.first(CLOCKS), run, chosen, name, value)
    moments = [column for column in seen.moments if column not in seen.no_moments]
    told = min(moments, key=lambda column: CLOCKS.index(seen.columns[column]), default=None)
    return Layout(step, told, run, chosen, begin=None if told is None else seen.moments[told])


def _step(source: Source, seen: _Seen) -> str:
    """The column named by the user, or the one with a step in most rows; of equals the best name."""
    if source.step is not None:
        if seen.whole[source.step]:
            return source.step
        there = source.step in seen.columns
        raise UsageError(
            mismatch(
                "The column holds no steps." if there else "There is no such column.",
                "a column of whole numbers" if there else f"one of {near(source.step, seen.columns)}",
                f"--step {source.step}",
                "choose another column",
            )
        )
    found = [column for column in seen.whole if seen.whole[column]]
    found = [column for column in found if seen.columns[column] != "epoch"] or found
    if not found:
        raise UsageError(
            mismatch(
                "It does not say which step a number belongs to.",
                f"a column of whole numbers called {', '.join(STEPS)}",
                f"the columns {listed(seen.columns)}",
                "name the column with --step NAME",
            )
        )
    return min(found, key=lambda column: (-seen.whole[column], STEPS.index(seen.columns[column])))
