"""GRD103: one loss is nearly the whole gradient, and a loss that should be heard is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import share_above
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import balance, scale_weight
from lossdoctor.rules.opt704_update_too_large import EXPLODED
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.strengths import blamed, causes_of, factor_to, nothing_left, strengths, together, too_large
from lossdoctor.rules.view import LEAST, RunView, middle, span

_MAIN = ("distill", "velocity")


@dataclass(frozen=True)
class DominantGradient(Rule):
    """One loss makes up nearly the whole gradient, and a distillation or a velocity loss is not heard beside it.

    Symptom: one loss falls as if it were trained alone.
    Cause: its weight is too large, its reduction is a sum where the others are means, or another weight is too small.
    Evidence: the weighted norm of one loss over the sum of all of them is above `share` in most steps after the
    warm-up, and a loss of kind distill or velocity is among the others. Norms, not signed shares.
    Fix: lower its weight, or let a balancer do it.
    Ignore when: the others are regularisers that are meant to be faint, such as a KL at 1e-6 beside a velocity loss;
    that alone does not fire. Nor does a loss that has nothing left to learn.
    Confirm: weight:<loss>*0.1
    """

    code, name = "GRD103", "dominant-gradient"
    needs = ("grad_weighted/<loss>",)
    explains = ("GRD102", "BAL801", "VEL401", "PST301", "PST302", "PST305")
    share: float = given(0.95)  # the method's
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def follows(self, finding: Finding, root: Finding) -> bool:
        """From a rate only where a loss explodes under it."""
        return root.code != "OPT704" or root.message.key in EXPLODED

    def check(self, run: RunView) -> Outcome:
        """The strongest loss against all of them."""
        strong = strengths(run)
        if len(strong) < 2:
            return Skipped(say("skip.rivals"))
        loss = max(strong, key=lambda one: middle(strong[one]))
        common = dict(zip(strong, together(strong.values()), strict=True))
        with np.errstate(over="ignore", invalid="ignore"):
            everything = np.sum([curve.values for curve in common.values()], axis=0)
            dominance = Series(common[loss].steps, common[loss].values / everything).finite
        if len(dominance) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(dominance)), say("enable.longer"))
        test = share_above(dominance, self.share)
        unheard = [
            other for other in strong if other != loss and run.losses[other] in _MAIN and not nothing_left(run, other)
        ]
        if test.share < self.persistent or not unheard:
            return Clear((test.p,))
        weakest = min(unheard, key=lambda other: middle(strong[other]))
        factor = factor_to(middle(strong[weakest]), middle(strong[loss]))
        causes: list[Cause | str] = list(blamed(run, weakest, loss))
        if run.losses[loss] == "kl" and causes[0] == too_large(loss, weakest):
            causes.insert(1, "kl-too-strong")
        finding = self.finding(
            say(
                "rule.GRD103", loss=loss, percent=100 * middle(dominance), unheard=", ".join(unheard), **span(dominance)
            ),
            evidence=(
                Evidence(f"grad_weighted/{loss}", middle(common[loss]), None, **span(dominance)),
                *(Evidence(f"grad_weighted/{one}", middle(common[one]), None, **span(dominance)) for one in unheard),
            ),
            causes=causes_of(causes),
            fixes=(scale_weight(loss, factor), balance("ratio"), balance("gradnorm")),
            subject=loss,
            confirm=f"weight:{loss}*{factor:g}",
            p=test.p,
        )
        return outcome([finding])
