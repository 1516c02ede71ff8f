"""What a format is given to read from, and where it notes down what it could not read."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lossdoctor.errors import UsageError, mismatch

SHOWN = 12
"""Names listed in a message; the rest is counted."""


@dataclass
class Notes:
    """What came of the reading besides the numbers.

    lost: by code (`import.lost.<code>` in the message catalogues) how much could not be read. ignored: by name how many
    values were there that are no numbers. step: the column the steps are from, where there was a choice. events: what
    happened in the run, for a log that tells.
    """

    lost: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    step: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A file or folder, and what the user said about it.

    run: which of several runs in it. step: the column that holds the step. clock: the wall clock, in seconds since the
    epoch, of records that have none of their own.
    """

    path: Path
    run: str | None = None
    step: str | None = None
    clock: float = 0.0
    notes: Notes = field(default_factory=Notes)

    def choose(self, runs: Mapping[str, Iterable[str]]) -> str:
        """The run to read. runs: every run there is by its label, with other names it is known by.

        Raises UsageError when there are several and none was named, or none has the name given.
        """
        if not runs:
            raise unreadable(self.path, "there is no run in it")
        if self.run is None:
            if len(runs) == 1:
                return next(iter(runs))
            raise UsageError(
                mismatch(
                    "There are several runs in it.",
                    "--run with one of them",
                    f"{self.path}, which holds {_told(runs)}",
                    f"lossdoctor import {self.path} --run NAME",
                )
            )
        if self.run in runs:
            return self.run
        found = [label for label, others in runs.items() if self.run in others]
        if len(found) == 1:
            return found[0]
        raise UsageError(
            mismatch(
                "There is no such run in it." if not found else "Several runs have this name.",
                f"one of {_told(found or runs)}",
                f"--run {self.run}",
                "take one of these, as it is written here",
            )
        )

    def one_run(self) -> None:
        """Raises UsageError when a run was named where there are no names."""
        if self.run is not None:
            raise UsageError(
                mismatch(
                    "There is only one run in it.", "no --run", f"--run {self.run}", "leave --run out for this file"
                )
            )

    def own_steps(self) -> None:
        """Raises UsageError when a step column was named where the steps are beyond doubt."""
        if self.step is not None:
            raise UsageError(
                mismatch(
                    "This log says itself which step a number belongs to.",
                    "no --step",
                    f"--step {self.step}",
                    "leave --step out; it is for tables",
                )
            )


def check_there(path: Path) -> None:
    """Raises UsageError when there is neither file nor folder."""
    if not path.exists():
        raise UsageError(mismatch("There is no log there.", "a file or folder", str(path), "check the path"))
    if not (path.is_file() or path.is_dir()):
        got, todo = f"{path}, a pipe or a device", "write it into a file first: it has to be read twice"
        raise UsageError(mismatch("This is no file.", "a file or folder", got, todo))


def unreadable(path: Path, reason: object) -> UsageError:
    """The error for a file that is the right one, and cannot be read."""
    return UsageError(
        mismatch(
            "The log cannot be read.",
            "a whole file, and leave to read it",
            f"{path}: {reason}",
            "copy it again, or export it again from the program that wrote it",
        )
    )


def listed(names: Iterable[str]) -> str:
    """Names in one line, the first few of many. They may be any text: shown as Python would."""
    names = list(names)
    rest = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {rest} more" if rest > 0 else "")


def near(name: str, names: Iterable[str]) -> str:
    """The names meant most likely, else the first few."""
    names = list(names)
    return listed(difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names)


def _told(runs: Mapping[str, Iterable[str]] | Iterable[str]) -> str:
    """Labels, each with what else the run is called."""
    known = runs if isinstance(runs, Mapping) else dict.fromkeys(runs, ())
    told = [f"{label!r}" + "".join(f" ({name!r})" for name in others) for label, others in known.items()]
    rest = len(told) - SHOWN
    return ", ".join(told[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
