"""OPT705: an average of the weights that does not average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossdoctor.curves import share_above, share_below, trend
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Evidence, Finding, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

_DECAYS = ("ema", "ema_decay", "ema_momentum", "decay")
"""Knobs under which a script may declare the decay of its EMA."""


@dataclass(frozen=True)
class EmaStuck(Rule):
    """The EMA does not follow the weights as it should.

    Symptom: samples from the EMA stay as bad as at the beginning, or are no better than those of the last weights.
    Cause: its update is never called, or called for every micro-batch; it is kept in half precision, where small
    changes are rounded away; or it is the model itself.
    Evidence: `ema/momentum` is exactly 1 at all of at least `least` measured steps while `ema/distance` rises; or the
    audit finds parameters of the EMA in half precision, or sharing memory with the model, or written to between the
    backwards of one step; or the momentum is a power of the decay that the script declared with
    `lossdoctor.knob("ema", ...)`, in most steps to within `near`.
    Fix: one update after every optimizer step, on a deep copy in float32.
    Ignore when: the EMA is updated every k-th step on purpose, and k shares a factor with the measured steps.
    Confirm: ema/momentum is the configured decay once this is right
    """

    code, name = "OPT705", "ema-stuck"
    needs = ("ema/momentum or audit:ema",)
    depth = "root"
    explains = ("OPT706",)
    least: int = 3  # an exact 1 is a fact and no statistics
    near: float = 0.1  # of the number of updates; rounding moves it by under 0.01
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        """The audited facts, then the momentum."""
        found = [
            *self._facts(run.facts.get("ema") or {}),
            *self._not_updated(run),
            *(self._between(run) or self._several_updates(run)),
        ]
        momentum = run.settled("ema/momentum")
        if not found and "ema" not in run.facts and len(momentum) < self.least:
            return Skipped(say("skip.short", least=self.least, found=len(momentum)), say("enable.longer"))
        return outcome(found)

    def _facts(self, ema: Mapping[str, Any]) -> Iterator[Finding]:
        if count := int(ema.get("aliased") or 0):
            yield self.finding(
                say("rule.OPT705.aliased", count=count),
                evidence=(Evidence("audit/ema/aliased", float(count), 0.0),),
                causes=(Cause("ema-is-model"),),
                fixes=(edit("copy_ema"),),
                subject="aliased",
                severity="error",
                certainty="likely",
            )
        half = {str(dtype): int(n) for dtype, n in (ema.get("dtypes") or {}).items() if str(dtype).endswith("16")}
        if half:
            yield self.finding(
                say("rule.OPT705.half", dtypes=", ".join(half), count=sum(half.values())),
                evidence=(Evidence("audit/ema/dtypes", float(sum(half.values())), 0.0),),
                causes=(Cause("ema-half-precision"),),
                fixes=(edit("ema_in_float32"),),
                subject="precision",
                certainty="likely",
            )

    def _not_updated(self, run: RunView) -> Iterator[Finding]:
        momentum, distance = run.settled("ema/momentum"), run.settled("ema/distance")
        still = len(momentum) >= self.least and bool((momentum.values == 1.0).all())
        if still and _rises(distance):
            yield self.finding(
                say("rule.OPT705", distance=run.now("ema/distance"), count=len(momentum), **span(momentum)),
                evidence=(
                    Evidence("ema/momentum", 1.0, 1.0, **span(momentum)),
                    Evidence("ema/distance", run.now("ema/distance"), None, **span(distance)),
                ),
                causes=(Cause("ema-not-updated"),),
                fixes=(edit("update_ema"),),
                subject="update",
                severity="error",
                certainty="likely",
            )

    def _between(self, run: RunView) -> list[Finding]:
        """The EMA was written to between the backwards of one step: seen, whatever decay was declared."""
        updates = int((run.facts.get("ema") or {}).get("updates_between") or 0)
        backwards = int((run.facts.get("accumulation") or {}).get("backwards") or 0)
        if not updates:
            return []
        return [
            self.finding(
                say("rule.OPT705.between", updates=updates, backwards=backwards),
                evidence=(Evidence("audit/ema/updates_between", float(updates), 0.0),),
                causes=(Cause("ema-per-micro-batch"),),
                fixes=(edit("update_ema_once"),),
                subject="often",
                certainty="likely",
            )
        ]

    def _several_updates(self, run: RunView) -> Iterator[Finding]:
        declared = next((decay for name in _DECAYS if (decay := run.knob(name)) is not None and 0 < decay < 1), None)
        momentum = run.settled("ema/momentum")
        inside = (momentum.values > 0) & (momentum.values < 1)
        if declared is None or int(np.count_nonzero(inside)) < LEAST:
            return
        updates = Series(momentum.steps[inside], np.log(momentum.values[inside]) / math.log(declared))
        usual = middle(updates)
        times = round(usual)
        # A decay that is still warming up passes by every power, and stays at none.
        low, high = share_below(updates, times * (1 - self.near)), share_above(updates, times * (1 + self.near))
        if times > 1 and low.share + high.share <= 1 - self.persistent:
            backwards = int((run.facts.get("accumulation") or {}).get("backwards") or 0)
            told = {"times": times, "declared": declared, "momentum": middle(momentum), "backwards": backwards}
            yield self.finding(
                say("rule.OPT705.often", **told, **span(updates)),
                evidence=(Evidence("ema/momentum", middle(momentum), declared, **span(updates)),),
                causes=(Cause("ema-per-micro-batch"),),
                fixes=(edit("update_ema_once"),),
                subject="often",
            )


def _rises(distance: Series) -> bool:
    """Whether the weights move away. With few points: whether they are further away at the end."""
    told = trend(distance, skip=0.0)
    return told.direction == "up" or (told.direction == "unknown" and told.last > told.first)
