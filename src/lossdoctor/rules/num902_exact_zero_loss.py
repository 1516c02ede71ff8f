"""NUM902: a loss that is a constant to the last bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Evidence, Finding, Message, Outcome, Severity, Skipped, outcome, say
from lossdoctor.rules.fixes import ablate, edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, span

_NEVER_AT_REST = ("distill", "velocity")
"""Kinds whose loss is a mean over random samples: on two batches it is not the same to the last bit."""


@dataclass(frozen=True)
class ExactZeroLoss(Rule):
    """A loss that takes part is exactly 0, or exactly the same number, step after step.

    Symptom: a loss that looks perfectly learned from the first step on; or a flat line.
    Cause: a mask that is always empty, an input that is always zero, a branch that returns a constant, a loss computed
    once outside the loop.
    Evidence: `loss/<loss>` never changes by a bit, while its weight is not 0; or, of a distillation or velocity loss,
    at least `share` of the values since it first moved are exactly 0, or it has stood still for that share.
    Fix: print the number of elements the mask leaves, and the inputs of the loss for one batch.
    Ignore when: the loss has not begun yet: then give it the weight 0 until it does. One that stands still first and
    moves later does not fire, nor does a KL that rests on its free bits. A loss of your own that never had a gradient
    is only mentioned.
    Confirm: without:<loss>, which changes nothing if this is so
    """

    code, name = "NUM902", "exact-zero-loss"
    needs = ("loss/<loss>",)
    depth = "root"
    explains = (
        "GRD101",
        "GRD102",
        "GRD105",
        "BAL801",
        "DST209",
        "PST303",
        "PST304",
        "PST307",
        "PST308",
        "VEL409",
    )
    share: float = 0.75  # most of the measured steps, as everywhere

    def check(self, run: RunView) -> Outcome:
        """Every loss that takes part."""
        found, longest = [], 0
        for loss, kind in run.losses.items():
            curve = run.settled(f"loss/{loss}", loss=loss)
            longest = max(longest, len(curve))
            if len(curve) < LEAST or not run.weighted(loss):
                continue
            since = _since_it_moved(run[f"loss/{loss}"].finite)
            if since is None:
                found.append(self._constant(run, loss, curve))
            elif kind in _NEVER_AT_REST and len(since) >= LEAST:
                found += self._at_rest(loss, since)
        if longest < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=longest), say("enable.longer"))
        return outcome(found)

    def _constant(self, run: RunView, loss: str, curve: Series) -> Finding:
        told = {"loss": loss, "value": float(curve.values[0]), "count": len(curve), **span(curve)}
        begun = f"grad/{loss}" in run or "grad/total" not in run or run.losses[loss] != "other"
        if not begun:
            return self._finding(say("rule.NUM902.not_begun", **told), loss, curve, 0.0, "info")
        message = say("rule.NUM902", **told) if told["value"] == 0 else say("rule.NUM902.constant", **told)
        return self._finding(message, loss, curve, 0.0, "warning")

    def _at_rest(self, loss: str, since: Series) -> list[Finding]:
        zeros = float(np.mean(since.values == 0))
        moves = _moves(since)
        still = 1 - (int(moves[-1]) + 1) / len(since)
        value = float(since.values[-1])
        told = {"loss": loss, "value": value, **span(since)}
        if zeros >= self.share:
            return [self._finding(say("rule.NUM902.mostly", **told, percent=100 * zeros), loss, since, 0.0, "warning")]
        if still >= self.share:
            rest = Series(since.steps[moves[-1] + 1 :], since.values[moves[-1] + 1 :])
            step = int(rest.steps[0])
            return [self._finding(say("rule.NUM902.stopped", **told, step=step), loss, rest, value, "warning")]
        return []

    def _finding(self, message: Message, loss: str, curve: Series, value: float, severity: Severity) -> Finding:
        return self.finding(
            message,
            evidence=(Evidence(f"loss/{loss}", float(np.median(curve.values)), value, **span(curve)),),
            causes=(Cause("constant-loss"), Cause("detached-branch")),
            fixes=(edit("look_at_mask", loss), ablate(f"without:{loss}")),
            loss=loss,
            severity=severity,
            certainty="likely",
            confirm=f"without:{loss}",
        )


def _since_it_moved(curve: Series) -> Series | None:
    """The points from the last one before the curve first changed; None when it never did."""
    moves = _moves(curve)
    return Series(curve.steps[moves[0] :], curve.values[moves[0] :]) if len(moves) else None


def _moves(curve: Series) -> npt.NDArray[np.int64]:
    """The places after which the curve has another value."""
    return np.flatnonzero(curve.values[1:] != curve.values[:-1])
