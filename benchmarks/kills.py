"""Kills a writing process at random moments and looks at what is left of its run.

    python benchmarks/kills.py [--kills 200] [--per-run 10] [--seed 0] [--write docs/long-runs.md]

A child process writes records whose numbers follow from step, metric and attempt, with events and changes of the meta
among them, and goes on from its last checkpoint when it is started again. Half of the kills come from outside, a random
time after it said that it is opening, storing, packing, writing its meta or closing; the other half it does itself, at
a random line of such a phase. After every kill:

* the run opens, to read and to write;
* every metric holds what it held before, then a beginning of what the killed attempt handed over, each step once and in
  order, with the right numbers; what was flushed is in it, and what is missing is told by its age;
* the events are the same way a beginning of those given; `meta.json` is JSON and not older than the last flush.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from page import write_part
from rich.console import Console
from rich.progress import track

from lossdoctor.errors import RunError
from lossdoctor.record import Record
from lossdoctor.store import Run, RunWriter
from lossdoctor.store.database import Database
from lossdoctor.store.disk import DiskSource
from lossdoctor.store.folder import Folder

EVERY, CHECKPOINT, NOTE, FLUSH = 10, 130, 30, 300
"""Steps between due records, checkpoints, events, and flushes with a change of the meta."""
LOSSES = ("loss/a", "loss/b", "loss/total")
METRICS = tuple(f"grad/{number}" for number in range(20))
LONGEST = 20_000
PAUSE = 0.003
"""Seconds after each due step: about 2,500 steps a second."""

PHASES = {"opening": "o", "storing": "s", "packing": "p", "meta": "m", "closing": "c"}
"""What the child says when it begins, in capitals when it ends."""
MOST = {"opening": 0.03, "storing": 0.004, "packing": 0.008, "meta": 0.001, "closing": 0.03}
"""Seconds after its beginning within which a kill from outside may come; longer than the phase most often takes."""
LINES = {"opening": 300, "storing": 300, "packing": 900, "meta": 10, "closing": 900}
STORE = str(Path("lossdoctor", "store"))
BETWEEN = "between these"
FLUSHED, DIED, START, HEADER = 0, 1, 2, 3


def number(name: str, step: int, attempt: int) -> float:
    """What a metric is at a step; NaN and infinity among them."""
    if name == "loss/b" and step % 7 == 0:
        return math.nan if step % 2 else math.inf
    return math.sin(step * (1 + len(METRICS) * len(name))) + attempt


def record(step: int, attempt: int) -> Record:
    full = step % EVERY == 0
    names = (*LOSSES, *METRICS) if full else LOSSES
    return Record(step, {name: number(name, step, attempt) for name in names}, full=full, time=float(attempt))


def note(step: int, attempt: int) -> dict[str, Any]:
    return {"step": step, "attempt": attempt, "text": "x" * (step * 7919 % 9000)}


# The child


class Child:
    """Trains from the checkpoint on, says what it is doing, and dies at the line it was told to."""

    def __init__(
        self, folder: Path, attempt: int, steps: int, *, phase: str, turn: int, line: int, quiet: bool
    ) -> None:
        self.folder, self.attempt, self.steps, self.quiet = folder, attempt, steps, quiet
        self.phase, self.turn, self.line = phase, turn, line
        self.signs = np.memmap(signs(folder), np.float64, "r+")

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        os.write(1, PHASES[phase].encode())
        self.turn -= phase == self.phase
        dies = self.line > 0 and phase == self.phase and self.turn == 0
        before = sys.gettrace()
        if dies:
            sys.settrace(self.watch)
        try:
            yield
        finally:
            if dies:
                sys.settrace(before)
                self.die()
            os.write(1, PHASES[phase].upper().encode())

    def watch(self, frame: Any, kind: str, argument: Any) -> Any:
        if STORE not in frame.f_code.co_filename:
            return None
        if kind == "line":
            self.line -= 1
            if self.line <= 0:
                self.die()
        return self.watch

    def die(self) -> None:
        self.signs[DIED] = time.monotonic()
        os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: type, method: str, phase: str) -> None:
        inner: Callable[..., Any] = getattr(owner, method)

        def outer(*args: Any) -> Any:
            with self.within(phase):
                return inner(*args)

        setattr(owner, method, outer)

    def run(self) -> None:
        for owner, method, phase in (
            (RunWriter, "_store", "storing"),
            (Database, "_pack_tail", "packing"),
            (Database, "close", "closing"),
            (Folder, "write_meta", "meta"),
        ):
            self.wrap(owner, method, phase)
        start = checkpoint(self.folder)
        with self.within("opening"):
            writer = RunWriter(self.folder, {"attempt": self.attempt}, resume=True)
        waiting = []
        for step in range(start, start + self.steps):
            waiting.append(record(step, self.attempt))
            if step % EVERY == 0 or step == start + self.steps - 1:
                writer.append(waiting)
                self.signs[HEADER + step - start - len(waiting) + 1 : HEADER + step - start + 1] = time.monotonic()
                waiting = []
                time.sleep(PAUSE)
            if step % NOTE == 0 and not self.quiet:
                writer.event("note", **note(step, self.attempt))
            if step % FLUSH == 0 and not self.quiet:
                writer.update_meta(progress=step)
                if writer.flush():
                    self.signs[FLUSHED] = step
            if step % CHECKPOINT == 0:
                draft = self.folder.with_suffix(".new")
                draft.write_text(str(step + 1))
                draft.replace(self.folder.with_suffix(".checkpoint"))
        writer.close()


def checkpoint(folder: Path) -> int:
    file = folder.with_suffix(".checkpoint")
    return int(file.read_text()) if file.exists() else 0


def signs(folder: Path) -> Path:
    """A file the child writes to through its memory: a kill loses nothing of it."""
    return folder.with_suffix(".signs")


# The parent


@dataclass
class Kill:
    """One kill, and what it cost. phase: what the child was in; "between" is outside of all of them."""

    phase: str
    by: str
    handed_over: int = 0
    lost: int = 0
    age: float = 0.0
    """Seconds since the oldest lost record was handed over."""
    torn: int = 0


@dataclass
class Case:
    """One run, its life so far, and what it must hold."""

    folder: Path
    chance: random.Random
    attempt: int = 0
    rows: list[tuple[int, int]] = field(default_factory=list)
    """Step and attempt of every record the run is known to hold, in writing order."""
    notes: list[tuple[int, int]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def killed(self) -> Kill | None:
        """One attempt, killed at random. None when it came to its end before."""
        often = "opening" if not self.rows or self.chance.random() < 0.5 else BETWEEN
        phase = self.chance.choice([*PHASES, often, often])
        inside = phase != BETWEEN and self.chance.random() < 0.5
        steps = self.chance.randint(1, 2500) if phase == "closing" else LONGEST
        turn = self.chance.randint(1, 4) if phase in ("storing", "packing", "meta") else 1
        line = self.chance.randint(1, LINES[phase]) if inside else 0
        # Events and flushes hurry the commits: without them records wait the longest.
        quiet = phase in ("storing", "packing", BETWEEN) and self.chance.random() < 0.6
        with self.attempted(steps, phase, turn, line, "quiet" if quiet else "") as child:
            said = b""
            if not inside:
                assert child.stdout is not None
                letter = PHASES.get(phase, "O").encode()
                while said.count(letter) < turn and (one := child.stdout.read(1)):
                    said += one
                time.sleep(self.chance.uniform(0, MOST.get(phase, 1.5)))
            moment = 0.0 if inside else time.monotonic()
            if not inside:
                child.kill()
            return self.ended(child, said, moment)

    def in_peace(self) -> None:
        """One attempt to its end: it must close, and then everything of it is there."""
        with self.attempted(self.chance.randint(1, 700), "", 0, 0, "") as child:
            assert self.ended(child, b"", 0.0) is None

    @contextmanager
    def attempted(self, steps: int, *fate: str | int) -> Iterator[subprocess.Popen[bytes]]:
        self.attempt += 1
        signs(self.folder).write_bytes(bytes(8 * (HEADER + LONGEST)))
        told = self.told()
        told[FLUSHED], told[START] = -1, checkpoint(self.folder)
        asked = [str(one) for one in (self.folder, self.attempt, steps, *fate)]
        child = subprocess.Popen([sys.executable, __file__, "--child", *asked], stdout=subprocess.PIPE)
        try:
            yield child
        finally:
            child.kill()
            child.communicate()

    def told(self) -> np.memmap[Any, Any]:
        return np.memmap(signs(self.folder), np.float64, "r+")

    def ended(self, child: subprocess.Popen[bytes], said: bytes, moment: float) -> Kill | None:
        """What the end of an attempt cost, once it was seen that the rest is as it must be."""
        assert child.stdout is not None
        said += child.stdout.read()
        told, code = self.told(), child.wait()
        if code not in (0, -9):
            raise AssertionError(f"attempt {self.attempt} could not go on with {self.folder}: it ended with {code}")
        kill = Kill(within(said.decode(), resumed=bool(self.rows)), by="outside" if moment else "itself")
        self.check(kill, told, moment or float(told[DIED]))
        assert code or not kill.lost, f"closed in peace, with {kill.lost} records less than were handed over"
        return kill if code else None

    def check(self, kill: Kill, told: np.memmap[Any, Any], moment: float) -> None:
        """Raises AssertionError for anything that is not as it must be."""
        start, flushed, given = int(told[START]), int(told[FLUSHED]), int(np.count_nonzero(told[HEADER:]))
        # Every second time a copy is looked at, so that the next attempt finds what the kill left, untouched.
        folder = self.folder
        if self.attempt % 2 and folder.exists():
            folder = folder.with_suffix(".copy")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(self.folder, folder)
        kept = self.kept(folder, start)
        assert start + kept > flushed, f"flushed to step {flushed}, there to step {start + kept - 1}"
        kill.handed_over, kill.lost = given, max(0, given - kept)
        kill.age = max(0.0, moment - float(told[HEADER + kept])) if kill.lost else 0.0
        self.check_events(kill, folder, start, flushed)
        self.check_meta(folder, flushed)

    def kept(self, folder: Path, start: int) -> int:
        """How many records of this attempt are there; all earlier ones must be."""
        try:
            source = DiskSource(folder)
        except RunError as error:
            # Killed before the run had its tables.
            if self.rows or not ("never began" in str(error) or "no run here" in str(error)):
                raise AssertionError(f"the run no longer opens: {error}") from error
            return 0
        kept = len(source.times()) - len(self.rows)
        assert kept >= 0, f"{-kept} records of earlier attempts are gone"
        self.rows += [(start + i, self.attempt) for i in range(kept)]
        # Every metric, in writing order, is the function of the rows; and as a run it is each step's latest.
        rows = np.array(self.rows, np.int64).reshape(-1, 2)
        due = rows[rows[:, 0] % EVERY == 0]
        expected = {name: rows for name in LOSSES if len(rows)} | {name: due for name in METRICS if len(due)}
        assert set(source.names()) == set(expected), f"metrics are missing: {set(expected) ^ set(source.names())}"
        for name, wanted in expected.items():
            points, steps = source.points(name), wanted[:, 0].tolist()
            assert points is not None
            assert points.steps.tolist() == steps, f"{name}: steps lost, twice or out of order"
            numbers = [number(name, step, attempt) for step, attempt in wanted.tolist()]
            assert np.array_equal(points.values, np.array(numbers), equal_nan=True), f"{name}: other numbers"
            latest = dict(sorted(zip(steps, numbers, strict=True), key=lambda one: one[0]))
            series = Run(source)[name]
            assert series.steps.tolist() == list(latest), f"{name}: not each step once, in order"
            assert np.array_equal(series.values, np.array(list(latest.values())), equal_nan=True), f"{name}: not latest"
        return kept

    def check_events(self, kill: Kill, folder: Path, start: int, flushed: int) -> None:
        events, kill.torn = Folder(folder).read_events()
        for event in events:
            assert event.pop("time") > 0
            assert event.pop("kind") == "note"
        found = [(event["step"], event["attempt"]) for event in events]
        assert [note(*one) for one in found] == events, "an event is not what was given"
        assert found[: len(self.notes)] == self.notes, "events of earlier attempts are gone"
        new = found[len(self.notes) :]
        first = -(-start // NOTE) * NOTE
        assert new == [(first + NOTE * i, self.attempt) for i in range(len(new))], "events lost, twice or out of order"
        assert first + NOTE * len(new) > flushed, "an event that was flushed is gone"
        self.notes = found

    def check_meta(self, folder: Path, flushed: int) -> None:
        meta = json.loads((folder / "meta.json").read_bytes()) if (folder / "meta.json").exists() else {}
        assert self.meta.keys() <= meta.keys(), "fields of the meta are gone"
        assert meta.get("attempt", 0) in (self.meta.get("attempt", 0), self.attempt)
        assert flushed < 0 or meta["progress"] >= flushed, "a flushed change of the meta is gone"
        self.meta = meta


def within(said: str, *, resumed: bool) -> str:
    """The phase that had begun last and not ended."""
    inside: list[str] = []
    for letter in said:
        name = next(name for name, begins in PHASES.items() if begins == letter.lower())
        if letter.islower():
            inside.append(name)
        else:
            inside.remove(name)
    return "resuming" if inside[:1] == ["opening"] and resumed else (inside or [BETWEEN])[-1]


def kill_often(folder: Path, kills: int, per_run: int, seed: int) -> Iterator[Kill]:
    """Kill that many times; `per_run` times the same run, which then comes to a good end."""
    chance = random.Random(seed)
    for number_of_run, first in enumerate(range(0, kills, per_run)):
        case = Case(folder / f"run{number_of_run}", chance)
        for _ in range(min(per_run, kills - first)):
            while (kill := case.killed()) is None:
                pass
            yield kill
        case.in_peace()
        shutil.rmtree(case.folder)


def told_of(kills: list[Kill]) -> str:
    """The part of the page."""
    rows = []
    for phase in ("opening", "resuming", "storing", "packing", "meta", "closing", BETWEEN):
        here = [kill for kill in kills if kill.phase == phase]
        if here:
            ages = [kill.age for kill in here]
            rows.append(
                f"| {phase} | {len(here)} | {sum(kill.by == 'outside' for kill in here)} |"
                f" {max(kill.lost for kill in here)} | {np.median(ages):.2f} | {max(ages):.2f} |"
            )
    table = "\n".join(rows)
    handed, lost = sum(kill.handed_over for kill in kills), sum(kill.lost for kill in kills)
    torn = sum(kill.torn for kill in kills)
    return f"""Written by `python benchmarks/kills.py`: `kill -9`, {len(kills)} times, at a random line of the store or
from outside at a random time; {handed} records handed over, {lost} of them lost, {torn} events torn.

| killed while | kills | from outside | most records lost | age of the oldest lost one, median s | most s |
|---|---|---|---|---|---|
{table}

After every kill the run opened, and went on from the last checkpoint. Every metric had each step once and in order,
with the right number; whatever had been flushed was there, and everything of earlier attempts; `meta.json` was whole.
A torn event is left out and counted (`run.torn_events`); the next one begins on a line of its own.
"""


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        folder, attempt, steps, phase, turn, line, quiet = sys.argv[2:]
        Child(
            Path(folder), int(attempt), int(steps), phase=phase, turn=int(turn), line=int(line), quiet=bool(quiet)
        ).run()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per-run", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        often = kill_often(Path(temporary), asked.kills, asked.per_run, asked.seed)
        text = told_of(list(track(often, "killing", total=asked.kills, console=Console(stderr=True))))
    print(text)
    if asked.write:
        write_part(asked.write, "kills", text)


if __name__ == "__main__":
    main()
