"""A run of any length with thinned curves: what a view that is drawn again every second may read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lossdoctor.record import Series
from lossdoctor.report.digest import Digest, digest
from lossdoctor.store import Run
from lossdoctor.store.thinned import Thinned


class ThinRun(Run):
    """The same run, each curve read once and as a few thousand points; short ones whole. Its state is the moment's."""

    def __init__(self, run: Run) -> None:
        super().__init__(run._source)
        self._curves: dict[str, Thinned] = {}
        self._once: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Series:
        return self.thinned(name).series

    def thinned(self, name: str, points: int = 4096) -> Thinned:
        """See `Run.thinned`."""
        if name not in self._curves:
            self._curves[name] = super().thinned(name, points)
        return self._curves[name]

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """See `Run.steps`."""
        if "steps" not in self._once:
            self._once["steps"] = super().steps
        found: npt.NDArray[np.int64] = self._once["steps"]
        return found

    @property
    def times(self) -> Series:
        """See `Run.times`."""
        if "times" not in self._once:
            self._once["times"] = super().times
        found: Series = self._once["times"]
        return found


def glance(run: ThinRun) -> Digest:
    """The digest of a thinned run; how many values are broken is told of all of them."""
    found = digest(run)
    lines = (replace(line, broken=run.thinned(line.name).broken) for line in found.lines)
    return replace(found, lines=tuple(lines))
