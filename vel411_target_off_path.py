"""VEL411: a target that is not the derivative of the path."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_above
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

@dataclass(frozen=True)
class TargetOffPath(Rule):
    """The velocity target is not the derivative of the path that x_t follows.

    Symptom: training is perfect, and samples are wrong.
    Cause: another formula for the target than for x_t: a flipped sign, missing alpha' and beta', x1 or noise for a
    velocity.
    Evidence: `flow/target_mismatch` above `off` in most steps; `flow/target_scale` tells a flipped sign (-1).
    Needs x_t, z0 and z1 in `lossdoctor.flow`.
    Fix: derive x_t and v_target from one path.
    Ignore when: the network is meant to predict something else and is converted in inference: then hand in the
    velocity.
    Confirm: preflight: target
    """

    code, name = "VEL411", "target-off-path"
    needs = ("flow/target_mismatch",)
    kind = "velocity"
    severity = "error"
    depth = "root"
    explains = ("VEL401", "VEL402", "VEL403", "VEL405", "VEL406", "SMP501", "SMP503", "SMP504", "CND601")
    off: float = 0.05  # docs/log.md, the clinic: healthy 1e-7; another path's target 0.54, a flipped sign 2
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        mismatch = run.settled("flow/target_mismatch")
        if len(mismatch) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(mismatch)), say("enable.longer"))
        test = share_above(mismatch, self.off)
        if test.share < self.persistent:
            return Clear((test.p,))
        scale = middle(run.settled("flow/target_scale"))
        flipped = abs(scale + 1) < 0.05
        codes = ["target-sign"] if flipped else ["target-formula", "path-derivative-missing"]
        finding = self.finding(
            say("rule.VEL411.sign" if flipped else "rule.VEL411", mismatch=middle(mismatch)),
            evidence=[
                Evidence("flow/target_mismatch", middle(mismatch), self.off, **span(mismatch)),
                *([Evidence("flow/target_scale", scale, 1.0)] if run.has("flow/target_scale") else []),
            ],
            causes=[Cause(code) for code in codes],
            fixes=[edit("one_path")],
            certainty="likely",
            loss=run.of_kind("velocity")[0],
            p=test.p,
        )
        return Fired((finding,))
