"""GRD107: gradient clipping that is no exception but the rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import share_below
from lossdoctor.record import Series
from lossdoctor.rules.finding import Clear, Evidence, Fired, Message, Outcome, Skipped, say
from lossdoctor.rules.fixes import balance, edit, scale_rate
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.strengths import causes_of, strengths, too_large
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class ClipAlwaysActive(Rule):
    """The gradient is clipped hard in most steps, so that the clip and not the losses sets its length.

    Symptom: with SGD, raising a weight or the rate of a loss changes less than it should; with any optimizer the loss
    with the largest gradient squeezes the others at every step.
    Cause: the clip is far below the usual norm; or one loss is so large that the clip is always busy with it.
    Evidence: `grad/clip_ratio` is under `ratio` in most steps after the warm-up, steps without a clip counting as 1. A
    warning when its median is under `hard`, else a remark. It names a loss that is `hidden` times all others.
    Fix: raise the clip to the usual norm of the gradient, and balance the losses first.
    Ignore when: the optimizer is of the Adam family and the losses are in balance: it forgets a constant factor.
    Confirm: raise the clip and compare
    """

    code, name = "GRD107", "clip-always-active"
    needs = ("grad/clip_ratio", "grad/total")
    ratio: float = given(0.5)  # the method's
    hard: float = 0.1  # docs/log.md, the clinic: a clip at 1 / 100 of the norm gives 0.01
    hidden: float = 10.0  # pitfalls seen elsewhere: a clip that hid an imbalance of 10
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def beside_the_point(self, run: RunView) -> Message | None:
        """Gradients are measured, and never change before the step."""
        return say("skip.no_clip") if len(run["grad/total"].finite) >= LEAST else None

    def check(self, run: RunView) -> Outcome:
        """All steps at which the gradient was measured."""
        total, clipped = run.settled("grad/total"), run.settled("grad/clip_ratio")
        if len(total) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(total)), say("enable.longer"))
        ratios = np.ones(len(total))
        _, where, which = np.intersect1d(total.steps, clipped.steps, return_indices=True)
        ratios[where] = clipped.values[which]
        curve = Series(total.steps, ratios)
        test = share_below(curve, self.ratio)
        if test.share < self.persistent:
            return Clear((test.p,))
        norm, kept = middle(total), middle(curve)
        hiding = self._hidden(run)
        causes = ["clip-too-low", too_large(hiding) if hiding else "rate-too-large"]
        if int((run.facts.get("accumulation") or {}).get("backwards") or 0) > 1:
            causes.append("gradient-summed")
        told = {"ratio": kept, "percent": 100 * test.share, **span(curve)}
        message = say("rule.GRD107", **told) if hiding is None else say("rule.GRD107.hides", loss=hiding, **told)
        finding = self.finding(
            message,
            evidence=(
                Evidence("grad/clip_ratio", kept, self.ratio, **span(curve)),
                Evidence("grad/total", norm, None, **span(curve)),
            ),
            causes=causes_of(causes),
            fixes=(edit("raise_clip", "grad/total", value=norm), balance("ratio"), scale_rate("all", 0.3)),
            subject=hiding,
            severity="warning" if kept < self.hard else "info",
            p=test.p,
        )
        return Fired((finding,))

    def _hidden(self, run: RunView) -> str | None:
        """The loss that is so much larger than every other that the clip is about it alone."""
        sizes = sorted(((middle(curve), loss) for loss, curve in strengths(run).items()), reverse=True)
        return sizes[0][1] if len(sizes) > 1 and sizes[0][0] > self.hidden * sizes[1][0] else None
