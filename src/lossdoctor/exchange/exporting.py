"""A run, written for other programs, through the sinks that a training writes them with."""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType

from lossdoctor import sinks
from lossdoctor.errors import LossDoctorError, RunExistsError, RunWriteError, UsageError, mismatch
from lossdoctor.exchange.reading import batches
from lossdoctor.exchange.source import near
from lossdoctor.exchange.writing import Written, by_step
from lossdoctor.sinks import CSV, JSONL, Sink, TensorBoard
from lossdoctor.store import Run

TARGETS: MappingProxyType[str, Callable[[Path], Sink]] = MappingProxyType(
    {"csv": CSV, "jsonl": JSONL, "tensorboard": TensorBoard}
)
"""What can be written, by name. TensorBoard takes a folder, the others a file."""
SUFFIXES = MappingProxyType({".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", "": "tensorboard"})
"""What a path means without more words; a folder has no suffix."""


def export(
    run: Run,
    target: str | PathLike[str],
    *,
    format: str | None = None,
    select: Sequence[str] = (),
) -> Written:
    """Write a run into a new file or folder.

    format: one of TARGETS, or a sink of another package that is made from one path; by the suffix of the target by
    default. select: names or patterns (`loss/*`) of the metrics
    to write; all by default. CSV and JSONL hold every number bit for bit, JSONL the events too; TensorBoard keeps
    float32. Takes the memory of about a million points, however long the run.

    Raises UsageError for a format or a selection that cannot be, RunExistsError when the target is there already,
    RunWriteError when it cannot be written, MissingExtraError for TensorBoard without tensorboardX,
    PluginError when a sink of another package fails.
    """
    target = Path(target)
    found = _format(target, format)
    other = None if found in TARGETS else sinks.others()[found]
    make: Callable[..., Sink] = TARGETS[found] if other is None else sinks.loaded(other)
    names = _selected(run, select)
    _check_free(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, and moved there when it is whole: an export that is stopped leaves nothing behind.
        with tempfile.TemporaryDirectory(prefix=".lossdoctor-", dir=target.parent) as draft:
            written = _write(run, names, make(Path(draft) / target.name))
            _check_free(target)
            (Path(draft) / target.name).replace(target)
    except OSError as error:
        raise RunWriteError(
            mismatch(
                "The export cannot be written.",
                "a place to write in, with space",
                f"{target}: {error.strerror or error}",
                "free space, or choose another place",
            )
        ) from error
    except Exception as error:
        if other is None or isinstance(error, LossDoctorError):
            raise
        raise other.unusable("a sink that is made from one path and takes records", error) from error
    return written


def _write(run: Run, names: Sequence[str], sink: Sink) -> Written:
    points = first = last = 0
    try:
        sink.open({})
        for batch in batches(by_step(run, {name: name for name in names})):
            sink.write(batch)
            first = min(batch[0].step, first) if points else batch[0].step
            last = max(batch[-1].step, last) if points else batch[-1].step
            points += sum(len(record.values) for record in batch)
        for event in run.events:
            sink.event(event)
    finally:
        sink.close()
    return Written(len(names), points, first, last)


def _format(target: Path, name: str | None) -> str:
    found = SUFFIXES.get(target.suffix.lower(), "") if name is None else name
    if found not in TARGETS and (name is None or name not in sinks.others()):
        raise UsageError(
            mismatch(
                "It is not clear what to write." if name is None else "There is no such format.",
                f"one of {', '.join([*TARGETS, *sinks.others()])}",
                f"the suffix {target.suffix!r}" if name is None else repr(name),
                "end the name in .csv or .jsonl, or add --format",
            )
        )
    return found


def _selected(run: Run, select: Sequence[str]) -> list[str]:
    """The metrics of the run that a pattern matches, all without one."""
    names = list(run)
    if not names:
        raise UsageError(
            mismatch("The run is empty.", "at least one metric", repr(run), "choose a run that has measured something")
        )
    for pattern in select:
        if not any(_matches(name, pattern) for name in names):
            raise UsageError(
                mismatch(
                    "No metric of the run is meant.",
                    f"such as {near(pattern, names)}",
                    f"--select {pattern}",
                    "name a metric, or a pattern such as 'loss/*', in quotes so that the shell leaves it alone",
                )
            )
    return [name for name in names if not select or any(_matches(name, pattern) for pattern in select)]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _check_free(target: Path) -> None:
    try:
        taken = target.is_symlink() or (any(target.iterdir()) if target.is_dir() else target.exists())
    except OSError:
        taken = True
    if taken:
        raise RunExistsError(
            mismatch(
                "What is there is never written over.",
                "a new file, or a new or empty folder",
                f"{target}, which is there",
                "choose another name, or remove it yourself",
            )
        )
