"""CND602: the condition is dropped at another rate than the one configured."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_above, share_below
from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.velocity import settled, the_loss, too_short, typical
from lossdoctor.rules.view import RunView, middle, span

KNOBS = (
    "null_rate",
    "cond_drop",
    "cond_dropout",
    "p_uncond",
    "uncond_prob",
    "cfg_dropout",
    "drop_prob",
    "drop_rate",
    "cond_drop_prob",
    "class_dropout_prob",
    "caption_dropout",
)
"""Names under which scripts declare how often the condition is dropped for guidance."""


@dataclass(frozen=True)
class NullRate(Rule):
    """The share of samples without their condition is not the one that was configured.

    Symptom: guidance is too weak or has no effect; or samples follow their condition poorly.
    Cause: one mask for the whole batch, a mask that is computed and not used, a rate and its complement swapped.
    Evidence: `flow/cond_mode_share`, the share of the samples with the most common condition, is above what the
    configured rate and `frequent` times an even share of the classes explain, by more than `margin`, in most steps.
    Under half the configured rate it is mentioned.
    Fix: draw one mask per sample, torch.rand(B) < rate, and replace exactly those conditions.
    Ignore when: one class or caption really is that common; or the network drops conditions inside, after they were
    handed to `lossdoctor.flow`: then too few are seen here, and that is only mentioned.
    Confirm: count the null conditions of one batch
    """

    code, name = "CND602", "null-rate"
    needs = ("flow/cond_mode_share", "flow/cond_distinct")
    depth = "root"
    explains = ("CND601",)
    frequent: float = 3.0  # times its even share that a class may have; labels of long-tailed data are more uneven
    margin: float = 0.1  # on top of it; the largest of nine classes in a batch of 256 exceeds its share by 0.03
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """What is configured, against the most common condition."""
        rates = {name: rate for name in KNOBS if (rate := run.knob(name)) is not None and 0 <= rate <= 1}
        if not rates:
            return Skipped(say("skip.null_rate"), say("enable.null_rate"))
        common, distinct = settled(run, "cond_mode_share"), typical(run, "cond_distinct")
        if (short := too_short(common)) is not None:
            return short
        if not distinct > 1:
            return Skipped(say("skip.one_condition"))
        knob, rate = next(iter(rates.items()))
        even = (1 - rate) / (distinct - 1)
        high = max(rate, self.frequent * even) + self.margin
        above, below = share_above(common, high), share_below(common, rate / 2)
        if above.share < self.persistent and below.share < self.persistent:
            return Clear((min(above.p, below.p),))
        too_many = above.share >= self.persistent
        told = {"share": 100 * middle(common), "rate": 100 * rate, "knob": knob, **span(common)}
        finding = self.finding(
            say("rule.CND602" if too_many else "rule.CND602.few", **told),
            evidence=(
                Evidence("flow/cond_mode_share", middle(common), high if too_many else rate / 2, **span(common)),
                Evidence(f"knob/{knob}", rate),
            ),
            causes=(Cause("null-rate"),),
            fixes=(edit("mask_per_sample"),),
            loss=the_loss(run),
            severity="warning" if too_many else "info",
            p=above.p if too_many else below.p,
        )
        return outcome([finding])
