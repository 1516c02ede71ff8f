"""Between processes: one at a time. The lock goes when its process goes, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in a block with the same path. The file stays: to remove it would part the lock.

    On a file system without locks nothing is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for(file)
        yield
    finally:
        os.close(file)


if sys.platform == "win32":
    import msvcrt

    def _wait_for(file: int) -> None:
        while True:
            try:
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            except PermissionError:
                time.sleep(0.1)
            else:
                return

else:
    import fcntl

    def _wait_for(file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise
