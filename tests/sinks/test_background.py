"""A sink may be slow, raise, hang or exit: training goes on."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from lossdoctor.record import Record
from lossdoctor.sinks import Background, Sink


class Diary(Sink):
    """Writes down what it is given. fails: the method that raises `error`."""

    def __init__(self, fails: str = "", error: BaseException | None = None) -> None:
        self.fails, self.error = fails, error or ValueError("the tracker is down")
        self.entries: list[Any] = []
        self.calls: list[str] = []
        self.threads: set[str] = set()

    def _called(self, method: str) -> None:
        self.calls.append(method)
        self.threads.add(threading.current_thread().name)
        if method == self.fails:
            raise self.error

    def open(self, meta: Mapping[str, Any]) -> None:
        self._called("open")
        self.meta = meta

    def write(self, records: Sequence[Record]) -> None:
        self._called("write")
        self.entries.extend(record.step for record in records)

    def event(self, event: Mapping[str, Any]) -> None:
        self._called("event")
        self.entries.append(event["kind"])

    def close(self) -> None:
        self._called("close")


class Slow(Diary):
    """Writes only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.may = threading.Event(), threading.Event()

    def write(self, records: Sequence[Record]) -> None:
        self.entered.set()
        assert self.may.wait(60)
        super().write(records)


def records(*steps: int) -> list[Record]:
    return [Record(step, {"loss": 0.0}) for step in steps]


def test_everything_arrives_once_in_order_on_another_thread() -> None:
    diary = Diary()
    background = Background(diary)
    background.open({"seed": 1})
    for step in range(1000):
        background.write(records(step))
        if step % 100 == 99:
            background.event({"kind": f"event {step}"})
    assert background.close(timeout=60)
    expected: list[Any] = []
    for step in range(1000):
        expected += [step, f"event {step}"] if step % 100 == 99 else [step]
    assert diary.entries == expected
    assert diary.meta == {"seed": 1}
    assert (diary.calls[0], diary.calls[-1], diary.calls.count("close")) == ("open", "close", 1)
    assert diary.threads == {"lossdoctor-Diary"}
    assert (background.failure, background.dropped, background.name) == (None, 0, "Diary")


def test_what_comes_quickly_is_given_at_once() -> None:
    diary = Diary()
    background = Background(diary)
    background.open({})
    for step in range(500):
        background.write(records(step))
    background.close(timeout=60)
    assert diary.calls.count("write") < 10


@pytest.mark.parametrize("fails", ["open", "write", "event", "close"])
@pytest.mark.parametrize(
    "error", [ValueError("down"), SystemExit(3), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
def test_a_failing_sink_is_switched_off_and_told_once(fails: str, error: BaseException) -> None:
    diary, told = Diary(fails, error), []
    background = Background(diary, on_failure=lambda name, why: told.append((name, why)))
    background.open({})
    for step in range(5):
        background.write(records(step))
        background.event({"kind": "x"})
    assert background.close(timeout=60)
    background.write(records(6))
    background.event({"kind": "late"})
    assert background.close()
    assert told == [("Diary", error)]
    assert background.failure is error
    assert diary.calls.count(fails) == 1
    assert diary.calls[-1] == "close"  # closed also after a failure
    assert not background._queue


def test_a_failure_of_on_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def bad(name: str, error: BaseException) -> None:
        background.close()
        raise RuntimeError("a bug of the user")

    background = Background(Diary("write"), on_failure=bad)
    with caplog.at_level(logging.ERROR):
        background.open({})
        background.write(records(0))
        assert background.close(timeout=60)
    assert "a bug of the user" in caplog.text


def test_a_slow_sink_never_holds_training_and_loses_the_oldest() -> None:
    slow = Slow()
    background = Background(slow, capacity=10)
    background.open({})
    background.write(records(*range(6)))
    assert slow.entered.wait(60)
    for step in range(6, 106):
        background.write(records(step))
    background.write(records(*range(106, 206)))
    assert background.dropped == 190
    slow.may.set()
    assert background.close(timeout=60)
    assert slow.entries == [*range(6), *range(196, 206)]


def test_a_hanging_sink_is_left_behind_and_told() -> None:
    slow, told = Slow(), []
    background = Background(slow, on_failure=lambda name, why: told.append((name, why)))
    background.open({})
    background.write(records(0))
    assert slow.entered.wait(60)
    background.write(records(1))
    assert not background.close(timeout=0.05)
    assert not background.close(timeout=0.05)
    assert [name for name, _ in told] == ["Slow"]
    assert isinstance(background.failure, TimeoutError)
    slow.may.set()
    assert background.close(timeout=60)


def test_a_sink_needs_only_write() -> None:
    class Least(Sink):
        seen = 0

        def write(self, records: Sequence[Record]) -> None:
            self.seen += len(records)

    least = Least()
    background = Background(least)
    background.open({})
    background.write(records(0, 1))
    background.event({"kind": "x"})
    assert background.close(timeout=60)
    assert (least.seen, background.failure) == (2, None)
    with pytest.raises(TypeError):
        Sink()  # type: ignore[abstract]


def test_never_opened_is_closed_at_once() -> None:
    assert Background(Diary()).close()


def test_what_is_queued_is_given_at_exit() -> None:
    code = """
from lossdoctor.record import Record
from lossdoctor.sinks import Background, Sink
class Printing(Sink):
    def write(self, records):
        print([record.step for record in records], flush=True)
background = Background(Printing())
background.open({})
background.write([Record(0, {}), Record(1, {})])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[0, 1]\n"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_leaves_the_sink_to_its_parent() -> None:
    diary = Diary()
    background = Background(diary)
    background.open({})
    background.write(records(0))
    child = os.fork()
    if not child:
        background.write(records(9))
        background.event({"kind": "child"})
        os._exit(0 if background.close() else 1)
    assert os.waitpid(child, 0)[1] == 0
    background.write(records(1))
    assert background.close(timeout=60)
    assert diary.entries == [0, 1]
