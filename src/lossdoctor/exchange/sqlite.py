"""Other programs' SQLite files, opened to read and for nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from lossdoctor.exchange.source import unreadable

MAGIC = b"SQLite format 3\0"
_BUSY_SECONDS = 10.0


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, as it is at this moment. Raises UsageError for whatever SQLite finds wrong with it."""
    try:
        # A path as URI cannot smuggle in options; mode=ro never creates, changes or repairs a file.
        uri = path.absolute().as_uri() + "?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
            # Text that is not UTF-8 is damage in one cell, not the end of the file.
            connection.text_factory = lambda text: text.decode("utf-8", "replace")
            connection.execute("BEGIN")
            yield connection
    except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
        # A damaged file shows in many ways; even the message about it may be no text.
        raise unreadable(path, error) from error


def columns(path: Path, table: str) -> frozenset[str]:
    """The columns of a table; empty when there is none, or the file is damaged."""
    try:
        with reading(path) as connection:
            return frozenset(name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,)))
    except ValueError:
        return frozenset()
