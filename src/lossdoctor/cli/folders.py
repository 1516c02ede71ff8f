"""Where a command puts its results: never over the results of an earlier one."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from lossdoctor.errors import RunExistsError, RunWriteError, mismatch


def next_free(base: Path) -> Path:
    """Make the first of base, base-2, base-3, ... that does not exist. Two processes never get the same one.

    Raises RunWriteError when no folder can be made there.
    """
    for number in itertools.count(1):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.parent.is_dir():
                continue
            raise _unwritable(folder, f"{folder.parent} is not a folder") from None
        except OSError as error:
            raise _unwritable(folder, error.strerror or str(error)) from error
        return folder
    raise AssertionError("counting does not end")


def chosen(folder: Path) -> Path:
    """Make a folder that the user has named, or take it when it is empty.

    Raises RunExistsError when there is something in it, RunWriteError when nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = next(iter(sorted(path.name for path in folder.iterdir())), None)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from error
    if found is not None:
        raise RunExistsError(
            mismatch(
                "The results of a run go into a folder of their own.",
                "a new or empty folder",
                f"{folder}, which holds {found}",
                "choose another folder, or remove this one yourself",
            )
        )
    return folder


def _unwritable(folder: Path, reason: str) -> RunWriteError:
    return RunWriteError(
        mismatch(
            "The folder for the results cannot be written.",
            "a folder to write in",
            f"{folder}: {reason}",
            "choose another with --out",
        )
    )


def written(path: Path, told: str) -> None:
    """Write a text into a file the user has named, whole or not at all. Raises RunWriteError when that cannot be."""
    from lossdoctor.store.whole import replace_with

    try:
        replace_with(path, told)
    except OSError as error:
        got = f"{path}: {error.strerror or error}"
        raise RunWriteError(
            mismatch("The file cannot be written.", "a place to write in", got, "choose another with --output")
        ) from error
