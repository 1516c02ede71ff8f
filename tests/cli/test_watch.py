"""`lossdoctor watch`: what a frame shows, and a run that comes, grows, ends or goes while it is watched."""

from __future__ import annotations

import math
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len
from syrupy.assertion import SnapshotAssertion

from lossdoctor.cli import main
from lossdoctor.live.judging import Judge
from lossdoctor.live.watching import Watched
from lossdoctor.record import Record
from lossdoctor.report.pulse import PATIENCE, pulse
from lossdoctor.store import Run, RunWriter

META = {"kinds": {"flow": "velocity", "dino": "distill"}}


def call(*arguments: str, columns: int = 80) -> Result:
    return CliRunner(env={"LC_ALL": "C", "COLUMNS": str(columns)}).invoke(main, ["watch", *arguments])


def record(step: int, noise: np.random.Generator, *, sick: bool = True) -> Record:
    """Of a velocity loss and a distillation whose gradient hardly takes part."""
    a, b, c = np.exp(noise.normal(size=3) / 20).tolist()
    dino = (1e-3 if sick else 0.4) * a
    values = {
        "loss/flow": 2 * b * math.exp(-step / 300),
        "loss/dino": 3 * c,
        "weight/flow": 1.0,
        "weight/dino": 0.5,
        "grad/flow": b,
        "grad/dino": 2 * dino,
        "grad_weighted/flow": b,
        "grad_weighted/dino": dino,
        "grad_share/flow": b / (b + dino),
        "grad_share/dino": dino / (b + dino),
        "grad/total": math.hypot(b, dino),
        "flow/nmse": b * math.exp(-step / 300),
    }
    return Record(step, values, full=True, time=1e9 + step / 10)


def filled(folder: Path, steps: int = 400, *, sick: bool = True) -> Path:
    noise = np.random.default_rng(0)
    with RunWriter(folder, META) as writer:
        writer.append([record(step, noise, sick=sick) for step in range(0, steps, 10)])
        writer.event("failure", step=7, measurement="flow", error="ShapeError: (8,) and (8, 1)")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_one_frame(home: Path, lang: str, snapshot: SnapshotAssertion) -> None:
    filled(home / "exp1")
    told = call("exp1", "--once", "--lang", lang)
    assert told.exit_code == 0
    assert "\n".join(line.rstrip() for line in told.output.splitlines()) == snapshot


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_no_line_is_too_long(home: Path, columns: int, lang: str) -> None:
    told = call(str(filled(Path("exp1"))), "--once", "--lang", lang, columns=columns).output
    assert all(cell_len(line) <= columns for line in told.splitlines())
    assert "dino" in told


def test_nothing_there_is_told_and_is_no_success(home: Path) -> None:
    told = call("none", "--once")
    assert (told.exit_code, told.output) == (2, "none  waiting for the run to begin\n")
    (home / "other").mkdir()
    (home / "other" / "run.db").write_bytes(b"SQLite format 3\x00 and nothing more")
    told = call("other", "--once")
    assert told.exit_code == 2
    assert "cannot be read" in told.output


def test_an_ended_run_is_told_in_lines_and_left(home: Path) -> None:
    told = call(str(filled(Path("exp1"))))
    lines = told.output.splitlines()
    assert told.exit_code == 0
    assert lines[0].startswith("ended: 391 steps, 40 measured in full, 10.0 steps/s; ")
    assert any("GRD102 weak-gradient" in line for line in lines[1:])


def test_a_run_comes_grows_and_goes(home: Path) -> None:
    watched, noise = Watched(Path("exp1")), np.random.default_rng(0)
    assert watched.look() == []
    assert watched.sight.pulse.state == "absent"
    states, found = [], []
    with RunWriter("exp1", META) as writer:
        for lot in range(8):
            writer.append([record(100 * lot + step, noise) for step in range(0, 100, 10)])
            assert writer.flush()
            found.append([one.code for one in watched.look(sure=lot == 7)])
            states.append(watched.sight.pulse.state)
            assert watched.sight.digest is not None
            assert watched.sight.digest.measured == 10 * (lot + 1)
        assert set(states) == {"silent"}, "its clock stands in the year 2001"
        assert "GRD102" in found[-1]
        shutil.rmtree("exp1")
        assert watched.look() == []
    assert watched.sight.pulse.state == "deleted"
    assert watched.sight.findings, "what was seen last stays"
    filled(Path("exp1"), sick=False)
    watched.look()
    assert watched.sight.pulse.state == "ended", "another run in the same place"
    assert all(group[0].code != "GRD102" for group in watched.sight.findings)
    watched.close()


def test_the_rules_are_asked_at_most_a_hundredth_of_the_time(home: Path) -> None:
    run, now = Run.open(filled(home / "exp1")), [0.0]

    def clock() -> float:
        now[0] += 0.5  # each diagnosis takes half a second on this clock
        return now[0]

    judge, asked = Judge("exp1", clock=clock), []
    for measured in range(4000):
        if judge.due(measured):
            asked.append(now[0])
            judge.ask(run, measured)
    assert len(asked) > 5
    assert 0.5 * len(asked) <= 0.01 * now[0] + 0.5, "the first one comes at once"
    assert judge.standing(), "found twice running"
    assert not judge.due(12)


def test_the_pulse(home: Path) -> None:
    noise = np.random.default_rng(0)
    with RunWriter("exp1", META) as writer:
        writer.append([record(step, noise) for step in range(0, 100, 10)])
        assert writer.flush()
        run = Run.open("exp1")
        last = 1e9 + 9
        assert pulse(run, last + PATIENCE / 2).state == "growing"
        assert pulse(run, last + 2 * PATIENCE).state == "silent"
        assert pulse(run, last).rate == pytest.approx(10)
    assert pulse(Run.open("exp1"), last).state == "ended"


def test_a_terminal_is_drawn_on_and_left_clean(home: Path) -> None:
    """A real terminal of 80 columns, a run that begins later, and Ctrl-C."""
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "lossdoctor", "--lang", "en", "watch", "exp1"]
    environment = {**os.environ, "COLUMNS": "80", "LINES": "40", "TERM": "xterm"}
    child = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    told = b""

    def until(word: bytes) -> None:
        nonlocal told
        end = time.monotonic() + 60
        while word not in told:
            assert time.monotonic() < end, told
            told += os.read(mine, 65536)

    until(b"waiting for the run to begin")
    noise = np.random.default_rng(0)
    with RunWriter("exp1", META) as writer:
        writer.append([record(step, noise) for step in range(0, 400, 10)])
        until(b"40 measured in full")
        child.send_signal(signal.SIGINT)
        until(b"the run goes on")
    assert child.wait(timeout=30) == 0
    assert b"Traceback" not in told
    assert told.count(b"\x1b[?25h") >= told.count(b"\x1b[?25l"), "the cursor is shown again"
    os.close(mine)
