"""SMP506: the field that sampling calls is not the one that was trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossdoctor.curves import share_above, trend
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fix, Outcome, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of
from lossdoctor.rules.velocity import DIFFERS, inference_codes, seen, settled, the_loss, too_short, typical
from lossdoctor.rules.view import RunView, middle, span

_EXPLAINED = ("inference-time", "inference-sign", "inference-scale", "inference-condition")
"""Causes that account for the whole difference; any other formula is what is left."""


@dataclass(frozen=True)
class InferenceFieldDiffers(Rule):
    """`velocity(x_t, t, cond)`, as sampling calls it, does not give the v_pred of training.

    Symptom: training looks perfect and samples do not; everything measured by asking the field is off.
    Cause: a sign, a factor, the other direction of time, another condition, or a conversion that only one side has.
    Evidence: `flow/field_mismatch`, their distance relative to v_pred with the noise of dropout taken out, is above
    `mismatch` in most steps. What reproduces v_pred names the cause: a constant (`flow/field_scale`, -1 is the sign),
    asking at 1 - t (`flow/field_reversed`), another condition (`flow/field_other_cond`).
    Fix: call one function in training and in sampling.
    Ignore when: they differ on purpose: guidance, or an average of the weights. A mismatch that shrinks and is under
    `average` is taken for an average that catches up, and only mentioned.
    Confirm: flow/field_mismatch is 0 once both call the same function
    """

    code, name = "SMP506", "inference-field-differs"
    depth = "root"
    needs = ("flow/field_mismatch",)
    explains = ("VEL405", "VEL406", "CND601", "SMP501", "SMP503", "SMP504")
    mismatch: float = DIFFERS  # docs/log.md, the clinic: healthy 0 to 0.02 with dropout, mistakes 0.36 and more
    average: float = 0.3  # an average of the last hundred steps differs by about this much while the rate is high
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """One test, and the name of what differs."""
        curve = settled(run, "field_mismatch")
        if (short := too_short(curve)) is not None:
            return short
        test = share_above(curve, self.mismatch)
        if test.share < self.persistent:
            return Clear((test.p,))
        codes = inference_codes(run) or ("inference-formula",)
        explained = codes[0] in _EXPLAINED
        if not explained and self._catches_up(run, curve):
            finding = self.finding(
                say("rule.SMP506.average", mismatch=middle(curve), last=run.now("flow/field_mismatch"), **span(curve)),
                evidence=seen(run, "field_mismatch", self.mismatch),
                causes=(Cause("ema-too-slow"), Cause("inference-formula")),
                loss=the_loss(run),
                severity="info",
                p=test.p,
            )
            return outcome([finding])
        sentence = f"rule.SMP506.{codes[0].removeprefix('inference-')}" if explained else "rule.SMP506"
        finding = self.finding(
            say(sentence, mismatch=middle(curve), scale=typical(run, "field_scale"), **span(curve)),
            evidence=(
                Evidence("flow/field_mismatch", middle(curve), self.mismatch, **span(curve)),
                *seen(run, "field_scale", 1.0),
                *seen(run, "field_reversed"),
                *seen(run, "field_other_cond"),
            ),
            causes=causes_of(codes),
            fixes=_fixes(codes[0]),
            loss=the_loss(run),
            severity="error" if explained else "warning",
            certainty="likely" if explained else "suspected",
            confirm="flow/field_mismatch",
            p=test.p,
        )
        return outcome([finding])

    def _catches_up(self, run: RunView, curve: Series) -> bool:
        falls = trend(curve, skip=0.0).direction == "down"
        return middle(curve) < self.average and (falls or math.isfinite(run.now("ema/distance")))


def _fixes(code: str) -> tuple[Fix, ...]:
    match code:
        case "inference-time":
            return (edit("same_time"),)
        case "inference-sign":
            return (edit("same_sign"),)
        case "inference-condition":
            return (edit("same_condition"),)
    return (edit("one_formula"),)
