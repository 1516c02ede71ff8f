"""Everything that can go wrong under a run: the process, the disk, the folder, the file."""

from __future__ import annotations

import ctypes
import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossdoctor.errors import RunError, RunWriteError
from lossdoctor.record import Record
from lossdoctor.store import Run, RunWriter, database
from lossdoctor.store.layout import CHUNK

WRITING = """
import sys, time
from lossdoctor.record import Record
from lossdoctor.store import RunWriter
writer = RunWriter(sys.argv[1], resume=True)
for step in range(10**9):
    writer.append([Record(step, {"loss": step * 0.5, "nan": float("nan")}, full=step % 50 == 0)])
    if step % 100 == 0 and sys.argv[2] == "quickly":
        writer.event("hundred", step=step)
    print(step, flush=True)
    time.sleep(0.0005 if sys.argv[2] == "quickly" else 0.02)
"""


def killed(folder: Path, seconds: float, pace: str) -> tuple[int, float]:
    """Write in another process until `kill -9`. Returns the last step it told of, and when it was killed."""
    process = subprocess.Popen([sys.executable, "-c", WRITING, str(folder), pace], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    moment = time.time()
    told = process.communicate()[0].split()
    return int(told[-1]) if told else 0, moment


@pytest.mark.parametrize(("seconds", "pace"), [(0.05, "quickly"), (0.6, "quickly"), (2.2, "quickly"), (2.2, "slowly")])
def test_kill_9_loses_at_most_a_second(tmp_path: Path, seconds: float, pace: str) -> None:
    told, moment = killed(tmp_path, seconds, pace)
    run = Run.open(tmp_path)
    steps = run["loss"].steps.tolist() if "loss" in run else []
    times = run.times.values
    # No gap, nothing torn, and what is missing is younger than a second.
    assert steps == list(range(len(steps)))
    assert len(steps) == len(times)
    if seconds > 1:
        assert times[-1] > moment - 1.0
    assert run.torn_events == 0
    assert [event["step"] for event in run.events] == list(range(0, 100 * len(run.events), 100))
    # An event waits for nothing but the commit before it.
    assert pace == "slowly" or len(run.events) >= told // 100 - 2
    with RunWriter(tmp_path, resume=True) as writer:
        writer.append([Record(10**6, {"loss": -1.0})])
    again = Run.open(tmp_path)["loss"]
    assert list(again) == [*((step, step * 0.5) for step in range(len(steps))), (10**6, -1.0)]


# The disk


class Told:
    """An `on_failure` that remembers."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.happened = threading.Event()

    def __call__(self, error: BaseException) -> None:
        self.errors.append(error)
        self.happened.set()


def go_on_in_memory(writer: RunWriter, told: Told, before: int) -> None:
    """What holds after any failure: told once, training goes on, and the run has everything."""
    assert told.happened.wait(60)
    assert isinstance(writer.failure, RunWriteError)
    writer.append([Record(10**6, {"loss": -1.0}, full=True)])
    writer.event("later", step=10**6)
    writer.update_meta(later=True)
    assert not writer.flush(timeout=60)
    run = writer.run()
    assert len(run["loss"]) == before + 1
    assert run.last == {"loss": -1.0}
    assert run.events[-1]["kind"] == "later"
    assert run.meta["later"]
    writer.close()
    assert told.errors == [writer.failure]
    assert len(writer.run()["loss"]) == before + 1


def test_a_full_disk(tmp_path: Path) -> None:
    told = Told()
    writer = RunWriter(tmp_path, on_failure=told)
    writer._database._db.execute("PRAGMA max_page_count = 60")
    step = 0
    while not told.happened.wait(0.001) and step < 10**5:
        writer.append([Record(number, {"loss": number**0.5}) for number in range(step, step + 300)])
        step += 300
    assert "full" in str(told.errors[0])
    go_on_in_memory(writer, told, step)
    # What was committed is still good, and with space again the run can be gone on with.
    kept = len(Run.open(tmp_path)["loss"])
    assert 0 < kept < step
    with RunWriter(tmp_path, resume=True) as writer:
        writer.append([Record(step, {"loss": 0.0})])
    assert len(Run.open(tmp_path)["loss"]) == kept + 1


def test_a_file_system_that_really_takes_no_more(tmp_path: Path) -> None:
    """The same through the operating system: a limit on the size of files, in a process of its own."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from lossdoctor.record import Record
from lossdoctor.store import RunWriter
errors = []
writer = RunWriter(sys.argv[1], on_failure=errors.append)
for step in range(60_000):
    writer.append([Record(step, {"loss": (step * 7919 % 1000) ** 0.5})])
    if step % 1000 == 0:
        writer.flush()
writer.close()
assert len(errors) == 1, errors
assert len(writer.run()["loss"]) == 60_000
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = Run.open(tmp_path)["loss"]
    assert kept.steps.tolist() == list(range(len(kept)))
    assert 0 < len(kept) < 60_000


@pytest.mark.parametrize("again", [False, True], ids=["deleted", "replaced"])
def test_the_folder_is_deleted_while_writing(tmp_path: Path, again: bool) -> None:
    told = Told()
    writer = RunWriter(tmp_path / "r", on_failure=told)
    writer.append([Record(step, {"loss": 1.0}) for step in range(10)])
    writer.flush()
    shutil.rmtree(tmp_path / "r")
    if again:
        RunWriter(tmp_path / "r").close()
    writer.append([Record(10, {"loss": 1.0})])
    assert told.happened.wait(60)
    assert "deleted" in str(told.errors[0])
    go_on_in_memory(writer, told, 1)  # the first ten are gone with the folder
    assert (tmp_path / "r").exists() == again
    if again:
        assert len(Run.open(tmp_path / "r")) == 0


def test_a_file_locked_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    told = Told()
    writer = RunWriter(tmp_path, on_failure=told)
    with sqlite3.connect(tmp_path / "run.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        writer.append([Record(0, {"loss": 1.0})])
        assert told.happened.wait(60)
        other.execute("ROLLBACK")
    other.close()
    assert "locked" in str(told.errors[0])
    go_on_in_memory(writer, told, 1)


def test_events_that_cannot_be_written(tmp_path: Path) -> None:
    told = Told()
    writer = RunWriter(tmp_path, on_failure=told)
    with open("/dev/full", "wb", buffering=0) as full:
        os.dup2(full.fileno(), writer._log)
    writer.event("lost?")
    assert told.happened.wait(60)
    assert [event["kind"] for event in writer.run().events] == ["lost?"]
    go_on_in_memory(writer, told, 0)


def test_a_meta_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    told = Told()
    writer = RunWriter(tmp_path, {"seed": 1}, on_failure=told)
    (tmp_path / ".draft-meta.json").symlink_to("/dev/full")
    writer.update_meta(seed=2)
    assert told.happened.wait(60)
    assert writer.run().meta == {"seed": 2}
    assert Run.open(tmp_path).meta == {"seed": 1}
    go_on_in_memory(writer, told, 0)
    (tmp_path / ".draft-meta.json").unlink(missing_ok=True)
    with RunWriter(tmp_path, {"seed": 3}, resume=True):
        assert Run.open(tmp_path).meta == {"seed": 3}


def test_a_failure_of_on_failure_is_logged_and_harms_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    happened = threading.Event()

    def bad(error: BaseException) -> None:
        writer.run()
        writer.flush()
        writer.close()
        happened.set()
        raise ValueError("a bug of the user")

    writer = RunWriter(tmp_path / "r", on_failure=bad)
    shutil.rmtree(tmp_path / "r")
    with caplog.at_level(logging.ERROR):
        writer.append([Record(0, {"loss": 1.0})])
        assert happened.wait(60)
        writer.close()
    assert "a bug of the user" in caplog.text
    assert list(writer.run()["loss"]) == [(0, 1.0)]


# The file


IN_CREATE = 0x100


def test_no_journal_is_left_to_a_reader_who_may_not_write(tmp_path: Path) -> None:
    """A process killed while SQLite has a rollback journal on disk leaves a file that only a writer can open: but for
    the tables themselves, nothing is written that way. Files that live for a moment are seen by the operating system.
    """
    RunWriter(tmp_path).close()
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(tmp_path), IN_CREATE) >= 0
    with RunWriter(tmp_path, resume=True) as writer:
        writer.append([Record(step, {"loss": 1.0}) for step in range(2000)])
    made = os.read(watch, 1 << 16)
    os.close(watch)
    assert b"run.db-wal" in made
    assert b"run.db-journal" not in made
    assert {path.name for path in tmp_path.iterdir()} == {"run.db", "events.jsonl", "meta.json"}


def test_a_half_written_transaction_without_a_log_is_taken_back_by_the_reader(tmp_path: Path) -> None:
    """What a killed writer leaves on a file system that has no write-ahead logs."""
    with RunWriter(tmp_path) as writer:
        writer.append([Record(step, {"loss": 0.5 * step}, full=True) for step in range(700)])
    killed_there = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE chunk SET numbers = zeroblob(8)")
for step in range(200):
    db.execute("INSERT INTO tail (step, columns, numbers) VALUES (?, zeroblob(3000), zeroblob(3000))", (step,))
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", killed_there, str(tmp_path / "run.db")], check=False)
    assert (tmp_path / "run.db-journal").stat().st_size > 0
    assert list(Run.open(tmp_path)["loss"]) == [(step, 0.5 * step) for step in range(700)]
    with RunWriter(tmp_path, resume=True) as writer:
        writer.append([Record(700, {"loss": 350.0})])
    assert list(Run.open(tmp_path)["loss"]) == [(step, 0.5 * step) for step in range(701)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    """The files of a run that is being written: chunks, a tail, and a log not yet moved into the file."""
    folder = tmp_path_factory.mktemp("live")
    noise = random.Random(0)
    with RunWriter(folder, {"seed": 1}) as writer:
        for start in range(0, 1300, 100):
            writer.append(
                [Record(s, {"loss": noise.random(), "nan": float("nan")}, full=True) for s in range(start, start + 100)]
            )
            writer.flush()
        writer.event("one")
        writer.event("two")
        writer.flush()
        yield {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that has ended."""
    folder = tmp_path_factory.mktemp("closed")
    with RunWriter(folder) as writer:
        writer.append([Record(step, {"loss": 0.5 * step}, full=step % 7 == 0) for step in range(1300)])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copy(files: dict[str, bytes], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def read_all(folder: Path) -> int:
    """Read everything there is; what cannot be read says so. Returns the points read."""
    try:
        run = Run.open(folder)
        everything = [(name, list(run[name])) for name in run]
        run.last, run.steps, run.times, run.meta, run.events, repr(run)
    except RunError as error:
        if "to do:" not in str(error):
            raise
        return 0
    return sum(len(points) for _, points in everything)


def test_a_copy_of_a_live_folder_is_a_whole_run(live: dict[str, bytes], tmp_path: Path) -> None:
    assert read_all(copy(live, tmp_path / "r")) == 2600
    assert read_all(copy({name: data for name, data in live.items() if name != "run.db-shm"}, tmp_path / "r")) == 2600


def test_without_its_log_the_file_is_an_older_run(live: dict[str, bytes], tmp_path: Path) -> None:
    """SQLite moves the log into the file now and then; the file alone is what it was then, never damaged."""
    folder = copy({name: data for name, data in live.items() if "-" not in name}, tmp_path / "r")
    run = Run.open(folder)
    assert all(run[name].steps.tolist() == list(range(len(run[name]))) for name in run)
    with RunWriter(folder, resume=True) as writer:
        writer.append([Record(0, {"loss": 1.0})])
    assert Run.open(folder)["loss"].values[0] == 1.0


@pytest.mark.parametrize("which", ["run.db", "run.db-wal", "run.db-shm"])
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 2**32), kind=st.sampled_from(["cut", "noise", "zeros", "flip"]))
def test_a_torn_file_is_read_or_says_so(
    live: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, which: str, share: float, seed: int, kind: str
) -> None:
    data, noise = bytearray(live[which]), random.Random(seed)
    at = int(share * len(data))
    if kind == "cut":
        del data[at:]
    elif kind == "flip":
        for _ in range(20):
            data[noise.randrange(len(data))] = noise.randrange(256)
    else:
        size = min(len(data) - at, 5000)
        data[at : at + size] = noise.randbytes(size) if kind == "noise" else bytes(size)
    folder = tmp_path_factory.getbasetemp() / "torn"
    read_all(copy({**live, which: bytes(data)}, folder))
    shutil.rmtree(folder)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_a_torn_closed_file_too(
    closed: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, share: float, seed: int
) -> None:
    data, noise = bytearray(closed["run.db"]), random.Random(seed)
    del data[int(share * len(data)) :]
    for _ in range(5 if data else 0):
        data[noise.randrange(len(data))] = noise.randrange(256)
    folder = tmp_path_factory.getbasetemp() / "torn"
    read_all(copy({**closed, "run.db": bytes(data)}, folder))
    shutil.rmtree(folder)


@pytest.mark.parametrize("content", [b"", b"x", b"SQLite format 3\0", b"SQLite format 3\0" + bytes(4096), bytes(8192)])
def test_what_is_no_run_file_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.db").write_bytes(content)
    with pytest.raises(RunError, match="to do:"):
        Run.open(tmp_path)


def test_a_torn_line_of_events_is_left_out_and_counted(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.event("one")
        writer.event("two", text="é")
    whole = (tmp_path / "events.jsonl").read_bytes()
    assert (Run.open(tmp_path).torn_events, len(Run.open(tmp_path).events)) == (0, 2)
    (tmp_path / "events.jsonl").write_bytes(whole[:-5])
    assert (Run.open(tmp_path).torn_events, len(Run.open(tmp_path).events)) == (1, 1)
    with RunWriter(tmp_path, resume=True) as writer:
        writer.event("three")
    run = Run.open(tmp_path)
    assert (run.torn_events, [event["kind"] for event in run.events]) == (1, ["one", "three"])
    (tmp_path / "events.jsonl").write_bytes(b"\xff\xfe\n[1]\n" + b"[" * 99999 + b"\n\n" + whole)
    assert (Run.open(tmp_path).torn_events, len(Run.open(tmp_path).events)) == (3, 2)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 99999])
def test_a_damaged_meta_costs_only_itself(tmp_path: Path, content: bytes) -> None:
    with RunWriter(tmp_path, {"seed": 1}) as writer:
        writer.append([Record(0, {"loss": 1.0})])
    (tmp_path / "meta.json").write_bytes(content)
    run = Run.open(tmp_path)
    assert len(run["loss"]) == 1
    with pytest.raises(RunError, match=r"meta\.json"):
        run.meta  # noqa: B018
    with pytest.raises(RunError, match=r"meta\.json"):
        RunWriter(tmp_path, resume=True)
    (tmp_path / "meta.json").unlink()
    assert run.meta == {}
    RunWriter(tmp_path, resume=True).close()


def test_an_empty_file_is_begun_afresh(tmp_path: Path) -> None:
    """What is left of a process killed before the tables were made, and of a disk that was full then."""
    (tmp_path / "run.db").write_bytes(b"")
    with RunWriter(tmp_path) as writer:
        writer.append([Record(0, {"loss": 1.0})])
    assert len(Run.open(tmp_path)["loss"]) == 1


def test_reading_while_it_is_written_sees_whole_states(tmp_path: Path) -> None:
    """No point is missing in the moment it moves from the tail into a chunk."""
    stop = threading.Event()
    with RunWriter(tmp_path) as writer:
        writer.append([Record(0, {"loss": 0.0})])
        writer.flush()

        def work() -> None:
            step = 1
            while not stop.is_set():
                writer.append([Record(number, {"loss": float(number)}) for number in range(step, step + 40)])
                writer.flush()
                step += 40

        thread = threading.Thread(target=work)
        thread.start()
        try:
            run, seen = Run.open(tmp_path), 0
            while seen < 4 * CHUNK:
                series = run["loss"]
                assert series.steps.tolist() == list(range(len(series)))
                assert len(series) >= seen
                seen = len(series)
        finally:
            stop.set()
            thread.join()
