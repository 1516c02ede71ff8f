"""Numbers for human eyes: what a `g` in a message means, and the tables of the reports beside it.

Python's own `g` turns 510 at two digits into 5.1e+02. Here an exponent is left to what is too small or too large to be
read without one, and is written as one types it: 3.4e-6.
"""

from __future__ import annotations

import math
import re
import string
from numbers import Real
from typing import Any

_SPEC = re.compile(r"(?:\.(\d+))?g")
_SMALLEST, _LARGEST = 1e-4, 1e6
"""Between them there is no exponent."""


def readable(value: float, digits: int, *, padded: bool = False) -> str:
    """At least the leading `digits` digits: 0.012, 510, 1,230, 3.4e-6; those of a whole number are all kept.

    padded: as a column of numbers has them, with the zeros at the end, 12.0, and two digits where there is an exponent.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not _SMALLEST <= abs(value) < _LARGEST:
        mantissa, exponent = f"{value:.{min(digits, 2) - 1 if padded else digits - 1}e}".split("e")
        return f"{mantissa if padded else _short(mantissa)}e{int(exponent)}"
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    told = f"{value:,.{max(0, digits - 1 - magnitude)}f}"
    return told if padded else _short(told)


def _short(told: str) -> str:
    return told.rstrip("0").rstrip(".") if "." in told else told


class Formatter(string.Formatter):
    """`str.format` in which `g` is for people. With digits, `.2g`, a number is measured and `readable`; without them a
    person has chosen it, and it is written as it was chosen: 1, 0.5, 30000, 1e-5."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """One hole of a message."""
        kind = _SPEC.fullmatch(format_spec)
        if kind is None or not isinstance(value, Real):
            return str(super().format_field(value, format_spec))
        if kind[1] is not None:
            return readable(float(value), int(kind[1]))
        return readable(float(value), 6).replace(",", "")
