"""The gradient-ratio controller: each loss as strong beside the velocity as its kind wants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
_CHASE, _FAR = 3, 8.0
"""Moves the same way, and what they come to, after which the ratio must have followed."""
_FOLLOWED = 0.25
"""Of the logarithm of what the weight was multiplied with, the least the ratio must have moved by then."""
_SETTLED = 10
"""Measurements in the band after which the moves that led there are forgotten."""


@dataclass(slots=True)
class _Chase:
    """Moves the same way, one after the other. ratio, factor: before the first. settled: measurements in the band."""

    ratio: float
    factor: float
    up: bool
    moves: int = 0
    settled: int = 0


@dataclass(slots=True)
class RatioController(Balancer):
    """Factors that bring |w_i g_i| / |w_anchor g_anchor| into a band.

    bands: kind to (low, high), both > 0; other kinds are left alone. anchor: the kind that stays. memory: share of the
    old Gram in its running mean. slew: the largest factor of one change. limit: factors stay within 1/limit to limit.
    warmup: measurements that are passed over, as gradients at the initial weights are unlike any later. Inside its band
    a loss is left alone; one that is outside by the running mean and by the last measurement too, on the same side, is
    moved to the band's geometric middle. It stops, and says why, when a loss has no gradient, stays at its limit, or
    answers a larger weight with a smaller gradient, whose weight it then puts back. A loss that shares no parameter
    with the anchor (an inner product of exactly 0) is left alone. Raises UsageError for bands or limits that cannot be.
    """

    bands: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(BANDS))
    anchor: str = "velocity"
    memory: float = 0.5
    slew: float = 16.0
    limit: float = 1e4
    warmup: int = 1
    name: str = "ratio"
    _gram: Matrix | None = None
    _names: tuple[str, ...] = ()
    _seen: int = 0
    _stuck: dict[str, int] = field(default_factory=dict)
    _chases: dict[str, _Chase] = field(default_factory=dict)
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
        self._seen += 1
        reasons: dict[str, str] = {}
        if self._seen <= self.warmup:
            return Advice(current, reasons)
        mean, last = self._strengths(seen, current)
        banded = [i for i, kind in enumerate(seen.kinds) if i != anchor and kind in self.bands and seen.weights[i] != 0]
        meeting = [i for i in banded if seen.gram[i, anchor] != 0 or seen.gram[i, i] == 0]
        if banded and not meeting:
            told = ", ".join(seen.names[i] for i in banded)
            self._stopped = reason("apart", losses=told, anchor=seen.names[anchor])
        for i in meeting:
            name = seen.names[i]
            low, high = self.bands[seen.kinds[i]]
            ratio, now = (float(side[i] / side[anchor]) if side[anchor] > 0 else math.nan for side in (mean, last))
            # What the mean still remembers and the last measurement no longer sees is being made good already.
            if math.isfinite(ratio) and ratio > 0 and not (max(ratio, now) < low or min(ratio, now) > high):
                self._stuck.pop(name, None)
                self._settle(name)
                continue
            wanted = math.sqrt(low * high) / ratio if math.isfinite(ratio) and ratio > 0 else math.nan
            if (back := self._in_vain(name, ratio, current[name], wanted)) is not None:
                current[name] = back
                break
            moved = self._moved(name, current[name], wanted)
            if moved != current[name]:
                reasons[name] = reason("band", ratio=ratio, anchor=seen.names[anchor], low=low, high=high)
                current[name] = moved
        return Advice(current, reasons, self._stopped)

    def _strengths(self, seen: Measured, factors: Mapping[str, float]) -> tuple[Matrix, Matrix]:
        """(K,) norms of the weighted gradients, of the mean Gram and of the last one."""
        if self._gram is None or self._names != seen.names:
            self._gram, self._names = seen.gram, seen.names
        self._gram = self.memory * self._gram + (1 - self.memory) * seen.gram
        scale = np.abs(seen.weights) * np.array([factors[name] for name in seen.names])
        mean, last = (np.sqrt(np.clip(np.diagonal(gram), 0.0, None)) * scale for gram in (self._gram, seen.gram))
        return mean, last

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

    def _in_vain(self, name: str, ratio: float, factor: float, wanted: float) -> float | None:
        """The factor to go back to when the ratio does not follow the weight; None while it does."""
        if math.isnan(wanted):
            return None
        chase = self._chases.get(name)
        if chase is None or chase.up != (wanted > 1):
            chase = self._chases[name] = _Chase(ratio, factor, wanted > 1)
        chase.moves, chase.settled = chase.moves + 1, 0
        given, gained = factor / chase.factor, ratio / chase.ratio
        if chase.moves <= _CHASE or max(given, 1 / given) < _FAR:
            return None
        if (math.log(gained) if chase.up else -math.log(gained)) >= _FOLLOWED * abs(math.log(given)):
            return None
        self._stopped = reason("in_vain", loss=name, given=given, gained=gained)
        return chase.factor

    def _settle(self, name: str) -> None:
        if (chase := self._chases.get(name)) is not None:
            chase.settled += 1
            if chase.settled >= _SETTLED:
                del self._chases[name]

    def _count(self, name: str, why: str) -> None:
        self._stuck[name] = self._stuck.get(name, 0) + 1
        if self._stuck[name] >= _STUCK:
            self._stopped = why

    def state_dict(self) -> dict[str, Any]:
        """See `Balancer.state_dict`."""
        told = {"gram": self._gram, "names": list(self._names), "seen": self._seen}
        chases = {name: asdict(chase) for name, chase in self._chases.items()}
        return state_of({**told, "stuck": dict(self._stuck), "chases": chases, "stopped": self._stopped})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Balancer.load_state_dict`."""
        gram = state["gram"]
        self._gram = None if gram is None else np.array(gram, np.float64)
        self._names, self._seen = tuple(state["names"]), int(state["seen"])
        self._stuck, self._stopped = dict(state["stuck"]), state["stopped"]
        self._chases = {name: _Chase(**chase) for name, chase in state.get("chases", {}).items()}
