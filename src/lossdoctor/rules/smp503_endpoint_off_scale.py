"""SMP503: samples that are much larger or smaller than the data."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.endpoints import seen
from lossdoctor.rules.finding import Clear, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of
from lossdoctor.rules.velocity import field_causes, the_loss
from lossdoctor.rules.view import RunView


@dataclass(frozen=True)
class EndpointOffScale(Rule):
    """The end points of sampling have another standard deviation than the data.

    Symptom: samples are washed out, or saturated.
    Cause: a factor or a sign that only one of training and inference has; a grid that ends too late or too early; a
    velocity that is not learned yet, which leaves samples at the scale of the source.
    Evidence: `flow/endpt_std_ratio`, std of the end points over that of the data, is not between `low` and `high`; a
    warning where it is not between `far_low` and `far_high`.
    Fix: see the finding it follows from; otherwise compare the standard deviation along the path with that of x_t.
    Ignore when: the samples are drawn with strong guidance, or at a low temperature, on purpose.
    Confirm: flow/endpt_std_ratio near 1
    """

    code, name = "SMP503", "endpoint-off-scale"
    needs = ("flow/endpt_std_ratio",)
    depth = "consequence"
    low: float = 0.7  # docs/log.md, the clinic: healthy 0.96 to 1.0
    high: float = 1.4
    """See `low`."""
    far_low: float = 0.5  # docs/log.md, the clinic: factors and signs 2.3 to 7.1, data for a velocity 0.7 to 1.5
    far_high: float = 1.5
    """See `far_low`."""

    def check(self, run: RunView) -> Outcome:
        """The last value: end points are often measured once."""
        ratio = run.now("flow/endpt_std_ratio")
        if not len(run["flow/endpt_std_ratio"].finite):
            return Skipped(say("skip.no_end"))
        if self.low <= ratio <= self.high:
            return Clear()
        far = not self.far_low <= ratio <= self.far_high
        finding = self.finding(
            say("rule.SMP503", ratio=ratio),
            evidence=seen(run, "flow/endpt_std_ratio", self.high if ratio > 1 else self.low),
            causes=field_causes(run) or causes_of(("inference-scale", "latent-scale", "velocity-not-learned")),
            fixes=(edit("scale_along_path"),),
            loss=the_loss(run),
            severity="warning" if far else "info",
            confirm="flow/endpt_std_ratio",
        )
        return outcome([finding])
