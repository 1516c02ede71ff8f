"""What is on its way by intention: weights and temperatures on a schedule, weights that a balancer still moves.

A rising KL is healthy while its weight rises. What rules judge begins where the last of these has come to its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lossdoctor.record import Series

TEMPERATURES = ("teacher_temp", "student_temp")
"""Names of schedules that change what a distillation learns from."""

_FULL = 0.9
"""Share of its last value from which on a weight counts as full."""
_RISES = 0.01
"""Relative rise over the last tenth of a run from which on a weight is still rising: a linear warm-up that ends with
the run has 0.11 there, one in the form of a cosine 0.016 to 0.025."""
SETTLING = ("ratio",)
"""Balancers that leave the weights alone once they are right; the others never do."""
_NEAR = 2.0
"""Factor within which a controller that has arrived still follows the training."""


def ends_of(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The step at which each declared schedule ends, by what it moves: `weight/<loss>`, a name such as teacher_temp.

    Infinite for one that names no end.
    """
    found = {}
    for event in events:
        if event.get("kind") == "schedule" and isinstance(event.get("target"), str):
            until = event.get("until")
            found[event["target"]] = float(until) if isinstance(until, (int, float)) else math.inf
    return found


def near_from(factor: Series) -> int:
    """The first step from which the factor of a balancer stays within half and twice its last value; 0 for none."""
    if not len(factor):
        return 0
    size, last = np.abs(factor.values), abs(factor.values[-1])
    far = np.flatnonzero((size > _NEAR * last) | (_NEAR * size < last))
    return int(factor.steps[0 if not len(far) else int(far[-1]) + 1])


def full_from(weight: Series) -> int:
    """The first step from which a weight stays within 10 % of where it ends, or above it; 0 for none."""
    if not len(weight):
        return 0
    small = np.abs(weight.values) < _FULL * abs(weight.values[-1])
    if not small.any():
        return int(weight.steps[0])
    # The last weight is never below itself, so there is a step after the last small one.
    return int(weight.steps[int(np.flatnonzero(small)[-1]) + 1])


def still_rises(weight: Series) -> bool:
    """Whether a weight was well below its last value once and rises to the end, never falling in the last tenth."""
    size = np.abs(weight.values)
    last = size[-max(3, len(size) // 10) :]
    if len(size) < 3 or not size.min() < _FULL * size[-1]:
        return False
    return bool((np.diff(last) >= 0).all() and last[-1] > (1 + _RISES) * last[0])
