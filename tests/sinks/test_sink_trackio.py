"""A Trackio run in a local database, read back by Trackio and by our own import."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sinks.conftest import FINDING, expected

from lossdoctor.errors import MissingExtraError, UsageError
from lossdoctor.exchange import read
from lossdoctor.sinks import Sink, Trackio


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it looks where its folder is when it is imported
    import trackio

    run = trackio.init(project="p", name="mine", embed=False, auto_log_cpu=False, auto_log_gpu=False)
    yield run
    run.finish()
    trackio.context_vars.current_run.set(None)


def test_all_arrives(run: Any, given: Callable[[Sink], None], trained: Callable[[Sink], Path], tmp_path: Path) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    run.log({"mine": 1.0}, step=3)
    given(Trackio(run))
    report = trained(Trackio(run))
    run.log({"mine": 2.0}, step=4)
    run.finish()
    found = read(tmp_path / "p.db", guess=False).run
    # Beside the step of a row there is no room for a metric of this name.
    wanted = {name: points for name, points in expected().items() if name != "step"}
    assert repr({name: list(found[name])[-len(points) :] for name, points in wanted.items()}) == repr(wanted)
    rows = SQLiteStorage.get_logs("p", "mine")
    assert [(row["step"], row["mine"]) for row in rows if "mine" in row] == [(3, 1.0), (4, 2.0)]
    assert [row["-u73-tep"] for row in rows if "-u73-tep" in row] == [4.0]
    (alert,) = SQLiteStorage.get_alerts("p")
    assert (alert["title"], alert["text"]) == ("GRD102 weak-gradient (a|b)", FINDING["message"])
    assert (alert["step"], alert["level"]) == (7, "warn")
    (page,) = tmp_path.rglob("media/**/*.html")
    assert page.read_text("utf-8") == report.read_text("utf-8")


def test_only_a_run_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (None, "project", 3):
        with pytest.raises(UsageError, match=r"trackio\.init returned"):
            Trackio(wrong)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"lossdoctor\[trackio\]"):
        Trackio(None)
