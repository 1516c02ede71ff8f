"""W&B's own file of a run, `run-<id>.wandb`, which every run leaves behind, also one that was offline.

It is a log of records in LevelDB's format; a record is a protocol buffer. Read is what `run.log` was given; system
metrics, media and summaries are not.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lossdoctor.exchange import leveldb, table
from lossdoctor.exchange.jsonl import flat
from lossdoctor.exchange.source import Notes, Source
from lossdoctor.exchange.wire import BYTES, VARINT, fields, signed, text
from lossdoctor.record import Record
from lossdoctor.sinks.naming import unescaped

MAGIC = b":W&B\xe1\xbe\x00"
_HISTORY, _ITEM, _STEP, _KEY, _NESTED, _VALUE = 2, 1, 2, 1, 2, 16
"""Numbers of fields: of the history in a record, of items and step in it, of key, nested key and JSON in an item."""


def recognises(path: Path, head: bytes) -> bool:
    """Whether the file begins as one of these, or the folder holds some."""
    return bool(_files(path)) if path.is_dir() else head.startswith(MAGIC)


def records(source: Source) -> Iterator[Record]:
    """Every logged row of one run."""
    if source.path.is_dir():
        files = _files(source.path)
        source = replace(source, path=files[source.choose(dict.fromkeys(files, ()))], run=None)
    yield from table.records(source, functools.partial(_rows, source.path))


def _files(folder: Path) -> dict[str, Path]:
    """The files of a run's folder, or of the folder of all runs, where `latest-run` is one of them again."""
    found = sorted(path for pattern in ("*.wandb", "*/*.wandb", "wandb/*/*.wandb") for path in folder.glob(pattern))
    return {
        path.relative_to(folder).as_posix(): path for path in found if path.is_file() and not path.parent.is_symlink()
    }


def _rows(path: Path, notes: Notes) -> Iterator[table.Row]:
    for record in leveldb.whole(path, notes):
        try:
            history = [data for number, kind, _, data in fields(record) if (number, kind) == (_HISTORY, BYTES)]
            rows = [_row(one) for one in history]
        except (ValueError, RecursionError):
            notes.lost["damaged"] += 1
        else:
            yield from rows


def _row(history: bytes) -> table.Row:
    logged: dict[str, object] = {}
    for number, kind, _, data in fields(history):
        if (number, kind) == (_ITEM, BYTES):
            name, value = _item(data)
            logged[name] = value
        elif (number, kind) == (_STEP, BYTES):
            steps = [signed(step) for field, wire, step, _ in fields(data) if (field, wire) == (1, VARINT)]
            # A 0 is not written.
            logged.setdefault("_step", steps[-1] if steps else 0)
    return flat(logged)


def _item(item: bytes) -> tuple[str, object]:
    key, nested, value = "", [], b"null"
    for number, kind, _, data in fields(item):
        if kind == BYTES and number == _KEY:
            key = text(data)
        elif kind == BYTES and number == _NESTED:
            nested.append(text(data))
        elif kind == BYTES and number == _VALUE:
            value = data
    return unescaped("/".join(nested) or key), json.loads(value)
