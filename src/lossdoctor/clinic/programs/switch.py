"""The switch in a program: which mistake is made this time, and the edits that undo it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lossdoctor.clinic.faults import BY_NAME
from lossdoctor.clinic.program import Program
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.reference.edits import edited

Broken = Callable[[str], bool]
"""Whether the fault of this name is switched on."""


def switched(program: Program, fault: str | None) -> Broken:
    """The question `broken(name)` that a program asks where it can go wrong; None switches nothing on.

    The edits that undo the fault are knobs of the program: an experiment arm that makes one leaves it without the
    fault. Raises UsageError, here and when asked, for a fault that the program does not have.
    """
    if fault is not None:
        _check(program, fault)
    return partial(_is_on, program, left(fault))


def left(fault: str | None) -> str | None:
    """The fault that is left in a program: none where the running experiment makes an edit that undoes it."""
    made = [edited(edit) for edit in (BY_NAME[fault].edits if fault in BY_NAME else ())]
    return None if any(made) else fault


def _is_on(program: Program, fault: str | None, name: str) -> bool:
    _check(program, name)
    return name == fault


def _check(program: Program, fault: str) -> None:
    if fault not in program.faults:
        rule, known = f"The program {program.name} has no such fault.", ", ".join(program.faults)
        raise UsageError(mismatch(rule, known, repr(fault), "name one of these, or None for a healthy run"))
