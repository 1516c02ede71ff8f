"""Trackio's database, with the tables of its first versions and of those that number runs."""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lossdoctor.errors import UsageError
from lossdoctor.exchange import Imported, read


def database(path: Path, rows: list[tuple[str, str, int, Any]], *, numbered: bool = True) -> Path:
    """rows: id and name of the run, step, what was logged."""
    extra = "run_id TEXT NOT NULL, " if numbered else ""
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            f"CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, {extra}timestamp TEXT NOT NULL,"
            " run_name TEXT NOT NULL, step INTEGER NOT NULL, metrics TEXT NOT NULL)"
        )
        for number, (run, name, step, logged) in enumerate(rows):
            values = {"timestamp": f"2024-05-06T07:08:{number:02}.250000+00:00", "run_name": name, "step": step}
            values["metrics"] = logged if isinstance(logged, str | bytes) else json.dumps(logged)
            if numbered:
                values["run_id"] = run
            names = ", ".join(values)
            db.execute(f"INSERT INTO metrics ({names}) VALUES ({', '.join('?' * len(values))})", tuple(values.values()))
        db.commit()
    return path


def points(imported: Imported) -> dict[str, list[tuple[int, float]]]:
    return {name: list(imported.run[name]) for name in imported.run}


@pytest.mark.parametrize("numbered", [True, False])
def test_a_project_of_one_run(numbered: bool, tmp_path: Path) -> None:
    rows: list[tuple[str, str, int, Any]] = [
        ("1", "a", 0, {"train": {"kl": 0.5}, "loss": "NaN", "note": "x"}),
        ("1", "a", 1, {"train": {"kl": 0.25}, "loss": "Infinity", "step": 17}),
    ]
    imported = read(database(tmp_path / "project.db", rows, numbered=numbered))
    assert imported.format == "trackio"
    assert repr(points(imported)) == repr({"loss": [(0, math.nan), (1, math.inf)], "train/kl": [(0, 0.5), (1, 0.25)]})
    assert imported.run.times.values.tolist() == [1714979280.25, 1714979281.25]
    assert dict(imported.notes.ignored) == {"note": 1}


def test_runs_are_told_apart(tmp_path: Path) -> None:
    rows: list[tuple[str, str, int, Any]] = [(run, "ab"[run == "2"], 0, {"x": int(run)}) for run in ("1", "2", "3")]
    path = database(tmp_path / "project.db", rows)
    with pytest.raises(UsageError, match=r"(?s)several runs.*'1' \('a'\), '2' \('b'\), '3' \('a'\)"):
        read(path)
    assert points(read(path, run="b")) == points(read(path, run="2")) == {"x": [(0, 2.0)]}
    with pytest.raises(UsageError, match="Several runs have this name"):
        read(path, run="a")
    older = database(tmp_path / "older.db", rows[:2], numbered=False)
    assert points(read(older, run="a")) == {"x": [(0, 1.0)]}


def test_another_column_can_be_the_step(tmp_path: Path) -> None:
    rows: list[tuple[str, str, int, Any]] = [("1", "a", 0, {"trainer/global_step": 50, "x": 1})]
    path = database(tmp_path / "project.db", rows)
    assert points(read(path, step="trainer/global_step"))["x"] == [(50, 1.0)]


def test_damaged_rows_are_counted(tmp_path: Path) -> None:
    rows: list[tuple[str, str, int, Any]] = [("1", "a", 0, {"x": 1}), ("1", "a", 1, "{"), ("1", "a", 2, b"\xff")]
    imported = read(database(tmp_path / "project.db", rows))
    assert points(imported) == {"x": [(0, 1.0)]}
    assert imported.notes.lost == {"damaged": 2}


def test_an_empty_project_and_a_cut_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run in it"):
        read(database(tmp_path / "empty.db", []))
    rows: list[tuple[str, str, int, Any]] = [("1", "a", step, {"x": step, "note": "." * 500}) for step in range(200)]
    whole = database(tmp_path / "project.db", rows).read_bytes()
    for size in range(1, len(whole), 4001):
        (tmp_path / "cut.db").write_bytes(whole[:size])
        try:
            imported = read(tmp_path / "cut.db")
        except UsageError:
            continue
        assert set(imported.run["x"]) <= {(step, float(step)) for step in range(200)}
