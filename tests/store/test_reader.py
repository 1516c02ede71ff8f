"""Opening runs, and a run as a mapping."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossdoctor.errors import RunError, UsageError
from lossdoctor.record import Record
from lossdoctor.store import MemoryWriter, Run, RunWriter, UnknownMetricError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with RunWriter(tmp_path / "exp 1?#%é") as writer:
        writer.append([Record(0, {"flow/cos": 0.5, "flow/nmse": 1.0}, full=True), Record(1, {"loss/flow": 2.0})])
    return tmp_path / "exp 1?#%é"


def test_a_run_is_opened_by_its_folder_or_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for path in (folder, str(folder), folder / "run.db", Path(folder.name), os.path.join(folder.name, "run.db")):
        run = Run.open(path)
        assert run.path is not None
        assert run.path.resolve() == folder.resolve()
        assert run.ranks == (0,)
        assert list(run) == ["flow/cos", "flow/nmse", "loss/flow"]


def test_a_run_is_a_mapping(folder: Path) -> None:
    run = Run.open(folder)
    assert dict(run).keys() == set(run.keys()) == {"flow/cos", "flow/nmse", "loss/flow"}
    assert [list(series) for series in run.values()] == [[(0, 0.5)], [(0, 1.0)], [(1, 2.0)]]
    assert run.get("flow/cos") is not None
    assert run.get("nothing") is None
    assert "nothing" not in run
    assert 3 not in run  # type: ignore[comparison-overlap]
    assert run != Run.open(folder)
    assert run in {run}
    assert "3 metrics" in repr(run)


def test_an_unknown_metric_names_the_near_ones(folder: Path) -> None:
    for kind in (KeyError, UsageError):
        with pytest.raises(kind, match=r"(?s)one of 'flow/cos'.*got: +'flow/cosine'"):
            Run.open(folder)["flow/cosine"]
    with pytest.raises(UnknownMetricError, match="one of its 3 metrics"):
        Run.open(folder)["zzz"]
    with pytest.raises(UnknownMetricError):
        Run.open(folder)[3]  # type: ignore[index]


@pytest.mark.parametrize("make", ["nothing", "empty folder", "file", "other sqlite"])
def test_what_is_no_run_says_so_and_what_to_do(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x"
    if make == "empty folder":
        path.mkdir()
    elif make == "file":
        path.write_text("hello")
    elif make == "other sqlite":
        path.mkdir()
        with sqlite3.connect(path / "run.db") as other:
            other.execute("CREATE TABLE theirs (x)")
        other.close()
    with pytest.raises(RunError, match=r"(?s)expected:.*got:.*to do:") as caught:
        Run.open(path)
    assert str(path) in str(caught.value)


def test_reading_leaves_the_folder_as_it_is(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run = Run.open(folder)
    assert run.last == {"flow/cos": 0.5, "flow/nmse": 1.0}
    del run
    gc.collect()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_empty_run_reads_as_empty(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        run = writer.run()
        for empty in (run, Run.open(tmp_path), MemoryWriter().run()):
            assert (list(empty), len(empty), empty.last, empty.events, empty.torn_events) == ([], 0, {}, [], 0)
            assert (len(empty.steps), len(empty.times)) == (0, 0)
            assert empty.steps.dtype.kind == "i"


def test_a_run_grows_while_it_is_looked_at(tmp_path: Path) -> None:
    memory = MemoryWriter()
    with RunWriter(tmp_path) as disk:
        for writer in (disk, memory):
            writer.append([Record(0, {"loss": 1.0}, full=True)])
            run = writer.run()
            before = run["loss"]
            writer.append([Record(1, {"loss": 2.0, "new": 3.0}, full=True)])
            writer.flush()
            writer.update_meta(a=1)
            writer.flush()
            assert list(run["loss"]) == [(0, 1.0), (1, 2.0)]
            assert list(before) == [(0, 1.0)]
            assert (list(run), run.last, run.meta) == (["loss", "new"], {"loss": 2.0, "new": 3.0}, {"a": 1})


def test_two_records_of_one_step_are_joined(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.append([Record(5, {"loss": 1.0}, full=True), Record(5, {"eval": 2.0}), Record(6, {"loss": 3.0})])
    run = Run.open(tmp_path)
    assert run.steps.tolist() == [5]
    assert run.last == {"eval": 2.0, "loss": 1.0}


def test_the_answers_of_a_run_belong_to_the_caller(tmp_path: Path) -> None:
    memory = MemoryWriter({"heads": {"a": 1}})
    with RunWriter(tmp_path, {"heads": {"a": 1}}) as disk:
        for writer in (disk, memory):
            writer.append([Record(0, {"loss": 1.0})])
            run = writer.run()
            run["loss"].values[0] = 9.0
            run["loss"].steps[0] = 9
            run.meta["heads"]["a"] = 9
            run.events.append({})
            assert (list(run["loss"]), run.meta, run.events) == ([(0, 1.0)], {"heads": {"a": 1}}, [])


@given(
    steps=st.lists(st.integers(-20, 2000), min_size=1, max_size=60),
    ends=st.tuples(st.integers(-30, 2100), st.integers(-30, 2100)),
    kind=st.sampled_from(["closed", "live", "memory", "failed"]),
)
@settings(max_examples=30, deadline=None)
def test_a_window_is_the_series_between_two_steps(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], ends: tuple[int, int], kind: str
) -> None:
    """Also where training went back, in chunks and in the tail, on disk and in memory."""
    first, last = ends
    folder = tmp_path_factory.getbasetemp() / "window"
    shutil.rmtree(folder, ignore_errors=True)
    writer = MemoryWriter() if kind == "memory" else RunWriter(folder)
    for turn, step in enumerate(steps):
        writer.append([Record(step + i, {"loss": float(turn), "other": 0.0}) for i in range(40)])
        if kind == "failed" and turn == len(steps) // 2:
            writer.close()  # what comes later stays in memory
    writer.append([Record(0, {"other": 1.0})])
    if kind == "closed":
        writer.close()
    run = writer.run()
    whole, window = run["loss"], run.window("loss", first, last)
    here = (whole.steps >= first) & (whole.steps <= last)
    assert window.steps.tolist() == whole.steps[here].tolist()
    assert window.values.tolist() == whole.values[here].tolist()
    assert list(run.window("loss")) == list(whole)
    assert list(run.window("loss", first)) == [point for point in whole if point[0] >= first]
    with pytest.raises(UnknownMetricError):
        run.window("nothing", first, last)
    writer.close()
