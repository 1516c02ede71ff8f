"""A run seen through a few points: the same digest where it is short, and honest counts where it is long."""

from __future__ import annotations

import math

import pytest

from lossdoctor.record import Record
from lossdoctor.report.digest import digest
from lossdoctor.report.thin import ThinRun, glance
from lossdoctor.store import MemoryWriter, Run


@pytest.mark.parametrize("name", ["whole_run", "troubled_run", "empty_run"])
def test_a_short_run_has_the_same_digest(name: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(name)
    assert repr(glance(ThinRun(run))) == repr(digest(run)), "repr: NaN is not equal to itself"


def test_broken_values_of_a_long_run_are_all_counted() -> None:
    writer = MemoryWriter({})
    values = [math.nan if step % 10 == 3 else 1 / (step + 1) for step in range(20_000)]
    writer.append([Record(step, {"loss/a": value}, full=step % 50 == 0) for step, value in enumerate(values)])
    run = ThinRun(writer.run())
    (line,) = glance(run).lines
    assert line.broken == 2000
    assert line.count < 5000
    assert glance(run).steps == 20_000


def test_its_state_is_of_the_moment_it_was_made() -> None:
    writer = MemoryWriter({})
    writer.append([Record(0, {"loss/a": 1.0}, full=True)])
    run = ThinRun(writer.run())
    assert len(run["loss/a"]) == len(run.steps) == len(run.times) == 1
    writer.append([Record(1, {"loss/a": 1.0}, full=True)])
    assert len(run["loss/a"]) == len(run.steps) == len(run.times) == 1
    assert len(ThinRun(writer.run())["loss/a"]) == 2
