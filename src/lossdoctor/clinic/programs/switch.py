"""The switch in a program: which mistake is made this time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lossdoctor.clinic.program import Program
from lossdoctor.errors import UsageError, mismatch

Broken = Callable[[str], bool]
"""Whether the fault of this name is switched on."""


def switched(program: Program, fault: str | None) -> Broken:
    """The question `broken(name)` that a program asks where it can go wrong; None switches nothing on.

    Raises UsageError, here and when asked, for a fault that the program does not have.
    """
    if fault is not None:
        _check(program, fault)
    return partial(_is_on, program, fault)


def _is_on(program: Program, fault: str | None, name: str) -> bool:
    _check(program, name)
    return name == fault


def _check(program: Program, fault: str) -> None:
    if fault not in program.faults:
        rule, known = f"The program {program.name} has no such fault.", ", ".join(program.faults)
        raise UsageError(mismatch(rule, known, repr(fault), "name one of these, or None for a healthy run"))
