"""When a step is measured in full. A schedule knows neither what is measured nor who reads it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.probe.cadence import LogSpaced, ShareOfTime


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
class Settling:
    """Every n-th step, and ten times as often in the first 2 n steps: for what acts on what it measures.

    Weights that are wrong by a factor of 100 leave a mark on the model while they wait for a measurement.
    """

    n: int

    def due(self, step: int) -> bool:
        """Whether n divides `step`, or a tenth of n does at the beginning."""
        return step % self.n == 0 or (step < 2 * self.n and step % max(1, self.n // 10) == 0)


@dataclass(frozen=True, slots=True)
class When:
    """A user's own rule: any function of the step number."""

    rule: Callable[[int], bool]

    def due(self, step: int) -> bool:
        """What the rule says."""
        return bool(self.rule(step))


LOOK_AHEAD = 100_000
"""Steps a schedule is asked ahead where several ranks follow it."""


class Together:
    """A schedule that several ranks follow as one: rank 0's, asked ahead at every meeting of the ranks.

    Until the first meeting each rank asks its own. A schedule that is no function of the step alone (of the clock, say)
    cannot be asked ahead; what it says when it is asked counts. Not due within `LOOK_AHEAD` steps is never due again.
    """

    def __init__(self, own: Schedule) -> None:
        self._own = own
        self._plan: frozenset[int] | None = None

    def __repr__(self) -> str:
        return repr(self._own)

    def due(self, step: int) -> bool:
        """Whether all ranks measure `step`, one of those up to the next meeting."""
        return self._own.due(step) if self._plan is None else step in self._plan

    def ahead(self, step: int) -> int | None:
        """In how many steps this rank's own schedule is due next; None when it is not within `LOOK_AHEAD` steps."""
        return next((n for n in range(1, LOOK_AHEAD + 1) if self._own.due(step + n)), None)

    def agree(self, step: int, due: bool, ahead: int | None) -> None:
        """Follow rank 0: whether it measures `step`, and in how many steps the next one."""
        self._plan = frozenset(([step] if due else []) + ([] if ahead is None else [step + ahead]))

    def forget(self) -> None:
        """Ask this rank's own schedule again, until the next meeting."""
        self._plan = None


def schedule(every: int | str | Callable[[int], bool] | Schedule) -> Schedule:
    """An int n, "log", a share of the time such as "1%", a function of the step, or a schedule as it is."""
    if isinstance(every, str):
        return _named(every)
    if isinstance(every, bool) or not (isinstance(every, int) or callable(every) or hasattr(every, "due")):
        raise UsageError(
            mismatch(
                "every= says which steps are measured in full",
                _EVERY,
                repr(every),
                "use every=50",
            )
        )
    if isinstance(every, int):
        return Every(every)
    return every if hasattr(every, "due") else When(every)


_EVERY = 'an int, "log", a share of the time such as "1%", a function step -> bool, or an object with due(step)'


def _named(every: str) -> Schedule:
    if every == "log":
        return LogSpaced()
    try:
        return ShareOfTime(float(every.strip().removesuffix("%")) / (100 if every.strip().endswith("%") else math.nan))
    except (ValueError, UsageError) as error:
        raise UsageError(
            mismatch("every= says which steps are measured in full", _EVERY, repr(every), "use every=50")
        ) from error
