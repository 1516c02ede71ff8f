"""A balancer at work in one run: factors on the weights, a receipt for every change, and a way back when it hurts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from lossdoctor.doctor.outlet import Outlet
from lossdoctor.doctor.patient import Patient
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.messages.numbers import readable
from lossdoctor.probe.differences import MODE
from lossdoctor.treat import Balancer, Measured, measured
from lossdoctor.treat.balancer import Factors
from lossdoctor.treat.reason import as_data, reason

JUDGED_AFTER = 4
"""Measured steps after which a change is judged."""
WORSE = 2.0
"""Times its value before the change, above which a loss that is meant to fall makes the change a mistake."""
TOLD = 0.05
"""Relative change of a factor that is worth a receipt: one for every small move would fill the run."""
_JUDGES = ("velocity", "distill")
"""The first of these kinds there is says whether a change hurt. A distillation beside a velocity does not: its teacher
moves, and in a healthy training its loss may double in the first twenty steps (docs/log.md, experiment 25)."""


@dataclass(frozen=True, slots=True)
class _Change:
    """The last one that was told. losses: their medians before it. wait: measured steps until it is judged."""

    before: Factors
    losses: Mapping[str, float]
    step: int
    wait: int = JUDGED_AFTER


@dataclass(slots=True)
class Treatment:
    """factors: in use, by loss. off: why nothing is changed any more. fresh: whether no step was taken under it yet."""

    balancer: Balancer
    out: Outlet
    factors: Factors = field(default_factory=dict)
    off: str | None = None
    fresh: bool = True
    _set_at: int = 0
    _base: dict[str, float] = field(default_factory=dict)
    _told: Factors = field(default_factory=dict)
    _why: dict[str, str] = field(default_factory=dict)
    _open: _Change | None = None
    _seen: dict[str, deque[float]] = field(default_factory=dict)
    _waits: set[str] = field(default_factory=set)

    def weigh(self, weights: Mapping[str, float | Tensor]) -> dict[str, float | Tensor]:
        """The script's weights times the factors in use."""
        self._base.update({name: float(weight) for name, weight in weights.items()})
        return {name: weight * self.factors.get(name, 1.0) for name, weight in weights.items()}

    def begin(self, seen: Measured) -> bool:
        """Before the backward of the first step, once: whether its weights are to be others than the script's."""
        self.fresh = False
        if not seen.finite:
            return False
        own = dict.fromkeys(seen.names, 1.0)
        advice = self.balancer.begin(seen, own)
        after = _rounded(advice.factors)
        if after == own or not all(map(math.isfinite, after.values())):
            return False
        self.factors, self._set_at = after, seen.step
        self._why.update(advice.reasons)  # the receipt comes with the losses of the step, see `learn`
        return True

    def learn(
        self, step: int, readings: Mapping[str, float], kinds: Mapping[str, str], dimensions: int | None = None
    ) -> None:
        """After a measured step: judge the last change, and ask the balancer for the next. Nothing on a broken step.

        dimensions: of the posterior. The readings are the same on every rank, and so is what becomes of them.
        """
        self.fresh = False
        seen = measured(readings, kinds, self._base, step, dimensions)
        if seen is None or not seen.finite:
            return
        for name, loss in zip(seen.names, seen.losses.tolist(), strict=True):
            self._seen.setdefault(name, deque(maxlen=JUDGED_AFTER)).append(loss)
        if self._judge(seen) or self.off is not None:
            return
        before = {name: self.factors.get(name, 1.0) for name in seen.names}
        advice = self.balancer.advise(seen, before)
        if not all(map(math.isfinite, advice.factors.values())):
            return
        after = _rounded(advice.factors)
        if after != before:
            self.factors, self._set_at = after, step
        if advice.stopped is not None:
            self._stop(advice.stopped, after)
            return
        self._wait(advice.waits)
        self._receipt(seen, advice.reasons)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, as plain JSON: a change that is still to be judged is judged after it too."""
        return {
            "factors": dict(self.factors),
            "off": self.off,
            "set_at": self._set_at,
            "told": dict(self._told),
            "open": None if self._open is None else asdict(self._open),
            "seen": {name: list(values) for name, values in self._seen.items()},
            "waits": sorted(self._waits),
            "balancer": self.balancer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as in the checkpoint."""
        self.factors, self.off, self._set_at = dict(state["factors"]), state["off"], int(state["set_at"])
        self._told, self.fresh = dict(state["told"]), False
        self._open = None if state["open"] is None else _Change(**state["open"])
        self._seen = {name: deque(values, maxlen=JUDGED_AFTER) for name, values in state["seen"].items()}
        self._waits = set(state.get("waits", ()))
        self.balancer.load_state_dict(state["balancer"])

    def readings(self, step: int) -> dict[str, float]:
        """`balance/<loss>`, the factors, and `balance/age`, the steps since they were set."""
        own = {f"balance/{name}": value for name, value in self.factors.items()}
        return {**own, "balance/age": float(step - self._set_at)}

    def _receipt(self, seen: Measured, reasons: Mapping[str, str]) -> None:
        self._why.update(reasons)
        told = {name: self._told.get(name, 1.0) for name in seen.names}
        moved = [name for name in seen.names if abs(self.factors.get(name, 1.0) - told[name]) > TOLD * abs(told[name])]
        if not moved or self._open is not None:
            return
        after = {name: self.factors.get(name, 1.0) for name in seen.names}
        self._open = _Change(told, {name: _middle(self._seen[name]) for name in seen.names}, seen.step)
        self._told = after
        own = {name: self._why[name] for name in moved if name in self._why}
        self._why.clear()
        changes = ", ".join(
            f"{name} {readable(told[name], 3)} -> {readable(after[name], 3)}"
            + (f" ({own[name]})" if name in own else "")
            for name in moved
        )
        self.out.event(
            "balance",
            balancer=self.balancer.name,
            before=told,
            after=after,
            reasons={name: str(why) for name, why in own.items()},
            why={name: data for name, why in own.items() if (data := as_data(why)) is not None},
            predicted=_predicted(seen, told, after),
            message=reason("told", balancer=self.balancer.name, changes=changes),
        )

    def _judge(self, seen: Measured) -> bool:
        """Whether the last change has just been taken back."""
        change = self._open
        if change is None:
            return False
        now = {name: _middle(self._seen[name]) for name in seen.names}
        judge = next((kind for kind in _JUDGES if kind in seen.kinds), None)
        falling = [name for name, kind in zip(seen.names, seen.kinds, strict=True) if kind == judge]
        hurt = [name for name in falling if now[name] > WORSE * max(change.losses.get(name, math.inf), 1e-12)]
        if not hurt and change.wait > 1:
            self._open = _Change(change.before, change.losses, change.step, change.wait - 1)
            return False
        self._open = None
        verdict = "rolled back" if hurt else "kept"
        told = {"of_step": change.step, "losses_before": dict(change.losses), "losses_after": now, "hurt": hurt}
        message = reason(
            f"told.{verdict.replace(' ', '_')}",
            balancer=self.balancer.name,
            step=change.step,
            **({"losses": ", ".join(hurt), "worse": WORSE} if hurt else {}),
        )
        self.out.event("balance_outcome", balancer=self.balancer.name, verdict=verdict, **told, message=message)
        if not hurt:
            return False
        again = self.off is not None
        self.factors, self._told, self._set_at = dict(change.before), dict(change.before), seen.step
        # Factors of a moment, PCGrad's for one, may hurt as well: if they do, only the script's own weights are left.
        own = dict.fromkeys(change.before, 1.0)
        last = dict(zip(seen.names, seen.losses.tolist(), strict=True))
        self._open = None if again or change.before == own else _Change(own, last, seen.step)
        self._stop(reason("rolled_back", losses=", ".join(hurt), worse=WORSE), self.factors)
        return True

    def _wait(self, waits: Mapping[str, str]) -> None:
        """Tell once of each loss that is waited for, and once when it is not any more."""
        name = self.balancer.name
        for loss in sorted(waits.keys() - self._waits):
            why = waits[loss]
            told = {"loss": loss, "reason": str(why), "why": as_data(why)}
            message = reason("told.waits", balancer=name, reason=str(why))
            self.out.event("balance_waits", balancer=name, **told, message=message)
        for loss in sorted(self._waits - waits.keys()):
            message = reason("told.waited", balancer=name, loss=loss)
            self.out.event("balance_waited", balancer=name, loss=loss, message=message)
        self._waits = set(waits)

    def _stop(self, why: str, factors: Factors) -> None:
        self.off = str(why)
        name = self.balancer.name
        message = reason("told.stopped", balancer=name, reason=str(why))
        told = {"reason": str(why), "why": as_data(why), "factors": factors}
        self.out.event("balance_stopped", balancer=name, **told, message=message)


def treated(wanted: Balancer, patient: Patient, out: Outlet) -> Treatment:
    """The treatment of a patient by a balancer. Raises UsageError where no gradient of each loss is measured."""
    if patient.mode in ("off", MODE):
        raise UsageError(
            mismatch(
                "A balancer needs the gradient of each loss.",
                'gradients="exact", "sketch" or "auto"',
                f'gradients="{patient.mode}" with balance={wanted.name!r}',
                "leave gradients= out, or balance=",
            )
        )
    patient.linearity.steady = True
    out.describe(balance=wanted.name)
    return Treatment(wanted, out)


def _rounded(factors: Mapping[str, float]) -> Factors:
    """More digits than the noise of a batch leaves would only make receipts hard to read."""
    return {name: float(f"{factor:.3g}") for name, factor in factors.items()}


def _predicted(seen: Measured, before: Factors, after: Factors) -> dict[str, float]:
    """First order: how fast each loss falls along the new gradient, over how fast along the old one."""
    old, new = (seen.weights * np.array([side[name] for name in seen.names]) for side in (before, after))
    fall_before, fall_after = seen.gram @ old, seen.gram @ new
    ratio = np.divide(fall_after, fall_before, out=np.full(len(old), math.nan), where=fall_before != 0)
    return {name: value for name, value in zip(seen.names, ratio.tolist(), strict=True) if math.isfinite(value)}


def _middle(values: deque[float]) -> float:
    return float(np.median(list(values)))
