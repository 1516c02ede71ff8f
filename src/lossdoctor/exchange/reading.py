"""Reading a log: which format it is in, what is in it, and what its metrics are called here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.exchange.formats import FORMATS, recognise
from lossdoctor.exchange.naming import Renaming, rename
from lossdoctor.exchange.source import Notes, Source, check_there, listed, near, unreadable
from lossdoctor.record import Record
from lossdoctor.store import MemoryWriter, Run

BATCH = 4096
"""Records handed on at once."""
_END_OF_TIME = 1e12
"""Seconds since the epoch; later moments are damage."""


@dataclass(frozen=True)
class Imported:
    """A log, read. run: its numbers, under the names they have there; `renaming` says what they are called here.

    source: the name of the file or folder. notes: what could not be read, which numbers were none, where the steps are
    from.
    """

    run: Run
    format: str
    source: str
    renaming: Renaming
    notes: Notes

    @property
    def names(self) -> dict[str, str]:
        """Every metric: its name there, its name here."""
        return {name: self.renaming.ours.get(name, name) for name in self.run}


def read(
    path: str | PathLike[str],
    *,
    format: str | None = None,
    run: str | None = None,
    step: str | None = None,
    mapping: Mapping[str, str] | None = None,
    guess: bool = True,
) -> Imported:
    """Read a run of another program.

    format: one of `FORMATS`; recognised by default. run: which one, where there are several. step: the column of a
    table that holds the step; guessed by default. mapping: names there to names here, see `naming.rename`. guess:
    whether obvious names are translated without being mapped.

    Raises UsageError when it is no log, cannot be read, has no steps or no numbers, or when something has to be chosen.
    """
    path = Path(path)
    recognised = recognise(path) if format is None else _known(format, path)
    notes = Notes()
    memory = MemoryWriter()
    try:
        source = Source(path, run, step, clock=path.stat().st_mtime, notes=notes)
        for batch in batches(FORMATS[recognised].records(source)):
            memory.append([_timed(record, source.clock) for record in batch])
    except OSError as error:
        raise unreadable(path, error.strerror or error) from error
    found = memory.run()
    if not len(found):
        raise _nothing(path, recognised, notes)
    return Imported(found, recognised, path.resolve().name, rename(found, mapping or {}, guess=guess), notes)


def batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Records in lists of BATCH, the last one shorter."""
    batch: list[Record] = []
    for record in records:
        batch.append(record)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _timed(record: Record, clock: float) -> Record:
    """The record, at a time that is one: a report takes differences of them."""
    return record if abs(record.time) < _END_OF_TIME else replace(record, time=clock)


def _known(name: str, path: Path) -> str:
    if name not in FORMATS:
        raise UsageError(
            mismatch("There is no such format.", f"one of {', '.join(FORMATS)}", name, f"choose {near(name, FORMATS)}")
        )
    check_there(path)
    return name


def _nothing(path: Path, name: str, notes: Notes) -> UsageError:
    lost = [f"{code.replace('_', ' ')}: {count}" for code, count in notes.lost.items() if count]
    told = [f"no numbers: {listed(notes.ignored)}"] if notes.ignored else []
    found = "; ".join([*lost, *told]) or "nothing"
    return UsageError(
        mismatch(
            "There are no numbers in it.",
            f"a log of format {name} with at least one number that has a step",
            f"{path}: {found}",
            "choose another file, another --format or another --step",
        )
    )
