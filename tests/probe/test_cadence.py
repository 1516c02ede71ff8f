"""Schedules: how many steps, which ones, and that a share of the time is kept."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import lossdoctor as ld
from lossdoctor.errors import UsageError
from lossdoctor.probe.cadence import Jittered, LogSpaced, ShareOfTime
from lossdoctor.probe.schedule import Every, Settling, When, schedule


@pytest.mark.parametrize("per_decade", [1, 7, 20, 100])
def test_a_decade_has_so_many_steps(per_decade: int) -> None:
    due = [step for step in range(100_000) if LogSpaced(per_decade).due(step)]
    assert due[0] == 0
    for low in (1_000, 10_000):  # where there are enough whole numbers
        assert sum(low <= step < 10 * low for step in due) == pytest.approx(per_decade, abs=1)
    gaps = [b - a for a, b in itertools.pairwise(due)]
    assert all(b >= a - 1 - a // 10 for a, b in itertools.pairwise(gaps)), "ever fewer"


def test_one_step_of_every_n_and_never_the_same_place_for_long() -> None:
    due = [step for step in range(50_000) if Jittered(50).due(step)]
    assert [step // 50 for step in due] == list(range(1000))
    places = [step % 50 for step in due]
    assert places[0] == 0
    assert set(places) == set(range(50))
    assert due == [step for step in range(50_000) if Jittered(50).due(step)]
    assert due != [step for step in range(50_000) if Jittered(50, seed=1).due(step)]


@pytest.mark.parametrize("extra", [0.0, 0.01, 0.5, 30.0])
@pytest.mark.parametrize("share", [0.01, 0.2])
def test_the_share_of_the_time_is_kept(extra: float, share: float) -> None:
    own = ShareOfTime(share)
    measuring = total = 0.0
    for step in range(20_000):
        seconds = 0.01 + (extra if (due := own.due(step)) else 0.0) + 0.001 * (step % 3)
        if step > 10:
            measuring, total = measuring + extra * due, total + seconds
        own.took(step, seconds)
    assert measuring <= 1.02 * share * total
    assert own.n <= max(1, 2.6 * extra / (share * 0.01)), "and not rarer than need be"


def test_a_hiccup_changes_nothing() -> None:
    own = ShareOfTime(0.01)
    for step in range(3000):
        own.took(step, 60.0 if step in (13, 1500) else 0.02 if own.due(step) else 0.01)
    assert own.n == 100


def test_what_acts_on_its_measurements_measures_more_at_the_beginning() -> None:
    assert [step for step in range(301) if Settling(50).due(step)] == [*range(0, 100, 5), *range(100, 301, 50)]
    assert [step for step in range(10) if Settling(2).due(step)] == [0, 1, 2, 3, 4, 6, 8]
    assert all(Settling(1).due(step) for step in range(9))
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for balance, wanted in ((None, [0, 20]), ("ratio", [*range(0, 30, 2)])):
        with ld.Doctor(model, optimizer, every=20, balance=balance, live=False, strict=True) as doctor:
            for _ in range(30):
                doctor.backward({"flow": model(torch.ones(4, 2)).square().mean()})
                optimizer.step()
        assert doctor.run["grad/flow"].steps.tolist() == wanted


def test_names() -> None:
    assert schedule("log") == LogSpaced()
    assert schedule("1%") == ShareOfTime(0.01)
    assert schedule(" 2.5 % ") == ShareOfTime(0.025)
    assert schedule(7) == Every(7)
    assert isinstance(schedule(lambda step: step == 3), When)
    own = Jittered(9)
    assert schedule(own) is own


@pytest.mark.parametrize("wrong", ["", "often", "1", "0%", "100%", "-3%", "nan%", True, None, 0, 2.5])
def test_what_says_no_schedule(wrong: object) -> None:
    with pytest.raises(UsageError) as told:
        schedule(wrong)  # type: ignore[arg-type]
    assert "to do:" in str(told.value)


@pytest.mark.parametrize("make", [lambda: LogSpaced(0), lambda: Jittered(0), lambda: ShareOfTime(math.nan)])
def test_what_cannot_be(make: object) -> None:
    with pytest.raises(UsageError):
        make()  # type: ignore[operator]


def test_a_doctor_tells_a_schedule_how_long_its_steps_take() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    own = ShareOfTime(0.5)
    with ld.Doctor(model, optimizer, every=own, live=False) as doctor:
        for _ in range(40):
            doctor.backward({"mse": model(torch.randn(4, 3)).square().mean()})
            optimizer.step()
            optimizer.zero_grad()
    assert len(own._plain) + len(own._due) > 30
    assert all(seconds > 0 for seconds in own._plain)
    assert 0 in doctor.run.steps
