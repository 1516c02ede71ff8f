"""The reading end of one `run.db`. It only reads: a run may be looked at while it is being written."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lossdoctor.errors import RunError, mismatch
from lossdoctor.record import Series
from lossdoctor.store.database import check_version, not_ours
from lossdoctor.store.folder import Folder
from lossdoctor.store.glance import thin_glances, worth_it
from lossdoctor.store.layout import (
    CHUNK,
    FULL,
    NOTHING,
    TIME,
    apart,
    between,
    decode,
    encode,
    join,
    resolve,
    turn,
    unpack,
)
from lossdoctor.store.thinned import PIECE, Thinned, thin

_BUSY_SECONDS = 10.0
_MAGIC = b"SQLite format 3\0"

T = TypeVar("T")


def _opened(file: Path) -> sqlite3.Connection:
    """To be read only; but where a writer was killed halfway through a transaction without a write-ahead log, that is
    taken back first, once, as SQLite would at the next writing.
    """
    db = _connected(file, "ro")
    try:
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        db.close()
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise
        with contextlib.closing(_connected(file, "rw")) as repairing:
            repairing.execute("SELECT 1 FROM sqlite_master").fetchone()
        db = _connected(file, "ro")
    return db


def _connected(file: Path, mode: str) -> sqlite3.Connection:
    # A path as URI cannot smuggle in options; neither mode creates a file, and mode=ro never changes or repairs one.
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


class DiskSource:
    """One rank of a run folder. Raises RunError for whatever is wrong with it, when opened or at any later access."""

    def __init__(self, path: Path, rank: int | None = None) -> None:
        self._folder = Folder.of(path, rank)
        self._file = self._folder.database
        self._check_header(path)
        self._lock = threading.Lock()
        self._tail: dict[int, Series] = {}
        self._tail_state: int | None = None
        with self._damage_told():
            self._db = _opened(self._file)
        self._finalizer = weakref.finalize(self, self._db.close)
        with self._damage_told():
            self._identity = self._identified()
            if not check_version(self._db, self._file):
                raise RunError(self._empty())

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def rank(self) -> int:
        """The one whose file it is."""
        return self._folder.rank

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that have a file in the folder."""
        with self._damage_told():
            return self._folder.ranks

    @property
    def there(self) -> bool:
        """Whether the path still leads to the file that was opened."""
        try:
            return self._identified() == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Give the file back, now rather than when the source is forgotten; the source is of no use afterwards."""
        self._finalizer()

    def reading(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        """What `ask` finds in one consistent state of the file."""
        with self._reading() as db:
            return ask(db)

    def _identified(self) -> tuple[int, int]:
        found = os.stat(self._file)
        return found.st_dev, found.st_ino

    def names(self) -> list[str]:
        """All metric names, in the order they appeared."""
        return list(self._numbers_of())

    def points(self, name: str) -> Series | None:
        """One metric, in writing order."""
        with self._reading() as db:
            found = db.execute("SELECT id FROM metric WHERE name = ?", (encode(name),)).fetchone()
            return None if found is None else self._points(found[0])

    def window(self, name: str, first: int, last: int) -> Series | None:
        """One metric from step to step, both included, in writing order. Reads the chunks that have such steps."""
        with self._reading() as db:
            found = db.execute("SELECT id FROM metric WHERE name = ?", (encode(name),)).fetchone()
            if found is None:
                return None
            chunks = db.execute(
                "SELECT first, last, steps, numbers FROM chunk WHERE series = ? AND first <= ? AND last >= ?"
                " ORDER BY id",
                (found[0], last, first),
            )
            return between(join((unpack(chunks.fetchall()), self._turned_tail().get(found[0], NOTHING))), first, last)

    def thinned(self, name: str, points: int) -> Thinned | None:
        """One metric, thinned while it is read, so that it is never in memory as a whole."""
        with self._reading() as db:
            found = db.execute("SELECT id FROM metric WHERE name = ?", (encode(name),)).fetchone()
            if found is None:
                return None
            return self._glanced_at(found[0], points) or thin(self._resolved(found[0]), points)

    def times(self) -> Series:
        """The wall clock of every record."""
        with self._reading():
            return self._points(TIME)

    def fulls(self) -> Series:
        """1 for every record measured in full, 0 for the others."""
        with self._reading():
            return self._points(FULL)

    def at(self, step: int) -> dict[str, float]:
        """Every metric that has a value at this step."""
        names = self._numbers_of()
        with self._reading():
            found = {name: self._value(number, step) for name, number in names.items()}
        return {name: value for name, value in found.items() if value is not None}

    def meta(self) -> dict[str, Any]:
        """The contents of `meta.json`."""
        return self._folder.read_meta()

    def events(self) -> tuple[list[dict[str, Any]], int]:
        """The whole lines of this rank's events, and the number of torn ones."""
        return self._folder.read_events()

    def other_events(self) -> dict[int, list[dict[str, Any]]]:
        """The whole lines of the events of the other ranks."""
        return {rank: Folder(self.path, rank).read_events()[0] for rank in self.ranks if rank != self.rank}

    def _numbers_of(self) -> dict[str, int]:
        with self._reading() as db:
            return {decode(name): number for number, name in db.execute("SELECT id, name FROM metric ORDER BY id")}

    def _points(self, column: int) -> Series:
        chunks = self._db.execute(
            "SELECT first, last, steps, numbers FROM chunk WHERE series = ? ORDER BY id", (column,)
        )
        tail = self._turned_tail().get(column, NOTHING)
        # A copy of the tail: it is kept for the next reading, and what a reader gets is the reader's.
        return join((unpack(chunks.fetchall()), Series(tail.steps.copy(), tail.values.copy())))

    def _glanced_at(self, column: int, points: int) -> Thinned | None:
        """The same without reading the chunks, where that can be: all of them have a glance, but the last."""
        (chunks,) = self._db.execute("SELECT count(*) FROM chunk WHERE series = ?", (column,)).fetchone()
        if not worth_it(chunks - 1, points) or not self._has_glances():
            return None
        glances = self._db.execute(
            "SELECT first, last, low, high, points, chunk FROM glance WHERE series = ? ORDER BY chunk LIMIT ?",
            (column, chunks - 1),
        ).fetchall()
        chunk = "SELECT first, last, steps, numbers FROM chunk WHERE series = ?"
        begin = self._db.execute(f"{chunk} ORDER BY id LIMIT 1", (column,)).fetchall()
        last = self._db.execute(f"{chunk} AND id > ? ORDER BY id LIMIT 2", (column, glances[-1][5] if glances else 0))
        rest = last.fetchall()
        if len(glances) != chunks - 1 or len(rest) != 1:
            return None
        after = resolve(join((unpack(rest), self._turned_tail().get(column, NOTHING))))
        return thin_glances([row[:5] for row in glances], unpack(begin), after, points)

    def _has_glances(self) -> bool:
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'glance'").fetchone()
        return bool(tables)

    def _resolved(self, column: int) -> Iterator[Series]:
        """A series sorted by step, each step once, a piece at a time."""
        tail = self._turned_tail().get(column, NOTHING)
        # From the index alone. The tail is one more chunk, the last.
        bounds = self._db.execute("SELECT first, last FROM chunk WHERE series = ? ORDER BY id", (column,)).fetchall()
        if len(tail):
            bounds.append((tail.steps.min(), tail.steps.max()))
        chunks = self._db.execute(
            "SELECT first, last, steps, numbers FROM chunk WHERE series = ? ORDER BY id", (column,)
        )
        counts = apart(np.array(bounds, np.int64).reshape(-1, 2), PIECE // CHUNK)
        for lot, count in enumerate(counts, start=1):
            points = unpack(chunks.fetchmany(count))
            yield resolve(join((points, tail)) if lot == len(counts) else points)

    def _value(self, column: int, step: int) -> float | None:
        """The value written last for one step, without reading the whole series."""
        for points in self._newest_first(column, step):
            here = points.values[points.steps == step]
            if len(here):
                return float(here[-1])
        return None

    def _newest_first(self, column: int, step: int) -> Iterator[Series]:
        """The tail, and then the chunks that may have this step: no look at those where the tail has it."""
        yield self._turned_tail().get(column, NOTHING)
        chunks = self._db.execute(
            "SELECT first, last, steps, numbers FROM chunk WHERE series = ? AND first <= ? AND last >= ?"
            " ORDER BY id DESC",
            (column, step, step),
        )
        yield from (unpack([chunk]) for chunk in chunks)

    def _turned_tail(self) -> dict[int, Series]:
        (state,) = self._db.execute("PRAGMA data_version").fetchone()
        if state != self._tail_state:
            self._tail = turn(self._db.execute("SELECT step, columns, numbers FROM tail ORDER BY id").fetchall())
            self._tail_state = state
        return self._tail

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent state of the file: a point moves from the tail into a chunk at once, or not at all."""
        with self._lock, self._damage_told():
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise RunError(
                mismatch(
                    "The run file cannot be read.",
                    "a whole file written by lossdoctor, and leave to read it",
                    f"{self._file}: {error}",
                    "copy the folder again, to a place that can be written and with all its files (run.db-wal "
                    "belongs to it), or go back to an older copy",
                )
            ) from error

    def _check_header(self, path: Path) -> None:
        if not self._file.is_file():
            other = ""
            if self._folder.path.is_dir() and self._folder.ranks:
                other = f"; the folder has rank {', '.join(map(str, self._folder.ranks))}"
            raise RunError(
                mismatch(
                    "There is no run here.",
                    f"a folder with a file {self._file.name}",
                    f"{path}" + ("" if path.exists() else ", which does not exist") + other,
                    "pass the folder given to Doctor(run=...), and the rank if it is not 0",
                )
            )
        with self._damage_told():
            with open(self._file, "rb") as file:
                head = file.read(len(_MAGIC))
            size = os.path.getsize(self._file)
        if not size:
            raise RunError(self._empty())
        if head != _MAGIC:
            raise not_ours(self._file, "no SQLite file")

    def _empty(self) -> str:
        return mismatch(
            "The run file is empty.", "at least its tables", str(self._file), "choose another run: this one never began"
        )
