"""VEL401: a velocity no better than a constant."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_above, trend
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit, scale_rate, scale_weight
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

@dataclass(frozen=True)
class MisalignedVelocity(Rule):
    """The predicted velocity is no better than a constant, and does not improve.

    Symptom: the velocity loss stands still near the variance of its target.
    Cause: a wrong target, too low or too high a rate, or a weight so small that other losses decide.
    Evidence: `flow/nmse` above `trivial` times the error of the batch mean in most steps after the warm-up,
    without a falling trend. A plateau at any lower level is healthy: the loss has a floor above 0.
    Fix: check the target formula against the path; raise the rate or the weight of the velocity loss.
    Ignore when: source and data are independent and the data are a single Gaussian: then even the best velocity
    explains little.
    Confirm: only:<velocity loss>
    """

    code, name = "VEL401", "misaligned-velocity"
    needs = ("flow/nmse",)
    kind = "velocity"
    depth = "consequence"
    trivial: float = 0.95  # docs/log.md, the clinic: healthy 0.21 to 0.5 of it; broadcast shapes 1.0
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        nmse = run.settled("flow/nmse")
        if len(nmse) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(nmse)), say("enable.longer"))
        mean = middle(run.settled("flow/nmse_mean"))
        limit = self.trivial * min(1.0, mean) if mean > 0 else self.trivial
        test = share_above(nmse, limit)
        if test.share < self.persistent or trend(nmse).direction == "down":
            return Clear((test.p,))
        loss = run.of_kind("velocity")[0]
        weak = middle(run.ratio(f"grad_weighted/{loss}", "grad/total", loss=loss)) < 0.1
        codes = ["weight-too-small"] if weak else []
        finding = self.finding(
            say("rule.VEL401", nmse=middle(nmse), limit=limit, **span(nmse)),
            evidence=[Evidence("flow/nmse", middle(nmse), limit, **span(nmse))],
            causes=[Cause(code) for code in (*codes, "velocity-not-learned", "target-formula")],
            fixes=[*([scale_weight(loss, 4.0)] if weak else []), edit("check_target"), scale_rate("all", 3.0)],
            loss=loss,
            confirm=f"only:{loss}",
            p=test.p,
        )
        return Fired((finding,))
