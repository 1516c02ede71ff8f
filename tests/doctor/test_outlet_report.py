"""The report for trackers: only of a run in a folder, and a failure of it stops nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lossdoctor.doctor.outlet import Outlet
from lossdoctor.errors import LossDoctorWarning
from lossdoctor.record import Record
from lossdoctor.sinks import Sink


class Taker(Sink):
    def __init__(self) -> None:
        self.order: list[object] = []

    def write(self, records: Sequence[Record]) -> None:
        self.order += [record.step for record in records]

    def report(self, path: Path) -> None:
        self.order.append(path.name)
        self.page = path.read_text("utf-8")

    def close(self) -> None:
        self.order.append("close")


class Plain(Taker):
    report = Sink.report


def outlet(run: Path | None, *sinks: Sink) -> Outlet:
    found = Outlet(run, {}, sinks, resume=False, strict=False)
    found.deliver([Record(0, {"loss/a": 1.0})])
    return found


def test_it_comes_after_the_last_record_and_holds_it(tmp_path: Path) -> None:
    taker, plain = Taker(), Plain()
    outlet(tmp_path / "run", taker, plain).close()
    assert taker.order == [0, "report.html", "close"]
    assert plain.order == [0, "close"]
    assert "loss/a" in taker.page
    assert taker.page == (tmp_path / "run" / "report.html").read_text("utf-8")


@pytest.mark.parametrize("where", [None, "run"])
def test_there_is_none_in_memory_nor_for_those_who_do_not_ask(tmp_path: Path, where: str | None) -> None:
    sink = Taker() if where is None else Plain()
    outlet(None if where is None else tmp_path / where, sink).close()
    assert sink.order == [0, "close"]
    assert not list(tmp_path.rglob("report.html"))


def test_one_that_cannot_be_written_is_told_and_no_more(tmp_path: Path) -> None:
    taker = Taker()
    opened = outlet(tmp_path / "run", taker)
    (tmp_path / "run" / "report.html").mkdir()
    with pytest.warns(LossDoctorWarning, match="report is no longer measured"):
        opened.close()
    assert taker.order == [0, "close"]
