"""A million steps through the store: what writing, keeping and reading a long run costs, and whether memory stays flat.

    python benchmarks/long_run.py [--steps 1000000] [--metrics 200] [--doctor-steps 100000] [--write docs/long-runs.md]

ordinary   losses on every step and all metrics on every 50th, handed over at every 50th as a Doctor does
every step all metrics on every step, handed over step by step
doctor     a Doctor with a small model, three losses and the live diagnosis, fewer steps: the memory of everything else

Each way runs in a process of its own, delivers through the Doctor's `Outlet` and waits for the disk every 200 steps,
since no training is so fast that a queue would build up; that waiting is not counted as the training thread's. Then
every metric is read, each from a run opened afresh, and `lossdoctor check` is measured. Needs 4 GB for a while.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from check import HEADS, LOSSES, NOISE, forget, measure, names
from page import write_part
from rich.console import Console
from rich.progress import Progress
from torch import nn

from lossdoctor.doctor import Doctor
from lossdoctor.doctor.outlet import Outlet
from lossdoctor.record import Record
from lossdoctor.store import Run

EVERY, WAIT, SAMPLES, LAST, COLD = 50, 200, 100, 1000, 5
SECONDS_PER_STEP = 0.05
EVERYTHING = "every step"


# A process that writes


class Watch:
    """Memory and log size as the steps go by, told on standard output."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.log, self.steps = folder / "run.db-wal", steps
        self.memory: list[float] = []
        self.longest_log = 0

    def step(self, done: int) -> None:
        if done % max(1, self.steps // SAMPLES) == 0:
            self.memory.append(resident())
            self.longest_log = max(self.longest_log, self.log.stat().st_size if self.log.exists() else 0)
            print(json.dumps({"done": done}), flush=True)


def resident() -> float:
    """MB this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def records(metrics: list[str], steps: int, due: int) -> Iterator[tuple[int, list[Record]]]:
    """Step by step, what is handed over there."""
    losses = [name for name in metrics if name.startswith("loss/")]
    noise = (0.5 + NOISE * np.random.default_rng(0).standard_normal(1 << 16)).tolist()
    waiting = []
    for step in range(steps):
        chosen = metrics if step % due == 0 else losses
        at = step * 7919 % (len(noise) - len(metrics))
        values = dict(zip(chosen, noise[at : at + len(chosen)], strict=True))
        waiting.append(Record(step, values, full=step % due == 0, time=SECONDS_PER_STEP * step))
        if step % due == 0 or step == steps - 1:
            yield step, waiting
            waiting = []


def through_the_outlet(folder: Path, steps: int, metrics: list[str], due: int) -> dict[str, Any]:
    meta = {"losses": LOSSES, "kinds": LOSSES, "heads": dict.fromkeys(HEADS, 1)}
    outlet = Outlet(folder, meta, (), resume=False, strict=True)
    (writer,) = (one for one in threading.enumerate() if one.name == "lossdoctor-store")
    clock = time.pthread_getcpuclockid(writer.ident or 0)
    watch, handing, waited = Watch(folder, steps), 0.0, 0
    start = time.perf_counter()
    for step, given in records(metrics, steps, due):
        before = time.thread_time()
        outlet.deliver(given)
        handing += time.thread_time() - before
        if step // WAIT > waited:
            waited = step // WAIT
            outlet.flush()
        for number in range(step - len(given) + 1, step + 1):
            watch.step(number)
    outlet.flush()
    writing = time.clock_gettime(clock)
    outlet.close()
    seconds = time.perf_counter() - start
    return told(watch, seconds) | {"handing": handing / steps, "writing": writing / steps}


def through_a_doctor(folder: Path, steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(8, 16), {name: nn.Linear(16, 4) for name in LOSSES}
    model = nn.ModuleDict({"trunk": trunk, **heads})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(16, 8)
    watch, start = Watch(folder, steps), time.perf_counter()
    with Doctor(model, optimizer, run=folder, heads=heads, every=EVERY, strict=True) as doctor:
        for step in range(steps):
            hidden = trunk(batch).tanh()
            doctor.backward({name: head(hidden).square().mean() for name, head in heads.items()})
            optimizer.step()
            optimizer.zero_grad()
            watch.step(step)
    return told(watch, time.perf_counter() - start)


def told(watch: Watch, seconds: float) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"memory": watch.memory, "log": watch.longest_log, "seconds": seconds, "peak": peak}


# The process that asks


class Reading(NamedTuple):
    """Seconds, for each metric: to open the run, then to read the whole series, its last steps, and it thinned."""

    opening: list[float]
    whole: list[float]
    last: list[float]
    thinned: list[float]
    cold: list[float]
    """The whole series of a few metrics, with nothing of the file in the memory of the operating system."""


def read(folder: Path, steps: int) -> tuple[int, Reading]:
    """The number of points, and what reading them takes."""

    def timed(action: Callable[[Run, str], Any], name: str) -> tuple[float, float, Any]:
        start = time.perf_counter()
        run = Run.open(folder)
        opened = time.perf_counter()
        found = action(run, name)
        return opened - start, time.perf_counter() - opened, found

    points, reading = 0, Reading([], [], [], [], [])
    found = list(Run.open(folder))
    for name in found:
        opening, whole, series = timed(lambda run, name: run[name], name)
        points += len(series)
        reading.opening.append(opening)
        reading.whole.append(whole)
        reading.last.append(timed(lambda run, name: run.window(name, steps - LAST), name)[1])
        reading.thinned.append(timed(lambda run, name: run.thinned(name), name)[1])
    for name in found[:: max(1, len(found) // COLD)]:
        forget(folder / "run.db")
        reading.cold.append(timed(lambda run, name: run[name], name)[1])
    return points, reading


def write(way: str, folder: Path, steps: int, metrics: int, progress: Progress) -> dict[str, Any]:
    """Run one way in a process of its own, with its progress."""
    command = [sys.executable, __file__, "--way", way, str(folder), str(steps), str(metrics)]
    task = progress.add_task(way, total=steps)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        found: dict[str, Any] = {}
        for line in child.stdout:
            found = json.loads(line)
            if "done" in found:
                progress.update(task, completed=found["done"])
    if child.returncode or "memory" not in found:
        raise subprocess.CalledProcessError(child.returncode, command)
    progress.update(task, completed=steps)
    return found


def row(name: str, *cells: str) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def flat(memory: list[float]) -> str:
    tenth = max(1, len(memory) // 10)
    return f"{np.mean(memory[:tenth]):.0f} / {np.mean(memory[-tenth:]):.0f}"


def milliseconds(times: list[float]) -> str:
    return f"{1e3 * float(np.median(times)):.1f} / {1e3 * max(times):.1f}"


def page(asked: argparse.Namespace, temporary: Path, progress: Progress) -> str:
    ways: dict[str, dict[str, Any]] = {}
    for way in ("ordinary", EVERYTHING):
        folder = temporary / way
        ways[way] = found = write(way, folder, asked.steps, asked.metrics, progress)
        found["size"] = sum(file.stat().st_size for file in folder.iterdir())
        found["points"], found["reading"] = read(folder, asked.steps)
        check = [sys.executable, "-m", "lossdoctor", "check", str(folder), "--fail-on", "never"]
        forget(folder / "run.db")
        found["cold"], found["warm"] = measure(check), measure(check)
        for file in folder.iterdir():
            file.unlink()
    doctor = write("doctor", temporary / "doctor", asked.doctor_steps, 0, progress)
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "numbers": lambda w: f"{w['points']:,}",
        "resident memory, first / last tenth of the run, MB": lambda w: flat(w["memory"]),
        "size, MB": lambda w: f"{w['size'] / 1e6:.0f}",
        "bytes per number": lambda w: f"{w['size'] / w['points']:.2f}",
        "write-ahead log at most, MB": lambda w: f"{w['log'] / 1e6:.1f}",
        "written, steps per second": lambda w: f"{asked.steps / w['seconds']:,.0f}",
        "written, MB per second": lambda w: f"{w['size'] / 1e6 / w['seconds']:.1f}",
        "training thread, processor us per step": lambda w: f"{1e6 * w['handing']:.1f}",
        "writing thread, processor us per step": lambda w: f"{1e6 * w['writing']:.1f}",
        "to open, ms": lambda w: milliseconds(w["reading"].opening),
        "a whole series, ms": lambda w: milliseconds(w["reading"].whole),
        f"a whole series, cold, of {COLD} metrics, ms": lambda w: milliseconds(w["reading"].cold),
        f"its last {LAST} steps (`run.window`), ms": lambda w: milliseconds(w["reading"].last),
        "it thinned for a picture (`run.thinned`), ms": lambda w: milliseconds(w["reading"].thinned),
        "`check`, cold, s": lambda w: f"{w['cold'].seconds:.1f}",
        "`check`, again, s": lambda w: f"{w['warm'].seconds:.1f}",
        "`check`, peak memory, MB": lambda w: f"{max(w['cold'].megabytes, w['warm'].megabytes):.0f}",
    }
    table = "\n".join(row(name, *(cell(ways[way]) for way in ways)) for name, cell in rows.items())
    cores, python = os.cpu_count(), platform.python_version()
    return f"""Written by `python benchmarks/long_run.py`: {asked.steps:,} steps, {asked.metrics} metrics, Python
{python}, {platform.machine()}, {cores} cores shared with other programs. Two numbers in one cell of a reading are the
median and the largest over all metrics, each from a run opened afresh.

| | all metrics every {EVERY} steps, losses on each | all metrics on every step |
|---|---|---|
{table}

A Doctor with a small model, three losses and the live diagnosis, {asked.doctor_steps:,} steps, every={EVERY}: resident
memory in the first / last tenth {flat(doctor["memory"])} MB, peak {doctor["peak"]:.0f} MB.
"""


def main() -> None:
    if sys.argv[1:2] == ["--way"]:
        way, folder, steps, metrics = sys.argv[2:]
        torch.set_num_threads(1)
        if way == "doctor":
            found = through_a_doctor(Path(folder), int(steps))
        else:
            due = EVERY if way == "ordinary" else 1
            found = through_the_outlet(Path(folder), int(steps), names(int(metrics)), due)
        print(json.dumps(found), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--metrics", type=int, default=200)
    parser.add_argument("--doctor-steps", type=int, default=100_000)
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, Progress(console=Console(stderr=True)) as progress:
        text = page(asked, Path(temporary), progress)
    print(text)
    if asked.write:
        write_part(asked.write, "cost", text)


if __name__ == "__main__":
    main()
