"""A run as plain dictionaries, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from lossdoctor.record import Record
from lossdoctor.store import Run


class Twin:
    """What a run must read as: for every metric and step the value written last."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.metrics: dict[str, dict[int, float]] = {}
        self.times: dict[int, float] = {}
        self.full: set[int] = set()
        self.add(records)

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            self.times[record.step] = record.time
            if record.full:
                self.full.add(record.step)
            for name, value in record.values.items():
                self.metrics.setdefault(name, {})[record.step] = float(value)

    def check(self, run: Run) -> None:
        def bits(values: Iterable[float]) -> list[int]:
            # NaN is not equal to itself, and -0.0 is equal to 0.0: compare what is stored.
            return [int(bits) for bits in np.array(list(values), np.float64).view(np.int64)]

        assert list(run) == sorted(self.metrics)
        assert len(run) == len(self.metrics)
        for name, points in self.metrics.items():
            series = run[name]
            assert name in run
            assert series.steps.dtype == np.int64
            assert series.values.dtype == np.float64
            assert series.steps.tolist() == sorted(points)
            assert bits(series.values) == bits(points[step] for step in sorted(points))
        assert run.steps.tolist() == sorted(self.full)
        assert run.times.steps.tolist() == sorted(self.times)
        assert bits(run.times.values) == bits(self.times[step] for step in sorted(self.times))
        latest = max(self.full, default=None)
        last = {name: points[latest] for name, points in sorted(self.metrics.items()) if latest in points}
        assert list(run.last) == list(last)
        assert bits(run.last.values()) == bits(last.values())


@pytest.fixture(scope="session")
def twin() -> Callable[..., Twin]:
    return Twin
