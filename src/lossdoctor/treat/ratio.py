"""The gradient-ratio controller: each loss as strong beside the velocity as its kind wants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.treat.balancer import Advice, Balancer
from lossdoctor.treat.measured import Matrix, Measured, state_of
from lossdoctor.treat.reason import reason

BANDS: Mapping[str, tuple[float, float]] = {"distill": (0.2, 0.5), "kl": (0.1, 0.3)}
"""The method's: norm of the weighted gradient over that of the velocity's, by kind."""
_STUCK = 3
"""Measurements at a limit, or without a gradient, after which it stops."""


@dataclass(slots=True)
class RatioController(Balancer):
    """Factors that bring |w_i g_i| / |w_anchor g_anchor| into a band.

    bands: kind to (low, high), both > 0; other kinds are left alone. anchor: the kind that stays. memory: share of the
    old Gram in its running mean. slew: the largest factor of one change. limit: factors stay within 1/limit to limit.
    warmup: measurements before the first change. Inside its band a loss is left alone; outside it is moved to the
    band's geometric middle. Raises UsageError for bands or limits that cannot be.
    """

    bands: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(BANDS))
    anchor: str = "velocity"
    memory: float = 0.5
    slew: float = 4.0
    limit: float = 1e4
    warmup: int = 1
    name: str = "ratio"
    _gram: Matrix | None = None
    _names: tuple[str, ...] = ()
    _seen: int = 0
    _stuck: dict[str, int] = field(default_factory=dict)
    _stopped: str | None = None

    def __post_init__(self) -> None:
        wrong = [kind for kind, (low, high) in self.bands.items() if not 0 < low <= high < math.inf]
        if wrong or not 0 <= self.memory < 1 or self.slew <= 1 or self.limit < 1:
            expected = "bands 0 < low <= high, memory in [0, 1), slew > 1, limit >= 1"
            got = f"bands={dict(self.bands)}, memory={self.memory}, slew={self.slew}, limit={self.limit}"
            raise UsageError(mismatch("A ratio controller needs bands it can reach.", expected, got, "correct these"))

    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        """See `Balancer.advise`. Without exactly one loss of the anchor's kind nothing is changed, and it says so."""
        current = {name: float(factors.get(name, 1.0)) for name in seen.names}
        anchor = seen.of_kind(self.anchor)
        if anchor is None:
            self._stopped = reason("no_anchor", kind=self.anchor)
        if self._stopped is not None or anchor is None:
            return Advice(current, {}, self._stopped)
        strength = self._strength(seen, current)
        self._seen += 1
        reasons: dict[str, str] = {}
        if self._seen <= self.warmup:
            return Advice(current, reasons)
        for i, name in enumerate(seen.names):
            if i == anchor or seen.kinds[i] not in self.bands or seen.weights[i] == 0:
                continue
            low, high = self.bands[seen.kinds[i]]
            ratio = strength[i] / strength[anchor] if strength[anchor] > 0 else math.nan
            if math.isfinite(ratio) and low <= ratio <= high:
                self._stuck.pop(name, None)
                continue
            wanted = math.sqrt(low * high) / ratio if math.isfinite(ratio) and ratio > 0 else math.nan
            moved = self._moved(name, current[name], wanted)
            if moved != current[name]:
                reasons[name] = reason("band", ratio=ratio, anchor=seen.names[anchor], low=low, high=high)
                current[name] = moved
        return Advice(current, reasons, self._stopped)

    def _strength(self, seen: Measured, factors: Mapping[str, float]) -> Matrix:
        """(K,) norms of the weighted gradients, of the mean Gram: ratios of single batches would be too noisy."""
        if self._gram is None or self._names != seen.names:
            self._gram, self._names = seen.gram, seen.names
        self._gram = self.memory * self._gram + (1 - self.memory) * seen.gram
        own = np.sqrt(np.clip(np.diagonal(self._gram), 0.0, None))
        return np.asarray(own * np.abs(seen.weights) * np.array([factors[name] for name in seen.names]))

    def _moved(self, name: str, factor: float, wanted: float) -> float:
        if math.isnan(wanted):
            self._count(name, reason("no_gradient", loss=name))
            return factor
        step = min(max(wanted, 1 / self.slew), self.slew)
        moved = min(max(factor * step, 1 / self.limit), self.limit)
        if moved == factor:
            self._count(name, reason("at_limit", loss=name, factor=factor))
        else:
            self._stuck.pop(name, None)
        return moved

    def _count(self, name: str, why: str) -> None:
        self._stuck[name] = self._stuck.get(name, 0) + 1
        if self._stuck[name] >= _STUCK:
            self._stopped = why

    def state_dict(self) -> dict[str, Any]:
        """See `Balancer.state_dict`."""
        told = {"gram": self._gram, "names": list(self._names), "seen": self._seen}
        return state_of({**told, "stuck": dict(self._stuck), "stopped": self._stopped})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Balancer.load_state_dict`."""
        gram = state["gram"]
        self._gram = None if gram is None else np.array(gram, np.float64)
        self._names, self._seen = tuple(state["names"]), int(state["seen"])
        self._stuck, self._stopped = dict(state["stuck"]), state["stopped"]
