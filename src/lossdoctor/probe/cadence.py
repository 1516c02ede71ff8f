"""Schedules beyond every n-th step: dense at first, off the beat of the training, or as often as time allows."""

from __future__ import annotations

import bisect
import math
import random
import statistics
from collections import deque
from dataclasses import dataclass, field

from lossdoctor.errors import UsageError, mismatch


@dataclass(frozen=True, slots=True)
class LogSpaced:
    """About `per_decade` steps in every decade: all at first, ever fewer later. Of 10^6 steps, 20 a decade are 114."""

    per_decade: int = 20

    def __post_init__(self) -> None:
        if self.per_decade < 1:
            raise UsageError(
                mismatch("A decade has steps that are measured", "per_decade >= 1", str(self.per_decade), "use 20")
            )

    def due(self, step: int) -> bool:
        """Whether `step` + 1 is the first whole number at or above a power of 10^(1 / per_decade)."""
        here = step + 1
        return step == 0 or math.floor(self.per_decade * math.log10(here)) > math.floor(
            self.per_decade * math.log10(here - 1)
        )


@dataclass(frozen=True, slots=True)
class Jittered:
    """One step in every n, at a place drawn anew each time: it cannot fall into step with what a training does in turn.

    Step 0 is always due. The same seed gives the same steps, on every rank.
    """

    n: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(mismatch("One step in n is measured", "n >= 1", str(self.n), "use Jittered(50)"))

    def due(self, step: int) -> bool:
        """Whether `step` is the one drawn of its n."""
        lot, place = divmod(step, self.n)
        return place == (random.Random(f"{self.seed} {lot}").randrange(self.n) if lot else 0)


_ROUND = [m * 10**k for k in range(9) for m in (1, 2, 5)]


@dataclass(slots=True)
class ShareOfTime:
    """Every n-th step, with n as small as it can be while measuring takes at most this share of the time.

    share: in (0, 1). n is a round number (1, 2, 5, 10, ...): 10 until the second due step has told the cost, and then
    it changes as that or the steps do. Told by clocks, so that two runs may measure different steps.
    """

    share: float
    n: int = 10
    _plain: deque[float] = field(default_factory=lambda: deque(maxlen=50), repr=False)
    _due: deque[float] = field(default_factory=lambda: deque(maxlen=5), repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(
                mismatch("every= is a share of the time", "between 0 % and 100 %", f"{self.share:%}", "1%")
            )

    def due(self, step: int) -> bool:
        """Whether the present n divides `step`."""
        return step % self.n == 0

    def took(self, step: int, seconds: float) -> None:
        """How long a step took, from the end of the one before to its own."""
        if not self.due(step):
            self._plain.append(seconds)
        elif step:  # the first step of all is slow for other reasons
            self._due.append(seconds)
        if self._plain and self._due:
            plain = statistics.median(self._plain)
            extra = max(0.0, statistics.median(self._due) - plain)
            least = extra / (self.share * plain) if plain > 0 else math.inf
            self.n = _ROUND[min(bisect.bisect_left(_ROUND, least), len(_ROUND) - 1)]
