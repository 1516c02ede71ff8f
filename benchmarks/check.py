"""What it costs to judge a long run: time and peak memory of reading, checking and reporting 200 x a million steps.

    python benchmarks/check.py [--metrics 200] [--steps 1000000] [--rounds 3] [--folder DIR]

Writes a synthetic run into a temporary folder (1.8 GB at full size, a quarter of a minute; removed at the end) in the
run file's own format, chunk by chunk as the writer leaves it, and measures each command in a process of its own: the
bars are 5 s and 500 MB. "cold" is the first reading after the file was put out of the memory of the operating system.
With `--folder` the run is written there and kept, and found again the next time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lossdoctor.keys import KEYS, Key
from lossdoctor.record import Series
from lossdoctor.store.glance import glance
from lossdoctor.store.layout import (
    APPLICATION_ID,
    CHUNK,
    FIRST_METRIC,
    FULL,
    GLANCES,
    SCHEMA,
    TIME,
    VERSION,
    encode,
    pack,
)

LOSSES = {"flow": "velocity", "dino": "distill", "kl": "kl"}
HEADS = ("flow_head", "z_head")
TENTHS, STEP_COUNTS = range(10), (8, 16, 32, 64)
NOISE = 0.05
SECONDS_PER_STEP = 0.05

READ_ALL = """
import sys
from lossdoctor.store import Run
run = Run.open(sys.argv[1])
thinned = [run.thinned(name) for name in run]
assert sum(one.count for one in thinned) == int(sys.argv[2]), "not every point was read"
"""


# A child starts with the peak memory of its parent, so the parent must be small.
LAUNCHER = """
import json, os, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


class Cost(NamedTuple):
    """Of one process: seconds from its start to its end, seconds of processor time, and peak memory in MB."""

    seconds: float
    processor: float
    megabytes: float

    def __str__(self) -> str:
        return f"{self.seconds:6.2f} s   {self.processor:6.2f} s of processor   {self.megabytes:6.0f} MB"


def measure(command: list[str]) -> Cost:
    """Run a command to its end. Raises CalledProcessError unless it ends with 0."""
    told = subprocess.run([sys.executable, "-I", "-S", "-c", LAUNCHER, *command], stdout=subprocess.PIPE, check=True)
    code, seconds, processor, peak = json.loads(told.stdout)
    if code:
        raise subprocess.CalledProcessError(code, command)
    return Cost(seconds, processor, peak * (1 if sys.platform == "darwin" else 1024) / 1e6)


def names(count: int) -> list[str]:
    """Names of the vocabulary with its holes filled, and then of scalars that a script logged."""
    found = [name for key in KEYS for name in filled(key)]
    more = (f"mine/{place}" for place in itertools.count())
    return list(itertools.islice(itertools.chain(dict.fromkeys(found), more), count))


def filled(key: Key) -> list[str]:
    """Every name of one kind that a run with these losses and heads has."""
    holes = {
        "<loss>": tuple(LOSSES),
        "<head>": HEADS,
        "<module>": HEADS,
        "<a>|<b>": tuple("|".join(pair) for pair in itertools.combinations(sorted(LOSSES), 2)),
        "{0..9}": tuple(map(str, TENTHS)),
        "@K": tuple(f"@{count}" for count in STEP_COUNTS),
    }
    made = [key.pattern]
    for hole, fillings in holes.items():
        made = [name.replace(hole, filling) for name in made for filling in (fillings if hole in name else (hole,))]
    return made


def write(folder: Path, metrics: list[str], steps: int) -> None:
    """A finished run in which every metric has every step: noise about one half, which every kind of metric can be."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"losses": LOSSES, "kinds": LOSSES, "heads": dict.fromkeys(HEADS, 1)}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="ascii")
    random = np.random.default_rng(0)
    noise = 0.5 + NOISE * random.standard_normal(1024 * CHUNK)
    shifts = random.integers(0, len(noise), size=len(metrics))
    db = sqlite3.connect(folder / "run.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = OFF")
    db.execute("PRAGMA synchronous = OFF")
    db.execute("BEGIN")
    for statement in (*SCHEMA, GLANCES):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.executemany("INSERT INTO metric (id, name) VALUES (?, ?)", enumerate(map(encode, metrics), FIRST_METRIC))
    for first in range(0, steps, CHUNK):
        here = np.arange(first, min(first + CHUNK, steps))
        columns: dict[int, npt.NDArray[np.float64]] = {
            TIME: SECONDS_PER_STEP * here.astype(np.float64),
            FULL: np.ones(len(here)),
        }
        columns |= {column: noise[(here + s) % len(noise)] for column, s in enumerate(shifts, FIRST_METRIC)}
        for column, values in columns.items():
            piece = Series(here, values)
            chunk = db.execute(
                "INSERT INTO chunk (series, first, last, steps, numbers, low, high) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (column, *pack(piece)),
            ).lastrowid
            if (told := glance(piece)) is not None:
                db.execute("INSERT INTO glance VALUES (?, ?, ?, ?, ?, ?, ?)", (column, chunk, *told))
    db.execute("COMMIT")
    db.close()


def forget(file: Path) -> None:
    """Ask the operating system not to keep the file in memory, where it can be asked."""
    if hasattr(os, "posix_fadvise"):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary) / "run"
        if not (folder / "run.db").exists():
            start = time.perf_counter()
            write(folder, names(asked.metrics), asked.steps)
            print(f"written in {time.perf_counter() - start:.1f} s")
        size = (folder / "run.db").stat().st_size
        print(f"{asked.metrics} metrics of {asked.steps} steps, {size / 1e9:.2f} GB")
        lossdoctor = [sys.executable, "-m", "lossdoctor"]
        commands = {
            "python that does nothing": [sys.executable, "-c", "pass"],
            "read all, thinned": [sys.executable, "-c", READ_ALL, str(folder), str(asked.metrics * asked.steps)],
            # Findings are no failure of the measurement.
            "lossdoctor check": [*lossdoctor, "check", str(folder), "--fail-on", "never"],
            "lossdoctor report": [*lossdoctor, "report", str(folder), "-o", str(Path(temporary) / "report.html")],
        }
        for name, command in commands.items():
            forget(folder / "run.db")
            print(f"  {name:26s} cold  {measure(command)}")
            for _ in range(asked.rounds):
                print(f"  {name:26s}       {measure(command)}")


if __name__ == "__main__":
    main()
