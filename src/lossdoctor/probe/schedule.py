"""When a step is measured in full. A schedule knows neither what is measured nor who reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lossdoctor.errors import UsageError, mismatch


class Schedule(Protocol):
    """Decides from the step number alone, so that every rank and every repetition measures the same steps."""

    def due(self, step: int) -> bool:
        """Whether optimizer step `step` (0 is the first) is measured in full."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """Every n-th step, beginning with step 0."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(mismatch("every= must be a positive number of steps", ">= 1", str(self.n), "use every=50"))

    def due(self, step: int) -> bool:
        """Whether n divides `step`."""
        return step % self.n == 0


@dataclass(frozen=True, slots=True)
class When:
    """A user's own rule: any function of the step number."""

    rule: Callable[[int], bool]

    def due(self, step: int) -> bool:
        """What the rule says."""
        return bool(self.rule(step))


def schedule(every: int | Callable[[int], bool] | Schedule) -> Schedule:
    """An int n, a function of the step, or a schedule as it is."""
    if isinstance(every, bool) or not (isinstance(every, int) or callable(every) or hasattr(every, "due")):
        raise UsageError(
            mismatch(
                "every= says which steps are measured in full",
                "an int, a function step -> bool, or an object with due(step)",
                repr(every),
                "use every=50",
            )
        )
    if isinstance(every, int):
        return Every(every)
    return every if hasattr(every, "due") else When(every)
