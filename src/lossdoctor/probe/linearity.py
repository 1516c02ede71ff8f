"""Which gradients need no pass of their own, since they follow from the total: planned from what was seen before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lossdoctor.probe.parameters import ParameterMap

if TYPE_CHECKING:  # a ledger asks for a plan, and is learned from
    from lossdoctor.probe.ledger import Ledger

TOLERATED = 1e-3
"""Largest predicted relative error of a derived gradient."""
CALIBRATE_EVERY = 20
"""Due steps between two measurements of the linearity error."""
Owners = tuple["str | None", ...]
"""Per parameter the loss whose gradient there follows from the total, without a pass; () when there is none."""


@dataclass(slots=True)
class Linearity:
    """What earlier due steps taught about leaving one loss out.

    error: |g - sum w_i g_i| / (|g| + sum |w_i g_i|), as last measured. norms, seconds: of each loss's own pass.
    reach: per loss, whether its graph contains each parameter, so that a derived gradient is exactly zero elsewhere.
    derives: False where every loss must always be measured. steady: whether a run acts on what is measured, so that the
    choice must not depend on the clock, nor on where the run was interrupted.
    """

    error: float | None = None
    norms: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    reach: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    parameters: tuple[int, ...] = ()
    age: int = 0
    derives: bool = True
    steady: bool = False

    def plan(self, weights: Mapping[str, float], where: ParameterMap) -> tuple[str | None, Owners]:
        """The loss left out of the passes, and what else is; (None, ()) when all are to be measured everywhere."""
        known = self.error is not None and all(name in self.norms and name in self.reach for name in weights)
        same = self.parameters == tuple(map(id, where.parameters))
        if not weights or not known or not same or not self.derives or self.age >= CALIBRATE_EVERY:
            return None, ()
        return self._left_out(weights, where), self._owners(weights, len(where.parameters))

    def _owners(self, weights: Mapping[str, float], size: int) -> Owners:
        """Per parameter the only loss that reaches it. With one term in the sum nothing can cancel."""
        owners: list[str | None] = [None] * size
        if 2.0 * (self.error or 0.0) > TOLERATED:
            return ()
        for p in range(size):
            reaching = [name for name in weights if self.reach[name][p]]
            if len(reaching) == 1 and weights[reaching[0]] != 0.0:
                owners[p] = reaching[0]
        return tuple(owners) if any(owners) else ()

    def _left_out(self, weights: Mapping[str, float], where: ParameterMap) -> str | None:
        """The most expensive loss whose gradient can be derived accurately."""
        accurate = [name for name in weights if self.relative_error(name, weights, self.norms) <= TOLERATED]
        return max(accurate, key=lambda name: self._cost(name, where), default=None)

    def _cost(self, name: str, where: ParameterMap) -> float:
        """What a pass of this loss takes, in seconds; or the elements it reaches, which are always the same."""
        if not self.steady:
            return self.seconds.get(name, 0.0)
        return sum(p.numel() for p, reached in zip(where.parameters, self.reach[name], strict=True) if reached)

    def state_dict(self) -> dict[str, Any]:
        """What the next plan is made from, as plain JSON, for a run that goes on from a checkpoint."""
        reach = {name: "".join("01"[there] for there in reached) for name, reached in self.reach.items()}
        return {"error": self.error, "norms": dict(self.norms), "reach": reach, "age": self.age}

    def load_state_dict(self, state: Mapping[str, Any], where: ParameterMap) -> None:
        """Plan as in the checkpoint; from nothing where the model has other parameters now."""
        reach = {name: tuple(bit == "1" for bit in bits) for name, bits in state["reach"].items()}
        if all(len(reached) == len(where.parameters) for reached in reach.values()):
            self.error, self.norms, self.reach, self.age = state["error"], dict(state["norms"]), reach, state["age"]
            self.parameters = tuple(map(id, where.parameters))

    def relative_error(self, name: str, weights: Mapping[str, float], norms: Mapping[str, float]) -> float:
        """Predicted relative error of the gradient of `name` when it is derived."""
        own = abs(weights[name]) * norms[name]
        everything = 2.0 * sum(abs(weight) * norms[other] for other, weight in weights.items())
        return (self.error or 0.0) * everything / own if own > 0.0 else float("inf")

    def learn(self, ledger: Ledger, norms: Mapping[str, float], error: float | None) -> None:
        """Take in a finished due step: its norms, and the linearity error if it was measured."""
        weights = {name: weight for name, weight in ledger.losses.items() if name in norms}
        self.norms.update(norms)
        self.seconds.update(ledger.seconds)
        self.age += 1
        ids = tuple(map(id, ledger.where.parameters))
        if ids != self.parameters:
            self.parameters, self.reach = ids, {}
        self.reach.update({name: ledger.reached_by(name) for name in ledger.rows})
        if error is not None:
            # Float32 can agree by luck (two losses that share no parameter): never trust more than its rounding.
            self.error, self.age = max(error, 1e-7), 0
        elif ledger.derived in weights and self.relative_error(ledger.derived, weights, norms) > TOLERATED:
            # The balance has moved; the choice is made anew from fresh numbers.
            self.age = CALIBRATE_EVERY
