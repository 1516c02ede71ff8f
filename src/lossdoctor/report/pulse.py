"""Whether a run goes on, how fast, and since when it is silent: read from its folder, without asking its process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lossdoctor.record import Series
from lossdoctor.store import Run

State = Literal["absent", "empty", "growing", "silent", "ended", "deleted", "unreadable"]

RECENT = 20
"""Measured steps that tell the rate now."""

PATIENCE = 60.0
"""Seconds without a record after which a run is called silent; a slow one has ten times its usual gap."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """State of a run; rate: steps per second now; quiet: seconds since its last record. None where unknown."""

    state: State
    rate: float | None = None
    quiet: float | None = None
    why: str = ""


def pulse(run: Run, now: float | None = None) -> Pulse:
    """The pulse of a run that can be read. now: the wall clock, seconds since the epoch."""
    clock, full = run.times, run.steps
    own = Series(full, clock.values[np.searchsorted(clock.steps, full)]) if len(full) else clock
    return taken(own, clock, run.path and run.path / "run.db", now)


def taken(full: Series, clock: Series, file: Path | None, now: float | None = None) -> Pulse:
    """The same from the clocks of the last steps measured in full, of the last records, and the file they are in."""
    if not len(clock):
        return Pulse("empty")
    now = time.time() if now is None else now
    # Steps in between are written with the next one that is due, and have its clock.
    own = full if len(full) > 1 else clock
    few = Series(own.steps[-RECENT:], own.values[-RECENT:])
    passed = float(few.values[-1] - few.values[0])
    rate = float(few.steps[-1] - few.steps[0]) / passed if passed > 0 else None
    quiet = max(0.0, now - float(clock.values.max()))
    if closed(file):
        return Pulse("ended", rate, quiet)
    gap = passed / max(len(few) - 1, 1)
    return Pulse("growing" if quiet < max(PATIENCE, 10 * gap) else "silent", rate, quiet)


def log_of(file: Path) -> Path:
    """The write-ahead log of a run file."""
    return file.with_name(f"{file.name}-wal")


def closed(file: Path | None) -> bool:
    """Whether the writer has ended the run: then there is no write-ahead log, or, while someone reads, an empty one."""
    try:
        return file is not None and log_of(file).stat().st_size == 0
    except OSError:
        return True
