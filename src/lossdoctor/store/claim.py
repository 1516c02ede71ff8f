"""Taking a folder for one writer: ours alone, ours at all, and not by mistake."""

from __future__ import annotations

import errno
import os
import sys

from lossdoctor.errors import RunError, RunExistsError, RunLockedError, RunWriteError, mismatch
from lossdoctor.store.folder import Folder
from lossdoctor.store.layout import APPLICATION_ID

_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def claim(folder: Folder, *, resume: bool) -> int:
    """Make the folder, open and lock its events, and return that open file; it stays open as long as the writer lives.

    The lock goes when the process goes, however it ends. Raises RunWriteError, RunLockedError, RunExistsError and
    RunError as `RunWriter` tells.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        _refuse_others(folder)
        events = os.open(folder.events, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        if not _lock(events):
            raise RunLockedError(
                mismatch(
                    "Two programs would write one run.",
                    "a run nobody is writing",
                    f"{folder.path} is being written by another process, or by another Doctor of this one",
                    "choose another folder, or wait until the other has ended",
                )
            )
        if _size(folder.database) and not resume:
            raise RunExistsError(
                mismatch(
                    "The folder already holds a run.",
                    "an empty or new folder, or resume=True",
                    str(folder.database),
                    "choose another folder, or pass resume=True to go on with this run",
                )
            )
        _end_torn_line(events)
    except OSError as error:
        os.close(events)
        raise cannot_write(folder, error) from error
    except BaseException:
        os.close(events)
        raise
    return events


def cannot_write(folder: Folder, error: BaseException) -> RunWriteError:
    """The one text for a disk that does not take the run."""
    return RunWriteError(
        mismatch(
            "The run cannot be written.",
            "a folder that can be created and written, on a disk with space",
            f"{folder.path}: {error}",
            "free space or choose another folder; what is measured meanwhile stays in memory",
        )
    )


def _refuse_others(folder: Folder) -> None:
    """Touch nothing of others: no database of another program, no meta.json and no events that belong to no run."""
    if _size(folder.database):
        with open(folder.database, "rb") as file:
            head = file.read(72)
        # An SQLite header: its magic word, and the application id at byte 68.
        if not head.startswith(b"SQLite format 3\0") or head[68:72] != APPLICATION_ID.to_bytes(4, "big"):
            raise RunError(_foreign(folder.database.name, folder))
    else:
        for path in (folder.events, *([folder.meta] if folder.rank == 0 else [])):
            if _size(path):
                raise RunError(_foreign(path.name, folder))


def _foreign(name: str, folder: Folder) -> str:
    return mismatch(
        "The folder has a file of somebody else, where the run would have its own.",
        f"no {name}, or one written by lossdoctor",
        str(folder.path / name),
        "choose another folder",
    )


def _size(path: os.PathLike[str]) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def _end_torn_line(events: int) -> None:
    """A line cut off by a crash stays alone: the next event begins on a line of its own."""
    size = os.fstat(events).st_size
    if size:
        os.lseek(events, size - 1, os.SEEK_SET)
        if os.read(events, 1) != b"\n":
            os.write(events, b"\n")


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> bool:
        os.lseek(file, 1 << 40, os.SEEK_SET)  # far behind the end, so that readers may read
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _lock(file: int) -> bool:
        """False when another writer holds it. Where there are no locks, recording unprotected beats not recording."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise
        return True
