"""Random records, written in every way there is, read as a plain dictionary of them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossdoctor.record import Record
from lossdoctor.store import MemoryWriter, Run, RunWriter, database
from lossdoctor.store.layout import CHUNK

NAMES = [
    "",
    "loss/flow",
    "<script>alert(1)</script>",
    "流/损失",
    "a\x00b",
    "'; DROP TABLE chunk;--",
    "\ud800",
    'l\n"q"\\',
    "x" * 10_000,
]
RECORDS = st.lists(
    st.builds(
        Record,
        step=st.one_of(st.integers(0, 30), st.integers(-(2**63), 2**63 - 1)),
        values=st.dictionaries(st.sampled_from(NAMES), st.floats(), max_size=4),
        full=st.booleans(),
        time=st.floats(0, 2e9),
    ),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(RECORDS, max_size=6), restart=st.integers(0, 6), chunk=st.sampled_from([1, 3, CHUNK]))
def test_a_run_reads_as_what_was_written(
    twin: Callable[..., Any], parts: list[list[Record]], restart: int, chunk: int
) -> None:
    """With the writer open, after closing, after going on with it, and at every size of chunk."""
    everything = twin()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(database, "CHUNK", chunk):
        writer = RunWriter(folder)
        for number, part in enumerate(parts):
            if number == restart:
                writer.close()
                writer = RunWriter(folder, resume=True)
            writer.append(part)
            everything.add(part)
            everything.check(writer.run())
        everything.check(Run.open(folder))
        writer.close()
        everything.check(writer.run())
        everything.check(Run.open(folder))


@settings(deadline=None)
@given(parts=st.lists(RECORDS, max_size=4))
def test_a_run_in_memory_reads_the_same(twin: Callable[..., Any], parts: list[list[Record]]) -> None:
    everything, writer = twin(), MemoryWriter()
    for part in parts:
        writer.append(part)
        everything.add(part)
        everything.check(writer.run())
    assert writer.flush()


def test_many_chunks_and_a_tail(tmp_path: Path, twin: Callable[..., Any]) -> None:
    """Dense, sparse, late and irregular metrics over several chunks, packed at different moments."""
    noise = np.random.default_rng(0).normal(size=4 * CHUNK)
    records = []
    for step in range(3 * CHUNK + 77):
        values = {"dense": noise[step], "nan": math.nan if step % 3 else -math.inf}
        if step % 50 == 0:
            values["sparse"] = -noise[step]
        if step > 2 * CHUNK:
            values["late"] = noise[step] ** 2
        if noise[step] > 1:
            values["irregular"] = 1.0
        records.append(Record(step, values, full=step % 50 == 0, time=float(step)))
    with RunWriter(tmp_path / "r") as writer:
        for start in range(0, len(records), 100):
            writer.append(records[start : start + 100])
            writer.flush()
        twin(records).check(Run.open(tmp_path / "r"))
    twin(records).check(Run.open(tmp_path / "r"))


def test_going_back_to_a_checkpoint(tmp_path: Path, twin: Callable[..., Any]) -> None:
    first = [Record(step, {"loss": float(step), "old": 1.0}, full=step % 10 == 0, time=1.0) for step in range(1500)]
    again = [Record(step, {"loss": -float(step)}, full=step % 20 == 0, time=2.0) for step in range(700, 900)]
    with RunWriter(tmp_path) as writer:
        writer.append(first)
    with RunWriter(tmp_path, resume=True) as writer:
        writer.append(again)
        twin([*first, *again]).check(writer.run())
    run = Run.open(tmp_path)
    twin([*first, *again]).check(run)
    assert run["loss"].values[[699, 700, 899, 900]].tolist() == [699.0, -700.0, -899.0, 900.0]


@pytest.mark.parametrize(
    "value", [np.float32(0.1), np.int64(3), 7, True, np.array(2.5)], ids=lambda v: type(v).__name__
)
@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_whatever_is_a_number_is_stored_as_one(tmp_path: Path, kind: str, value: Any) -> None:
    with RunWriter(tmp_path) if kind == "disk" else MemoryWriter() as writer:
        writer.append([Record(np.int64(3), {"x": value})])  # type: ignore[arg-type]
        run = writer.run()
    assert list(run["x"]) == [(3, float(value))]
    assert run.events == []


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_what_is_no_number_costs_only_itself_and_is_told_once(tmp_path: Path, kind: str) -> None:
    with RunWriter(tmp_path) if kind == "disk" else MemoryWriter() as writer:
        for step in range(3):
            bad: dict[Any, Any] = {"text": "0.5", "none": None, "array": np.ones(2), "huge": 10**400, 7: 1.0}
            writer.append([Record(step, {**bad, "good": float(step)}, full=True)])
        writer.append([Record(2**63, {"good": 9.0}), Record(0.5, {"good": 9.0}), Record(3, {"good": 3.0})])  # type: ignore[arg-type]
        run = writer.run()
        assert list(run) == ["good"]
        assert list(run["good"]) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    told = [event["metric"] for event in writer.run().events if event["kind"] == "rejected"]
    assert sorted(told) == ["7", "array", "huge", "none", "step", "text"]
