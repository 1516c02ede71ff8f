"""Cosine re-weighting: a loss whose gradient opposes the main one's weighs less, after Du et al. 2018 (1812.02224)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.treat.balancer import Advice, Balancer
from lossdoctor.treat.measured import Measured, cosines
from lossdoctor.treat.reason import reason


@dataclass(slots=True)
class CosineWeighting(Balancer):
    """The factor of every other loss falls with its mean cosine with the main one's gradient.

    1 for a cosine of 0 or more, as orthogonal gradients are no conflict; `floor` for one of -1, with a line between.
    main: the kind that keeps its weight. memory: share of the old cosine in its running mean.
    Raises UsageError for a floor outside [0, 1] or a memory outside [0, 1).
    """

    main: str = "velocity"
    floor: float = 0.05
    memory: float = 0.8
    name: str = "cosine"
    _mean: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (0 <= self.floor <= 1 and 0 <= self.memory < 1):
            got = f"floor={self.floor}, memory={self.memory}"
            raise UsageError(mismatch("Cosine weighting.", "floor in [0, 1], memory in [0, 1)", got, "correct these"))

    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        """See `Balancer.advise`."""
        current = {name: float(factors.get(name, 1.0)) for name in seen.names}
        main = seen.of_kind(self.main)
        if main is None:
            return Advice(current, {}, reason("no_main", kind=self.main))
        with_main = cosines(seen.gram)[main]
        reasons = {}
        for i, name in enumerate(seen.names):
            if i == main:
                continue
            cosine = float(with_main[i])
            mean = self._mean[name] = self.memory * self._mean.get(name, cosine) + (1 - self.memory) * cosine
            current[name] = max(self.floor, min(1.0, 1.0 + mean * (1.0 - self.floor)))
            if mean < 0:
                reasons[name] = reason("cosine", cosine=mean, main=seen.names[main])
        return Advice(current, reasons)

    def state_dict(self) -> dict[str, Any]:
        """See `Balancer.state_dict`."""
        return {"mean": dict(self._mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Balancer.load_state_dict`."""
        self._mean = {str(name): float(value) for name, value in state["mean"].items()}
