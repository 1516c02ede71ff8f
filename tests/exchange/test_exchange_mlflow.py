"""MLflow's folder and database, laid out as MLflow 1 to 3 do."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lossdoctor.errors import UsageError
from lossdoctor.exchange import Imported, read

RUN = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
OTHER = "f" * 32


def run_folder(root: Path, run: str = RUN, name: str = "bold-finch-7", experiment: str = "0") -> Path:
    folder = root / "mlruns" / experiment / run
    (folder / "metrics" / "train").mkdir(parents=True)
    (folder / "meta.yaml").write_text(f"run_id: {run}\nrun_name: {name}\nstatus: 3\n")
    (folder / "metrics" / "train" / "kl").write_text(
        "1700000000250 0.5 0\n1700000001250 nan 10\n1700000002250 -inf 20\n"
    )
    (folder / "metrics" / "loss").write_text("1700000000250 2.5 0\n1700000001250 1.25 10 data digest\n")
    return folder


def points(imported: Imported) -> dict[str, list[tuple[int, float]]]:
    return {name: list(imported.run[name]) for name in imported.run}


EXPECTED = {"loss": [(0, 2.5), (10, 1.25)], "train/kl": [(0, 0.5), (10, math.nan), (20, -math.inf)]}


def test_a_run_by_any_folder_above_it(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for path in (folder, folder.parent, folder.parent.parent):
        imported = read(path)
        assert imported.format == "mlflow"
        assert repr(points(imported)) == repr(EXPECTED)
        assert imported.run.times.values.tolist() == [1700000000.25, 1700000001.25, 1700000002.25]


def test_runs_are_chosen_by_path_id_or_name(tmp_path: Path) -> None:
    run_folder(tmp_path)
    run_folder(tmp_path, OTHER, '"quiet owl"', "1")
    run_folder(tmp_path, "e" * 32, "deleted", ".trash")
    root = tmp_path / "mlruns"
    with pytest.raises(
        UsageError, match=rf"(?s)several runs.*'0/{RUN}' .*'bold-finch-7'.*quiet owl.*--run NAME"
    ) as told:
        read(root)
    assert "deleted" not in str(told.value)
    for name in (f"1/{OTHER}", OTHER, "quiet owl"):
        assert sorted(read(root, run=name).run) == ["loss", "train/kl"]
    with pytest.raises(UsageError, match="no such run"):
        read(root, run="nobody")
    with pytest.raises(UsageError, match="leave --step out"):
        read(root, run=OTHER, step="step")


def test_the_same_name_twice(tmp_path: Path) -> None:
    run_folder(tmp_path)
    run_folder(tmp_path, OTHER)
    with pytest.raises(UsageError, match="Several runs have this name"):
        read(tmp_path / "mlruns", run="bold-finch-7")


def test_torn_and_damaged_lines(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "metrics" / "loss").write_bytes(b"1 0.5\n\nx 1 2\n1 y 2\n1 2 z\n1\n\xff\xff 1 1\n1 3 3\n1 12.5 44")
    imported = read(folder)
    assert points(imported)["loss"] == [(0, 0.5), (3, 3.0)]
    assert imported.notes.lost == {"damaged": 4, "no_step": 1, "torn_line": 1}


def database(path: Path, rows: list[tuple[object, ...]]) -> Path:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE runs (run_uuid VARCHAR(32) PRIMARY KEY, name VARCHAR(250), start_time BIGINT)")
        db.execute(
            "CREATE TABLE metrics (key VARCHAR(250), value FLOAT, timestamp BIGINT, run_uuid VARCHAR(32), step BIGINT,"
            " is_nan BOOLEAN)"
        )
        db.executemany("INSERT INTO runs VALUES (?, ?, ?)", [(RUN, "bold-finch-7", 1), (OTHER, None, 2)])
        db.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", rows)
        db.commit()
    return path


def test_the_database(tmp_path: Path) -> None:
    rows = [
        ("train/kl", 0.1, 1700000000250, RUN, 0, 0),
        ("train/kl", 0.0, 1700000001250, RUN, 10, 1),
        ("train/kl", -1.7976931348623157e308, 1700000002250, RUN, 20, 0),
        ("train/kl", 99.0, 1700000002250, OTHER, 20, 0),
        ("train/kl", "text", 1700000002250, RUN, 30, 0),
    ]
    path = database(tmp_path / "mlflow.db", rows)
    imported = read(path, run="bold-finch-7")
    assert imported.format == "mlflow"
    assert repr(points(imported)) == repr({"train/kl": [(0, 0.1), (10, math.nan), (20, -math.inf)]})
    assert imported.notes.lost == {"damaged": 1}
    with pytest.raises(UsageError, match="several runs"):
        read(path)
    assert points(read(path, run=OTHER)) == {"train/kl": [(20, 99.0)]}


def test_nothing_in_it(tmp_path: Path) -> None:
    (run_folder(tmp_path) / "metrics" / "loss").write_text("")
    folder = tmp_path / "mlruns" / "0" / RUN
    (folder / "metrics" / "train" / "kl").unlink()
    with pytest.raises(UsageError, match="no numbers"):
        read(folder)
    with pytest.raises(UsageError, match="no numbers"):
        read(database(tmp_path / "mlflow.db", []), run=RUN)
