"""CSV and JSONL: what is written is read back by the standard library, whatever the names and numbers."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossdoctor.errors import UsageError
from lossdoctor.record import Record
from lossdoctor.sinks import CSV, JSONL, Background, Sink

NAMES = st.one_of(
    st.sampled_from(
        ["", "loss/flow", 'a,"b"', "l1\nl2", "l1\r\nl2", "\r", "=1+1", "a\x00b", "流", " x ", "NaN", "'", "\u2028"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
RECORDS = st.lists(
    st.builds(
        Record,
        step=st.integers(-(2**63), 2**63 - 1),
        values=st.dictionaries(NAMES, st.floats(), max_size=4),
        full=st.booleans(),
        time=st.floats(0, 2e9),
    ),
    max_size=5,
)
Row = tuple[int, float, str, float]
KINDS: list[tuple[Callable[[Path], Sink], str]] = [(CSV, "run.csv"), (JSONL, "run.jsonl")]


def rows(records: Sequence[Record]) -> list[Row]:
    return [(r.step, r.time, name, float(value)) for r in records for name, value in r.values.items()]


def read_csv(path: Path) -> list[Row]:
    with open(path, newline="", encoding="utf-8") as file:
        header, *found = csv.reader(file)
    assert header == ["step", "time", "metric", "value"]
    return [(int(step), float(time), name, float(value)) for step, time, name, value in found]


def read_jsonl(path: Path) -> list[Row]:
    objects = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text("ascii").splitlines()]
    return [
        (one["step"], one["time"], name, float(value))
        for one in objects
        if "event" not in one
        for name, value in one["values"].items()
    ]


def same(found: list[Row], expected: list[Row]) -> bool:
    return repr(found) == repr(expected)  # NaN is itself, and -0.0 is not 0.0


def read(path: Path) -> list[Row]:
    return read_csv(path) if path.suffix == ".csv" else read_jsonl(path)


@pytest.mark.parametrize(("make", "name"), KINDS, ids=["csv", "jsonl"])
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(RECORDS, min_size=1, max_size=3))
def test_it_reads_back_exactly_also_over_several_runs(
    make: Callable[[Path], Sink], name: str, parts: list[list[Record]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "er" / name
        for part in parts:
            sink = make(path)
            with closing(sink):
                sink.open({})
                sink.write(part)
                assert same(read(path)[-len(rows(part)) :] if rows(part) else [], rows(part))  # seen at once
        assert same(read(path), [row for part in parts for row in rows(part)])


@pytest.mark.parametrize(("make", "name"), KINDS, ids=["csv", "jsonl"])
def test_a_file_of_somebody_else_is_refused(tmp_path: Path, make: Callable[[Path], Sink], name: str) -> None:
    for content in (b"epoch,loss\n1,2\n", b"{}\n", b"[1]\n", b"\xff\xfe", b"import torch", b"[" * 99999):
        (tmp_path / name).write_bytes(content)
        background = Background(make(tmp_path / name))
        background.open({})
        background.write([Record(0, {"x": 1.0})])
        background.close(timeout=60)
        assert isinstance(background.failure, UsageError)
        assert "somebody else" in str(background.failure)
        assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize(("make", "name"), KINDS, ids=["csv", "jsonl"])
def test_a_row_cut_off_by_a_crash_is_removed_before_going_on(
    tmp_path: Path, make: Callable[[Path], Sink], name: str
) -> None:
    path = tmp_path / name
    first = [Record(step, {'a "b"\nc': 0.125, "d": math.nan}, time=1.5) for step in range(3)]
    sink = make(path)
    sink.open({})
    sink.write(first)
    sink.close()
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines()[0]), len(whole)):
        path.write_bytes(whole[:cut])
        again = make(path)
        again.open({})
        again.write([Record(9, {"z": 1.0}, time=2.0)])
        again.close()
        found = read(path)
        assert found[-1] == (9, 2.0, "z", 1.0)
        assert same(found[:-1], rows(first)[: len(found) - 1]), cut


@pytest.mark.parametrize("where", ["file/below.csv", "folder"])
def test_a_path_that_cannot_be_written_fails_as_an_os_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for make, _ in KINDS:
        sink = make(tmp_path / where)
        with pytest.raises(OSError, match=r"\[Errno"):
            sink.open({})
        sink.close()


def test_a_lone_surrogate_is_escaped_in_csv_and_kept_in_json(tmp_path: Path) -> None:
    for make, name in KINDS:
        sink = make(tmp_path / name)
        sink.open({})
        sink.write([Record(0, {"\ud800": np.float32(0.5)}, time=1.0)])  # type: ignore[dict-item]
        sink.close()
    assert read_csv(tmp_path / "run.csv") == [(0, 1.0, "\\ud800", 0.5)]
    assert read_jsonl(tmp_path / "run.jsonl") == [(0, 1.0, "\ud800", 0.5)]


def test_events_are_lines_of_jsonl_and_nothing_in_csv(tmp_path: Path) -> None:
    event: dict[str, Any] = {
        "kind": "failure",
        "time": 1.0,
        "step": 3,
        "x": math.inf,
        "deep": [math.nan],
        "odd": {1},
    }
    for make, name in KINDS:
        sink = make(tmp_path / name)
        sink.open({})
        sink.event(event)
        sink.close()
    assert read_csv(tmp_path / "run.csv") == []
    (line,) = (tmp_path / "run.jsonl").read_text().splitlines()
    expected = {**event, "x": "Infinity", "deep": ["NaN"], "odd": "{1}"}
    assert json.loads(line, parse_constant=pytest.fail) == {"event": expected}
    sink = JSONL(tmp_path / "run.jsonl")  # a file that holds only an event is ours too
    sink.open({})
    sink.close()
