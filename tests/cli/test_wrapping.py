"""Errors in a terminal: no line is wider than it, but for words that are."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lossdoctor.cli import main, wrapping
from lossdoctor.cli.wrapping import fitted
from lossdoctor.errors import mismatch

PATH = "/a/long/path/" + "with-many-parts/" * 5 + "run.db"
TOLD = "Error: " + mismatch(
    "Something that takes more than one line of a narrow terminal cannot be done with what was given.",
    "a folder that holds a run, or the file of one of its ranks",
    f"{PATH}, which is no folder and no file either",
    "pass --run and the folder",
)


@pytest.mark.parametrize("width", [20, 40, 80, 1000])
def test_lines_fit_and_nothing_is_lost(width: int) -> None:
    shown = fitted(TOLD, width)
    assert shown.split() == TOLD.split()
    assert all(len(line) <= width or PATH in line for line in shown.splitlines())
    assert PATH + "," in shown


def test_what_goes_on_stands_under_its_beginning() -> None:
    lines = fitted(TOLD, 40).splitlines()
    place = lines.index("  expected: a folder that holds a run,")
    assert lines[place + 1] == "            or the file of one of its"


def test_a_pipe_gets_whole_lines_and_a_terminal_gets_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def widest() -> int:
        told = CliRunner(env={"COLUMNS": "60"}).invoke(main, ["ablate", "--run", str(tmp_path), "--", "x"])
        assert told.exit_code == 2
        assert "expected: --fixes" in told.output
        return max(len(line) for line in told.output.splitlines() if "/" not in line)

    assert widest() > 60
    monkeypatch.setattr(wrapping, "_terminal", lambda: 60)
    assert widest() <= 60
