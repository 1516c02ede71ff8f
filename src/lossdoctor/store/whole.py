"""A file is there whole or not at all, whoever looks and whatever breaks off."""

from __future__ import annotations

import contextlib
from pathlib import Path


def replace_with(path: Path, told: str) -> None:
    """Put a text in a file's place, in one move: a reader sees the old one or the new one. Raises OSError."""
    draft = path.with_name(f".draft-{path.name}")
    try:
        draft.write_text(told, encoding="utf-8")
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
