"""Thinned reading against reading everything and thinning in plain loops."""

from __future__ import annotations

import math
import sqlite3
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossdoctor.errors import RunError, UsageError
from lossdoctor.record import Record, Series
from lossdoctor.store import MemoryWriter, Run, RunWriter, UnknownMetricError
from lossdoctor.store.layout import CHUNK, apart, join, resolve
from lossdoctor.store.memory import Joined
from lossdoctor.store.thinned import PIECE, POINTS, Thinned, thin


def series(steps: object, values: object = None) -> Series:
    steps = np.asarray(steps, np.int64)
    return Series(steps, np.sin(steps * 0.1) if values is None else np.asarray(values, np.float64))


def slowly(whole: Series, points: int) -> Thinned:
    """What `thin` promises, in plain loops."""
    steps, values = whole.steps.tolist(), whole.values.tolist()
    stride, chosen = 1, list(range(len(steps)))
    while len(chosen) > points:
        stride *= 2
        groups = [range(start, min(start + stride, len(steps))) for start in range(0, len(steps), stride)]
        roundest = [max(group, key=lambda i: (roundness(steps[i]), -i)) for group in groups]
        chosen = sorted({0, *roundest, len(steps) - 1})
    finite = [v for v in values if math.isfinite(v)]
    broken = [s for s, v in zip(steps, values, strict=True) if not math.isfinite(v)]
    return Thinned(
        Series(whole.steps[chosen], whole.values[chosen]),
        len(steps),
        min(finite, default=math.nan),
        max(finite, default=math.nan),
        len(broken),
        broken[0] if broken else None,
    )


def roundness(step: int) -> float:
    power = 0
    while step and step % 2 == 0:
        step, power = step // 2, power + 1
    return power if step else math.inf


def check(got: Thinned, expected: Thinned) -> None:
    assert got.series.steps.tolist() == expected.series.steps.tolist()
    np.testing.assert_array_equal(got.series.values, expected.series.values)
    numbers = [(t.count, t.low, t.high, t.broken) for t in (got, expected)]
    np.testing.assert_array_equal(*numbers)
    assert got.first_broken == expected.first_broken


class TestThin:
    @given(
        st.lists(st.tuples(st.integers(-200, 2000), st.floats(width=16)), max_size=300, unique_by=lambda p: p[0]),
        st.lists(st.integers(0, 300), max_size=6),
        st.integers(3, 40),
    )
    def test_is_the_slow_way_however_the_series_comes_in_pieces(
        self, points: list[tuple[int, float]], cuts: list[int], most: int
    ) -> None:
        points.sort()
        whole = series([s for s, _ in points], [v for _, v in points])
        places = [0, *sorted(cuts), len(points)]
        pieces = [Series(whole.steps[a:b], whole.values[a:b]) for a, b in pairwise(places)]
        check(thin(pieces, most), slowly(whole, most))

    @pytest.mark.parametrize("n", [0, 1, 2, 3, POINTS - 1, POINTS, POINTS + 1, 3 * POINTS, PIECE + 1])
    def test_is_the_slow_way_at_every_length(self, n: int) -> None:
        for start, stride in ((0, 1), (7, 50), (-3, 3)):
            whole = series(start + stride * np.arange(n))
            got = thin([whole], POINTS)
            check(got, slowly(whole, POINTS))
            assert min(n, POINTS // 2) <= len(got.series) <= POINTS

    @pytest.mark.parametrize("stride", [1, 50])
    def test_even_steps_give_every_kth_point_and_the_last(self, stride: int) -> None:
        whole = series(stride * np.arange(100_000))
        steps = thin([whole], POINTS).series.steps
        assert set(np.diff(steps[:-1]).tolist()) == {32 * stride}
        assert (steps[0], steps[-1]) == (0, 99_999 * stride)

    def test_a_missing_point_does_not_part_two_metrics(self) -> None:
        whole = series(50 * np.arange(20_000))
        gone = [0, 5, 777, 13_000]
        lacking = series(np.delete(whole.steps, gone))
        one, other = (set(thin([one], POINTS).series.steps.tolist()) for one in (whole, lacking))
        assert len(one & other) > 0.99 * len(one)

    def test_far_steps_and_gaps_hurt_nothing(self) -> None:
        whole = series([-(2**63), *range(-5000, 5000), 2**62, 2**63 - 1])
        check(thin([whole], 100), slowly(whole, 100))

    def test_what_is_broken_is_counted_and_never_a_bound(self) -> None:
        values = np.linspace(-1, 1, 50_000)
        values[[17, 18, 40_001]] = [math.inf, math.nan, -math.inf]
        got = thin([series(range(50_000), values)], POINTS)
        assert (got.low, got.high, got.broken, got.first_broken) == (-1.0, 1.0, 3, 17)
        nothing = thin([series(range(9), [math.nan] * 9)], POINTS)
        assert math.isnan(nothing.low)
        assert math.isnan(nothing.high)
        assert (nothing.broken, nothing.first_broken, len(nothing.series)) == (9, 0, 9)


class TestApart:
    @settings(max_examples=300)
    @given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=30), st.integers(1, 8))
    def test_no_step_is_in_two_lots(self, chunks: list[tuple[int, int]], least: int) -> None:
        bounds = np.array([(first, first + more) for first, more in chunks], np.int64).reshape(-1, 2)
        counts = apart(bounds, least)
        assert sum(counts) == len(chunks)
        assert all(count > 0 for count in counts)
        cuts = np.cumsum([0, *counts])
        lots = [bounds[a:b] for a, b in pairwise(cuts.tolist())]
        assert all(one[:, 1].max() < other[:, 0].min() for one, other in pairwise(lots))

    def test_a_run_without_a_way_back_is_cut_evenly(self) -> None:
        firsts = CHUNK * np.arange(100)
        assert apart(np.stack([firsts, firsts + CHUNK - 1], axis=1), 32) == [32, 32, 32, 4]


def records(steps: object, seed: int) -> list[Record]:
    random = np.random.default_rng(seed)
    return [
        Record(
            int(step),
            {"loss": random.normal(), "nan": math.nan if random.random() < 0.01 else 1.0}
            | ({"some": random.normal()} if random.random() < 0.7 else {}),
            full=True,
        )
        for step in np.asarray(steps)
    ]


def check_run(run: Run) -> None:
    for name in run:
        for points in (3, 50, POINTS):
            check(run.thinned(name, points), slowly(run[name], points))


PARTS = {
    "straight": [range(3000)],
    "every 50": [range(0, 100_000, 50)],
    "went back": [range(3000), range(2500, 4000)],
    "went back twice, and stopped before": [range(3000), range(100, 2000), range(1500, 1700)],
    "other steps the second time": [range(0, 3000, 3), range(1000, 2500, 7)],
    "from the beginning": [range(1200), range(1200)],
    "backwards": [range(2000, 0, -1)],
    "short": [range(5)],
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_thinned_run_is_the_run_thinned(tmp_path: Path, parts: list[range]) -> None:
    memory = MemoryWriter()
    for place, steps in enumerate(parts):
        written = records(steps, place)
        memory.append(written)
        with RunWriter(tmp_path, resume=True) as disk:
            disk.append(written)
            disk.flush()
            check_run(disk.run())
            check_run(Run.open(tmp_path))
    check_run(Run.open(tmp_path))
    check_run(memory.run())
    for name in memory.run():
        check(memory.run().thinned(name), Run.open(tmp_path).thinned(name))


def test_the_tail_is_read_too(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as disk:
        for steps in (range(CHUNK + 10), range(CHUNK, CHUNK + 20)):
            disk.append(records(steps, steps.start))
            disk.flush()
        (rows,) = sqlite3.connect(tmp_path / "run.db").execute("SELECT count(*) FROM tail").fetchone()
        assert rows > 0
        check_run(Run.open(tmp_path))


def test_what_could_not_be_written_is_joined(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as disk:
        disk.append(records(range(3000), 0))
    rest = MemoryWriter()
    rest.append([Record(step, {"loss": 7.0, "new": 1.0}) for step in range(2900, 3100)])
    joined = Run(Joined(Run.open(tmp_path)._source, rest.source))
    check_run(joined)
    assert joined.thinned("new").count == 200
    assert joined.thinned("nan").count == 3000
    assert joined.thinned("loss").series.values[-1] == 7.0


def test_a_thinned_series_is_the_callers(tmp_path: Path) -> None:
    memory = MemoryWriter()
    with RunWriter(tmp_path) as disk:
        for writer in (memory, disk):
            writer.append(records(range(10), 0))
            run = writer.run()
            before = list(run["loss"])
            got = run.thinned("loss").series
            got.values[:], got.steps[:] = 9.0, 9
            assert list(run["loss"]) == before


def test_an_unknown_metric_and_too_few_points_are_errors(tmp_path: Path) -> None:
    memory = MemoryWriter()
    memory.append(records(range(3), 0))
    with RunWriter(tmp_path) as disk:
        disk.append(records(range(3), 0))
        for run in (memory.run(), disk.run()):
            with pytest.raises(UnknownMetricError, match="one of 'loss'"):
                run.thinned("los")
            with pytest.raises(UnknownMetricError):
                run.thinned(3)  # type: ignore[arg-type]
            with pytest.raises(UsageError, match="points >= 3"):
                run.thinned("loss", 2)


@pytest.mark.parametrize("damage", ["numbers = x'00'", "first = 'x'", "first = last", "steps = x'00'"])
def test_damage_is_told(tmp_path: Path, damage: str) -> None:
    with RunWriter(tmp_path) as disk:
        disk.append(records(range(1000), 0))
    with sqlite3.connect(tmp_path / "run.db") as db:
        db.execute(f"UPDATE chunk SET {damage} WHERE first = 0")
    db.close()
    run = Run.open(tmp_path)
    with pytest.raises(RunError, match="cannot be read"):
        run.thinned("loss")


def test_thinning_is_of_what_is_read(tmp_path: Path) -> None:
    """Resolving each lot is resolving all: the identity the reader rests on."""
    random = np.random.default_rng(0)
    parts = [series(start + np.arange(40), random.normal(size=40)) for start in (0, 40, 60, 90, 130, 170)]
    bounds = np.array([(part.steps[0], part.steps[-1]) for part in parts])
    counts = apart(bounds, 1)
    assert counts == [1, 3, 1, 1]
    cuts = np.cumsum([0, *counts]).tolist()
    by_lots = join(resolve(join(parts[a:b])) for a, b in pairwise(cuts))
    assert list(by_lots) == list(resolve(join(parts)))
