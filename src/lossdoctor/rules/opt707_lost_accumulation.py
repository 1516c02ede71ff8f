"""OPT707: of several micro-batches only some reach the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_below
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Message, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class LostAccumulation(Rule):
    """Gradients of earlier micro-batches are gone before the optimizer steps.

    Symptom: accumulating over more micro-batches is slower and no less noisy than not accumulating.
    Cause: zero_grad is called before every micro-batch instead of once per optimizer step.
    Evidence: `grad/accumulation`, the norm of the gradient before the step over that of the sum of all micro-batches,
    is under `ratio` in most steps; 1 is right, and between 1/n and 1/sqrt(n) only the last of n is left.
    Fix: call zero_grad once, after optimizer.step().
    Ignore when: never; a backward whose gradient is thrown away is wasted at best.
    Confirm: grad/accumulation is 1 once this is right
    """

    code, name = "OPT707", "lost-accumulation"
    needs = ("grad/accumulation",)
    severity, depth = "error", "root"
    ratio: float = 0.9  # 1 is exact; the last of two leaves at most about 0.7
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def beside_the_point(self, run: RunView) -> Message | None:
        """One backward per step."""
        backwards = (run.facts.get("accumulation") or {}).get("backwards")
        return say("skip.one_backward") if backwards == 1 else None

    def check(self, run: RunView) -> Outcome:
        """All steps that had several backwards."""
        curve = run.settled("grad/accumulation")
        if len(curve) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(curve)), say("enable.longer"))
        test = share_below(curve, self.ratio)
        if test.share < self.persistent:
            return Clear((test.p,))
        backwards = int((run.facts.get("accumulation") or {}).get("backwards") or 0)
        finding = self.finding(
            say("rule.OPT707", ratio=middle(curve), percent=100 * test.share, **span(curve)),
            evidence=(
                Evidence("grad/accumulation", middle(curve), self.ratio, **span(curve)),
                *((Evidence("audit/accumulation/backwards", float(backwards)),) if backwards else ()),
            ),
            causes=(Cause("gradient-dropped"),),
            fixes=(edit("zero_grad_once"),),
            certainty="likely",
            p=test.p,
        )
        return Fired((finding,))
