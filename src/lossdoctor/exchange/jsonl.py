"""JSON, one object per line: what W&B and others export, and the JSONL of lossdoctor's own sink.

Objects within objects are flattened: `{"train": {"loss": 1}}` is `train/loss`. A whole JSON document is read too, when
it is a list of such objects, or the `trainer_state.json` of transformers, which has one in `log_history`.
"""

from __future__ import annotations

import functools
import json
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.exchange import table
from lossdoctor.exchange.cells import number, whole
from lossdoctor.exchange.source import Notes, Source
from lossdoctor.record import Record

LARGEST = 1 << 28
"""Bytes of a JSON document read as a whole; lines are not limited in number."""
_MARK = b"\xef\xbb\xbf"
"""The byte order mark some editors write before UTF-8."""


def recognises(path: Path, head: bytes) -> bool:
    """Whether it begins as a JSON object or list."""
    return not path.is_dir() and head.removeprefix(_MARK).lstrip()[:1] in (b"{", b"[")


def records(source: Source) -> Iterator[Record]:
    """Every object as a record; events of lossdoctor's own go to the notes."""
    first = parsed(_first_line(source.path))
    history = _document(source.path) if first is None or "log_history" in first else None
    if history is not None:
        yield from table.records(source, functools.partial(_history, history))
    elif first is not None and _is_own(first):
        source.one_run()
        source.own_steps()
        yield from _own(source)
    else:
        if source.path.name == "wandb-summary.json":
            raise _only_the_end(source.path)
        yield from table.records(source, functools.partial(_flat_lines, source.path))


def flat(nested: Mapping[str, Any]) -> dict[str, object]:
    """Cells of a nested object by name, "/" between the levels. Null is no cell; lists and W&B's media stay whole."""
    cells: dict[str, object] = {}
    waiting = deque([("", nested)])
    while waiting:
        above, level = waiting.popleft()
        for key, value in level.items():
            if isinstance(value, dict) and "_type" not in value:
                waiting.append((f"{above}{key}/", value))
            elif value is not None:
                cells[above + key] = value
    return cells


def parsed(text: str | bytes) -> dict[str, Any] | None:
    """A JSON object; None when it is none, or damaged."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _first_line(path: Path) -> bytes:
    with open(path, "rb") as file:
        return next((line for line in file if line.removeprefix(_MARK).strip()), b"").removeprefix(_MARK)


def _lines(path: Path, notes: Notes) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for line in file:
            found = parsed(line.removeprefix(_MARK))
            if found is not None:
                yield found
            elif line.strip():
                notes.lost["damaged" if line.endswith(b"\n") else "torn_line"] += 1


def _flat_lines(path: Path, notes: Notes) -> Iterator[table.Row]:
    return map(flat, _lines(path, notes))


def _history(history: list[Any], notes: Notes) -> Iterator[table.Row]:
    for entry in history:
        if isinstance(entry, dict):
            yield flat(entry)
        else:
            notes.lost["damaged"] += 1


def _document(path: Path) -> list[Any] | None:
    """The list of objects that the whole file is or has; None when it has none."""
    if path.stat().st_size > LARGEST:
        return None
    try:
        found = json.loads(path.read_bytes().removeprefix(_MARK))
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict):
        found = found.get("log_history")
    return found if isinstance(found, list) else None


def _is_own(found: Mapping[str, Any]) -> bool:
    return (isinstance(found.get("values"), dict) and "step" in found) or isinstance(found.get("event"), dict)


def _own(source: Source) -> Iterator[Record]:
    notes = source.notes
    for found in _lines(source.path, notes):
        if isinstance(found.get("event"), dict):
            notes.events.append(found["event"])
            continue
        step, values = whole(found.get("step")), found.get("values")
        if step is None or not isinstance(values, dict):
            notes.lost["no_step"] += 1
            continue
        numbers = {name: number(value) for name, value in values.items()}
        notes.ignored.update(name for name, value in numbers.items() if value is None)
        moment = number(found.get("time"))
        yield Record(
            step,
            {name: value for name, value in numbers.items() if value is not None},
            full=found.get("full") is True,
            time=source.clock if moment is None else moment,
        )


def _only_the_end(path: Path) -> UsageError:
    return UsageError(
        mismatch(
            "A summary of W&B holds only the last value of each metric.",
            "the history of the run",
            str(path),
            "import the .wandb file in the run's folder, or export the history: run.history().to_csv(FILE)",
        )
    )
