"""OPT701: a head that gets a gradient and hardly moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import Share, share_below
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Evidence, Finding, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit, scale_rate
from lossdoctor.rules.heads import kind_of_head
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.strengths import factor_to, too_small
from lossdoctor.rules.view import LEAST, RunView, middle, span

RATIO = "step/<head>_update_ratio"


@dataclass(frozen=True)
class HeadNotMoving(Rule):
    """A head stays where it was initialised: one step changes less than a hundred-thousandth of its weights.

    Symptom: what depends on this head does not improve, however long the run is.
    Cause: the learning rate of its group is too small, or it is frozen.
    Evidence: `step/<head>_update_ratio` under `ratio` in most steps after the warm-up, while the head gets a gradient.
    Steps at which a schedule has taken the rate under `decayed` of its largest value do not count. A head of which no
    parameter requires a gradient is told from the audit.
    Fix: a rate 2 to 5 times as high for the head, or as high as that of the other heads, or as the numbers say.
    Ignore when: the head is frozen on purpose, or is finetuned at so small a rate on purpose.
    Confirm: lr:<head>*5
    """

    code, name = "OPT701", "head-not-moving"
    needs = (f"{RATIO} or audit:heads",)
    ratio: float = given(1e-5)  # the method's
    decayed: float = 0.01  # schedules end at 0 to 0.05 of their peak
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        """Every head that has steps, and every frozen one."""
        found, tests, longest = [], [], 0
        facts = run.facts.get("heads") or {}
        frozen = [head for head in facts if facts[head].get("frozen") and not facts[head].get("trainable")]
        found += [self._frozen(head, int(facts[head]["frozen"])) for head in frozen]
        heads = [holes["head"] for holes in run.matching(RATIO).values()]
        for head in heads:
            curve = self._at_work(run, head)
            longest = max(longest, len(curve))
            # A head without a gradient is not slow but unreached: GRD105.
            if head in frozen or len(curve) < LEAST or middle(run.settled(f"step/{head}_grad_norm")) == 0:
                continue
            test = share_below(curve, self.ratio)
            if test.share >= self.persistent:
                found.append(self._slow(run, head, curve, test, heads))
            else:
                tests.append(test.p)
        if not frozen and longest < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=longest), say("enable.longer"))
        return outcome(found, tests)

    def _at_work(self, run: RunView, head: str) -> Series:
        """The update ratio without the steps at which a schedule has all but switched the rate off."""
        curve, rate = run.settled(f"step/{head}_update_ratio"), run.settled(f"lr/{head}")
        if not len(rate):
            return curve
        off = rate.steps[rate.values < self.decayed * rate.values.max()]
        on = ~np.isin(curve.steps, off)
        return Series(curve.steps[on], curve.values[on])

    def _frozen(self, head: str, count: int) -> Finding:
        return self.finding(
            say("rule.OPT701.frozen", head=head, count=count),
            evidence=(Evidence(f"audit/heads/{head}/frozen", float(count)),),
            causes=(Cause("frozen-head"),),
            fixes=(edit("unfreeze", head),),
            subject=head,
            certainty="likely",
        )

    def _slow(self, run: RunView, head: str, curve: Series, test: Share, heads: list[str]) -> Finding:
        own = middle(run.settled(f"lr/{head}"))
        others = [rate for other in heads if other != head and (rate := middle(run.settled(f"lr/{other}"))) > 0]
        usual = max(others, default=own)
        kind = kind_of_head(head)
        of_head = run.of_kind(kind) if kind is not None else ()
        seen = [Evidence(f"step/{head}_update_ratio", middle(curve), self.ratio, **span(curve))]
        told = {"head": head, "value": middle(curve), **span(curve)}
        factors = [2.0, 5.0]
        if 0 < factors[-1] * middle(curve) < self.ratio:
            # The ratio grows with the rate: this brings it well above what is too small.
            factors = [factor_to(10 * self.ratio, middle(curve))]
        if 0 < own < usual / 5:
            factors = [factor_to(usual, own)]
            seen.append(Evidence(f"lr/{head}", own, usual, **span(curve)))
            message = say("rule.OPT701.rate", **told, rate=own, usual=usual)
        else:
            message = say("rule.OPT701", **told)
        return self.finding(
            message,
            evidence=seen,
            causes=(Cause("rate-too-small"), too_small(of_head[0] if len(of_head) == 1 else None)),
            fixes=tuple(scale_rate(head, factor) for factor in factors),
            subject=head,
            confirm=f"lr:{head}*{factors[-1]:g}",
            p=test.p,
        )
