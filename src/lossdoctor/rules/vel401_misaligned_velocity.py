"""VEL401: a velocity that knows no more than a predictor that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_above, trend
from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, outcome, say
from lossdoctor.rules.fixes import edit, scale_rate, scale_weight
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of, too_small
from lossdoctor.rules.velocity import outweighed, over_trivial, seen, target_codes, the_loss, too_short, unsteady_loss
from lossdoctor.rules.view import RunView, middle, span


@dataclass(frozen=True)
class MisalignedVelocity(Rule):
    """The predicted velocity does not come nearer to its target than a predictor that knows nothing.

    Symptom: the velocity loss stays where it began, about the mean square of the target; samples are noise.
    Cause: a target or a loss that is not what it should be; too low or too high a rate; a weight too small to be heard.
    Evidence: `flow/nmse` over that of the best trivial predictor, 0 or the mean of the batch, is above `trivial` in
    most steps after the warm-up and at the end, and does not fall by more than `gain`. A plateau below that is healthy,
    wherever it is: the loss has a floor above 0, for independent unit Gaussians 0.785.
    Fix: check the target formula on one batch; then the learning rate; then the weight of the loss.
    Ignore when: the velocity is meant to be unlearnable, for example in a test. A run that is resumed after it has
    converged is flat, and is not judged by that.
    Confirm: only:<loss>, which must learn clearly in 200 steps
    """

    code, name = "VEL401", "misaligned-velocity"
    needs = ("flow/nmse",)
    depth = "consequence"
    explains = ("VEL402", "VEL403", "SMP501", "SMP503", "SMP504")
    trivial: float = 0.95  # docs/log.md, the clinic: healthy at most 0.46; Gaussians without structure 0.785
    gain: float = 0.05  # a share of its level that the error must lose over the run to count as learning
    weak: float = 0.1  # share of the total gradient under which the weight is named; the seed threshold of GRD102
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        """The run after its warm-up, and where it has come to."""
        ratio = over_trivial(run)
        if (short := too_short(ratio)) is not None:
            return short
        test, course = share_above(ratio, self.trivial), trend(ratio, skip=0.0)
        falls = course.direction == "down" and course.last < (1 - self.gain) * course.first
        if test.share < self.persistent or falls or course.last <= self.trivial:
            return Clear((test.p,))
        loss = the_loss(run)
        codes = self._codes(run)
        weight = [scale_weight(loss, 4.0)] if loss and codes[0] == too_small(loss) else []
        rate = [scale_rate("all", 0.3 if "rate-too-large" in codes else 3.0)] if "broadcast-shapes" not in codes else []
        finding = self.finding(
            say("rule.VEL401", ratio=middle(ratio), nmse=run.now("flow/nmse"), **span(ratio)),
            evidence=(
                Evidence("flow/nmse", run.now("flow/nmse"), self.trivial, **span(ratio)),
                *seen(run, "nmse_mean"),
                *seen(run, "cos"),
            ),
            causes=causes_of(codes),
            fixes=(*weight, edit("check_target", loss or "flow"), *rate),
            loss=loss,
            confirm=f"only:{loss}" if loss else None,
            p=test.p,
        )
        return outcome([finding])

    def _codes(self, run: RunView) -> list[Cause | str]:
        codes: list[Cause | str] = []
        if outweighed(run, self.weak):
            codes.append(too_small(the_loss(run)))
        if unsteady_loss(run):
            codes.append("broadcast-shapes")
        codes += target_codes(run)
        updates = [middle(run.settled(name)) for name in run.matching("step/<head>_rms_update")]
        if any(update > 1e-2 for update in updates):  # where OPT704 begins
            codes.append("rate-too-large")
        rates = [middle(run.settled(name)) for name in run.matching("step/<head>_update_ratio")]
        if rates and max(rates) < 1e-5:  # where OPT701 begins
            codes.append("rate-too-small")
        return [*codes, "velocity-not-learned", "target-formula"]
