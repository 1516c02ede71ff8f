"""VEL402: predictions that are too long or too short for how well they point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import share_above, share_below
from lossdoctor.record import Series
from lossdoctor.rules.finding import Clear, Evidence, Outcome, outcome, say
from lossdoctor.rules.fixes import edit, scale_rate
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of, together
from lossdoctor.rules.velocity import seen, settled, target_codes, the_loss, too_short, unsteady_loss
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class SpeedMismatch(Rule):
    """The predicted velocity has another length than its error and its direction allow.

    Symptom: paths overshoot, or hardly leave the source; the scale of the samples is off.
    Cause: latents, target or output at different scales; training that blows up; a loss that compares every prediction
    with every target; a head held near 0.
    Evidence: a squared error makes predictions shorter than their targets: |v_pred| / |v_target| should lie between
    about `flow/cos` and 1. In most steps `flow/speed_ratio` and the ratio that follows from `flow/nmse` and `flow/cos`
    are both above `long`, or both under `short` times `flow/cos`.
    Fix: print the standard deviations of v_pred and v_target for one batch, and look for the factor between them.
    Ignore when: the loss is meant to change lengths, such as a cosine loss. A ratio under 1 while the error is high is
    healthy, and so is a high ratio in one or two dimensions, where a few targets are nearly 0: only `flow/speed_ratio`
    shows that one.
    Confirm: flow/speed_ratio between flow/cos and 1
    """

    code, name = "VEL402", "speed-mismatch"
    needs = ("flow/speed_ratio", "flow/cos", "flow/nmse")
    explains = ("SMP503",)
    long: float = 1.3  # docs/log.md, the clinic: healthy 0.75 to 1.0, diverged 1.6 to 39
    short: float = 0.6  # the same: healthy 1.0 to 1.1 times cos, output without its head 0.74, broadcast 0.1 to 0.84
    aligned: float = 0.1  # cosine under which a direction is hardly known, and a length says nothing
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        """Both sides, each by the more cautious of the two measures."""
        speed, cos, nmse = together(settled(run, metric) for metric in ("speed_ratio", "cos", "nmse"))
        if (short := too_short(speed)) is not None:
            return short
        with np.errstate(over="ignore", invalid="ignore"):
            # |p - v|^2 = |v|^2 (r^2 - 2 r cos + 1), so the error and the cosine leave two ratios r of the lengths.
            root = np.sqrt(np.maximum(cos.values**2 - 1 + nmse.values, 0))
            high = Series(speed.steps, np.minimum(speed.values, cos.values + root)).finite
            pointing = cos.values > self.aligned
            low_ratio = np.maximum(speed.values, cos.values - root)[pointing] / cos.values[pointing]
        low = Series(speed.steps[pointing], low_ratio).finite
        above, below = share_above(high, self.long), share_below(low, self.short)
        if above.share >= self.persistent:
            return self._fired(run, speed, too_long=True, p=above.p)
        if len(low) >= LEAST and below.share >= self.persistent:
            return self._fired(run, speed, too_long=False, p=below.p)
        return Clear((min(above.p, below.p),))

    def _fired(self, run: RunView, speed: Series, *, too_long: bool, p: float) -> Outcome:
        loss = the_loss(run)
        cos = middle(settled(run, "cos"))
        codes = ["broadcast-shapes"] if unsteady_loss(run) else []
        codes += target_codes(run)
        if too_long and run.now("flow/nmse") > 1:
            codes += ["unstable-training", "rate-too-large"]
        codes += ["latent-scale", "target-formula"] if too_long else ["velocity-not-learned", "target-formula"]
        sentence = "rule.VEL402.long" if too_long else "rule.VEL402"
        limit = self.long if too_long else self.short * cos
        finding = self.finding(
            say(sentence, ratio=middle(speed), cos=cos, nmse=middle(settled(run, "nmse")), **span(speed)),
            evidence=(
                Evidence("flow/speed_ratio", middle(speed), limit, **span(speed)),
                *seen(run, "cos"),
                *seen(run, "nmse"),
            ),
            causes=causes_of(codes),
            fixes=(edit("compare_scales", loss or "flow"), *((scale_rate("all", 0.3),) if too_long else ())),
            loss=loss,
            confirm="flow/speed_ratio",
            p=p,
        )
        return outcome([finding])
