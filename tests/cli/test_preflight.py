"""`lossdoctor preflight` from outside: the user's module, forms, exit codes and errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lossdoctor.cli import main
from lossdoctor.record import Record
from lossdoctor.store import RunWriter

PROGRAM = """
import torch

def euler(v, x, c, steps, sign=1):
    for k in range(steps):
        x = x + sign * v(x, torch.full((len(x), 1), k / steps), c) / steps
    return x

def batch():
    return dict(z0=torch.randn(16, 4), z1=torch.randn(16, 4))

def healthy():
    return dict(sampler=euler, **batch())

def sick():
    return dict(sampler=lambda *a: euler(*a, sign=-1), **batch())

def empty():
    return {}

def listed():
    return [1, 2]

def strange():
    return dict(smapler=euler)

def failing():
    return 1 / 0

def half_a_batch():
    return dict(z0=torch.zeros(3, 2), z1=torch.zeros(2, 2))

class Program:
    preflight = staticmethod(healthy)

not_a_function = 3
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder, which no test before has imported."""
    name = "program_for_preflight"
    (tmp_path / "script_without_guard.py").write_text("raise SystemExit(2)", encoding="utf-8")
    (tmp_path / f"{name}.py").write_text(PROGRAM, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield name
    sys.modules.pop(name, None)


def call(*arguments: str) -> Result:
    return CliRunner(env={"LC_ALL": "C", "COLUMNS": "100"}).invoke(main, arguments, prog_name="lossdoctor")


def test_exit_codes_and_text(program: str) -> None:
    healthy = call("preflight", f"{program}:healthy")
    assert healthy.exit_code == 0, healthy.output
    assert "nothing found" in healthy.output
    sick = call("preflight", f"{program}:sick")
    assert sick.exit_code == 1
    assert "SMP506 inference-field-differs" in sick.output
    assert call("preflight", f"{program}:sick", "--fail-on", "never").exit_code == 0
    assert call("preflight", f"{program}:Program.preflight").exit_code == 0
    empty = call("preflight", f"{program}:empty", "--verbose")
    assert empty.exit_code == 2
    assert "nothing could be judged" in empty.output
    assert "the check sampler needs" in empty.output


def test_forms_and_files(program: str, tmp_path: Path) -> None:
    told = json.loads(call("preflight", f"{program}:sick", "--format", "json").output)
    assert told["schema"] == "lossdoctor/diagnosis@1"
    assert told["findings"][0]["causes"][0]["code"] == "inference-sign"
    for form in ("text", "markdown", "sarif", "github"):
        path = tmp_path / form
        assert call("preflight", f"{program}:sick", "--format", form, "-o", str(path)).exit_code == 1
        assert "SMP506" in path.read_text(encoding="utf-8")
    assert "采样器走反了方向" in call("--lang", "zh-CN", "preflight", f"{program}:sick").output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{}", "with a colon between"),
        ("{}:nothing", "nothing of that name"),
        ("{}:not_a_function", "int"),
        ("no_such_module_here:f", "cannot be imported"),
        ("script_without_guard:f", "__main__"),
        ("{}:listed", "a mapping"),
        ("{}:strange", "smapler"),
        ("{}:failing", "ZeroDivisionError"),
        ("{}:half_a_batch", "one shape"),
    ],
)
def test_wrong_use_is_told_and_ends_with_2(program: str, name: str, words: str) -> None:
    result = call("preflight", name.format(program))
    assert result.exit_code == 2
    assert "Error: " in result.output
    assert words in result.output
    assert "Traceback" not in result.output


def test_what_was_found_is_kept_in_a_run(program: str, tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append([Record(0, {"loss/flow": 1.0}, full=True)])
    sick = call("preflight", f"{program}:sick", "--run", str(tmp_path / "run"))
    assert sick.exit_code == 1
    told = json.loads(CliRunner().invoke(main, ["check", str(tmp_path / "run"), "--format", "json"]).stdout)
    assert "SMP506" in {finding["code"] for finding in told["findings"]}
    assert "SMP505" in {*told["clear"], *(one["code"] for one in told["skipped"])}
    nowhere = call("preflight", f"{program}:sick", "--run", str(tmp_path / "nowhere"))
    assert nowhere.exit_code == 2
    assert not (tmp_path / "nowhere").exists()
