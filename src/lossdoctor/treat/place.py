"""Where a loss is beside its band, by the running mean and by the last measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Place:
    """mean, last: the ratios to the anchor, >= 0; NaN where the anchor has no gradient. low, high: the band, > 0."""

    loss: str
    anchor: str
    mean: float
    last: float
    low: float
    high: float

    @property
    def middle(self) -> float:
        """The geometric one of the band."""
        return math.sqrt(self.low * self.high)

    @property
    def wanted(self) -> float:
        """What the weight is to be multiplied with, if the ratio follows it; NaN where no ratio is known."""
        return self.middle / self.mean if math.isfinite(self.mean) and self.mean > 0 else math.nan

    @property
    def inside(self) -> bool:
        """Whether it is left alone: what the mean remembers and the last no longer sees is being made good already."""
        outside = max(self.mean, self.last) < self.low or min(self.mean, self.last) > self.high
        return not math.isnan(self.wanted) and not outside

    def soon(self, gain: float, measurements: int) -> bool:
        """Whether it comes into its band from below by itself. gain: of the logarithm of its ratio, per measurement."""
        return self.last > 0 and math.log(self.last) + measurements * gain > math.log(self.low)

    @property
    def facts(self) -> dict[str, Any]:
        """What a reason tells of it."""
        return {"ratio": self.mean, "anchor": self.anchor, "low": self.low, "high": self.high}
