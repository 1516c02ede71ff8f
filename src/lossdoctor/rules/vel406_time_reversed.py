"""VEL406: the field that inference calls runs the other way in time."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_below
from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.velocity import seen, settled, the_loss, too_short, typical
from lossdoctor.rules.view import RunView, middle, span


@dataclass(frozen=True)
class TimeReversed(Rule):
    """The field that is called for sampling fits better when it is asked at 1 - t.

    Symptom: training looks perfect, and samples are worse than they should be, sometimes only a little.
    Cause: t runs from data to noise in training and from noise to data in sampling, or the reverse.
    Evidence: `flow/time_reversal`, the loss of `velocity` asked at 1 - t over its loss at t, is under `reversal` in
    most steps, and `flow/field_reversed` is less than half of `flow/field_mismatch`: asked at 1 - t it is the field
    that was trained. Without these two the finding is only suspected.
    Fix: settle on one direction, write it next to t, and pass t through unchanged.
    Ignore when: never, if both are recorded. A problem that looks the same from both ends has a ratio near 1.
    Confirm: flow/field_mismatch is 0 once this is right
    """

    code, name = "VEL406", "time-reversed"
    needs = ("flow/time_reversal",)
    depth = "root"
    reversal: float = 0.9  # docs/log.md, the clinic: reversed 0.11 to 0.58, healthy 1.7 and more, scatter about 1 0.05
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        """The ratio, and what the field says of itself."""
        curve = settled(run, "time_reversal")
        if (short := too_short(curve)) is not None:
            return short
        test = share_below(curve, self.reversal)
        at_other_end, mismatch = typical(run, "field_reversed"), typical(run, "field_mismatch")
        if test.share < self.persistent or at_other_end >= 0.5 * mismatch:
            return Clear((test.p,))
        sure = at_other_end < 0.5 * mismatch
        finding = self.finding(
            say("rule.VEL406", ratio=middle(curve), **span(curve)),
            evidence=(
                Evidence("flow/time_reversal", middle(curve), self.reversal, **span(curve)),
                *seen(run, "field_reversed"),
                *seen(run, "field_mismatch"),
            ),
            causes=(Cause("time-reversed"), Cause("inference-time")),
            fixes=(edit("same_time"),),
            loss=the_loss(run),
            severity="error" if sure else "warning",
            certainty="likely" if sure else "suspected",
            confirm="flow/field_mismatch",
            p=test.p,
        )
        return outcome([finding])
