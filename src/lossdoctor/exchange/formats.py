"""The formats that can be read, and which one a file is in. A format is a module of its own in this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.exchange import csv, jsonl, mlflow, swanlab, tensorboard, trackio, wandb
from lossdoctor.exchange.source import Source, check_there, unreadable
from lossdoctor.record import Record

HEAD = 1 << 16
"""Bytes at the beginning of a file that a format is recognised by."""


class Format(Protocol):
    """What a module of a format has."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the file, of which these are the first bytes, or the folder is in this format."""

    def records(self, source: Source) -> Iterator[Record]:
        """What is in it, in writing order, under the names it has there. Raises UsageError for what cannot be read."""


FORMATS: MappingProxyType[str, Format] = MappingProxyType(
    {
        "wandb": wandb,
        "swanlab": swanlab,
        "mlflow": mlflow,
        "trackio": trackio,
        "tensorboard": tensorboard,
        "jsonl": jsonl,
        "csv": csv,
    }
)
"""Every format by name. What is surer to be recognised goes before what many a file looks like."""

_OTHERS = {
    b"PAR1": "a Parquet file: turn it into CSV with pandas.read_parquet(FILE).to_csv(OUT)",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\xff\xfe": "a text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "a text in UTF-16: save it as UTF-8",
    b"SQLite format 3\0": "an SQLite file of another program",
}
"""How files begin that people try, and what to say of them."""


def recognise(path: Path) -> str:
    """The name of the format of a file or folder, by what is in it.

    Raises UsageError when there is nothing, or nothing that is known.
    """
    head = _head(path)
    for name, known in FORMATS.items():
        if known.recognises(path, head):
            return name
    raise UsageError(
        mismatch(
            "This is no log that can be read.",
            f"one of {', '.join(FORMATS)}; a folder with event files, metrics.csv, mlruns, a .wandb or .swanlab file",
            f"{path}, {_told(path, head)}",
            "choose the file or folder your tracker writes, or export the run as CSV with a column step",
        )
    )


def _head(path: Path) -> bytes:
    """The first bytes of a file; none of a folder. Raises UsageError when there is no log to read there at all."""
    if (path / "run.db").is_file() or path.name == "run.db":
        raise UsageError(
            mismatch(
                "This is a run of lossdoctor already.",
                "a log of another program",
                str(path),
                f"lossdoctor check {path}",
            )
        )
    check_there(path)
    if path.is_dir():
        return b""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise unreadable(path, error.strerror or error) from error
    if not head:
        raise UsageError(
            mismatch("The file is empty.", "a log with numbers", str(path), "wait until the run has logged something")
        )
    return head


def _told(path: Path, head: bytes) -> str:
    if path.is_dir():
        return "a folder in which there is none"
    return next((told for begin, told in _OTHERS.items() if head.startswith(begin)), f"which begins with {head[:24]!r}")
