"""The words every part shares: a record that goes into a run, and a series that comes out of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Record:
    """What was measured at one optimizer step.

    step: number of completed optimizer steps before this one, so the first record has step 0.
    values: metric name to number; NaN and infinity are real measurements, an undefined metric is absent.
    full: whether the step was measured in full, or only losses and logged scalars were kept.
    time: wall clock, seconds since the epoch.

    One step may come in several records (an evaluation after the step, say); a reader joins them by metric,
    and of two values for the same metric and step the later one counts.
    """

    step: int
    values: Mapping[str, float]
    full: bool = False
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Series:
    """One metric over a run: `steps` (N,) int64 and `values` (N,) float64.

    As a `Run` gives it, sorted by step, each step once.
    """

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self.steps.tolist(), self.values.tolist(), strict=True)

    @property
    def finite(self) -> Series:
        """The same series without NaN and infinity."""
        keep = np.isfinite(self.values)
        return Series(self.steps[keep], self.values[keep])
