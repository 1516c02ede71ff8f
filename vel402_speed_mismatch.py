"""VEL402: a velocity of the wrong length."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_above, share_below
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

@dataclass(frozen=True)
class SpeedMismatch(Rule):
    """The predicted velocity has the wrong length, beyond what its error explains.

    Symptom: samples stop short of the data, or overshoot.
    Cause: a constant factor in the output, the target or the latents.
    Evidence: `flow/speed_ratio` above `fast`, or below `slow` times `flow/cos`, in most steps. A regressor shrinks
    what it does not know: a speed ratio near the cosine is healthy.
    Fix: look for a factor between the output and the target.
    Ignore when: the output is deliberately scaled and rescaled in inference.
    Confirm: only:<velocity loss>
    """

    code, name = "VEL402", "speed-mismatch"
    needs = ("flow/speed_ratio", "flow/cos")
    kind = "velocity"
    fast: float = 1.3  # docs/log.md, the clinic: healthy 0.73 to 0.91
    slow: float = 0.6  # of the cosine; healthy 0.98 to 1.1 of it
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        speed, shrunk = run.settled("flow/speed_ratio"), run.ratio("flow/speed_ratio", "flow/cos")
        if len(speed) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(speed)), say("enable.longer"))
        over = share_above(speed, self.fast)
        under = share_below(shrunk, self.slow) if middle(run.settled("flow/cos")) > 0.2 else over
        if over.share >= self.persistent:
            limit, test = self.fast, over
        elif under is not over and under.share >= self.persistent:
            limit, test = self.slow * middle(run.settled("flow/cos")), under
        else:
            return Clear((over.p, under.p))
        finding = self.finding(
            say("rule.VEL402", speed=middle(speed), cos=middle(run.settled("flow/cos"))),
            evidence=[Evidence("flow/speed_ratio", middle(speed), limit, **span(speed))],
            causes=[Cause("latent-scale"), Cause("target-formula"), Cause("rate-too-large")],
            fixes=[edit("find_factor")],
            loss=run.of_kind("velocity")[0],
            p=test.p,
        )
        return Fired((finding,))
