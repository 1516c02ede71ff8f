"""Steps told from chunks: the same as point by point, and no grid where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossdoctor.record import Record, Series
from lossdoctor.store import Run, RunWriter
from lossdoctor.store.disk import DiskSource
from lossdoctor.store.grid import Grid, kept
from lossdoctor.store.layout import CHUNK
from lossdoctor.store.thinned import thin

NO_TAIL = np.empty(0, np.int64)


def steps(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, np.int64)


def test_a_grid_has_the_steps_of_its_chunks_and_tail() -> None:
    grid = Grid.of([(0, 20, True, 24), (25, 25, True, 8), (30, 36, True, 32)], steps(40, 41, 90))
    assert grid is not None
    assert grid.steps.tolist() == [0, 10, 20, 25, 30, 32, 34, 36, 40, 41, 90]
    assert list(grid.rows) == [(0, 20, 24), (25, 25, 8), (30, 36, 32)]


@pytest.mark.parametrize("points", [3, 50, 4096])
@pytest.mark.parametrize("tail", [0, 1, 300])
def test_what_is_kept_is_what_thinning_keeps(points: int, tail: int) -> None:
    rows = [(7 * CHUNK * i, 7 * CHUNK * i + 7 * (CHUNK - 1), True, 8 * CHUNK) for i in range(40)]
    grid = Grid.of(rows, 7 * CHUNK * 40 + 7 * np.arange(tail))
    assert grid is not None
    values = np.random.default_rng(0).normal(size=len(grid.steps))
    slow = thin([Series(grid.steps, values)], points).series
    found = kept(grid, points)
    np.testing.assert_array_equal(found.steps, slow.steps)
    np.testing.assert_array_equal(values[found.values.astype(int)], slow.values)


@pytest.mark.parametrize(
    ("rows", "tail"),
    [
        ([], NO_TAIL),
        ([(0, 9, False, 80)], NO_TAIL),  # uneven
        ([(0, 9, True, 80), (9, 19, True, 88)], NO_TAIL),  # a step twice
        ([(0, 9, True, 80), (-5, -1, True, 40)], NO_TAIL),  # backwards
        ([(0, 9, True, 80)], steps(9)),  # the tail has the last step again
        ([(0, 9, True, 80)], steps(12, 11)),
        ([(0, 9, True, 81)], NO_TAIL),  # damaged: no whole number
        ([(0, 9, True, 0)], NO_TAIL),
        ([(0, 9, True, 56)], NO_TAIL),  # 7 points do not run evenly from 0 to 9
    ],
)
def test_no_grid(rows: list[tuple[int, int, bool, int]], tail: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    assert Grid.of(rows, tail) is None


def test_a_metric_of_another_grid_and_sums_that_overflow_are_read_as_well(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as disk:
        for step in range(3000):
            rare = {"rare": float(step)} if step % 3 == 0 else {}
            disk.append([Record(step, {"often": float(-step), "huge": 1.7e308, **rare})])
    source = DiskSource(tmp_path)
    for name in ("often", "rare", "huge", "often", "rare"):
        one, whole = source.thinned(name, 64), Run.open(tmp_path)[name]
        assert one is not None
        slow = thin([whole], 64)
        assert (one.count, one.low, one.high, one.broken) == (slow.count, slow.low, slow.high, 0)
        np.testing.assert_array_equal(one.series.steps, slow.series.steps)
        np.testing.assert_array_equal(one.series.values, slow.series.values)
