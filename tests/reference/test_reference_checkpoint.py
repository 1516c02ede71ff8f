from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lossdoctor.errors import RunError
from lossdoctor.reference import checkpoint

STATE = {"step": 3, "weights": {"a": torch.arange(5.0)}, "names": ["x", "y"], "nothing": None}


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "new" / "a.pt", STATE)
    state = checkpoint.load(tmp_path / "new" / "a.pt")
    assert torch.equal(state["weights"]["a"], STATE["weights"]["a"])
    assert {key: state[key] for key in ("step", "names", "nothing")} == {
        "step": 3,
        "names": ["x", "y"],
        "nothing": None,
    }


@pytest.mark.parametrize("fails", ["save", "replace"])
def test_a_failure_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, STATE)

    def torn(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("disk full")

    def refused(source: Any, target: Any) -> None:
        raise OSError("not now")

    if fails == "save":
        monkeypatch.setattr(torch, "save", torn)
    else:
        monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError, match=r"disk full|not now"):
        checkpoint.save(path, {"step": 4})
    assert checkpoint.load(path)["step"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


class _Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    "content", ["missing", "folder", "empty", "noise", "text", "torn", "code", "stranger", "tensor"]
)
def test_anything_else_is_refused_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    match content:
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "text":
            path.write_text("(lp0\n", encoding="utf-8")
        case "torn":
            checkpoint.save(path, STATE)
            path.write_bytes(path.read_bytes()[:-200])
        case "noise":
            path.write_bytes(bytes(range(256)))
        case "code":
            path.write_bytes(pickle.dumps(_Harmful()))
        case "stranger":
            torch.save({"model": torch.zeros(1)}, path)
        case "tensor":
            torch.save(torch.zeros(1), path)
    with pytest.raises(RunError, match=r"to do: .*(Trainer\.save|Train again)"):
        checkpoint.load(path)
    assert not (tmp_path / "harm").exists()
