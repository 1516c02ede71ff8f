"""Records as comma-separated values, one row per number."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from lossdoctor.record import Record
from lossdoctor.sinks.appending import open_to_append
from lossdoctor.sinks.sink import Sink

HEADER = ("step", "time", "metric", "value")


class CSV(Sink):
    """`step,time,metric,value`, one row per number: metrics come and go in a run, and the columns stay.

    The wide table is `pandas.read_csv(path).pivot_table("value", "step", "metric", aggfunc="last")`. Numbers are
    written in full, also `nan`, `inf` and `-inf`; time is in seconds since the epoch. A file that is there is gone on
    with if it is one of these, else refused with UsageError. Events have no place here. Names are written as they are:
    a spreadsheet runs a cell that starts with "=", so do not let strangers name your metrics.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._file: TextIO | None = None

    def open(self, meta: Mapping[str, Any]) -> None:
        """Create the file with its header, or check that it is ours and go on at its end."""
        header = ",".join(HEADER)
        self._file, new = open_to_append(
            self._path,
            kind=f"CSV with the columns {header}",
            ours=lambda first: first.rstrip(b"\r\n") == header.encode(),
            whole=_whole_rows,
        )
        if new:
            self._rows([HEADER])

    def write(self, records: Sequence[Record]) -> None:
        """Append a row per value."""
        self._rows(
            (record.step, repr(float(record.time)), name, repr(float(value)))
            for record in records
            for name, value in record.values.items()
        )

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _rows(self, rows: Sequence[Sequence[object]] | Iterator[Sequence[object]]) -> None:
        assert self._file is not None, "write before open"
        csv.writer(self._file).writerows(rows)
        self._file.flush()


def _whole_rows(path: Path) -> int:
    """The size of the file up to the end of its last complete row; inside quotes a newline does not end one."""
    read = whole = quotes = 0
    with open(path, "rb") as file:
        for line in file:
            read += len(line)
            quotes += line.count(b'"')
            if line.endswith(b"\n") and quotes % 2 == 0:
                whole = read
    return whole
