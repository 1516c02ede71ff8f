"""MLflow's runs: a folder `mlruns`, an experiment or a run in it, or the SQLite file `mlflow.db`.

In the folder a metric is a file `metrics/<name>`, with a line `milliseconds value step` per value; in the database it
is rows of a table. Names that our own sink had to escape are read back.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lossdoctor.exchange.cells import number, whole
from lossdoctor.exchange.source import Notes, Source
from lossdoctor.exchange.sqlite import MAGIC, columns, reading
from lossdoctor.record import Record
from lossdoctor.sinks.naming import unescaped

LARGEST = 1.7976931348623157e308
"""What MLflow writes for infinity into databases, which have none."""
_NAME = re.compile(r"^run_name: *(.+?) *$", re.MULTILINE)
Point = tuple[object, object, object]
"""Milliseconds, value, step, as they were found."""


def recognises(path: Path, head: bytes) -> bool:
    """Whether the folder has runs in it, or the file has a table of their metrics."""
    if path.is_dir():
        return bool(_folders(path))
    return head.startswith(MAGIC) and {"key", "run_uuid", "is_nan", "step"} <= columns(path, "metrics")


def records(source: Source) -> Iterator[Record]:
    """The values of one run, metric after metric."""
    source.own_steps()
    if source.path.is_dir():
        runs = _folders(source.path)
        label = source.choose({label: _names_of(folder) for label, folder in runs.items()})
        metrics = runs[label] / "metrics"
        for file in sorted(path for path in metrics.rglob("*") if path.is_file()):
            yield from _records(file.relative_to(metrics).as_posix(), _lines(file, source.notes), source.notes)
    else:
        with reading(source.path) as database:
            found = database.execute("SELECT run_uuid, name FROM runs ORDER BY start_time").fetchall()
            chosen = source.choose({str(run): (str(name),) if name else () for run, name in found})
            rows = database.execute(
                "SELECT key, timestamp, value, is_nan, step FROM metrics WHERE run_uuid = ? ORDER BY step, timestamp",
                (chosen,),
            )
            for key, group in itertools.groupby(rows, key=lambda row: row[0]):
                yield from _records(str(key), (_point(row) for row in group), source.notes)


def _folders(root: Path) -> dict[str, Path]:
    """Folders of runs, by their path below the root. Deleted runs lie in `.trash`, which is left out."""
    found = [path for depth in ("metrics", "*/metrics", "*/*/metrics") for path in sorted(root.glob(depth))]
    runs = [path.parent for path in found if path.is_dir() and (path.parent / "meta.yaml").is_file()]
    return {run.relative_to(root).as_posix(): run for run in runs if ".trash" not in run.relative_to(root).parts}


def _names_of(run: Path) -> tuple[str, ...]:
    """What else the run is called: its id, and the name in its meta.yaml."""
    named = _NAME.search((run / "meta.yaml").read_text(encoding="utf-8", errors="replace"))
    return (run.name, named[1].strip("'\"")) if named else (run.name,)


def _lines(file: Path, notes: Notes) -> Iterator[Point]:
    with open(file, "rb") as lines:
        for line in lines:
            parts = line.decode("utf-8", "replace").split()
            if not line.endswith(b"\n"):
                notes.lost["torn_line"] += 1  # half a number looks like another number
            elif len(parts) < 2:
                notes.lost["damaged"] += bool(parts)
            else:
                # The first versions had no steps. Later ones add the data set.
                yield parts[0], parts[1], parts[2] if len(parts) > 2 else 0


def _point(row: tuple[object, ...]) -> Point:
    _, milliseconds, value, is_nan, step = row
    if is_nan:
        value = math.nan
    elif isinstance(value, float) and abs(value) == LARGEST:
        value = math.copysign(math.inf, value)
    return milliseconds, value, step


def _records(name: str, points: Iterable[Point], notes: Notes) -> Iterator[Record]:
    ours = unescaped(name)
    for milliseconds, given, at in points:
        value, step, clock = number(given), whole(at), number(milliseconds)
        if value is None or clock is None:
            notes.lost["damaged"] += 1
        elif step is None:
            notes.lost["no_step"] += 1
        else:
            yield Record(step, {ours: value}, time=clock / 1000)
