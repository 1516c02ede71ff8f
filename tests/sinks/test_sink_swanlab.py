"""A SwanLab run without a network, read back from the file it leaves with SwanLab's own reader."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sinks.conftest import FINDING, expected

from lossdoctor.errors import MissingExtraError, UsageError
from lossdoctor.sinks import Sink, SwanLab
from lossdoctor.sinks.naming import unescaped


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("SWANLAB_SAVE_DIR", str(tmp_path / "home"))
    import swanlab

    run = swanlab.init(project="p", mode="offline", log_dir=str(tmp_path / "log"))
    yield run
    if run.alive:
        run.finish()


def logged(folder: Path) -> list[Any]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (path,) = folder.glob("run-*/*.swanlab")
    reader = DataStoreReader()
    reader.open(path)
    found = []
    while (data := reader.scan()) is not None:
        found.append(Record.FromString(data))
    reader.close()
    return found


def test_all_arrives(run: Any, given: Callable[[Sink], None], trained: Callable[[Sink], Path], tmp_path: Path) -> None:
    run.log({"mine": 1.0}, step=3)
    given(SwanLab(run))
    report = trained(SwanLab(run))
    run.log({"mine": 2.0}, step=4)
    run.finish()
    records = logged(tmp_path / "log")
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if record.HasField("scalar") and not record.scalar.key.startswith("__swanlab__"):
            found.setdefault(unescaped(record.scalar.key), []).append((record.scalar.step, record.scalar.value.number))
    assert repr({name: found[name][: len(points)] for name, points in expected().items()}) == repr(expected())
    assert found["mine"] == [(3, 1.0), (4, 2.0)]
    assert "grad_cos/a|kl" in found
    told = [(one.media.key, one.media.step, one.media.value.items[0]) for one in records if one.HasField("media")]
    (text,) = [(step, item) for key, step, item in told if key == "lossdoctor/warn"]
    assert (text[0], text[1].caption) == (7, "GRD102 weak-gradient (a|b)")
    (file,) = (tmp_path / "log").rglob(text[1].filename)
    assert file.read_text("utf-8") == FINDING["message"]
    (page,) = [item for key, _, item in told if key == "lossdoctor/report"]
    (file,) = (tmp_path / "log").rglob(page.filename)
    assert file.read_text("utf-8") == report.read_text("utf-8")


def test_only_a_run_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (None, "project", 3):
        with pytest.raises(UsageError, match=r"swanlab\.init returned"):
            SwanLab(wrong)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"lossdoctor\[swanlab\]"):
        SwanLab(None)
