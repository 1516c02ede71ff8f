"""A growing run read on: all looks together are the whole run, whatever is packed in between."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from lossdoctor.errors import RunError
from lossdoctor.record import Record, Series
from lossdoctor.store import Following, Run, RunWriter
from lossdoctor.store.layout import CHUNK, join, resolve


def records(first: int, count: int, generator: np.random.Generator) -> list[Record]:
    """Metrics that come and go, a NaN now and then."""
    made = []
    for step in range(first, first + count):
        values = {"loss/a": float(generator.normal()), "nan": math.nan if step % 7 == 0 else 1.0}
        if step % 5 == 0:
            values["rare"] = step / 3
        if step > 900:
            values["late <b>"] = -1.0
        made.append(Record(step, values, full=step % 5 == 0, time=float(step)))
    return made


def gather(into: dict[str, list[Series]], follower: Following) -> int:
    news = follower.news()
    for name, points in news.items():
        into.setdefault(name, []).append(points)
    return sum(map(len, news.values()))


@pytest.mark.parametrize("lots", [[1] * 12, [3, CHUNK - 3, 1, 700, 2, CHUNK, 5], [2 * CHUNK + 1, 10]], ids=len)
def test_all_looks_together_are_the_run(tmp_path: Path, lots: list[int]) -> None:
    generator, first, seen = np.random.default_rng(0), 0, dict[str, list[Series]]()
    with RunWriter(tmp_path / "run") as writer:
        follower = Following(tmp_path / "run")
        for place, count in enumerate(lots):
            writer.append(records(first, count, generator))
            first += count
            assert writer.flush()
            if place != 1:  # one look is missed
                assert gather(seen, follower) > 0
                assert gather(seen, follower) == 0
    gather(seen, follower)
    whole = Run.open(tmp_path / "run")
    assert set(seen) == set(whole)
    for name in whole:
        found = resolve(join(seen[name]))
        np.testing.assert_array_equal(found.steps, whole[name].steps)
        np.testing.assert_array_equal(found.values, whole[name].values)
    follower.close()


def test_a_run_that_goes_back_and_one_that_goes_on(tmp_path: Path) -> None:
    generator, seen = np.random.default_rng(0), dict[str, list[Series]]()
    with RunWriter(tmp_path / "run") as writer:
        writer.append(records(0, 40, generator))
    follower = Following(tmp_path / "run")
    gather(seen, follower)
    with RunWriter(tmp_path / "run", resume=True) as writer:
        writer.append(records(20, 30, generator))
        assert writer.flush()
        gather(seen, follower)
    gather(seen, follower)
    whole = Run.open(tmp_path / "run")
    for name in whole:
        np.testing.assert_array_equal(resolve(join(seen[name])).values, whole[name].values)


def test_what_is_skipped_does_not_come_again(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with RunWriter(tmp_path / "run") as writer:
        writer.append(records(0, 2 * CHUNK + 9, generator))
        assert writer.flush()
        follower = Following(tmp_path / "run")
        follower.skip()
        assert follower.news() == {}
        writer.append(records(2 * CHUNK + 9, 2, generator))
        assert writer.flush()
        assert follower.news()["loss/a"].steps.tolist() == [2 * CHUNK + 9, 2 * CHUNK + 10]
        assert follower.clocks.values.tolist() == [2 * CHUNK + 9, 2 * CHUNK + 10]
        assert len(follower.fulls) == 2
    assert follower.news() == {}


def test_a_deleted_and_a_replaced_run_are_noticed(tmp_path: Path) -> None:
    for _ in range(2):
        with RunWriter(tmp_path / "run") as writer:
            writer.append(records(0, 3, np.random.default_rng(0)))
        follower = Following(tmp_path / "run")
        assert follower.there
        shutil.move(tmp_path / "run", tmp_path / "away")
        assert not follower.there
        with RunWriter(tmp_path / "run") as writer:
            writer.append(records(0, 3, np.random.default_rng(0)))
        assert not follower.there
        follower.close()
        shutil.rmtree(tmp_path / "away")
        shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match="no run here"):
        Following(tmp_path / "run")
