"""The records of a run as a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lossdoctor.record import Record
from lossdoctor.sinks import Sink


class LabTable(Sink):
    """One row per number: step, name, value."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def write(self, records: Sequence[Record]) -> None:
        """Append the rows, below a head if the file is new."""
        rows = [f"| {one.step} | {name} | {value:.6g} |\n" for one in records for name, value in one.values.items()]
        head = [] if self._path.exists() else ["| step | metric | value |\n", "|---|---|---|\n"]
        with open(self._path, "a", encoding="utf-8") as file:
            file.writelines([*head, *rows])
