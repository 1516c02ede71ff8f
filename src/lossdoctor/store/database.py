"""The writing end of one `run.db`: what it costs per record is all paid here, on the writer's own thread."""

from __future__ import annotations

import operator
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lossdoctor.errors import RunError, mismatch
from lossdoctor.record import Record, Series
from lossdoctor.store.glance import glance
from lossdoctor.store.layout import (
    APPLICATION_ID,
    CHUNK,
    FIRST_METRIC,
    FULL,
    GLANCES,
    SCHEMA,
    TIME,
    VERSION,
    TailRow,
    encode,
    join,
    pack,
    turn,
)
from lossdoctor.store.sound import sound

BUSY_SECONDS = 30.0
"""How long another program may keep the file locked before writing is given up."""
AT_ONCE = 16 * CHUNK
"""Records per transaction at most: bounds the memory a long queue takes."""
_LAYOUTS = 256
"""Sets of metric names remembered; a run has a handful."""


def check_version(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file holds a run; False when it is empty. Raises RunError when it is not ours, or newer than this."""
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if owner != APPLICATION_ID:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if owner == 0 and version == 0 and tables == 0:
            return False
        raise not_ours(path, f"an SQLite file of another program (application id {owner:#x})")
    if version != VERSION:
        raise RunError(
            mismatch(
                "The run file has another format.",
                f"format {VERSION}, the one this version of lossdoctor knows",
                f"{path}: format {version}",
                "install the version of lossdoctor that wrote it" + (", or a newer one" if version > VERSION else ""),
            )
        )
    return True


def not_ours(path: Path, got: str) -> RunError:
    """The file is there, and something else."""
    return RunError(
        mismatch(
            "This is not a run file.",
            "a run.db written by lossdoctor",
            f"{path}: {got}",
            "choose the folder of a run to read, or another folder to write",
        )
    )


class Database:
    """Appends records to one file. For one thread at a time; raises sqlite3.Error when the file cannot be written."""

    def __init__(self, path: Path, on_reject: Callable[[str, str], None]) -> None:
        """Open or create. Raises RunError when the file holds something else. on_reject: see `sound`."""
        self._path = path
        self._on_reject = on_reject
        self._layouts: dict[tuple[str, ...], bytes] = {}
        self._tail: list[TailRow] = []
        self._open: dict[int, tuple[int, Series]] = {}
        """By column: the row of its last chunk and the points in it, while there are fewer than CHUNK."""
        self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._start()
        except BaseException:
            self._db.close()
            raise

    def write(self, records: Sequence[Record]) -> None:
        """Commit the records."""
        for start in range(0, len(records), AT_ONCE):
            self._check_there()
            with self._transaction():
                self._write([row for one in records[start : start + AT_ONCE] if (row := self._row(one)) is not None])

    def close(self) -> None:
        """Pack the tail and leave one plain file, which opens from read-only media too."""
        try:
            self._check_there()
            with self._transaction():
                self._pack_tail()
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                self._db.execute("PRAGMA journal_mode = MEMORY")
            except sqlite3.OperationalError:
                # Somebody has it open to read: the write-ahead log stays beside the file, empty if possible.
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._db.close()

    def abandon(self) -> None:
        """Close without writing anything more."""
        self._db.close()

    def _start(self) -> None:
        if not check_version(self._db, self._path):
            # Created before the write-ahead log is on, so that the file alone, without its log, is always a run.
            with self._transaction():
                for statement in SCHEMA:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        # NORMAL: a dying process loses nothing committed; a power cut may lose the last seconds, and tears nothing.
        self._into_wal()
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._identity = _identity(self._path)
        self._ids: dict[bytes, int] = {
            bytes(name): number for number, name in self._db.execute("SELECT id, name FROM metric")
        }
        self._tail = self._db.execute("SELECT step, columns, numbers FROM tail ORDER BY id").fetchall()
        with self._transaction():
            self._db.execute(GLANCES)
            self._pack_tail()

    def _into_wal(self) -> None:
        # In and out of it with the journal in memory: what changes is two bytes of the first page, and a process killed
        # meanwhile leaves no journal on disk, which would have to be played back by somebody who may write.
        (mode,) = self._db.execute("PRAGMA journal_mode").fetchone()
        if mode != "wal":
            self._db.execute("PRAGMA journal_mode = MEMORY")
            (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":  # a file system that has none
            self._db.execute("PRAGMA journal_mode = DELETE")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @property
    def there(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            return _identity(self._path) == self._identity
        except OSError:
            return False

    def _check_there(self) -> None:
        # SQLite writes happily into a file that was deleted under it.
        if not self.there:
            raise FileNotFoundError(f"{self._path} was deleted or replaced while it was being written")

    def _write(self, rows: list[TailRow]) -> None:
        whole = len(self._tail) + len(rows)
        whole -= whole % CHUNK
        if whole:
            # A multiple of CHUNK: a metric of every record then leaves no chunk to be filled up and written again.
            cut = whole - len(self._tail)
            self._tail += rows[:cut]
            rows = rows[cut:]
            self._pack_tail()
        self._tail += rows
        self._db.executemany("INSERT INTO tail (step, columns, numbers) VALUES (?, ?, ?)", rows)

    def _pack_tail(self) -> None:
        columns = turn(self._tail)
        self._db.execute("DELETE FROM tail")
        self._tail = []
        before = {column: self._open.pop(column) for column in columns if column in self._open}
        self._db.executemany("DELETE FROM chunk WHERE id = ?", [(row,) for row, _ in before.values()])
        unfilled = []
        for column, new in columns.items():
            points = join((before[column][1], new)) if column in before else new
            for start in range(0, len(points), CHUNK):
                piece = Series(points.steps[start : start + CHUNK], points.values[start : start + CHUNK])
                if len(piece) == CHUNK:
                    self._add(column, piece)
                else:
                    # Copies: a view would keep the whole turned tail alive.
                    unfilled.append((column, Series(piece.steps.copy(), piece.values.copy())))
        # Last, so that what is deleted the next time lies together: holes among the others would never be filled.
        for column, piece in unfilled:
            self._open[column] = (self._add(column, piece), piece)

    def _add(self, column: int, piece: Series) -> int:
        cursor = self._db.execute(
            "INSERT INTO chunk (series, first, last, steps, numbers, low, high) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (column, *pack(piece)),
        )
        if (told := glance(piece)) is not None:
            self._db.execute(
                "INSERT INTO glance (series, chunk, first, last, low, high, points) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (column, cursor.lastrowid, *told),
            )
        return int(cursor.lastrowid or 0)

    def _row(self, record: Record) -> TailRow | None:
        try:
            return self._packed(record)
        except sqlite3.Error:
            raise
        except Exception:
            rest = sound(record, self._on_reject)
            return None if rest is None else self._packed(rest)

    def _packed(self, record: Record) -> TailRow:
        step = operator.index(record.step)
        if not -(2**63) <= step < 2**63:
            raise OverflowError("a step is an int64")
        names = tuple(record.values)
        # Numbers first: a name is entered only when it has one.
        numbers = struct.pack(f"<{len(names) + 2}d", record.time, bool(record.full), *record.values.values())
        return step, self._layouts.get(names) or self._new_layout(names), numbers

    def _new_layout(self, names: tuple[str, ...]) -> bytes:
        encoded = [encode(name) for name in names]
        if len(self._layouts) >= _LAYOUTS:
            self._layouts.clear()
        columns = struct.pack(f"<{len(names) + 2}I", TIME, FULL, *[self._id(name) for name in encoded])
        self._layouts[names] = columns
        return columns

    def _id(self, name: bytes) -> int:
        if name not in self._ids:
            number = FIRST_METRIC + len(self._ids)
            self._db.execute("INSERT INTO metric (id, name) VALUES (?, ?)", (number, name))
            self._ids[name] = number
        return self._ids[name]


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
