"""`lossdoctor export`, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lossdoctor.cli import main
from lossdoctor.cli.export import command
from lossdoctor.exchange.exporting import TARGETS
from lossdoctor.record import Record
from lossdoctor.store import Run, RunWriter


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunWriter("run") as writer:
        writer.append([Record(step, {"loss/kl": 0.1 * step, "flow/cos": 1 / 3}, time=1.0 + step) for step in range(3)])


def call(*arguments: str) -> Result:
    return CliRunner(env={"LC_ALL": "C", "COLUMNS": "80"}).invoke(main, arguments, prog_name="lossdoctor")


def test_the_choices_are_what_can_be_written() -> None:
    (option,) = (one for one in command.params if one.name == "form")
    assert option.metavar == f"[{'|'.join(TARGETS)}]", "sinks of other packages are formats too, and not listed"


@pytest.mark.parametrize("target", ["out.csv", "deep/er/out.jsonl"])
def test_out_and_in_again(target: str) -> None:
    result = call("export", "run", "-o", target)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        f"Exported to {target}: metrics 2, points 6, steps 0 to 2.",
        f"Every number is there exactly. To read it back: lossdoctor import {target}",
    ]
    assert call("import", target, "--out", "again").exit_code == 0
    run, again = Run.open("run"), Run.open("again")
    assert {name: list(again[name]) for name in again} == {name: list(run[name]) for name in run}


def test_tensorboard_is_a_folder() -> None:
    pytest.importorskip("tensorboardX")
    result = call("export", "run", "-o", "tb", "--select", "loss/*")
    assert result.exit_code == 0, result.output
    assert "metrics 1, points 3" in result.output
    assert "32 bits" in result.output
    assert result.output.rstrip().endswith("tensorboard --logdir tb")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing", "-o", "a.csv"], "There is no run here"),
        (["run"], "Missing option"),
        (["run", "-o", "a.txt"], "not clear what to write"),
        (["run", "-o", "a.csv", "--format", "excel"], "'excel'"),
        (["run", "-o", "a.csv", "--select", "los"], "--select los"),
        (["run", "-o", "run/run.db/a.csv"], "cannot be written"),
        (["run", "-o", "taken.csv"], "never written over"),
        (["run", "-o", "run"], "never written over"),
        (["taken.csv", "-o", "a.csv"], "There is no run here"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2(arguments: list[str], said: str) -> None:
    Path("taken.csv").write_text("mine")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = call("export", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert "Traceback" not in result.output
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
