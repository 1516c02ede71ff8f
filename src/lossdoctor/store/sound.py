"""What of a record can be stored. Numbers come from users' code, and one that is none must not lose the others."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable

from lossdoctor.record import Record

_FLOAT64 = struct.Struct("<d")


def sound(record: Record, on_reject: Callable[[str, str], None]) -> Record | None:
    """The record with every number a float, or None when there is no step to file it under.

    on_reject(name, reason): told of each value that is no number (text is none), of each name that is no text, and of a
    step that is no int64.
    """
    try:
        step = operator.index(record.step)
        if not -(2**63) <= step < 2**63:
            raise OverflowError("a step is an int64")
        clock, given = _number(record.time), dict(record.values)
    except Exception as error:
        on_reject("step", f"the record has no step, time or values that can be stored: {error}")
        return None
    values = {}
    for name, value in given.items():
        try:
            name.encode("utf-8", "surrogatepass")
            values[name] = _number(value)
        except Exception as error:
            on_reject(str(name), f"no text and float64: {type(name).__name__} and {type(value).__name__} ({error})")
    return Record(step, values, full=bool(record.full), time=clock)


def _number(value: object) -> float:
    number: float = _FLOAT64.unpack(_FLOAT64.pack(value))[0]
    return number
