"""Text files that grow over several runs of a script, and are nobody else's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from lossdoctor.errors import UsageError, mismatch


def open_to_append(
    path: Path, *, kind: str, ours: Callable[[bytes], bool], whole: Callable[[Path], int]
) -> tuple[TextIO, bool]:
    """The file, open at its end, and whether it is empty. What UTF-8 cannot hold (lone surrogates) is written escaped.

    ours(first_line): whether a file that is there is one of this kind; otherwise UsageError. whole(path): the size of
    its complete part; what a crash left behind it is removed, for half a number is a wrong number. Raises OSError when
    the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size if path.exists() else 0
    if size:
        with open(path, "rb") as file:
            first = file.readline()
        if not ours(first):
            raise UsageError(
                mismatch(
                    "The file is somebody else's.",
                    f"no file, or one written by this sink ({kind})",
                    f"{path}, which begins with {first[:80]!r}",
                    "choose another path",
                )
            )
        if (complete := whole(path)) < size:
            os.truncate(path, complete)
            size = complete
    return open(path, "a", encoding="utf-8", errors="backslashreplace", newline=""), not size
