"""A run, read: the same door to a run on disk, one still being written, and one kept in memory."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.record import Series
from lossdoctor.store.disk import DiskSource
from lossdoctor.store.layout import resolve
from lossdoctor.store.thinned import POINTS, Thinned


class UnknownMetricError(UsageError, KeyError):
    """The run has no metric of this name."""

    __str__ = Exception.__str__  # KeyError would show the text as a repr, on one line


class Source(Protocol):
    """Where a run's records come from. Points are in writing order, a step twice where it was written twice."""

    @property
    def path(self) -> Path | None:
        """The folder, if there is one."""

    @property
    def rank(self) -> int:
        """The one these records are of."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that can be read there."""

    def names(self) -> list[str]:
        """All metric names."""

    def points(self, name: str) -> Series | None:
        """One metric; None when there is none of this name."""

    def window(self, name: str, first: int, last: int) -> Series | None:
        """Of one metric the points of these steps, both included; None when there is none of this name."""

    def thinned(self, name: str, points: int) -> Thinned | None:
        """One metric, resolved and thinned to at most `points` points; None when there is none of this name."""

    def times(self) -> Series:
        """The wall clock of every record."""

    def fulls(self) -> Series:
        """1 for every record measured in full, 0 for the others."""

    def at(self, step: int) -> dict[str, float]:
        """Every metric that has a value at this step, the one written last."""

    def meta(self) -> dict[str, Any]:
        """What the run is."""

    def events(self) -> tuple[list[dict[str, Any]], int]:
        """What happened, in order, and how many events are unreadable."""

    def other_events(self) -> dict[int, list[dict[str, Any]]]:
        """What happened on each of the other ranks."""


class Run(Mapping[str, Series]):
    """The records of a run: a mapping of metric names, sorted, to their `Series`.

    A series is sorted by step and has each step once: where training went back to a checkpoint and wrote a step again,
    the value written last counts. A run that is still being written is read as it is at each access. Reading raises
    RunError when the file turns out to be damaged.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @classmethod
    def open(cls, path: str | PathLike[str], *, rank: int | None = None) -> Run:
        """Open a run by its folder, or by a run file in it. Works while it is being written.

        rank: which process of a distributed run, by default 0 or the one of the file given. Raises RunError when there
        is no run, when the file is of another program or format, or when it is damaged.
        """
        return cls(DiskSource(Path(path), rank))

    def __getitem__(self, name: str) -> Series:
        points = self._source.points(name) if isinstance(name, str) else None
        if points is None:
            raise self._unknown(name)
        return resolve(points)

    def window(self, name: str, first: int = -(2**63), last: int = 2**63 - 1) -> Series:
        """The part of a metric from step `first` to step `last`, both included; empty when it has no value there.

        Reads that part alone: a thousand points of a million in about 1 ms, the whole in about 10. Raises
        UnknownMetricError like `run[name]`.
        """
        points = self._source.window(name, first, last) if isinstance(name, str) else None
        if points is None:
            raise self._unknown(name)
        return resolve(points)

    def thinned(self, name: str, points: int = POINTS) -> Thinned:
        """A metric of any length as at most `points` points, and its extremes and broken values, which are of all.

        Reads a million points in about 10 ms and a few MB. points: 3 or more, or UsageError. Raises UnknownMetricError
        like `run[name]`.
        """
        if points < 3:
            raise UsageError(
                mismatch(
                    "A thinned series has a first, a last and other points.", "points >= 3", str(points), "ask for more"
                )
            )
        found = self._source.thinned(name, points) if isinstance(name, str) else None
        if found is None:
            raise self._unknown(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._source.names()))

    def __contains__(self, name: object) -> bool:
        return name in self._source.names()

    def __len__(self) -> int:
        return len(self._source.names())

    def _unknown(self, name: object) -> UnknownMetricError:
        near = difflib.get_close_matches(str(name), self, n=3)
        return UnknownMetricError(
            mismatch(
                "The run has no such metric.",
                f"one of {', '.join(map(repr, near))}" if near else f"one of its {len(self)} metrics",
                repr(name),
                "list(run) gives all names; a metric that was never defined is absent",
            )
        )

    # A run is not a set of numbers: two runs are the same only if they are one.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<Run {str(self.path) if self.path else 'in memory'}: {len(self)} metrics>"

    @property
    def path(self) -> Path | None:
        """The folder of the run; None when it is kept in memory."""
        return self._source.path

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that have a file in the folder: `Run.open(path, rank=1)`."""
        return self._source.ranks

    @property
    def meta(self) -> dict[str, Any]:
        """What the run is, as in `meta.json`; empty when there is no such file."""
        return self._source.meta()

    @property
    def events(self) -> list[dict[str, Any]]:
        """What happened, in order; each has `kind` and `time`, most have `step`."""
        return self._source.events()[0]

    @property
    def rank_events(self) -> dict[int, list[dict[str, Any]]]:
        """The events of every rank of a distributed run, by rank; those of this one are `events`."""
        return dict(sorted({self._source.rank: self.events, **self._source.other_events()}.items()))

    @property
    def torn_events(self) -> int:
        """How many lines of `events.jsonl` are cut off or damaged, and missing in `events`."""
        return self._source.events()[1]

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """The steps measured in full, sorted, each once."""
        fulls = self._source.fulls()
        there = fulls.values != 0.0
        return resolve(Series(fulls.steps[there], fulls.values[there])).steps

    @property
    def times(self) -> Series:
        """The wall clock of every step that has a record, in seconds since the epoch."""
        return resolve(self._source.times())

    @property
    def last(self) -> dict[str, float]:
        """Everything measured at the last full step; empty when there is none."""
        steps = self.steps
        return dict(sorted(self._source.at(int(steps[-1])).items())) if len(steps) else {}
