"""A run read into memory: it is asked again and again, at many of its steps, and no file stays open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lossdoctor.record import Series
from lossdoctor.store import Run
from lossdoctor.store.thinned import POINTS, Thinned, thin


@dataclass(frozen=True, slots=True)
class Recorded:
    """What `diagnose` needs of a run. curves: whole, sorted by step. steps: those measured in full."""

    curves: dict[str, Series]
    meta: dict[str, Any]
    events: list[dict[str, Any]]
    steps: npt.NDArray[np.int64]
    times: Series

    @classmethod
    def of(cls, run: Run) -> Recorded:
        """All of a run. Raises RunError when it is damaged."""
        return cls({name: run[name] for name in run}, run.meta, run.events, run.steps, run.times)

    def until(self, count: int) -> Recorded:
        """The run as it was after `count` steps: a metric that had no value by then is not there."""
        curves = {name: _before(count, curve) for name, curve in self.curves.items()}
        return Recorded(
            curves={name: curve for name, curve in curves.items() if len(curve)},
            meta=self.meta,
            events=[event for event in self.events if int(event.get("step") or 0) < count],
            steps=self.steps[self.steps < count],
            times=_before(count, self.times),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.curves)

    def thinned(self, name: str, points: int = POINTS) -> Thinned:
        """One curve."""
        return thin([self.curves[name]], points)


def _before(count: int, curve: Series) -> Series:
    kept = int(np.searchsorted(curve.steps, count))
    return Series(curve.steps[:kept], curve.values[:kept])
