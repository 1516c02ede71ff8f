"""Which files a run folder holds, and the two plain ones: `meta.json` and `events.jsonl`."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossdoctor.errors import RunError, UsageError, mismatch
from lossdoctor.store.plain import dumps
from lossdoctor.store.whole import replace_with

_DATABASE = re.compile(r"run(?:\.rank([1-9][0-9]*))?\.db")


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of one rank of a run. Rank 0 has the plain names, and `meta.json` is its alone."""

    path: Path
    rank: int = 0

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UsageError(
                mismatch("A rank counts from 0.", "rank >= 0", str(self.rank), "pass the rank of this process")
            )

    @property
    def database(self) -> Path:
        """The records."""
        return self.path / (f"run.rank{self.rank}.db" if self.rank else "run.db")

    @property
    def events(self) -> Path:
        """What happened, one JSON object per line."""
        return self.path / (f"events.rank{self.rank}.jsonl" if self.rank else "events.jsonl")

    @property
    def meta(self) -> Path:
        """What the run is, one JSON object."""
        return self.path / "meta.json"

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that have written here, in order."""
        found = (_DATABASE.fullmatch(name) for name in os.listdir(self.path))
        return tuple(sorted(int(match[1] or 0) for match in found if match))

    @classmethod
    def of(cls, path: Path, rank: int | None = None) -> Folder:
        """The folder a user means by its path, or by a run file in it. Rank 0 unless the file or `rank` says other."""
        match = None if path.is_dir() else _DATABASE.fullmatch(path.name)
        if match:
            return cls(path.parent, int(match[1] or 0) if rank is None else rank)
        return cls(path, rank or 0)

    def read_meta(self) -> dict[str, Any]:
        """The contents of `meta.json`; empty when there is none. Raises RunError when it is damaged."""
        try:
            found = json.loads(self.meta.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(self._unreadable(str(error))) from error
        if not isinstance(found, dict):
            raise RunError(self._unreadable(f"a JSON {type(found).__name__}"))
        return found

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Replace `meta.json` in one move: a reader sees the old one or the new one. Raises OSError."""
        replace_with(self.meta, dumps(meta, indent=2) + "\n")

    def read_events(self) -> tuple[list[dict[str, Any]], int]:
        """All events in order, and how many lines were torn (cut off by a crash or a full disk) and left out."""
        try:
            lines = self.events.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise RunError(f"The events of the run cannot be read: {error}") from error
        parsed = [_parsed(line) for line in lines if line.strip()]
        whole = [event for event in parsed if event is not None]
        return whole, len(parsed) - len(whole)

    def _unreadable(self, got: str) -> str:
        return mismatch(
            "The run's meta.json cannot be read.",
            "one JSON object",
            f"{self.meta}: {got}",
            "restore the file, or delete it to read the run without it",
        )


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
