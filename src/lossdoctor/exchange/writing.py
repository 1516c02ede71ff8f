"""The records of a run one after the other, and what was imported as a run: in a folder, or in memory for this once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from lossdoctor.exchange.reading import Imported, batches
from lossdoctor.record import Record, Series
from lossdoctor.store import MemoryWriter, Run, RunWriter

POINTS_AT_ONCE = 1_000_000
"""Points held in memory at once, about 50 bytes each. Metrics beyond it come in records of their own."""


@dataclass(frozen=True)
class Written:
    """What was written: how many metrics and points, and the first and the last step."""

    metrics: int
    points: int
    first: int
    last: int


def by_step(run: Run, names: Mapping[str, str]) -> Iterator[Record]:
    """The metrics of a run as records, sorted by step. names: which ones, with the names they shall have.

    Each metric is read once. A run with more than POINTS_AT_ONCE points gives some steps in several records, each with
    other metrics. Empty metrics have none.
    """
    for group in _groups(run, names):
        # After the metrics: a run that is still being written has a time for each of them.
        times, measured = run.times, run.steps
        steps = np.concatenate([series.steps for _, series in group])
        values = np.concatenate([series.values for _, series in group])
        which = np.repeat(np.arange(len(group)), [len(series) for _, series in group])
        order = np.argsort(steps, kind="stable")
        steps, values, which = steps[order], values[order], which[order]
        begins = np.flatnonzero(np.append(True, steps[1:] != steps[:-1]))
        own = steps[begins]
        clocks = times.values[np.searchsorted(times.steps, own)].tolist()
        fulls = np.isin(own, measured).tolist()
        ends = np.append(begins[1:], len(steps)).tolist()
        titles = [name for name, _ in group]
        for step, clock, full, begin, end in zip(own.tolist(), clocks, fulls, begins.tolist(), ends, strict=True):
            there = zip(which[begin:end].tolist(), values[begin:end].tolist(), strict=True)
            yield Record(step, {titles[one]: value for one, value in there}, full=full, time=clock)


def write_run(imported: Imported, folder: str | PathLike[str], *, meta: Mapping[str, Any] | None = None) -> Written:
    """Write what was imported into a new or empty folder, as a run like any other.

    meta: more for `meta.json`, such as `kinds`. Raises RunError when the folder cannot be written or holds a run; then,
    and when it is interrupted, no half of a run is left behind.
    """
    writer = RunWriter(folder, {**_origin(imported), **(meta or {})})
    try:
        written = _write(imported, writer)
        writer.close()
        _check(writer)
    except BaseException:
        writer.close()
        for path in Path(folder).iterdir():
            if path.name.startswith(("run.db", "events.jsonl", "meta.json")):
                path.unlink()
        raise
    return written


def as_run(imported: Imported) -> Run:
    """What was imported as a run like any other, in memory, under the names it has here."""
    writer = MemoryWriter(_origin(imported))
    _write(imported, writer)
    return writer.run()


def _origin(imported: Imported) -> dict[str, Any]:
    """Where it is from, for `meta.json`."""
    told = {
        "format": imported.format,
        "source": imported.source,
        "step": imported.notes.step,
        "renamed": dict(imported.renaming.ours),
        "lost": {code: count for code, count in imported.notes.lost.items() if count},
        "ignored": dict(imported.notes.ignored),
    }
    return {"imported": told}


def _write(imported: Imported, writer: RunWriter | MemoryWriter) -> Written:
    points, first, last = 0, 0, 0
    names = imported.names
    for batch in batches(by_step(imported.run, names)):
        writer.append(batch)
        # Waits for the disk: or the whole run would queue up in memory.
        writer.flush()
        _check(writer)
        first = min(batch[0].step, first) if points else batch[0].step
        last = max(batch[-1].step, last) if points else batch[-1].step
        points += sum(len(record.values) for record in batch)
    for event in imported.notes.events:
        fields = {str(name): value for name, value in event.items() if name not in ("kind", "self")}
        writer.event(str(event.get("kind", "event")), **fields)
    return Written(len(names), points, first, last)


def _check(writer: RunWriter | MemoryWriter) -> None:
    if writer.failure is not None:
        raise writer.failure


def _groups(run: Run, names: Mapping[str, str]) -> Iterator[list[tuple[str, Series]]]:
    """Metrics that fit into memory together, and at least one."""
    group: list[tuple[str, Series]] = []
    for theirs, ours in names.items():
        series = run[theirs]
        if group and sum(len(one) for _, one in group) + len(series) > POINTS_AT_ONCE:
            yield group
            group = []
        if len(series):
            group.append((ours, series))
    if group:
        yield group
