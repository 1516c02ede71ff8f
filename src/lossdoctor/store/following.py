"""A run on disk, read on: each look gives what was written since the one before, and costs only that.

Points move from the tail into chunks while a run grows, so what was seen of a column is kept as a place that survives
the move: the last chunk there was, and how many points were seen from its beginning on, the tail included.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from lossdoctor.record import Series
from lossdoctor.store.disk import DiskSource
from lossdoctor.store.layout import FIRST_METRIC, FULL, NOTHING, TIME, decode, join, turn, unpack
from lossdoctor.store.reader import Run


class Following:
    """What is new in a run, look by look. For one thread at a time. Raises RunError like `Run.open`.

    run: the same run as a mapping. fulls, clocks: of the last `news`, which steps were measured in full, and the wall
    clock of every record.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._source = DiskSource(Path(path))
        self.run = Run(self._source)
        self.fulls = self.clocks = NOTHING
        self._names: dict[int, str] = {}
        self._places: dict[int, tuple[int, int]] = {}
        self._packed = (0, 0)
        self._tail_id = 0

    @property
    def there(self) -> bool:
        """Whether the path still leads to this run: SQLite goes on reading a file that was deleted."""
        return self._source.there

    def close(self) -> None:
        """Give the file back."""
        self._source.close()

    def news(self) -> dict[str, Series]:
        """The new points of every metric that has some, in writing order: a step may come again, with a new value."""
        found = self._source.reading(self._look)
        self.fulls, self.clocks = found.pop(FULL, NOTHING), found.pop(TIME, NOTHING)
        if not found.keys() <= self._names.keys():
            self._names = self._source.reading(_names)
        return {self._names[column]: points for column, points in found.items()}

    def skip(self) -> None:
        """Take what there is as seen, without reading the points."""
        self._source.reading(self._skip)

    def _look(self, db: sqlite3.Connection) -> dict[int, Series]:
        # Every record has a clock, so the chunks have changed if and only if those of the clock have.
        packed = _last_chunk(db, TIME)
        rows = db.execute(
            "SELECT step, columns, numbers, id FROM tail WHERE id > ? ORDER BY id",
            (self._tail_id if packed == self._packed else 0,),
        ).fetchall()
        tail = turn([row[:3] for row in rows])
        if packed == self._packed:
            for column, points in tail.items():
                chunk, seen = self._places.get(column, (0, 0))
                self._places[column] = (chunk, seen + len(points))
            found = tail
        else:
            columns = [number for (number,) in db.execute("SELECT id FROM metric")]
            found = {column: self._beyond(db, column, tail) for column in (TIME, FULL, *columns)}
        if rows or packed != self._packed:
            self._tail_id = rows[-1][3] if rows else 0
        self._packed = packed
        return {column: points for column, points in found.items() if len(points)}

    def _beyond(self, db: sqlite3.Connection, column: int, tail: dict[int, Series]) -> Series:
        chunk, seen = self._places.get(column, (0, 0))
        rows = db.execute(
            "SELECT first, last, steps, numbers, id FROM chunk WHERE series = ? AND id >= ? ORDER BY id",
            (column, chunk),
        ).fetchall()
        points = join((unpack([row[:4] for row in rows]), tail.get(column, NOTHING)))
        last = (rows[-1][4], len(rows[-1][3]) // 8) if rows else (chunk, 0)
        self._places[column] = (last[0], last[1] + len(tail.get(column, NOTHING)))
        return Series(points.steps[seen:], points.values[seen:])

    def _skip(self, db: sqlite3.Connection) -> None:
        self._packed = _last_chunk(db, TIME)
        rows = db.execute("SELECT step, columns, numbers, id FROM tail ORDER BY id").fetchall()
        tail = turn([row[:3] for row in rows])
        self._names = _names(db)
        for column in (TIME, FULL, *self._names):
            chunk, length = _last_chunk(db, column)
            self._places[column] = (chunk, length + len(tail.get(column, NOTHING)))
        self._tail_id = rows[-1][3] if rows else 0


def _last_chunk(db: sqlite3.Connection, column: int) -> tuple[int, int]:
    """Its row and its points; (0, 0) when there is none. It changes whenever the column was packed."""
    found = db.execute(
        "SELECT id, length(numbers) / 8 FROM chunk WHERE series = ? ORDER BY id DESC LIMIT 1", (column,)
    ).fetchone()
    return found or (0, 0)


def _names(db: sqlite3.Connection) -> dict[int, str]:
    rows = db.execute("SELECT id, name FROM metric WHERE id >= ?", (FIRST_METRIC,))
    return {number: decode(name) for number, name in rows}
