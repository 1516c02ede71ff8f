"""Thinning from glances is thinning of all points; where it could differ there is no glance."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossdoctor.record import Record, Series
from lossdoctor.store import Run, RunWriter
from lossdoctor.store.disk import DiskSource
from lossdoctor.store.glance import STRIDE, glance, thin_glances, worth_it
from lossdoctor.store.layout import CHUNK
from lossdoctor.store.thinned import Thinned, thin

POINTS = 50
LONG = STRIDE * POINTS + 3 * CHUNK


def normal(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).normal(size=count)


def parts(count: int, stride: int = 1, begin: int = 0) -> list[Series]:
    """Full chunks, and a rest of half a chunk."""
    whole = Series(begin + stride * np.arange(CHUNK * count + CHUNK // 2), normal(CHUNK * count + CHUNK // 2))
    return [Series(whole.steps[i : i + CHUNK], whole.values[i : i + CHUNK]) for i in range(0, len(whole), CHUNK)]


def glanced(some: list[Series], points: int = POINTS) -> Thinned | None:
    rows = [row for part in some[:-1] if (row := glance(part)) is not None]
    assert len(rows) == len(some) - 1
    return thin_glances(rows, some[0], some[-1], points)


def check(one: Thinned | None, other: Thinned) -> None:
    assert one is not None
    told, right = ((x.count, x.low, x.high, x.broken, x.first_broken) for x in (one, other))
    assert told == right
    np.testing.assert_array_equal(one.series.steps, other.series.steps)
    np.testing.assert_array_equal(one.series.values, other.series.values)


@pytest.mark.parametrize("stride", [1, 3, 50])
@pytest.mark.parametrize("begin", [0, 17, -100_000])
@pytest.mark.parametrize("points", [3, 50, 64])
def test_it_is_what_thinning_keeps(stride: int, begin: int, points: int) -> None:
    some = parts(20, stride, begin)
    assert worth_it(20, points)
    check(glanced(some, points), thin(some, points))


def test_steps_may_be_uneven() -> None:
    steps = np.cumsum(np.random.default_rng(1).integers(1, 9, size=20 * CHUNK + 5))
    some = [Series(steps[i : i + CHUNK], normal(len(steps))[i : i + CHUNK]) for i in range(0, len(steps), CHUNK)]
    check(glanced(some), thin(some, POINTS))


def test_what_would_be_hidden_has_no_glance() -> None:
    whole = parts(1)[0]
    broken, back = whole.values.copy(), whole.steps.copy()
    broken[77], back[78] = math.nan, back[77]
    assert glance(whole) is not None
    assert glance(Series(whole.steps, broken)) is None
    assert glance(Series(back, whole.values)) is None
    assert glance(Series(whole.steps[1:], whole.values[1:])) is None


def test_chunks_that_overlap_and_broken_rests_are_left_to_the_long_way() -> None:
    some = parts(3)
    assert glanced([some[1], some[0], some[3]]) is None
    assert glanced([some[0], some[1], some[1]]) is None
    assert glanced([*some[:3], Series(some[3].steps, np.full(len(some[3]), math.inf))]) is None
    rows = [row for part in some[:3] if (row := glance(part))]
    assert thin_glances([(*rows[0][:4], b"\0" * 8), *rows[1:]], some[0], some[3], POINTS) is None


@pytest.mark.parametrize("end", [0, 1, CHUNK // 2])
def test_a_long_run_is_read_at_a_glance(tmp_path: Path, end: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(LONG + end)
    with RunWriter(tmp_path) as disk:
        disk.append([Record(step, {"loss": value}) for step, value in enumerate(values.tolist())])
    source, right = DiskSource(tmp_path), thin([Run.open(tmp_path)["loss"]], POINTS)
    monkeypatch.setattr(DiskSource, "_resolved", None)  # the long way
    check(source.thinned("loss", POINTS), right)


def test_a_run_that_broke_or_went_back_is_read_whole(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as disk:
        for first in (0, LONG - 100):
            rows = enumerate(normal(LONG, first).tolist(), first)
            disk.append(
                [Record(step, {"loss": value, "nan": math.nan if step == 999 else 1.0}) for step, value in rows]
            )
    source = DiskSource(tmp_path)
    for name in ("loss", "nan"):
        found = source.thinned(name, POINTS)
        assert found is not None
        assert found.first_broken == (999 if name == "nan" else None)
        np.testing.assert_array_equal(found.series.values, thin([Run.open(tmp_path)[name]], POINTS).series.values)


def test_a_file_from_before_there_were_glances(tmp_path: Path) -> None:
    """It is read, goes on, and is read again: its first chunks have no glance."""
    for first in (0, LONG):
        with RunWriter(tmp_path, resume=bool(first)) as disk:
            disk.append([Record(first + step, {"loss": float(step)}) for step in range(LONG)])
        if not first:
            sqlite3.connect(tmp_path / "run.db", isolation_level=None).execute("DROP TABLE glance")
        check(DiskSource(tmp_path).thinned("loss", POINTS), thin([Run.open(tmp_path)["loss"]], POINTS))
