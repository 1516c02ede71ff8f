"""SMP504: samples that are not like the data."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.endpoints import errors
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView

@dataclass(frozen=True)
class EndpointOffDistribution(Rule):
    """The samples are far from the data although the velocity is well predicted.

    Symptom: good training curves, bad samples.
    Cause: training and inference use two formulas, scales, times or conditions.
    Evidence: `flow/endpt_sw@K` at the largest K above `far` times its floor, while `flow/cos` is above `good`.
    Fix: look at the field inference calls: `flow/field_mismatch`, preflight.
    Ignore when: the endpoint is measured on another population than the training batch.
    Confirm: preflight: sampler
    """

    code, name = "SMP504", "endpoint-off-distribution"
    needs = ("flow/endpt_sw@K", "flow/endpt_sw_floor", "flow/cos")
    depth = "consequence"
    far: float = 4.0  # docs/log.md, the clinic: healthy 0.9 to 1.2; a flipped sign 8 to 24
    good: float = 0.5  # below it the velocity itself explains bad samples

    def check(self, run: RunView) -> Outcome:
        found, floor = errors(run, "flow/endpt_sw@K"), run.now("flow/endpt_sw_floor")
        if not found or not found[max(found)] > self.far * floor > 0 or not run.now("flow/cos") > self.good:
            return Clear()
        distance = found[max(found)]
        finding = self.finding(
            say("rule.SMP504", times=distance / floor, cos=run.now("flow/cos")),
            evidence=[Evidence(f"flow/endpt_sw@{max(found)}", distance, self.far * floor)],
            causes=[Cause("inference-formula"), Cause("latent-scale"), Cause("inference-time")],
            fixes=[edit("one_sampler_formula")],
        )
        return Fired((finding,))
