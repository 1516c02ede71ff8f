"""What a cell of a table says: a number, a whole number, a moment."""

from __future__ import annotations

from datetime import UTC, datetime


def number(cell: object) -> float | None:
    """A number as float64, also "nan" and "inf" in any spelling; None when it is none."""
    if isinstance(cell, str) and "_" in cell:
        return None  # Python's own way to write 1_000; in a log it is a name
    if isinstance(cell, str | int | float):
        try:
            return float(cell)
        except (ValueError, OverflowError):
            return None
    return None


def whole(cell: object) -> int | None:
    """A whole number that fits an int64: 7, "7", 7.0 and "7.0" are 7. None when it is none."""
    if isinstance(cell, bool):
        return None
    exact = cell if isinstance(cell, int) else _integer(cell)
    if exact is None:
        value = number(cell)
        exact = int(value) if value is not None and value.is_integer() else None
    return exact if exact is not None and -(2**63) <= exact < 2**63 else None


def clock(cell: object) -> float | None:
    """A moment in seconds since the epoch: from seconds, from milliseconds, or from ISO 8601 (UTC unless it says).

    None when it is none: seconds since the start of a run are no moment.
    """
    value = number(cell)
    if value is not None:
        if 1e8 <= value < 1e11:
            return value
        return value / 1000 if 1e11 <= value < 1e14 else None
    try:
        moment = datetime.fromisoformat(cell) if isinstance(cell, str) else None
    except ValueError:
        return None
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _integer(cell: object) -> int | None:
    """Beyond 2**53 the way over a float would give another number."""
    try:
        return int(cell) if isinstance(cell, str) and "_" not in cell else None
    except ValueError:
        return None
