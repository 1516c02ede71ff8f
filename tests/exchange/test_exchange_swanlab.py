"""SwanLab's file of a run: one of SwanLab's own without a network, and what can happen to such a file."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.exchange.test_exchange_wandb import counted, log, points, varint

from lossdoctor.errors import UsageError
from lossdoctor.exchange import read
from lossdoctor.exchange.swanlab import MAGIC, VERSION


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs that SwanLab leaves behind, with one run in it."""
    folder = tmp_path_factory.mktemp("swanlab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWANLAB_SAVE_DIR", str(folder / "home"))
        import swanlab

        run = swanlab.init(project="p", mode="offline", log_dir=str(folder / "swanlog"))
        for step in range(3):
            run.log({"loss": 0.5 * step, "train/kl": math.nan if step == 1 else 1 / 3}, step=step)
        run.log({"a-u7c-b": -math.inf, "note": swanlab.Text("text")}, step=3)
        run.log({"loss": 2.5}, step=1 << 40)
        run.finish()
    return folder


def test_a_run_of_swanlab_is_read(logged: Path) -> None:
    (file,) = logged.glob("swanlog/*/*.swanlab")
    for place in (logged, logged / "swanlog", file.parent, file):
        imported = read(place, guess=False)
        assert imported.format == "swanlab"
        assert repr(points(imported)) == repr(
            {
                "a|b": [(3, -math.inf)],
                "loss": [(0, 0.0), (1, 0.5), (2, 1.0), (1 << 40, 2.5)],
                "train/kl": [(0, 1 / 3), (1, math.nan), (2, 1 / 3)],
            }
        )
        assert dict(imported.notes.ignored) == {"note": 1}
        assert not imported.notes.lost.total()
    times = imported.run.times.values
    assert len(times) == 5
    assert 0 <= file.stat().st_mtime - times[0] < 60
    assert (times[1:] >= times[:-1]).all()


def scalar(name: str, step: int, value: bytes, *, seconds: int = 1) -> bytes:
    """A record: a scalar is field 13, with key (1), step (2), moment (4) and value (5); what is 0 is left out."""
    there = counted(1, name.encode()) + (varint(2 << 3) + varint(step) if step else b"")
    return counted(13, there + counted(4, varint(1 << 3) + varint(seconds)) + counted(5, value))


def made(path: Path, records: Iterable[bytes], *, version: int = VERSION) -> Path:
    content = MAGIC + bytes([version]) + log(records)[len(MAGIC) + 1 :]
    (path / "run-a.swanlab").write_bytes(content)
    return path / "run-a.swanlab"


def number(value: float) -> bytes:
    return varint(1 << 3 | 1) + struct.pack("<d", value)


def test_what_is_not_logged_by_the_user_is_left_out(tmp_path: Path) -> None:
    records = [
        counted(10, b"start"),
        scalar("x", 0, b""),
        scalar("__swanlab__.cpu.pct", 0, number(12.5)),
        scalar("x", (1 << 64) - 3, number(0.25), seconds=7),
        counted(16, b"a line of the terminal"),
    ]
    imported = read(made(tmp_path, records))
    assert points(imported) == {"x": [(-3, 0.25), (0, 0.0)]}
    assert sorted(imported.run.times.values.tolist()) == [1.0, 7.0]


def test_what_is_damaged_is_counted(tmp_path: Path) -> None:
    records = [scalar("x", step, number(step)) for step in range(4)]
    cut = scalar("y", 1, number(1))[:-3]
    imported = read(made(tmp_path, [*records[:2], cut, *records[2:]]))
    assert points(imported) == {"x": [(step, float(step)) for step in range(4)]}
    assert imported.notes.lost["damaged"] == 1
    whole = made(tmp_path, records).read_bytes()
    (tmp_path / "run-a.swanlab").write_bytes(whole[:-5])
    imported = read(tmp_path)
    assert points(imported) == {"x": [(step, float(step)) for step in range(3)]}
    assert imported.notes.lost["bytes"] > 0


@pytest.mark.parametrize(
    ("version", "error"), [(1, r"(?s)another version.*got:.*version 1.*as CSV"), (2, "no numbers")]
)
def test_files_that_cannot_be_read(version: int, error: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=error):
        read(made(tmp_path, [b"{}"] if version == 1 else [], version=version))


def test_runs_are_told_apart(tmp_path: Path) -> None:
    files: dict[str, Any] = {}
    for name in ("run-1-a", "run-2-b"):
        (tmp_path / name).mkdir()
        files[name] = made(tmp_path / name, [scalar("x", 1, number(len(files)))])
    with pytest.raises(UsageError, match=r"(?s)several runs.*'run-1-a/run-a.swanlab', 'run-2-b/run-a.swanlab'"):
        read(tmp_path)
    assert points(read(tmp_path, run="run-2-b/run-a.swanlab")) == {"x": [(1, 1.0)]}
