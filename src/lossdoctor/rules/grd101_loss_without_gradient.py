"""GRD101: a loss that has a weight and moves, and no gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Evidence, Finding, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import ablate, edit
from lossdoctor.rules.heads import heads_of
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView

Steps = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LossWithoutGradient(Rule):
    """A loss has a weight, and no gradient of it reaches any parameter.

    Symptom: the curve of the loss looks alive, because the others move what it is computed from; the total looks
    healthy. What the loss is for does not happen.
    Cause: its branch is detached, runs under no_grad, goes through .item() or numpy, or all it could train is frozen.
    Evidence: `weight/<loss>` is not 0, `loss/<loss>` moves, and `grad/<loss>` is absent or exactly 0, in at least
    `least` steps and in no other; or so since some step, and in at least 12 steps.
    Fix: look for detach(), no_grad() and requires_grad_(False) between the loss and its head.
    Ignore when: the loss is only watched; then give it the weight 0. A loss that stands still, such as one that has not
    begun or a KL under its free bits, is left out; NUM902 looks at it.
    Confirm: without:<loss>, which changes nothing if this is so
    """

    code, name = "GRD101", "loss-without-gradient"
    needs = ("weight/<loss>", "grad/total")
    severity, depth = "error", "root"
    explains = (
        "GRD102",
        "GRD105",
        "GRD106",
        "BAL801",
        "DST202",
        "DST203",
        "PST301",
        "PST302",
        "PST305",
        "PST308",
        "VEL401",
        "OPT701",
    )
    least: int = 3  # a fact and no statistics; one or two batches can have an empty mask

    def check(self, run: RunView) -> Outcome:
        """Every loss that has a weight, by itself."""
        found, judged = [], 0
        for loss in run.losses:
            heard, silent = _steps(run, loss)
            judged += len(heard) + len(silent) >= self.least
            if not len(heard) and len(silent) >= self.least:
                found.append(self._finding(run, loss, silent))
            lost = silent[silent > heard[-1]] if len(heard) else silent[:0]
            if len(lost) >= max(LEAST, self.least):
                found.append(self._lost(run, loss, lost))
        if not judged:
            return Skipped(say("skip.short", least=self.least, found=len(run["grad/total"])), say("enable.longer"))
        return outcome(found)

    def _finding(self, run: RunView, loss: str, silent: Steps) -> Finding:
        return self.finding(
            say("rule.GRD101", loss=loss, weight=run.now(f"weight/{loss}"), count=len(silent)),
            evidence=_evidence(run, loss, silent),
            causes=_causes(run, loss),
            fixes=(edit("let_gradient_through", loss), ablate(f"without:{loss}")),
            loss=loss,
            certainty="likely",
            confirm=f"without:{loss}",
        )

    def _lost(self, run: RunView, loss: str, silent: Steps) -> Finding:
        return self.finding(
            say("rule.GRD101.lost", loss=loss, step=int(silent[0]), count=len(silent)),
            evidence=_evidence(run, loss, silent),
            causes=_causes(run, loss),
            fixes=(edit("let_gradient_through", loss),),
            loss=loss,
            severity="warning",  # freezing a part on purpose looks the same
        )


def _steps(run: RunView, loss: str) -> tuple[Steps, Steps]:
    """The steps with and without a gradient, of those at which gradients were measured, the loss has a weight and
    moves."""
    weight, value, norm = run[f"weight/{loss}"], run[f"loss/{loss}"], run[f"grad/{loss}"]
    asked = np.intersect1d(weight.steps[weight.values != 0], run["grad/total"].steps)
    asked = asked[_moving(value, asked)]
    there = np.isin(asked, norm.steps[norm.values != 0])
    return asked[there], asked[~there]


def _moving(curve: Series, steps: Steps) -> npt.NDArray[np.bool_]:
    """Whether a curve changes around each step: from the last point up to it to the one before or after."""
    moves = curve.values[1:] != curve.values[:-1]
    around = np.append(moves, False) | np.append(False, moves)
    last = np.searchsorted(curve.steps, steps, side="right") - 1
    known = last >= 0
    known[known] = around[last[known]]
    return known


def _evidence(run: RunView, loss: str, silent: Steps) -> tuple[Evidence, ...]:
    where = {"first_step": int(silent[0]), "last_step": int(silent[-1])}
    return (
        Evidence(f"grad/{loss}", 0.0, None, **where),
        Evidence(f"weight/{loss}", run.now(f"weight/{loss}"), 0.0, **where),
    )


def _causes(run: RunView, loss: str) -> tuple[Cause, ...]:
    heads = heads_of(run, run.losses[loss])
    facts = [(run.facts.get("heads") or {}).get(head) or {} for head in heads]
    frozen = bool(facts) and all(fact.get("frozen") and not fact.get("trainable") for fact in facts)
    codes = ("frozen-head", "detached-branch") if frozen else ("detached-branch", "wrong-wiring")
    return tuple(map(Cause, codes))
