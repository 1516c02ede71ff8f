"""The runs under one folder, and nothing else: names that a browser sends are looked up here, never made into paths.

Links are not followed: one that lies in the folder, put there by whoever may write into it, leads out of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from lossdoctor.errors import RunError, mismatch
from lossdoctor.report.page.experiments import ANSWERS

DEEP = 6
"""Folders below the one served in which runs are looked for."""

MOST = 1000
"""Runs that are listed."""

ANSWERED = ("events.jsonl", ANSWERS)
"""What may be written of a run beside its records, also after it has ended."""

_OWN = ("run.db", "run.db-wal", "run.db-shm", "meta.json", *ANSWERED)


class Runs:
    """Finds the runs under a folder. Raises RunError when it is none."""

    def __init__(self, root: Path) -> None:
        try:
            self.root = root.resolve(strict=True)
            with os.scandir(self.root):
                pass
        except OSError as error:
            raise RunError(
                mismatch("There is no folder to serve.", "a folder with runs in it", f"{root}: {error}", "name another")
            ) from error

    def found(self) -> dict[str, Path]:
        """Every run by its name: its folder, as seen from the root, with "/" between; the root itself is "."."""
        runs = {}
        for folder in self._folders(self.root, 0):
            if _whole(folder):
                runs[folder.relative_to(self.root).as_posix()] = folder
                if len(runs) == MOST:
                    break
        return runs

    def sound(self, folder: Path) -> bool:
        """Whether a run found earlier is still a folder of plain files, reached without a link."""
        try:
            parts = folder.relative_to(self.root).parts
            if ".." in parts:
                return False
            steps = [self.root.joinpath(*parts[: place + 1]) for place in range(len(parts))]
            return all(stat.S_ISDIR(os.lstat(step).st_mode) for step in steps) and _whole(folder)
        except (OSError, ValueError):
            return False

    def _folders(self, folder: Path, depth: int) -> Iterator[Path]:
        yield folder
        if depth == DEEP:
            return
        try:
            with os.scandir(folder) as entries:
                below = sorted(
                    entry.name
                    for entry in entries
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
                )
        except OSError:  # no leave to look, or gone meanwhile
            return
        for name in below:
            yield from self._folders(folder / name, depth + 1)


def _whole(folder: Path) -> bool:
    """A run file there, and none of the files of a run a link."""
    try:
        if not stat.S_ISREG(os.lstat(folder / "run.db").st_mode):
            return False
    except OSError:
        return False
    return not any((folder / name).is_symlink() for name in _OWN)
