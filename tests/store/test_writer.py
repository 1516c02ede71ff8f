"""What a writer promises: whose folder, which files, nothing waits, nothing raises."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lossdoctor.errors import RunError, RunExistsError, RunLockedError, RunWriteError, UsageError
from lossdoctor.record import Record
from lossdoctor.store import MemoryWriter, Run, RunWriter, database
from lossdoctor.store.layout import CHUNK


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Whose folder


def test_a_closed_run_is_three_plain_files(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "new" / "run", {"seed": 1}) as writer:
        writer.append([Record(0, {"loss": 1.0})])
    assert files(tmp_path / "new" / "run") == {"run.db", "events.jsonl", "meta.json"}


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    RunWriter(tmp_path, {"seed": 1}).close()
    with pytest.raises(RunExistsError, match=r"(?s)another folder.*resume=True"):
        RunWriter(tmp_path)
    assert Run.open(tmp_path).meta == {"seed": 1}
    RunWriter(tmp_path, resume=True).close()


def test_resume_begins_where_there_is_nothing(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "r", resume=True) as writer:
        writer.append([Record(0, {"loss": 1.0})])
    assert list(Run.open(tmp_path / "r")["loss"]) == [(0, 1.0)]


def test_resume_adds_to_the_meta(tmp_path: Path) -> None:
    RunWriter(tmp_path, {"seed": 1, "lr": 0.1}).close()
    with RunWriter(tmp_path, {"lr": 0.2}, resume=True) as writer:
        writer.update_meta(solver="euler")
    assert Run.open(tmp_path).meta == {"seed": 1, "lr": 0.2, "solver": "euler"}


def test_a_second_writer_of_this_process_is_refused(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        for resume in (False, True):
            with pytest.raises(RunLockedError, match="being written"):
                RunWriter(tmp_path, resume=resume)
        writer.append([Record(0, {"loss": 1.0})])
    RunWriter(tmp_path, resume=True).close()


def test_a_writer_in_another_process_is_refused_until_that_ends(tmp_path: Path) -> None:
    code = f"from lossdoctor.store import RunWriter; w = RunWriter({str(tmp_path)!r}); print('up', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "up\n"
    try:
        with pytest.raises(RunLockedError):
            RunWriter(tmp_path, resume=True)
        assert len(Run.open(tmp_path)) == 0
    finally:
        other.kill()
        other.communicate()
    RunWriter(tmp_path, resume=True).close()


def test_unrelated_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_text("mine")
    RunWriter(tmp_path).close()
    assert (tmp_path / "checkpoint.pt").read_text() == "mine"


@pytest.mark.parametrize("name", ["run.db", "meta.json", "events.jsonl"])
@pytest.mark.parametrize("resume", [False, True])
def test_files_of_somebody_else_are_not_touched(tmp_path: Path, name: str, resume: bool) -> None:
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(RunError, match="somebody else"):
        RunWriter(tmp_path, resume=resume)
    assert files(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "somebody's"


def test_a_database_of_another_program_is_not_touched(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "run.db") as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = (tmp_path / "run.db").read_bytes()
    with pytest.raises(RunError, match="somebody else"):
        RunWriter(tmp_path, resume=True)
    assert (tmp_path / "run.db").read_bytes() == before


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    RunWriter(tmp_path).close()
    with sqlite3.connect(tmp_path / "run.db") as newer:
        newer.execute("PRAGMA user_version = 2")
    newer.close()
    with pytest.raises(RunError, match="format 2"):
        RunWriter(tmp_path, resume=True)
    with pytest.raises(RunError, match="newer"):
        Run.open(tmp_path)


def test_a_damaged_run_is_not_gone_on_with(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.append([Record(step, {"loss": 1.0}) for step in range(2000)])
    whole = (tmp_path / "run.db").read_bytes()
    (tmp_path / "run.db").write_bytes(whole[:72] + b"\xff" * (len(whole) - 72))
    with pytest.raises(RunError, match="damaged"):
        RunWriter(tmp_path, resume=True)
    (tmp_path / "run.db").write_bytes(whole)
    RunWriter(tmp_path, resume=True).close()


@pytest.mark.parametrize("where", ["file/below", "/proc/no", "/dev/null/x"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunWriteError, match=r"(?s)cannot be written.*to do"):
        RunWriter(tmp_path / where)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunWriteError):
        RunWriter(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("refusal", ["attempt to write a readonly database", "database or disk is full"])
def test_a_disk_that_refuses_at_the_start_leaves_no_lock(
    tmp_path: Path, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise sqlite3.OperationalError(refusal)

    with monkeypatch.context() as patched:
        patched.setattr(database.Database, "_start", refuse)
        with pytest.raises(RunWriteError, match=refusal):
            RunWriter(tmp_path)
    RunWriter(tmp_path).close()


# Ranks


def test_each_rank_has_its_own_file(tmp_path: Path) -> None:
    with RunWriter(tmp_path, {"seed": 1}) as zero, RunWriter(tmp_path, {"seed": 2}, rank=3) as three:
        zero.append([Record(0, {"loss": 0.0})])
        three.append([Record(0, {"loss": 3.0})])
        three.event("late", step=7)
        three.update_meta(seed=9)
    assert files(tmp_path) == {"run.db", "events.jsonl", "meta.json", "run.rank3.db", "events.rank3.jsonl"}
    run, other = Run.open(tmp_path), Run.open(tmp_path, rank=3)
    assert run.ranks == other.ranks == (0, 3)
    assert (run.meta, other.meta) == ({"seed": 1}, {"seed": 1})
    assert (list(run["loss"]), list(other["loss"])) == ([(0, 0.0)], [(0, 3.0)])
    assert (run.events, [event["kind"] for event in other.events]) == ([], ["late"])
    assert {rank: len(events) for rank, events in run.rank_events.items()} == {0: 0, 3: 1}
    assert other.rank_events == run.rank_events
    assert list(Run.open(tmp_path / "run.rank3.db")["loss"]) == [(0, 3.0)]
    with pytest.raises(RunError, match="rank 0, 3"):
        Run.open(tmp_path, rank=1)
    with pytest.raises(UsageError):
        RunWriter(tmp_path, rank=-1)


# Events and meta


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_events_are_strict_json_whatever_they_hold(tmp_path: Path, kind: str) -> None:
    class Broken:
        def __repr__(self) -> str:
            raise ValueError

    loop: list[Any] = []
    loop.append(loop)
    with RunWriter(tmp_path) if kind == "disk" else MemoryWriter() as writer:
        told = writer.event(
            "first", step=3, x=math.nan, deep=[{"y": -math.inf}], thing=Path("a"), text="\ud800\u2028\n"
        )
        writer.event("second", broken=Broken(), loop=loop, keys={(1, 2): 3}, fine=1)
        run = writer.run()
        first, second = run.events
    assert first == told
    assert first.pop("time") <= second.pop("time")
    plain = {"x": "NaN", "deep": [{"y": "-Infinity"}], "thing": repr(Path("a")), "text": "\ud800\u2028\n"}
    assert first == {"kind": "first", "step": 3, **plain}
    assert second["fine"] == 1
    assert second["broken"].startswith("<Broken")
    if kind == "disk":
        lines = (tmp_path / "events.jsonl").read_text("ascii").splitlines()
        assert [json.loads(line, parse_constant=pytest.fail)["kind"] for line in lines] == ["first", "second"]


def test_meta_is_replaced_whole_and_events_are_at_once_on_disk(tmp_path: Path) -> None:
    with RunWriter(tmp_path, {"lr": math.inf}) as writer:
        assert json.loads((tmp_path / "meta.json").read_text(), parse_constant=pytest.fail) == {"lr": "Infinity"}
        writer.update_meta(weights={"kl": 0.5})
        writer.event("arm")
        assert writer.flush()
        assert json.loads((tmp_path / "meta.json").read_text()) == {"lr": "Infinity", "weights": {"kl": 0.5}}
        assert (tmp_path / "events.jsonl").read_text().count("\n") == 1
        assert writer.run().meta == {"lr": "Infinity", "weights": {"kl": 0.5}}
    assert "meta.json.new" not in files(tmp_path)


# Handing over


def test_flush_means_on_disk(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        assert writer.flush()
        for step in range(20):
            writer.append([Record(step, {"loss": 1.0})])
            assert writer.flush(timeout=60)
            assert len(Run.open(tmp_path)["loss"]) == step + 1


def test_flush_gives_up_in_time_when_the_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    write = database.Database.write

    def slow(self: database.Database, records: list[Record]) -> None:
        go_on.wait(60)
        write(self, records)

    monkeypatch.setattr(database.Database, "write", slow)
    with RunWriter(tmp_path) as writer:
        writer.append([Record(0, {"loss": 1.0})])
        assert not writer.flush(timeout=0.05)
        # Training goes on meanwhile: nothing below waits for the disk.
        for step in range(1, 3 * CHUNK):
            writer.append([Record(step, {"loss": 1.0})])
        writer.event("still here")
        writer.update_meta(a=1)
        go_on.set()
        assert writer.flush(timeout=60)
        assert len(writer.run()["loss"]) == 3 * CHUNK


def test_several_threads_append_at_once(tmp_path: Path, twin: Callable[..., Any]) -> None:
    each, count = 1500, 4
    parts = [[Record(step, {f"thread{n}": float(step)}, time=1.0) for step in range(each)] for n in range(count)]
    with RunWriter(tmp_path) as writer:

        def work(records: list[Record]) -> None:
            for record in records:
                writer.append([record])
                if record.step % 500 == 0:
                    writer.event("here", step=record.step)
                    writer.flush()

        threads = [threading.Thread(target=work, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    run = Run.open(tmp_path)
    twin([record for part in parts for record in part]).check(run)
    assert len(run.events) == 3 * count


def test_memory_is_bounded_by_a_chunk_per_metric(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        for start in range(0, 20 * CHUNK, CHUNK // 3):
            writer.append([Record(step, {"a": 1.0, "b": 2.0}) for step in range(start, start + CHUNK // 3)])
            writer.flush()
            held = writer._database
            assert len(held._tail) < CHUNK
            assert all(len(points) < CHUNK for _, points in held._open.values())
        with sqlite3.connect(tmp_path / "run.db") as other:
            assert other.execute("SELECT count(*) FROM tail").fetchone()[0] < CHUNK
            assert other.execute("SELECT max(length(numbers)) FROM chunk").fetchone() == (8 * CHUNK,)
        other.close()


@pytest.mark.parametrize("extra", [10**9, 1900], ids=["each step", "and evaluations"])
@pytest.mark.parametrize("due", [1, 8])
def test_a_long_run_takes_little_more_room_than_its_numbers(tmp_path: Path, due: int, extra: int) -> None:
    """Chunks that are filled up little by little must leave no holes that nobody ever fills."""
    steps, metrics = 4000 * due, [f"metric{number}" for number in range(40)]
    file = database.Database(tmp_path / "run.db", pytest.fail)
    numbers = 0
    for start in range(0, steps, 100):
        records = []
        for step in range(start, start + 100):
            names = metrics if step % due == 0 else []
            records.append(Record(step, dict.fromkeys(names, 0.5 * step), time=1.0))
            if step % extra == extra - 1:
                records.append(Record(step, {"evaluation": 1.0}, time=1.0))
        file.write(records)
        numbers += sum(len(record.values) + 2 for record in records)
    file.close()
    assert (tmp_path / "run.db").stat().st_size < 1.3 * 8 * numbers
    run = Run.open(tmp_path)
    assert all(run[name].steps.tolist() == list(range(0, steps, due)) for name in metrics)


def test_ever_new_metric_sets_do_not_pile_up(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        for step in range(2000):
            writer.append([Record(step, {"loss": 1.0, f"step{step}": 2.0})])
        writer.flush()
        assert len(writer._database._layouts) <= database._LAYOUTS
        assert len(writer.run()) == 2001


def test_closing_is_final_and_loses_nothing(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.append([Record(0, {"loss": 0.0})])
    writer.close()
    writer.close()
    writer.append([Record(1, {"loss": 1.0})])
    writer.event("after")
    assert not writer.flush(timeout=60)
    run = writer.run()
    assert list(run["loss"]) == [(0, 0.0), (1, 1.0)]
    assert [event["kind"] for event in run.events] == ["after"]
    assert list(Run.open(tmp_path)["loss"]) == [(0, 0.0)]


def test_a_run_never_closed_is_closed_at_exit(tmp_path: Path) -> None:
    code = (
        "from lossdoctor.store import RunWriter; from lossdoctor.record import Record\n"
        f"RunWriter({str(tmp_path)!r}).append([Record(0, {{'loss': 1.0}})])\n"
        "raise KeyboardInterrupt"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert files(tmp_path) == {"run.db", "events.jsonl", "meta.json"}
    assert list(Run.open(tmp_path)["loss"]) == [(0, 1.0)]


def test_a_signal_handler_may_flush_and_close_in_the_middle_of_an_append(tmp_path: Path) -> None:
    """A cluster's warning before it takes the machine away arrives anywhere."""
    writer = RunWriter(tmp_path)
    seen = 0

    def handler(*_: Any) -> None:
        nonlocal seen
        seen += 1
        writer.flush()
        if seen == 20:
            writer.close()

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        step = 0
        while seen < 20:
            writer.append([Record(step, {"loss": float(step)})])
            step += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert writer.failure is None
    assert list(writer.run()["loss"]) == [(number, float(number)) for number in range(step)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_neither_writes_nor_waits_nor_keeps_the_lock(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.append([Record(0, {"loss": 0.0})])
    parent_reads, child_writes = os.pipe()
    child_waits, parent_ends = os.pipe()
    child = os.fork()
    if not child:
        os.close(parent_ends)
        writer.append([Record(9, {"loss": 9.0})])
        writer.event("child")
        writer.flush()
        writer.close()
        os.write(child_writes, b"x")
        os.read(child_waits, 1)
        os._exit(0)
    assert os.read(parent_reads, 1) == b"x"
    try:
        writer.append([Record(1, {"loss": 1.0})])
        writer.close()
        with RunWriter(tmp_path, resume=True) as again:  # the child lives, and holds no lock
            assert list(again.run()["loss"]) == [(0, 0.0), (1, 1.0)]
            assert again.run().events == []
    finally:
        os.close(parent_ends)
        os.waitpid(child, 0)


def test_the_store_needs_no_torch() -> None:
    code = (
        "import sys, lossdoctor.store; assert lossdoctor.Run is lossdoctor.store.Run; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_can_be_copied_away_and_gone_on_with(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.append([Record(0, {"loss": 0.0})])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with RunWriter(tmp_path / "b", resume=True) as writer:
        writer.append([Record(1, {"loss": 1.0})])
    assert len(Run.open(tmp_path / "b")["loss"]) == 2
    assert len(Run.open(tmp_path / "a")["loss"]) == 1
