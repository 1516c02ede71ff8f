"""Keeps a sink away from training: its own thread, a bounded queue, and an end to it when it fails."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lossdoctor.record import Record
from lossdoctor.sinks.sink import Sink

CAPACITY = 10_000
BATCH_SECONDS = 1.0
"""What has come is gathered this long and given to the sink at once."""
CLOSE_SECONDS = 10.0


class Background:
    """Drives one sink. No method waits for it (`close` a limited time), and none raises for it.

    Records and events wait in a queue of `capacity`; when the sink is too slow for it, the oldest are dropped and
    counted in `dropped`. When the sink raises, it is switched off for good: `failure` says why, and
    on_failure(name, error) is called once, from the sink's thread. The same when it has not finished in time at the
    end, from the closing thread.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        on_failure: Callable[[str, BaseException], None] | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self.failure: BaseException | None = None
        self.dropped = 0
        self._sink = sink
        self._on_failure = on_failure
        # Taken again by its own thread when a signal handler writes or closes in the middle of a write.
        self._changed = threading.Condition()
        self._queue: deque[Record | Path | Mapping[str, Any]] = deque(maxlen=capacity)
        self._closing = self._ended = False
        self._process = os.getpid()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The sink's name."""
        return self._sink.name

    def open(self, meta: Mapping[str, Any]) -> None:
        """Start; the sink itself opens on its thread."""
        self._thread = threading.Thread(
            target=self._work, args=(dict(meta),), name=f"lossdoctor-{self.name}", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)

    def write(self, records: Sequence[Record]) -> None:
        """Hand records over; they must not be changed afterwards."""
        self._put(records)

    def event(self, event: Mapping[str, Any]) -> None:
        """Hand an event over, in order with the records."""
        self._put((event,))

    @property
    def takes_report(self) -> bool:
        """Whether the sink does something with a report."""
        return type(self._sink).report is not Sink.report and self.failure is None

    def report(self, path: Path) -> None:
        """Hand the report of the finished run over; the file must stay until `close`."""
        self._put((path,))

    def close(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Let the sink take what is queued and close, for at most `timeout` seconds. Whether it has; callable again."""
        atexit.unregister(self.close)
        if self._thread is None or os.getpid() != self._process:
            return True
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            # Not a join: waiting lets the lock go, should a signal handler close in the middle of a write.
            while not self._ended and threading.current_thread() is not self._thread:
                left = deadline - time.monotonic()
                if left <= 0:
                    waiting = len(self._queue)
                    break
                self._changed.wait(left)
            else:
                return True
        self._fail(TimeoutError(f"not finished {timeout:g} s after the run; {waiting} records or events were waiting"))
        return False

    def _put(self, items: Sequence[Record] | tuple[Mapping[str, Any] | Path]) -> None:
        if os.getpid() != self._process:
            return  # a forked child, such as a data loader's worker: the sink is the parent's
        with self._changed:
            if self.failure is not None or self._closing:
                return
            first = not self._queue
            self.dropped += max(0, len(self._queue) + len(items) - (self._queue.maxlen or 0))
            self._queue.extend(items)
            if first or 2 * len(self._queue) > (self._queue.maxlen or 0):
                self._changed.notify_all()

    # On the sink's thread

    def _work(self, meta: dict[str, Any]) -> None:
        try:
            self._sink.open(meta)
            while batch := self._collect():
                self._give(batch)
        except BaseException as error:  # a tracker may well call sys.exit
            self._fail(error)
        try:
            self._sink.close()
        except BaseException as error:
            self._fail(error)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _collect(self) -> list[Record | Path | Mapping[str, Any]]:
        """Wait for work, and for a moment more of it, and take it. Empty when there will be no more."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            deadline = time.monotonic() + BATCH_SECONDS
            while not self._closing and 2 * len(self._queue) <= (self._queue.maxlen or 0):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            batch = list(self._queue)
            self._queue.clear()
            return batch

    def _give(self, batch: list[Record | Path | Mapping[str, Any]]) -> None:
        for is_record, group in itertools.groupby(batch, key=lambda item: isinstance(item, Record)):
            if is_record:
                self._sink.write([item for item in group if isinstance(item, Record)])
            else:
                for item in group:
                    if isinstance(item, Path):
                        self._sink.report(item)
                    elif not isinstance(item, Record):
                        self._sink.event(item)

    # Anywhere

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self.failure is not None:
                return
            self.failure = error
            self._queue.clear()
        if self._on_failure is not None:
            try:
                self._on_failure(self.name, error)
            except Exception:
                logging.getLogger(__name__).exception("on_failure of the sink %s failed itself", self.name)
