"""SMP503: samples of the wrong size."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView

@dataclass(frozen=True)
class EndpointOffScale(Rule):
    """The samples are far larger or smaller than the data.

    Symptom: samples are saturated, washed out, or noise.
    Cause: a wrong sign, scale or direction of time in inference; a field that is hardly trained.
    Evidence: `flow/endpt_std_ratio` above `large` or below `small`.
    Fix: look at the other findings first; then compare the scale of latents in training and inference.
    Ignore when: guidance is on: it enlarges samples on purpose.
    Confirm: preflight: sampler
    """

    code, name = "SMP503", "endpoint-off-scale"
    needs = ("flow/endpt_std_ratio",)
    depth = "consequence"
    large: float = 1.5  # docs/log.md, the clinic: healthy 0.97 to 1.01; a flipped sign 1.8 to 3.6
    small: float = 0.5  # a field with half its data unlearned still has 0.8

    def check(self, run: RunView) -> Outcome:
        ratio = run.now("flow/endpt_std_ratio")
        if not (ratio > self.large or ratio < self.small):
            return Clear()
        finding = self.finding(
            say("rule.SMP503", ratio=ratio),
            evidence=[Evidence("flow/endpt_std_ratio", ratio, self.large if ratio > 1 else self.small)],
            causes=[Cause("inference-scale"), Cause("inference-sign"), Cause("velocity-not-learned")],
            fixes=[edit("one_sampler_formula")],
        )
        return Fired((finding,))
