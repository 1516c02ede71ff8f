"""Errors of free integration by the number of solver steps, as they are at the end of a run."""

from __future__ import annotations

import math

from lossdoctor.rules.view import RunView


def errors(run: RunView, pattern: str) -> dict[int, float]:
    """Number of steps to error, finite ones only. pattern: of `keys.KEYS`, with one hole @K."""
    found = {int(holes["K"]): run.now(name) for name, holes in run.matching(pattern).items()}
    return {steps: error for steps, error in sorted(found.items()) if math.isfinite(error)}
