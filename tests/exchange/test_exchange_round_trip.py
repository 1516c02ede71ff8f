"""What is exported comes back: every number bit for bit, under whatever name."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossdoctor.errors import RunError, RunExistsError, RunWriteError, UsageError
from lossdoctor.exchange import Written, export, exporting, read, write_run, writing
from lossdoctor.record import Record
from lossdoctor.sinks import JSONL
from lossdoctor.store import MemoryWriter, Run, RunWriter

ODD = ["", 'a,"b"', "l1\nl2", "\r", "a\x00b", "\u6d41", " x ", "NaN", "step", "time", "<script>", "=1+1", "\u2028", "*"]
NAMES = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
RECORDS = st.lists(
    st.builds(
        Record,
        step=st.integers(-(2**63), 2**63 - 1),
        values=st.dictionaries(NAMES, st.floats(), min_size=1, max_size=4),
        full=st.booleans(),
        time=st.floats(0, 2e9),
    ),
    min_size=1,
    max_size=6,
)


def memory(records: list[Record]) -> MemoryWriter:
    writer = MemoryWriter()
    writer.append(records)
    return writer


def numbers(run: Run) -> dict[str, tuple[list[int], bytes]]:
    """Bit for bit, but for the sign of NaN, which has none."""
    canonical = {name: np.where(np.isnan(run[name].values), np.nan, run[name].values) for name in run}
    return {name: (run[name].steps.tolist(), canonical[name].tobytes()) for name in run}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@given(records=RECORDS)
@settings(max_examples=40)
def test_export_and_import_give_the_same(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, records: list[Record]
) -> None:
    run = memory(records).run()
    folder = tmp_path_factory.mktemp("trip")
    written = export(run, folder / f"run{suffix}")
    imported = read(folder / f"run{suffix}", guess=False)
    assert numbers(imported.run) == numbers(run)
    assert imported.run.times.values.tolist() == run.times.values.tolist()
    assert not imported.notes.lost.total()
    assert write_run(imported, folder / "again") == written
    again = Run.open(folder / "again")
    assert numbers(again) == numbers(run)
    assert again.times.values.tolist() == run.times.values.tolist()
    if suffix == ".jsonl":
        assert again.steps.tolist() == run.steps.tolist()


def test_events_come_back_from_jsonl(tmp_path: Path) -> None:
    writer = memory([Record(3, {"x": 1.0}, time=5.0)])
    event = writer.event("failure", step=3, measurement="m", value=math.nan)
    export(writer.run(), tmp_path / "run.jsonl")
    write_run(read(tmp_path / "run.jsonl"), tmp_path / "again")
    assert Run.open(tmp_path / "again").events == [event]


def test_tensorboard_and_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    records = [
        Record(step, {"loss/kl": 0.1 * step, "flow/endpt_rmse@8": math.inf}, time=1.0 + step) for step in range(4)
    ]
    written = export(memory(records).run(), tmp_path / "deep" / "tb")
    assert written == Written(metrics=2, points=8, first=0, last=3)
    imported = read(tmp_path / "deep" / "tb")
    assert sorted(imported.names.values()) == ["flow/endpt_rmse@8", "loss/kl"]
    expected = np.array([0.1 * step for step in range(4)], np.float32).astype(float)
    np.testing.assert_array_equal(imported.run["loss/kl"].values, expected)


def test_a_run_larger_than_is_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    records = [
        Record(
            step, {f"m{i}": float(v) for i, v in enumerate(rng.normal(size=5)) if (step + i) % 3}, step % 2 == 0, step
        )
        for step in range(200)
    ]
    run = memory(records).run()
    for most in (1, 150, 300, 10_000):
        monkeypatch.setattr(writing, "POINTS_AT_ONCE", most)
        together = list(writing.by_step(run, {name: name for name in run}))
        assert numbers(memory(together).run()) == numbers(run)
        assert memory(together).run().steps.tolist() == run.steps.tolist()
        assert len(together) == len(run.times) or most < 10_000
        export(run, tmp_path / f"{most}.csv")
        assert numbers(read(tmp_path / f"{most}.csv").run) == numbers(run)


def test_memory_is_bounded_by_what_is_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunWriter(tmp_path / "run") as writer:
        for step in range(5_000):
            writer.append([Record(step, {f"m{i}": float(i) for i in range(20)}, time=1.0)])
    peaks = []
    for most in (15_000, 1_000_000):
        monkeypatch.setattr(writing, "POINTS_AT_ONCE", most)
        tracemalloc.start()
        try:
            assert export(Run.open(tmp_path / "run"), tmp_path / f"{most}.csv").points == 100_000
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[0] < 0.7 * peaks[1]


# Writing


def made(path: Path) -> Path:
    path.write_text("step,loss,kl_loss,note\n1,2,3,x\n2,2.5,,y\n,1,1,\n")
    return path


def test_a_run_folder_like_any_other(tmp_path: Path) -> None:
    imported = read(made(tmp_path / "log.csv"), mapping={"kl_loss": "loss/prior"})
    written = write_run(imported, tmp_path / "run", meta={"kinds": {"prior": "kl"}})
    assert written == Written(metrics=2, points=3, first=1, last=2)
    run = Run.open(tmp_path / "run")
    assert list(run) == ["loss/prior", "loss/total"]
    assert run.meta["kinds"] == {"prior": "kl"}
    assert run.meta["imported"] == {
        "format": "csv",
        "source": "log.csv",
        "step": "step",
        "renamed": {"loss": "loss/total", "kl_loss": "loss/prior"},
        "lost": {"no_step": 1},
        "ignored": {"note": 2},
    }
    assert str(tmp_path) not in json.dumps(run.meta), "no paths of the machine"


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    imported = read(made(tmp_path / "log.csv"))
    write_run(imported, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunExistsError):
        write_run(imported, tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_no_half_of_a_run_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = read(made(tmp_path / "log.csv"))

    def stopped(*arguments: Any) -> Any:
        yield Record(0, {"x": 1.0})
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "by_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_run(imported, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    monkeypatch.setattr(exporting, "by_step", stopped)
    for name in ("out.csv", "out.jsonl"):
        with pytest.raises(KeyboardInterrupt):
            export(imported.run, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "run"]


def test_a_disk_that_takes_no_more_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = read(made(tmp_path / "log.csv"))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lossdoctor.store.database.Database.write", full)
    with pytest.raises(RunError, match="No space left"):
        write_run(imported, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    monkeypatch.setattr(JSONL, "write", full)
    with pytest.raises(RunWriteError, match=r"(?s)export cannot be written.*No space left"):
        export(imported.run, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


# What to export, and where


def test_a_selection(tmp_path: Path) -> None:
    run = memory([Record(0, {"loss/kl": 1.0, "loss/flow": 2.0, "a[1]": 3.0, "grad/kl": 4.0})]).run()
    cases: list[tuple[list[str], list[str]]] = [
        (["loss/*"], ["loss/flow", "loss/kl"]),
        (["a[1]", "grad/kl"], ["a[1]", "grad/kl"]),
        ([], ["a[1]", "grad/kl", "loss/flow", "loss/kl"]),
    ]
    for number, (select, expected) in enumerate(cases):
        export(run, tmp_path / f"{number}.jsonl", select=select)
        assert sorted(read(tmp_path / f"{number}.jsonl").run) == expected
    with pytest.raises(UsageError, match=r"(?s)No metric.*'loss/kl'.*--select loss/kk"):
        export(run, tmp_path / "none.csv", select=["loss/*", "loss/kk"])
    with pytest.raises(UsageError, match="The run is empty"):
        export(memory([]).run(), tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()


def test_what_is_there_stays(tmp_path: Path) -> None:
    run = memory([Record(0, {"x": 1.0})]).run()
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "link.csv").symlink_to("nowhere")
    for name in ("a.csv", "full", "link.csv"):
        with pytest.raises(RunExistsError, match="never written over"):
            export(run, tmp_path / name, format="csv")
    (tmp_path / "empty").mkdir()
    pytest.importorskip("tensorboardX")
    export(run, tmp_path / "empty")
    assert list(read(tmp_path / "empty").run) == ["x"]


def test_formats_by_suffix_or_by_name(tmp_path: Path) -> None:
    run = memory([Record(0, {"x": 1.0})]).run()
    export(run, tmp_path / "a.NDJSON")
    export(run, tmp_path / "b.txt", format="jsonl")
    assert [read(tmp_path / name).format for name in ("a.NDJSON", "b.txt")] == ["jsonl", "jsonl"]
    with pytest.raises(UsageError, match=r"(?s)not clear.*'.txt'"):
        export(run, tmp_path / "c.txt")
    with pytest.raises(UsageError, match="no such format"):
        export(run, tmp_path / "c.txt", format="excel")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunWriteError, match="cannot be written"):
        export(memory([Record(0, {"x": 1.0})]).run(), tmp_path / "file" / "out.csv")
