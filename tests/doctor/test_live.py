"""Diagnosis while training: told once, on the caller's thread, and never in the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lossdoctor as ld
from lossdoctor.diagnose import Diagnosis
from lossdoctor.doctor import live
from lossdoctor.doctor.live import LiveDiagnosis
from lossdoctor.errors import LossDoctorWarning
from lossdoctor.record import Record
from lossdoctor.rules import Finding
from lossdoctor.rules.finding import Message
from lossdoctor.rules.view import LEAST
from lossdoctor.store import MemoryWriter, Run


def finding(code: str, severity: str = "warning") -> Finding:
    return Finding(code, "name", severity, "likely", "root", Message("cause.detached-branch"))  # type: ignore[arg-type]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Scripted:
    """Stands in for the rules: one answer per diagnosis, the last one for ever."""

    def __init__(self, *answers: list[Finding] | Exception) -> None:
        self.answers, self.asked = list(answers), 0

    def __call__(self, run: Run) -> Diagnosis:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return Diagnosis("", 1, 1, tuple(answer), (), ())


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[LiveDiagnosis, Scripted, list[Any]]]:
    def make(*answers: list[Finding] | Exception, **pace: Any) -> tuple[LiveDiagnosis, Scripted, list[Any]]:
        script, told = Scripted(*answers), []
        monkeypatch.setattr(live, "diagnose", script)
        writer = MemoryWriter({})
        writer.append([Record(0, {"loss/a": 1.0})])
        # Without rest, or the test would wait.
        return LiveDiagnosis(writer.run, told.append, told.append, **{"share": 1e9, **pace}), script, told

    return make


def measure(rounds: LiveDiagnosis, script: Scripted, times: int) -> None:
    """Measured steps until the rules were asked so many more times."""
    goal = script.asked + times
    end = time.monotonic() + 20
    while script.asked < goal:
        rounds.measured()
        time.sleep(0.0005)
        assert time.monotonic() < end


def test_a_finding_is_told_once_and_only_when_it_stays(rounds: Any) -> None:
    doubt, sure, hint = finding("AAA101"), finding("AAA102"), finding("AAA103", "info")
    one, script, told = rounds([doubt, hint], [sure, hint], [sure, hint])
    measure(one, script, 2)
    assert one.news() == []
    measure(one, script, 3)
    wait_for(lambda: len(told) == 1)
    assert told == [sure]
    assert one.news() == [sure]
    assert one.close() == []


def test_at_the_end_once_is_enough(rounds: Any) -> None:
    one, _script, told = rounds([finding("AAA101")])
    for _ in range(LEAST):
        one.measured()
    assert [found.code for found in one.close()] == ["AAA101"]
    assert len(told) == 1


def test_a_short_run_is_not_judged(rounds: Any) -> None:
    one, script, _told = rounds([finding("AAA101")])
    for _ in range(LEAST - 1):
        one.measured()
    assert one.close() == []
    assert script.asked == 0


def test_a_failure_is_told_and_ends_it(rounds: Any) -> None:
    one, script, told = rounds(ValueError("broken"))
    measure(one, script, 1)
    wait_for(lambda: len(told) == 1)
    asked = script.asked
    for _ in range(100):
        one.measured()
    assert script.asked == asked
    assert isinstance(told[0], ValueError)


def test_the_first_diagnosis_waits_for_its_share_of_the_time(rounds: Any) -> None:
    clock = [0.0]
    one, script, _ = rounds([], share=0.01, clock=lambda: clock[0])
    clock[0] = 100 * live.FIRST - 0.1
    for _ in range(10 * LEAST):
        one.measured()
    assert one.close() == []
    assert script.asked == 1, "at the end alone"


class Heard(ld.sinks.Sink):
    """A sink that keeps its events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def write(self, records: Any) -> None:
        pass

    def event(self, event: Any) -> None:
        self.events.append(dict(event))


def train(doctor: ld.Doctor, model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 40) -> None:
    for _ in range(steps):
        x = torch.randn(32, 4)
        losses = {"flow": (model(x) - x).square().mean(), "dino": model(x).detach().square().mean()}
        doctor.backward(losses)
        optimizer.step()
        optimizer.zero_grad()


def test_a_detached_loss_is_told_while_training(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told, threads, sink = [], set(), Heard()

    def hear(found: Finding) -> None:
        told.append(found)
        threads.add(threading.current_thread())

    with (
        caplog.at_level("WARNING", "lossdoctor"),
        ld.Doctor(model, optimizer, every=1, sinks=[sink], on_finding=hear, strict=True) as doctor,
    ):
        train(doctor, model, optimizer)
        assert "GRD101" in {finding.code for finding in doctor.diagnose().findings}
    assert [finding.code for finding in told].count("GRD101") == 1
    assert threads == {threading.main_thread()}, "user code runs in the training thread"
    assert "GRD101 loss-without-gradient" in caplog.text
    for events in (doctor.run.events, sink.events):
        assert "GRD101" in {event["code"] for event in events if event["kind"] == "finding"}


def test_a_callback_that_fails_is_told_and_training_goes_on() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def broken(found: Finding) -> None:
        raise RuntimeError("no network")

    with (
        pytest.warns(LossDoctorWarning, match="on_finding"),
        ld.Doctor(model, optimizer, every=1, on_finding=broken) as doctor,
    ):
        train(doctor, model, optimizer)
    assert len(doctor.run["loss/flow"]) == 40


def test_without_live_nothing_is_judged() -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ld.Doctor(model, optimizer, every=1, live=False) as doctor:
        train(doctor, model, optimizer)
    assert [event for event in doctor.run.events if event["kind"] == "finding"] == []
