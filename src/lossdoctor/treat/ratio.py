"""The gradient-ratio controller: each loss as strong beside the velocity as its kind wants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.treat.balancer import Advice, Balancer
from lossdoctor.treat.chase import Chase
from lossdoctor.treat.measured import Matrix, Measured, state_of
from lossdoctor.treat.place import Place
from lossdoctor.treat.prior import KNOWS, at_prior, off_prior
from lossdoctor.treat.reason import reason
from lossdoctor.treat.way_back import WayBack

BANDS: Mapping[str, tuple[float, float]] = {"distill": (0.2, 0.5), "kl": (0.1, 0.3)}
"""The method's: norm of the weighted gradient over that of the velocity's, by kind."""
_STUCK = 3
"""Measurements at a limit, or without a gradient, after which it stops."""
_GROSS = 5.0
"""Times the top of its band, above which a loss is weakened before the first step: healthy ones begin at 2.4 times."""
_SOON = 10
"""Measurements within which a loss that gains on the anchor by itself must come into its band, to be waited for; and
after which it is told that a KL is waited for."""


@dataclass(slots=True)
class RatioController(Balancer):
    """Factors that bring |w_i g_i| / |w_anchor g_anchor| into a band.

    bands: kind to (low, high), both > 0; other kinds are left alone. anchor: the kind that stays. memory: share of the
    old Gram in its running mean. slew: the largest factor of one change. limit: factors stay within 1/limit to limit.
    warmup: measurements that are passed over, as gradients at the initial weights are unlike any later; but what is
    five times above its band is put into it before the first step is taken, by any factor.

    Inside its band a loss is left alone; one that is outside by the running mean and by the last measurement too, on
    the same side, is moved to the band's geometric middle; a lowered one on until it has crossed it (`WayBack`). Not
    raised is a loss that comes near by itself, or the KL of a posterior that knows less than a nat of its sample: at
    its prior it has no gradient, and should not be held there. Whether such a KL is too strong is judged as if the
    posterior knew a nat, and what is waited for longer than ten measurements is told (`Advice.waits`). Raises that the
    ratio does not follow are taken back, and that loss is only lowered from then on. It stops, and says why, when a
    loss has no gradient, stays at its limit, or stays below its band after that. A loss that shares no parameter with
    the anchor (an inner product of exactly 0) is left alone. Raises UsageError for bands or limits that cannot be.
    """

    bands: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(BANDS))
    anchor: str = "velocity"
    memory: float = 0.5
    slew: float = 16.0
    limit: float = 1e4
    warmup: int = 1
    name: str = "ratio"
    _gram: Matrix | None = None
    _last: Matrix | None = None
    _rates: Matrix | None = None
    _names: tuple[str, ...] = ()
    _seen: int = 0
    _stuck: dict[str, int] = field(default_factory=dict)
    _chases: dict[str, Chase] = field(default_factory=dict)
    _ways: dict[str, WayBack] = field(default_factory=dict)
    _waited: dict[str, int] = field(default_factory=dict)
    _stopped: str | None = None

    def __post_init__(self) -> None:
        wrong = [kind for kind, (low, high) in self.bands.items() if not 0 < low <= high < math.inf]
        if wrong or not 0 <= self.memory < 1 or self.slew <= 1 or self.limit < 1:
            expected = "bands 0 < low <= high, memory in [0, 1), slew > 1, limit >= 1"
            got = f"bands={dict(self.bands)}, memory={self.memory}, slew={self.slew}, limit={self.limit}"
            raise UsageError(mismatch("A ratio controller needs bands it can reach.", expected, got, "correct these"))

    def begin(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        """See `Balancer.begin`. Only what is far too strong changes: weak may be what has nothing to gain so far."""
        current = {name: float(factors.get(name, 1.0)) for name in seen.names}
        anchor, reasons = seen.of_kind(self.anchor), dict[str, str]()
        if anchor is None or self._stopped is not None:
            return Advice(current, reasons)
        strength = seen.norms * self._scale(seen, current)
        for i in self._meeting(seen, anchor):
            name, (low, high) = seen.names[i], self.bands[seen.kinds[i]]
            ratio = float(strength[i] / strength[anchor]) if strength[anchor] > 0 else math.nan
            if _GROSS * high < ratio < math.inf:
                current[name] = max(current[name] * math.sqrt(low * high) / ratio, 1 / self.limit)
                reasons[name] = reason("band", ratio=ratio, anchor=seen.names[anchor], low=low, high=high)
        return Advice(current, reasons)

    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        """See `Balancer.advise`. Without exactly one loss of the anchor's kind nothing is changed, and it says so."""
        current = {name: float(factors.get(name, 1.0)) for name in seen.names}
        anchor = seen.of_kind(self.anchor)
        if anchor is None:
            self._stopped = reason("no_anchor", kind=self.anchor)
        if self._stopped is not None or anchor is None:
            return Advice(current, {}, self._stopped)
        self._seen += 1
        rates = self._follow(seen, anchor)
        reasons: dict[str, str] = {}
        if self._seen <= self.warmup:
            return Advice(current, reasons)
        mean, last = self._strengths(off_prior(seen), current)
        meeting = self._meeting(seen, anchor)
        if not meeting and (banded := self._banded(seen, anchor)):
            losses = ", ".join(seen.names[i] for i in banded)
            self._stopped = reason("apart", losses=losses, anchor=seen.names[anchor])
        waits: dict[str, str] = {}
        for i in meeting:
            name, (low, high) = seen.names[i], self.bands[seen.kinds[i]]
            by_mean, by_last = (float(by[i] / by[anchor]) if by[anchor] > 0 else math.nan for by in (mean, last))
            place = Place(name, seen.names[anchor], by_mean, by_last, low, high)
            nats = seen.nats if seen.kinds[i] == "kl" and at_prior(seen) else None
            if (change := self._change(place, current[name], float(rates[i]), nats)) is not None:
                current[name], reasons[name] = change
            elif self._waited.get(name, 0) > _SOON:
                waits[name] = reason("waits", loss=name, **place.facts, nats=seen.nats, knows=KNOWS)
        return Advice(current, reasons, self._stopped, waits)

    def _change(self, place: Place, factor: float, rate: float, nats: float | None) -> tuple[float, str] | None:
        """The factor of a loss from now on, and why; None where it is left as it is.

        rate: what its gradient gains on the anchor's by itself. nats: what a posterior knows that is at its prior.
        """
        name, weak = place.loss, place.wanted > 1
        further = not place.inside or self._goes_on(place)
        waits = further and weak and nats is not None
        self._waited[name] = self._waited.get(name, 0) + 1 if waits else 0
        if not further:
            self._settled(name)
        if not further or waits or (weak and place.soon(rate, _SOON)):
            return None
        if weak and (back := self._in_vain(name, place.last, factor)) is not None:
            self._ways.pop(name, None)
            return back
        moved = self._moved(place, factor)
        if moved == factor:
            return None
        if nats is not None:
            return moved, reason("off_prior", **place.facts, nats=nats, knows=KNOWS)
        return moved, reason("middle" if place.inside else "band", **place.facts)

    def _goes_on(self, place: Place) -> bool:
        """Whether a loss inside its band is moved all the same."""
        way = self._ways.get(place.loss)
        if way is None:
            return False
        further = way.goes_on(place)
        if way.over:
            del self._ways[place.loss]
        return further

    def _settled(self, name: str) -> None:
        """After a measurement inside the band that asks for nothing."""
        self._stuck.pop(name, None)
        if name in self._chases and self._chases[name].over():
            del self._chases[name]

    def _banded(self, seen: Measured, anchor: int) -> list[int]:
        """The losses that have a band."""
        return [i for i, kind in enumerate(seen.kinds) if i != anchor and kind in self.bands and seen.weights[i] != 0]

    def _meeting(self, seen: Measured, anchor: int) -> list[int]:
        """Those of them that share a parameter with the anchor, as far as their gradients tell."""
        return [i for i in self._banded(seen, anchor) if seen.gram[i, anchor] != 0 or seen.gram[i, i] == 0]

    def _follow(self, seen: Measured, anchor: int) -> Matrix:
        """(K,): logarithm of what each unweighted gradient gains beside the anchor's from one measurement to the next.

        A running mean, as one measurement alone may well be smaller than the one before in the middle of a rise.
        """
        before, self._last = self._last, seen.gram
        if before is None or before.shape != seen.gram.shape:
            self._rates = np.zeros(len(seen.names))
            return self._rates
        was, now = (np.sqrt(np.clip(np.diagonal(gram), 0.0, None)) for gram in (before, seen.gram))
        known = (was > 0) & (now > 0) & bool(was[anchor] > 0 and now[anchor] > 0)
        gained = np.log(np.where(known, now, 1.0)) - np.log(np.where(known, was, 1.0))
        beside = np.where(known, gained - gained[anchor], 0.0)
        self._rates = 0.5 * (beside if self._rates is None else self._rates + beside)
        return self._rates

    @staticmethod
    def _scale(seen: Measured, factors: Mapping[str, float]) -> Matrix:
        """(K,): what a gradient is multiplied with, all in all."""
        return np.asarray(np.abs(seen.weights) * np.array([factors[name] for name in seen.names]))

    def _strengths(self, seen: Measured, factors: Mapping[str, float]) -> tuple[Matrix, Matrix]:
        """(K,) norms of the weighted gradients, of the mean Gram and of the last one."""
        if self._gram is None or self._names != seen.names:
            self._gram, self._names = seen.gram, seen.names
        self._gram = self.memory * self._gram + (1 - self.memory) * seen.gram
        scale = self._scale(seen, factors)
        mean, last = (np.sqrt(np.clip(np.diagonal(gram), 0.0, None)) * scale for gram in (self._gram, seen.gram))
        return mean, last

    def _moved(self, place: Place, factor: float) -> float:
        """The factor that is nearer to what is wanted; the same, and counted, where there is none."""
        name, wanted, way = place.loss, place.wanted, self._ways.pop(place.loss, None)
        if not wanted > 1 and name in self._chases and self._chases[name].vain is None:
            del self._chases[name]
        if math.isnan(wanted):
            self._count(name, reason("no_gradient", loss=name))
            return factor
        step = min(max(wanted, 1 / self.slew), self.slew)
        moved = min(max(factor * step, 1 / self.limit), self.limit)
        if moved == factor and place.inside:
            return factor  # as near to the middle as the limit lets it
        if moved == factor:
            self._count(name, reason("at_limit", loss=name, factor=factor))
            return factor
        self._stuck.pop(name, None)
        if wanted < 1:
            self._ways[name] = way if way is not None and place.inside else WayBack()
        return moved

    def _in_vain(self, name: str, ratio: float, factor: float) -> tuple[float, str] | None:
        """The factor that a weak loss stays at and why, when raises do not help; None while they do.

        ratio: as last measured; the running mean would show the raise itself, where nothing has followed.
        """
        chase = self._chases.setdefault(name, Chase(ratio, factor))
        if chase.vain is None:
            return None if chase.follows(name, ratio, factor) else (chase.factor, chase.vain or "")
        if chase.hopeless():
            self._stopped = chase.vain
        return factor, chase.vain

    def _count(self, name: str, why: str) -> None:
        self._stuck[name] = self._stuck.get(name, 0) + 1
        if self._stuck[name] >= _STUCK:
            self._stopped = why

    def state_dict(self) -> dict[str, Any]:
        """See `Balancer.state_dict`."""
        told = {
            "gram": self._gram,
            "last": self._last,
            "rates": self._rates,
            "names": list(self._names),
            "seen": self._seen,
        }
        chases = {name: asdict(chase) for name, chase in self._chases.items()}
        ways = {name: asdict(way) for name, way in self._ways.items()}
        counted = {"stuck": dict(self._stuck), "waited": dict(self._waited)}
        return state_of({**told, **counted, "chases": chases, "ways": ways, "stopped": self._stopped})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Balancer.load_state_dict`."""
        kept = (state["gram"], state.get("last"), state.get("rates"))
        self._gram, self._last, self._rates = (None if one is None else np.array(one, np.float64) for one in kept)
        self._names, self._seen = tuple(state["names"]), int(state["seen"])
        self._stuck, self._stopped = dict(state["stuck"]), state["stopped"]
        self._chases = {name: Chase(**chase) for name, chase in state.get("chases", {}).items()}
        self._ways = {name: WayBack(**way) for name, way in state.get("ways", {}).items()}
        self._waited = dict(state.get("waited", {}))
