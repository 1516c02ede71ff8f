"""A weight that is raised again and again, and whether its gradient follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossdoctor.treat.reason import reason

RAISES, FAR = 3, 8.0
"""In a row, and what they come to, after which the ratio must have followed."""
FOLLOWED = 0.25
"""Of the logarithm of what the weight was multiplied with, the least the ratio must have moved by then."""
SETTLED = 10
"""Measurements in the band after which the raises that led there are forgotten."""
PATIENCE = 10
"""Measurements below the band, after raises in vain, that are a reason to give up."""


@dataclass(slots=True)
class Chase:
    """ratio, factor: before the first raise. raises: how many since. settled: measurements in the band in a row.

    vain: why the weight is not raised any more; None while it is. waited: measurements below the band since then.
    """

    ratio: float
    factor: float
    raises: int = 0
    settled: int = 0
    vain: str | None = None
    waited: int = 0

    def follows(self, name: str, ratio: float, factor: float) -> bool:
        """Whether one more raise is worth it. ratio, factor: now, > 0, of the loss `name`."""
        self.raises, self.settled = self.raises + 1, 0
        given, gained = factor / self.factor, ratio / self.ratio
        if self.raises <= RAISES or given < FAR or math.log(gained) >= FOLLOWED * math.log(given):
            return True
        self.vain = reason("in_vain", loss=name, given=given, gained=gained)
        return False

    def over(self) -> bool:
        """After a measurement in the band: whether there is nothing more to remember."""
        self.settled += 1
        return self.vain is None and self.settled >= SETTLED

    def hopeless(self) -> bool:
        """After a measurement below the band and raises in vain: whether it has been so for long."""
        self.waited += 1
        return self.waited >= PATIENCE
