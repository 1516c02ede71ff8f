"""SwanLab's own file of a run, `run-<id>.swanlab`, which every run leaves behind, also one that was offline.

A log of records in LevelDB's format; a record is a protocol buffer. Read is what `run.log` was given as a number; what
SwanLab measures of the machine is not, and media are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.exchange import leveldb
from lossdoctor.exchange.source import Source
from lossdoctor.exchange.wire import BYTES, FIXED64, VARINT, fields, signed, text, unpacked
from lossdoctor.record import Record
from lossdoctor.sinks.naming import unescaped

MAGIC = b":SWL\xd6\xe1"
VERSION = 2
"""The byte behind the magic. SwanLab changes it when it changes the records, and reads no other either."""
_SCALAR, _MEDIA = 13, 14
_KEY, _STEP, _TIME, _VALUE = 1, 2, 4, 5
"""Numbers of fields: of scalar and media in a record; of what both have."""
_OF_THE_MACHINE = "__swanlab__"


def recognises(path: Path, head: bytes) -> bool:
    """Whether the file begins as one of these, or the folder holds some."""
    return bool(_files(path)) if path.is_dir() else head.startswith(MAGIC)


def records(source: Source) -> Iterator[Record]:
    """The numbers of one run; those of one call of `run.log` are together."""
    source.own_steps()
    if source.path.is_dir():
        files = _files(source.path)
        path = files[source.choose(dict.fromkeys(files, ()))]
    else:
        source.one_run()
        path = source.path
    _check_version(path)
    values: dict[str, float] = {}
    last = (0, source.clock)
    for name, step, time, value in _points(path, source):
        here = (step, last[1] if time is None else time)
        # The numbers of one call have moments that differ by microseconds.
        if values and (step != last[0] or name in values):
            yield Record(last[0], values, time=last[1])
            values = {}
        last = last if values else here
        values[name] = value
    if values:
        yield Record(last[0], values, time=last[1])


def _files(folder: Path) -> dict[str, Path]:
    """The files of a run's folder, or of the folder of all runs."""
    found = sorted(
        path for pattern in ("*.swanlab", "*/*.swanlab", "swanlog/*/*.swanlab") for path in folder.glob(pattern)
    )
    return {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}


def _check_version(path: Path) -> None:
    with open(path, "rb") as file:
        head = file.read(leveldb.HEAD)
    if head.startswith(MAGIC) and head[-1] != VERSION:
        raise UsageError(
            mismatch(
                "This SwanLab file is of another version of SwanLab.",
                f"version {VERSION} of its format, which SwanLab 0.8 and later write",
                f"{path}, version {head[-1]}",
                "export the charts of the run's page as CSV and import those",
            )
        )


def _points(path: Path, source: Source) -> Iterator[tuple[str, int, float | None, float]]:
    """Name, step, moment and value of every number."""
    for record in leveldb.whole(path, source.notes):
        try:
            found = [
                (number, _logged(data))
                for number, kind, _, data in fields(record)
                if kind == BYTES and number in (_SCALAR, _MEDIA)
            ]
        except ValueError:
            source.notes.lost["damaged"] += 1
            continue
        for number, (name, step, time, value) in found:
            if name.startswith(_OF_THE_MACHINE):
                continue
            if number == _MEDIA:
                source.notes.ignored[unescaped(name)] += 1
            else:
                yield unescaped(name), step, time, value


def _logged(message: bytes) -> tuple[str, int, float | None, float]:
    """Key, step, moment and number of one logged thing. What is 0 is not written."""
    name, step, time, value = "", 0, None, 0.0
    for number, kind, whole, data in fields(message):
        if (number, kind) == (_KEY, BYTES):
            name = text(data)
        elif (number, kind) == (_STEP, VARINT):
            step = signed(whole)
        elif (number, kind) == (_TIME, BYTES):
            parts = {field: signed(part) for field, wire, part, _ in fields(data) if wire == VARINT}
            time = parts.get(1, 0) + parts.get(2, 0) / 1e9
        elif (number, kind) == (_VALUE, BYTES):
            value = next(
                (unpacked(part, "<d") for field, wire, _, part in fields(data) if (field, wire) == (1, FIXED64)), 0.0
            )
    return name, step, time, value
