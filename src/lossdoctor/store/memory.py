"""A run without a folder: for a Doctor without `run=`, and for records that no longer reach the disk."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lossdoctor.record import Record, Series
from lossdoctor.store.layout import NOTHING, between, join, resolve
from lossdoctor.store.plain import plain
from lossdoctor.store.reader import Run, Source
from lossdoctor.store.sound import sound
from lossdoctor.store.thinned import Thinned, thin


class _Column:
    """A growing series: 16 bytes a point."""

    def __init__(self) -> None:
        self._steps, self._values = array("q"), array("d")

    def add(self, step: int, value: float) -> None:
        self._steps.append(step)
        self._values.append(value)

    def series(self) -> Series:
        # Copies: an array that lends its memory can no longer grow.
        return Series(np.array(self._steps, np.int64), np.array(self._values, np.float64))


class MemorySource:
    """Records in memory, to be read while they grow."""

    path: Path | None = None
    rank: int = 0
    ranks: tuple[int, ...] = (0,)

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._metrics: dict[str, _Column] = {}
        self._times, self._fulls = _Column(), _Column()
        self._meta: dict[str, Any] = {}
        self._events: list[dict[str, Any]] = []

    def add(self, records: Sequence[Record], on_reject: Callable[[str, str], None]) -> None:
        """Take records in; on_reject is told of numbers that are none."""
        whole = [rest for record in records if (rest := sound(record, on_reject)) is not None]
        with self._lock:
            for record in whole:
                self._times.add(record.step, record.time)
                self._fulls.add(record.step, float(record.full))
                for name, value in record.values.items():
                    if name not in self._metrics:
                        self._metrics[name] = _Column()
                    self._metrics[name].add(record.step, value)

    def add_event(self, event: dict[str, Any]) -> None:
        """Take in one plain event."""
        with self._lock:
            self._events.append(event)

    def add_meta(self, fields: dict[str, Any]) -> None:
        """Add plain fields to the meta, over those of the same name."""
        with self._lock:
            self._meta |= fields

    def names(self) -> list[str]:
        """All metric names, in the order they appeared."""
        with self._lock:
            return list(self._metrics)

    def points(self, name: str) -> Series | None:
        """One metric, in writing order."""
        with self._lock:
            return self._metrics[name].series() if name in self._metrics else None

    def window(self, name: str, first: int, last: int) -> Series | None:
        """One metric from step to step, both included, in writing order."""
        found = self.points(name)
        return None if found is None else between(found, first, last)

    def thinned(self, name: str, points: int) -> Thinned | None:
        """One metric, thinned."""
        found = self.points(name)
        return None if found is None else thin([resolve(found)], points)

    def times(self) -> Series:
        """The wall clock of every record."""
        with self._lock:
            return self._times.series()

    def fulls(self) -> Series:
        """1 for every record measured in full, 0 for the others."""
        with self._lock:
            return self._fulls.series()

    def at(self, step: int) -> dict[str, float]:
        """Every metric that has a value at this step, the one written last."""
        with self._lock:
            found = {name: column.series() for name, column in self._metrics.items()}
        return {name: float(s.values[s.steps == step][-1]) for name, s in found.items() if (s.steps == step).any()}

    def meta(self) -> dict[str, Any]:
        """A copy of the meta."""
        with self._lock:
            return plain(self._meta)

    def events(self) -> tuple[list[dict[str, Any]], int]:
        """The events; none is ever torn."""
        with self._lock:
            return list(self._events), 0

    def other_events(self) -> dict[int, list[dict[str, Any]]]:
        """Of other processes nothing is known."""
        return {}


class Joined:
    """A run whose beginning is on disk and whose rest could not be written there."""

    def __init__(self, disk: Source, rest: MemorySource) -> None:
        self._disk, self._rest = disk, rest
        self.path = disk.path
        self.rank, self.ranks = disk.rank, disk.ranks

    def names(self) -> list[str]:
        """All metric names of both."""
        return list(dict.fromkeys([*self._disk.names(), *self._rest.names()]))

    def points(self, name: str) -> Series | None:
        """One metric, first what is on disk."""
        parts = [part for part in (self._disk.points(name), self._rest.points(name)) if part is not None]
        return join(parts) if parts else None

    def window(self, name: str, first: int, last: int) -> Series | None:
        """One metric from step to step, both included; first what is on disk."""
        found = (self._disk.window(name, first, last), self._rest.window(name, first, last))
        parts = [part for part in found if part is not None]
        return join(parts) if parts else None

    def thinned(self, name: str, points: int) -> Thinned | None:
        """One metric, thinned; all of it is read at once only when part of it could not be written."""
        rest = self._rest.points(name)
        if rest is None:
            return self._disk.thinned(name, points)
        disk = self._disk.points(name)
        return thin([resolve(join((NOTHING if disk is None else disk, rest)))], points)

    def times(self) -> Series:
        """The wall clock of every record."""
        return join((self._disk.times(), self._rest.times()))

    def fulls(self) -> Series:
        """1 for every record measured in full, 0 for the others."""
        return join((self._disk.fulls(), self._rest.fulls()))

    def at(self, step: int) -> dict[str, float]:
        """Every metric that has a value at this step, the one written last."""
        return self._disk.at(step) | self._rest.at(step)

    def meta(self) -> dict[str, Any]:
        """The meta: the writer knows it best."""
        return self._rest.meta()

    def events(self) -> tuple[list[dict[str, Any]], int]:
        """The events of both, and the torn ones of the disk."""
        (first, torn), (rest, _) = self._disk.events(), self._rest.events()
        return [*first, *rest], torn

    def other_events(self) -> dict[int, list[dict[str, Any]]]:
        """Those of the disk."""
        return self._disk.other_events()


class MemoryWriter:
    """The interface of RunWriter, without a folder. Nothing can fail, and nothing outlives the process."""

    failure: BaseException | None = None
    """Never set: it is here because RunWriter has one."""

    def __init__(self, meta: Mapping[str, Any] | None = None) -> None:
        self.source = MemorySource()
        self.source.add_meta(plain(dict(meta or {})))
        self._rejected: set[str] = set()

    def append(self, records: Sequence[Record]) -> None:
        """Keep the records. A value that is no number is left out and told once per metric as an event `rejected`."""
        self.source.add(records, self._reject)

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Keep an event; returns it as it is kept."""
        event = new_event(kind, fields)
        self.source.add_event(event)
        return event

    def update_meta(self, **fields: Any) -> None:
        """Add to the meta, over fields of the same name."""
        self.source.add_meta(plain(fields))

    def flush(self, timeout: float | None = None) -> bool:
        """True: nothing is outstanding."""
        return True

    def close(self) -> None:
        """Nothing to do; the run can still be read."""

    def run(self) -> Run:
        """The run, growing as it is written."""
        return Run(self.source)

    def __enter__(self) -> MemoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reject(self, name: str, reason: str) -> None:
        if name not in self._rejected:
            self._rejected.add(name)
            self.event("rejected", metric=name, reason=reason)


def new_event(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """An event as it is kept: kind, wall clock, and the fields as plain JSON."""
    return plain({"kind": kind, "time": time.time(), **fields})
