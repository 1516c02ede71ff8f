"""The runs under one folder, and nothing else: names that a browser sends are looked up here, never made into paths.

Links are not followed: one that lies in the folder, put there by whoever may write into it, leads out of it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from lossdoctor.errors import RunError, mismatch

DEEP = 6
"""Folders below the one served in which runs are looked for."""

MOST = 1000
"""Runs that are listed."""

_OWN = re.compile(r"run(\.rank\d+)?\.db(-wal|-shm|-journal)?|events(\.rank\d+)?\.jsonl|meta\.json|effects\.json")
_TOLD = re.compile(r"events(\.rank\d+)?\.jsonl|effects\.json")
_RANK = re.compile(r"run\.rank\d+\.db")


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
        """Every run by its name: its folder, as seen from the root, with "/" between; the root itself is ".".

        Of a run of several ranks, the file of every other rank is found too, as a run in that folder.
        """
        found: dict[str, Path] = {}
        runs = 0
        for folder in self._folders(self.root, 0):
            own = _own(folder)
            if own is not None:
                ranks = (folder / name for name in own if _RANK.fullmatch(name))
                found |= {path.relative_to(self.root).as_posix(): path for path in (folder, *ranks)}
                runs += 1
                if runs == MOST:
                    break
        return found

    def sound(self, path: Path) -> bool:
        """Whether a run found earlier is still a folder of plain files, reached without a link."""
        folder = path.parent if of_other_rank(path) else path
        try:
            parts = folder.relative_to(self.root).parts
            if ".." in parts:
                return False
            steps = [self.root.joinpath(*parts[: place + 1]) for place in range(len(parts))]
            return all(stat.S_ISDIR(os.lstat(step).st_mode) for step in steps) and _own(folder) is not None
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


def of_other_rank(path: Path) -> bool:
    """Whether this is the file of a rank, and not the folder of a run."""
    return _RANK.fullmatch(path.name) is not None and not path.is_dir()


def told_beside(folder: Path) -> list[Path]:
    """What was written of a run beside its records, also after it has ended: events of all ranks, answers."""
    try:
        return sorted(folder / name for name in os.listdir(folder) if _TOLD.fullmatch(name))
    except OSError:
        return []


def _own(folder: Path) -> list[str] | None:
    """The files of the run in a folder; None where there is none, and where one of them is a link."""
    try:
        with os.scandir(folder) as entries:
            own = [entry for entry in entries if _OWN.fullmatch(entry.name)]
    except OSError:
        return None
    names = sorted(entry.name for entry in own)
    return names if "run.db" in names and all(entry.is_file(follow_symlinks=False) for entry in own) else None
