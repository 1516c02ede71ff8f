"""The log of another program where a run is expected: judged as its import would be, and left as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lossdoctor.cli import main

LOG = "step,train/kl_loss,lr\n" + "".join(f"{10 * n},{2.0 - 0.01 * n},0.1\n" for n in range(60))
NAMES = """log.csv was read as csv, for this once.
Names as the rules have them:
  train/kl_loss -> loss/kl
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text(LOG)


def call(*arguments: str) -> Result:
    return CliRunner(env={"LC_ALL": "C", "COLUMNS": "80"}).invoke(main, [*arguments], prog_name="lossdoctor")


def test_it_is_judged_as_its_import_is() -> None:
    here = json.loads(call("check", "log.csv", "--format", "json").stdout)
    assert call("import", "log.csv", "--out", "run").exit_code == 0
    imported = json.loads(call("check", "run", "--format", "json").stdout)
    assert here.pop("run") == "log.csv"
    assert imported.pop("run") == "run"
    assert here == imported
    assert {finding["code"] for finding in here["findings"]} == {"RUN003"}


def test_it_is_said_what_was_read_and_nothing_is_written() -> None:
    result = call("check", "log.csv")
    assert result.exit_code == 0
    assert result.stderr == NAMES
    assert [path.name for path in Path().iterdir()] == ["log.csv"]
    assert Path("log.csv").read_text() == LOG


def test_a_report_in_one_command() -> None:
    result = call("report", "log.csv", "-o", "told.html")
    assert result.exit_code == 0, result.output
    assert "loss/kl" in Path("told.html").read_text(encoding="utf-8")
    assert call("report", "log.csv").exit_code == 0
    assert Path("report.html").exists(), "beside the log, as that of a run is in its folder"
    assert call("check", "log.csv", "--format", "html", "-o", "page.html").exit_code == 0
    assert Path("page.html").exists()


def test_it_is_compared_with_a_run() -> None:
    assert call("import", "log.csv", "--out", "run").exit_code == 0
    result = call("compare", "run", "log.csv", "--format", "json")
    assert result.exit_code == 0, result.output


def test_what_is_no_log_is_told_what_a_run_is() -> None:
    Path("notes.txt").write_text("hello")
    Path("empty").mkdir()
    for name in ("notes.txt", "empty", "nowhere"):
        result = call("check", name)
        assert result.exit_code == 2
        assert "There is no run here." in result.stderr
        assert name in result.stderr


def test_a_log_that_needs_a_choice_does_not_keep_others_from_being_judged() -> None:
    Path("broken.csv").write_text("step,loss\nnot,a number\n")
    result = call("check", "broken.csv", "log.csv")
    assert result.exit_code == 2
    assert "broken.csv could not be judged" in result.stderr
    assert "RUN003" in result.stdout
