"""Errors and warnings as wide as the terminal: broken between words alone, so that a path stays in one piece."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

_BEGINNING = re.compile(r"\s*(?:(?:expected|got|to do):\s+)?")
"""What the rest of a line is put under: see `errors.mismatch`."""


def fitted(told: str, width: int | None = None) -> str:
    """The text with its long lines broken. width: by default of the terminal that standard error is; else none is."""
    width = _terminal() if width is None else width
    return told if width is None else "\n".join(_broken(line, width) for line in told.splitlines())


def _terminal() -> int | None:
    """Its columns. A log or a program gets whole lines: it breaks them itself, and searches them."""
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else None


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    found = _BEGINNING.match(line)
    beginning = found[0] if found and 2 * len(found[0]) < width else ""
    words = textwrap.wrap(
        line[len(beginning) :],
        width,
        initial_indent=beginning,
        subsequent_indent=" " * len(beginning),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(words)
