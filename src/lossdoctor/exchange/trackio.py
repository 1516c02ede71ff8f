"""Trackio's SQLite file: one per project, with every run of it; a row is what one call of `trackio.log` was given."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lossdoctor.exchange import table
from lossdoctor.exchange.jsonl import flat, parsed
from lossdoctor.exchange.source import Notes, Source
from lossdoctor.exchange.sqlite import MAGIC, columns, reading
from lossdoctor.record import Record
from lossdoctor.sinks.naming import unescaped


def recognises(path: Path, head: bytes) -> bool:
    """Whether it is an SQLite file with a table of metrics in JSON."""
    return head.startswith(MAGIC) and {"run_name", "step", "metrics", "timestamp"} <= columns(path, "metrics")


def records(source: Source) -> Iterator[Record]:
    """Every logged row of one run."""
    key, names = _runs(source.path)
    chosen = source.choose(names)
    yield from table.records(replace(source, run=None), functools.partial(_rows, source.path, key, chosen))


def _runs(path: Path) -> tuple[str, dict[str, tuple[str, ...]]]:
    """The column that tells runs apart, and the runs: by name, or by id with the name beside it where names repeat."""
    if "run_id" in columns(path, "metrics"):
        with reading(path) as connection:
            found = connection.execute(
                "SELECT run_id, run_name FROM metrics GROUP BY run_id ORDER BY min(id)"
            ).fetchall()
        return "run_id", {str(run): (str(name),) for run, name in found}
    with reading(path) as connection:
        found = connection.execute("SELECT run_name FROM metrics GROUP BY run_name ORDER BY min(id)").fetchall()
    return "run_name", {str(name): () for (name,) in found}


def _rows(path: Path, key: str, run: str, notes: Notes) -> Iterator[table.Row]:
    with reading(path) as connection:
        query = f"SELECT timestamp, step, metrics FROM metrics WHERE {key} = ? ORDER BY id"
        for timestamp, step, metrics in connection.execute(query, (run,)):
            logged = parsed(metrics) if isinstance(metrics, str | bytes) else None
            if logged is None:
                notes.lost["damaged"] += 1
            else:
                values = {unescaped(name): value for name, value in flat(logged).items()}
                yield {**values, "step": step, "timestamp": timestamp}
