"""Records and events as JSON, one object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from lossdoctor.record import Record
from lossdoctor.sinks.appending import open_to_append
from lossdoctor.sinks.sink import Sink


class JSONL(Sink):
    """`{"step": 3, "time": ..., "full": true, "values": {...}}` per record, `{"event": {...}}` per event.

    Strict JSON in ASCII: NaN and infinity, for which it has no numbers, are the strings "NaN", "Infinity", "-Infinity",
    which `float()` reads. A file that is there is gone on with if it is one of these, else refused with UsageError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._file: TextIO | None = None

    def open(self, meta: Mapping[str, Any]) -> None:
        """Create the file, or check that it is ours and go on at its end."""
        self._file, _ = open_to_append(self._path, kind="JSON lines of records", ours=_is_ours, whole=_whole_lines)

    def write(self, records: Sequence[Record]) -> None:
        """Append a line per record."""
        self._lines(
            [
                {
                    "step": record.step,
                    "time": record.time,
                    "full": record.full,
                    "values": {name: float(value) for name, value in record.values.items()},
                }
                for record in records
            ]
        )

    def event(self, event: Mapping[str, Any]) -> None:
        """Append a line for the event."""
        self._lines([{"event": dict(event)}])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _lines(self, objects: Sequence[dict[str, Any]]) -> None:
        assert self._file is not None, "write before open"
        self._file.write("".join(f"{_strict(one)}\n" for one in objects))
        self._file.flush()


def _strict(value: dict[str, Any]) -> str:
    """JSON with non-finite numbers as strings: written as Python does, read back with its three words as text."""
    loose = json.dumps(value, default=repr)
    if "NaN" in loose or "Infinity" in loose:
        loose = json.dumps(json.loads(loose, parse_constant=str), allow_nan=False)
    return loose


def _is_ours(first: bytes) -> bool:
    try:
        found = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and ({"step", "values"} <= found.keys() or "event" in found)


def _whole_lines(path: Path) -> int:
    """The size of the file up to the end of its last complete line. A string in JSON holds no newline."""
    with open(path, "rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))
