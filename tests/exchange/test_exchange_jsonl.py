from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lossdoctor.errors import UsageError
from lossdoctor.exchange import Imported, read
from lossdoctor.exchange.jsonl import flat
from lossdoctor.record import Record
from lossdoctor.sinks import JSONL


def made(path: Path, *objects: Any, name: str = "log.jsonl") -> Path:
    (path / name).write_text("".join(json.dumps(one) + "\n" for one in objects))
    return path / name


def points(imported: Imported) -> dict[str, list[tuple[int, float]]]:
    return {name: list(imported.run[name]) for name in imported.run}


def test_the_history_of_wandb(tmp_path: Path) -> None:
    rows = [
        {"_step": 0, "_timestamp": 1.7e9, "_runtime": 0.5, "train": {"kl": 1.5}, "loss": "NaN", "note": None},
        {
            "_step": 1,
            "_timestamp": 1.7e9 + 1,
            "_runtime": 1.5,
            "train": {"kl": 0.5},
            "h": {"_type": "histogram", "v": [1]},
        },
    ]
    imported = read(made(tmp_path, *rows))
    assert imported.format == "jsonl"
    assert points(imported)["train/kl"] == [(0, 1.5), (1, 0.5)]
    assert math.isnan(imported.run["loss"].values[0])
    assert imported.run.times.values.tolist() == [1.7e9, 1.7e9 + 1]
    assert dict(imported.notes.ignored) == {"h": 1}
    assert imported.notes.step == "_step"


def test_long_rows(tmp_path: Path) -> None:
    imported = read(made(tmp_path, {"step": 1, "name": "a", "value": 2}, {"step": 1, "name": "b", "value": 3}))
    assert points(imported) == {"a": [(1, 2.0)], "b": [(1, 3.0)]}


def test_columns_that_come_later(tmp_path: Path) -> None:
    imported = read(made(tmp_path, {"a": 1}, {"step": 5, "b": 2}, {"step": 6, "a": 3}))
    assert points(imported) == {"a": [(6, 3.0)], "b": [(5, 2.0)]}
    assert imported.notes.lost["no_step"] == 1


def test_a_run_that_is_named_once(tmp_path: Path) -> None:
    imported = read(made(tmp_path, {"run": "a", "config": {"text": "x"}}, {"step": 1, "x": 2}))
    assert points(imported) == {"x": [(1, 2.0)]}


def test_trainer_state(tmp_path: Path) -> None:
    history = [
        {"epoch": 0.1, "step": 10, "loss": 2.5, "grad_norm": 0.5, "learning_rate": 1e-4},
        {"epoch": 0.2, "step": 20, "eval_loss": 2.0},
    ]
    path = tmp_path / "trainer_state.json"
    for indent in (None, 2):
        path.write_text(json.dumps({"best": None, "log_history": history}, indent=indent))
        imported = read(path)
        assert points(imported)["eval_loss"] == [(20, 2.0)]
        assert imported.names["grad_norm"] == "grad/total"
        assert imported.names["learning_rate"] == "learning_rate"


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_objects(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "log").write_text(json.dumps([{"step": 1, "x": 2}, 3, {"step": 2, "x": 4}], indent=indent))
    imported = read(tmp_path / "log")
    assert points(imported) == {"x": [(1, 2.0), (2, 4.0)]}
    assert imported.notes.lost["damaged"] == 1


def test_damaged_and_torn_lines(tmp_path: Path) -> None:
    lines = [
        b'{"step": 1, "x": 1}',
        b'{"step": 2, "x"',
        b"[1]",
        b"\xff",
        b"",
        b'{"step": 3, "x": 3}',
        b'{"step": 4, "x": 4',
    ]
    (tmp_path / "log").write_bytes(b"\n".join(lines))
    imported = read(tmp_path / "log")
    assert points(imported) == {"x": [(1, 1.0), (3, 3.0)]}
    assert imported.notes.lost == {"damaged": 3, "torn_line": 1}


def test_a_whole_last_line_needs_no_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'\xef\xbb\xbf{"step": 1, "x": 1}\n{"step": 2, "x": 2}')
    assert points(read(tmp_path / "log")) == {"x": [(1, 1.0), (2, 2.0)]}


def test_our_own_with_events_and_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    sink = JSONL(path)
    sink.open({})
    sink.write([Record(3, {"a/b": 0.1, "": math.nan, "\ud800\n": math.inf}, full=True, time=2.5)])
    sink.event({"kind": "arm", "time": 1.0, "self": 1})
    sink.write([Record(4, {"a/b": 12.5}, time=3.5)])
    sink.close()
    whole = path.read_bytes()
    for cut in range(1, len(whole) + 1):
        path.write_bytes(whole[:cut])
        try:
            imported = read(path)
        except UsageError:
            assert b"\n" not in whole[: cut - 1]
            continue
        assert list(imported.run["a/b"]) == [(3, 0.1), (4, 12.5)][: 1 + (cut >= len(whole) - 1)]
        assert imported.run.steps.tolist() == [3]
    assert imported.notes.events == [{"kind": "arm", "time": 1.0, "self": 1}]
    assert list(imported.run["\ud800\n"]) == [(3, math.inf)]
    assert imported.run.times.values.tolist() == [2.5, 3.5]


def test_our_own_with_numbers_that_are_none(tmp_path: Path) -> None:
    rows = [{"step": 1, "values": {"a": "x", "b": 1, "c": None}}, {"step": None, "values": {"a": 1}}, {"step": 2}]
    imported = read(made(tmp_path, *rows))
    assert points(imported) == {"b": [(1, 1.0)]}
    assert dict(imported.notes.ignored) == {"a": 1, "c": 1}
    assert imported.notes.lost["no_step"] == 2
    for wrong in ({"step": "step"}, {"run": "x"}):
        with pytest.raises(UsageError, match="leave --"):
            read(tmp_path / "log.jsonl", **wrong)


def test_a_summary_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)only the last value.*run\.history\(\)"):
        read(made(tmp_path, {"_step": 99, "loss": 0.5}, name="wandb-summary.json"))


def test_flattening() -> None:
    deep: dict[str, Any] = {"x": 1}
    for _ in range(900):
        deep = {"d": deep}
    assert flat(deep) == {"d/" * 900 + "x": 1}
    nested = {"a": {"b": 1, "c": {"": 2}}, "e": {}, "l": [1], "n": None, "i": {"_type": "image-file", "n": 1}}
    assert flat(nested) == {"a/b": 1, "a/c/": 2, "l": [1], "i": {"_type": "image-file", "n": 1}}


def test_json_nested_beyond_reason(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"step": 1, "x": 1}\n' + '{"a":' * 100_000 + "\n")
    imported = read(tmp_path / "log")
    assert imported.notes.lost["damaged"] == 1
