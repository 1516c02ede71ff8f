"""Which format a file is in, what is said of one in none, and that nothing raises anything but our own errors."""

from __future__ import annotations

import gzip
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lossdoctor import exchange
from lossdoctor.errors import LossDoctorError, UsageError
from lossdoctor.exchange import FORMATS, read, recognise
from lossdoctor.exchange.events import checksum
from lossdoctor.exchange.wandb import MAGIC
from lossdoctor.record import Record
from lossdoctor.store import RunWriter


def test_the_catalogue_is_the_folder() -> None:
    """A format is a module with `recognises` and `records`; list it in formats.FORMATS."""
    files = {path.stem: path.read_text(encoding="utf-8") for path in Path(exchange.__file__).parent.glob("*.py")}
    formats = {name for name, code in files.items() if "\ndef recognises(" in code}
    assert formats == set(FORMATS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello\n", "no log that can be read"),
        (b"\x7fELF\x02\x01", "no log that can be read"),
        (b"\xff\xfes\x00t\x00", "UTF-16"),
        (gzip.compress(b"step,x\n", mtime=0), "gzip"),  # the time would be part of the name of the test
        (b"PAR1....", "read_parquet"),
        (b"PK\x03\x04", "zip"),
        (b"import os, sys\nos.getpid(), 1\n", r"(?s)which step.*--step NAME"),
        (b"{}", "no numbers"),
        (b"[1, 2]", "no numbers"),
        (b"null", "no log that can be read"),
        (b"SQLite format 3\0", "SQLite"),
        (MAGIC, "no numbers"),
    ],
)
def test_files_of_no_use(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read(tmp_path / "file")


def test_the_suffix_does_not_decide(tmp_path: Path) -> None:
    contents = {"jsonl": b'{"step": 1, "x": 1}', "csv": b"step,x\n1,2\n", "wandb": MAGIC}
    for name, content in contents.items():
        for suffix in (".csv", ".jsonl", ".db", ".wandb", ""):
            (tmp_path / f"file{suffix}").write_bytes(content)
            assert recognise(tmp_path / f"file{suffix}") == name


def test_folders_and_paths_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("step,x\n")
    with pytest.raises(UsageError, match=r"(?s)a folder in which there is none.*choose"):
        read(tmp_path)
    with pytest.raises(UsageError, match="There is no log there"):
        read(tmp_path / "missing")
    for name in FORMATS:
        with pytest.raises(UsageError):
            read(tmp_path, format=name)
        with pytest.raises(UsageError, match="There is no log there"):
            read(tmp_path / "missing", format=name)
    with pytest.raises(UsageError, match=r"(?s)no such format.*'csv'"):
        read(tmp_path, format="cvs")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="a pipe or a device"):
        read(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_leave_to_read(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,x\n1,2\n")
    (tmp_path / "log.csv").chmod(0)
    with pytest.raises(UsageError, match="Permission denied"):
        read(tmp_path / "log.csv")


def test_a_run_of_our_own_needs_no_import(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        writer.append([Record(0, {"x": 1.0})])
    for path in (tmp_path / "run", tmp_path / "run" / "run.db"):
        with pytest.raises(UsageError, match=r"(?s)lossdoctor already.*lossdoctor check"):
            read(path)


def test_another_database(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE metrics (a, b)")
    with pytest.raises(UsageError, match="SQLite file of another program"):
        read(tmp_path / "other.db")
    for name in ("trackio", "mlflow"):
        with pytest.raises(UsageError, match="cannot be read"):
            read(tmp_path / "other.db", format=name)


# Anything at all

HEAD = len(b"x").to_bytes(8, "little")
BEGINNINGS = st.sampled_from(
    [
        *(
            b"",
            b"step,x\n",
            b"step,name,value\n",
            b'{"step": 1, "values": {',
            b'{"step": 1, "x": ',
            b"[{",
            b"{\n",
            MAGIC,
        ),
        *(b"SQLite format 3\0", b"SQLite format 3\0\x10\0\x01\x01\0", HEAD + checksum(HEAD).to_bytes(4, "little")),
    ]
)
TEXTS = st.text('step,x0123456789.e-"\n\r{}[]:;\t\0nai_/*\u20ac', max_size=60).map(str.encode)
CONTENTS = st.tuples(BEGINNINGS, st.one_of(st.binary(max_size=80), TEXTS)).map(b"".join)


@given(content=CONTENTS, name=st.sampled_from([None, *FORMATS]), suffix=st.sampled_from([".csv", ".tfevents.1", ""]))
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str | None, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"anything{suffix}"
    path.write_bytes(content)
    try:
        imported = read(path, format=name)
    except LossDoctorError as error:
        told = str(error)
    else:
        told = "to do:" if all(len(imported.run[metric]) for metric in imported.run) and len(imported.run) else ""
    assert "to do:" in told
