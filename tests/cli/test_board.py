"""The trainings of an ablation as they are seen on a terminal."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from lossdoctor.ablate.trial import trials
from lossdoctor.cli.board import Board


def drawn(encoding: str, arms: list[str], lang: str = "en") -> str:
    """The last picture, two trainings done, one running and one failed."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=60, force_terminal=True, color_system=None)
    wanted = trials(arms, 3)
    with Board(console, lang) as board:
        board.expect(wanted)
        board.at("arms", 0, len(wanted))
        for k, trial in enumerate(wanted[:4]):
            thread = threading.Thread(target=board.began, args=(trial,))
            thread.start()
            thread.join()
            if k < 3:
                board.ended(trial, whole=k < 2)
        board.at("arms", 3, len(wanted))
    file.flush()
    picture = file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    return picture[picture.rindex("0 1 2") :]


@pytest.mark.parametrize(("encoding", "marks"), [("utf-8", "\u2713\u2717\u25b6\u00b7"), ("ascii", "+x>.")])
def test_every_training_has_its_mark(encoding: str, marks: str) -> None:
    done, failed, running, waiting = marks
    lines = [line.split() for line in drawn(encoding, ["only:flow", "without:[bold]kl"]).splitlines()]
    assert lines[1] == ["only:flow", done, failed, waiting]
    assert lines[2] == ["without:[bold]kl", done, running, waiting]
    assert lines[3] == [done, "done", running, "running", failed, "failed", waiting, "waiting"]
    assert "3/6" in lines[4]


def test_in_chinese_and_with_a_name_that_is_too_long() -> None:
    lines = drawn("utf-8", ["a" * 80, "b"], "zh-CN").splitlines()
    assert "运行中" in lines[3]
    assert lines[1].split()[1:] == ["\u2713", "\u2717", "\u00b7"]
    assert "\u2026" in lines[1]


def test_a_log_has_lines_alone() -> None:
    file = io.StringIO()
    with Board(Console(file=file, width=60), "en") as board:
        board.expect(trials(["only:flow"], 2))
        board.at("arms", 0, 2)
        board.at("arms", 2, 2)
    assert file.getvalue() == "arms 2/2\n"
