"""A run, written: the training loop hands records over and never waits for a disk."""

from __future__ import annotations

import atexit
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from lossdoctor.errors import RunError
from lossdoctor.record import Record
from lossdoctor.store.claim import cannot_write, claim
from lossdoctor.store.database import Database, not_ours
from lossdoctor.store.disk import DiskSource
from lossdoctor.store.folder import Folder
from lossdoctor.store.layout import CHUNK
from lossdoctor.store.memory import Joined, MemoryWriter, new_event
from lossdoctor.store.plain import dumps, plain
from lossdoctor.store.reader import Run

COMMIT_SECONDS = 0.5
"""A record waits at most this long, and the time of one commit, before it is safe from a `kill -9`."""
_REJECTIONS = 100
"""Metrics told as rejected: a script that logs garbage under ever new names must not fill the events."""


class _Batch(NamedTuple):
    """What the writing thread has taken and not yet committed; everything up to `ticket` is done with it."""

    records: list[Record]
    events: list[dict[str, Any]]
    meta: dict[str, Any] | None
    ticket: int


class RunWriter:
    """Writes one rank of a run folder, on a thread of its own.

    Records are committed within a second, events and meta at once: that is all a `kill -9` can lose. When writing fails
    (disk full, folder deleted, file locked for long), `failure` says so, `on_failure` is called once, from the writing
    thread, and everything from then on is kept in memory: `run()` joins it to what is on disk. The same holds for what
    is given after `close`. In a forked child (a data loader's worker) the writer is dead: what it is given is dropped.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        meta: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        rank: int = 0,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Begin a run, or go on with one.

        resume: go on with the run in the folder if there is one; meta is added to its meta. Steps written again replace
        the earlier ones when read. rank: rank r > 0 writes its own `run.rank{r}.db` and events, and its meta is not
        written: that is rank 0's. Raises RunExistsError when the folder holds a run and resume is False, RunLockedError
        when another writer is at work there, RunWriteError when the folder cannot be written, RunError when what is
        there is not ours.
        """
        self._folder = Folder(Path(folder), rank)
        self._on_failure = on_failure
        self._rejected: set[str] = set()
        self.failure: BaseException | None = None
        # The lock may be taken again by its own thread: a signal handler may flush or close in the middle of an append.
        self._changed = threading.Condition()
        self._records: list[Record] = []
        self._events: list[dict[str, Any]] = []
        self._given = self._written = 0
        self._hurry = self._closing = self._ended = self._dead = self._meta_due = False
        self._batch = _Batch([], [], None, 0)
        with ExitStack() as undo:
            self._log = claim(self._folder, resume=resume)
            undo.callback(os.close, self._log)
            try:
                self._database = Database(self._folder.database, self._reject)
                undo.callback(self._database.abandon)
                self._meta = (self._folder.read_meta() if resume else {}) | plain(dict(meta or {}))
                if rank == 0:
                    self._folder.write_meta(self._meta)
            except (OSError, sqlite3.OperationalError) as error:
                raise cannot_write(self._folder, error) from error
            except (sqlite3.Error, ValueError, TypeError) as error:
                raise not_ours(self._folder.database, f"{error}; if it was a run, it is damaged") from error
            self._rest = MemoryWriter(self._meta)
            self._thread = threading.Thread(target=self._work, name="lossdoctor-store", daemon=True)
            self._thread.start()
            undo.pop_all()
        atexit.register(self.close)
        _LIVING.add(self)

    def append(self, records: Sequence[Record]) -> None:
        """Hand records over; they must not be changed afterwards. A few microseconds, whatever the disk does.

        A value that is no number is left out and told once per metric as an event `rejected`.
        """
        with self._changed:
            if self._ended:
                self._keep(records, [])
                return
            first = self._given == self._written
            self._records.extend(records)
            self._given += 1
            if first or len(self._records) >= CHUNK:
                self._changed.notify_all()

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Add one line to the events: kind, wall clock and the fields. Returns it as written, for others to pass on.

        NaN and infinity become strings, what JSON does not know its `repr`.
        """
        event = new_event(kind, fields)
        with self._changed:
            if self._ended:
                self._keep([], [event])
            else:
                self._events.append(event)
                self._due_now()
        return event

    def update_meta(self, **fields: Any) -> None:
        """Add to the meta, over fields of the same name; `meta.json` is replaced in one move."""
        fields = plain(fields)
        with self._changed:
            self._meta = self._meta | fields
            self._rest.update_meta(**fields)
            if not self._ended:
                self._meta_due = self._folder.rank == 0
                self._due_now()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was given is on disk; False when it is not after `timeout` seconds, or never will be."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            given = self._given
            if self._written < given:
                self._hurry = True
                self._changed.notify_all()
            while self._written < given and not self._ended and not self._writing:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            return self._written >= given

    def close(self) -> None:
        """Write what is left, pack it, release the folder. May be called again, and at exit it is."""
        atexit.unregister(self.close)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            # Not a join: waiting lets the lock go, should a signal handler close in the middle of an append.
            while not self._ended and not self._writing:
                self._changed.wait()

    def run(self) -> Run:
        """Everything recorded so far: what is on disk, and what could not be written."""
        self.flush()
        try:
            if not self._database.there:
                return self._rest.run()
            return Run(Joined(DiskSource(self._folder.path, self._folder.rank), self._rest.source))
        except RunError:
            if self.failure is None:
                raise
            return self._rest.run()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # On the writing thread

    def _work(self) -> None:
        try:
            while self._collect():
                self._store()
            self._database.close()
        except BaseException as error:  # whatever it is, it must not end as a silent dead thread
            self._fail(error)
        finally:
            with self._changed:
                self._keep(self._records, self._events)
                self._records, self._events = [], []
                log, self._log = self._log, -1
                os.close(log)
                self._ended = True
                self._changed.notify_all()

    def _collect(self) -> bool:
        """Wait for work, and for a moment more of it, and take it. False when there will be no more."""
        with self._changed:
            while self._written == self._given and not self._closing:
                self._changed.wait()
            deadline = time.monotonic() + COMMIT_SECONDS
            while not (self._hurry or self._closing or len(self._records) >= CHUNK):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._hurry = False
            self._batch = _Batch(self._records, self._events, self._meta if self._meta_due else None, self._given)
            self._records, self._events, self._meta_due = [], [], False
            return self._written < self._given

    def _store(self) -> None:
        batch = self._batch
        self._database.write(batch.records)
        data = "".join(dumps(event) + "\n" for event in batch.events).encode("ascii")
        while data:
            data = data[os.write(self._log, data) :]
        if batch.meta is not None:
            self._folder.write_meta(batch.meta)
        with self._changed:
            self._batch = _Batch([], [], None, batch.ticket)
            self._written = batch.ticket
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        failure = cannot_write(self._folder, error)
        failure.__cause__ = error
        self._database.abandon()
        with self._changed:
            self._keep(self._batch.records, self._batch.events)
            self.failure = failure
        if self._on_failure is not None:
            try:
                self._on_failure(failure)
            except Exception:
                logging.getLogger(__name__).exception("on_failure of the run %s failed itself", self._folder.path)

    # Anywhere

    @property
    def _writing(self) -> bool:
        """Whether this is the writing thread, which cannot wait for itself: on_failure may call anything."""
        return threading.current_thread() is self._thread

    def _due_now(self) -> None:
        self._given += 1
        self._hurry = True
        self._changed.notify_all()

    def _keep(self, records: Sequence[Record], events: Sequence[dict[str, Any]]) -> None:
        """Into memory, and never counted as written."""
        if self._dead:
            return
        self._given += bool(records or events)
        self._rest.append(records)
        for event in events:
            self._rest.source.add_event(event)

    def _reject(self, name: str, reason: str) -> None:
        if name not in self._rejected and len(self._rejected) < _REJECTIONS:
            self._rejected.add(name)
            self.event("rejected", metric=name, reason=reason)

    def _abandon(self) -> None:
        """In a forked child there is no writing thread, and file, locks and events belong to the parent."""
        if self._log >= 0:
            os.close(self._log)  # or the run stays locked as long as the child lives
        self._changed, self._rest = threading.Condition(), MemoryWriter(self._meta)
        self._ended = self._dead = True
        self._records, self._events = [], []


_LIVING: weakref.WeakSet[RunWriter] = weakref.WeakSet()


def _abandon_all() -> None:
    for writer in list(_LIVING):
        writer._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
