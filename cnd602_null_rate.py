"""CND602: conditions dropped at another rate than configured."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_above, share_below
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

@dataclass(frozen=True)
class NullRate(Rule):
    """The condition is dropped at another rate than configured.

    Symptom: guidance has no effect, or samples ignore the condition.
    Cause: the mask is computed and not used, used twice, or one for the whole batch.
    Evidence: the share of samples with the most common condition, against the rate declared with `lossdoctor.knob`
    under one of the names null_rate, cond_drop, p_uncond, cfg_dropout. Beyond what frequent classes explain, and
    beyond chance.
    Fix: one mask per sample, applied once.
    Ignore when: one real condition is that frequent.
    Confirm: knob:null_rate
    """

    code, name = "CND602", "null-rate"
    needs = ("flow/cond_mode_share", "flow/cond_distinct")
    depth = "root"
    explains = ("CND601",)
    margin: float = 0.1  # of the samples; docs/log.md, the clinic: healthy 0.04 over the expected share
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        rate = next((rate for name in KNOBS if (rate := run.knob(name)) is not None), None)
        if rate is None:
            return Skipped(say("skip.null_rate"), say("enable.null_rate"))
        share = run.settled("flow/cond_mode_share")
        distinct = middle(run.settled("flow/cond_distinct"))
        if len(share) < LEAST or not distinct > 2:
            return Skipped(say("skip.short", least=LEAST, found=len(share)), say("enable.longer"))
        # The null condition, or a class that happens to be twice as frequent as the others.
        often = max(rate, 2 * (1 - rate) / (distinct - 1)) + self.margin
        seldom = rate / 2 if rate >= 2 * self.margin else 0.0
        over, under = share_above(share, often), share_below(share, seldom)
        if max(over.share, under.share) < self.persistent:
            return Clear((over.p,))
        finding = self.finding(
            say("rule.CND602", share=100 * middle(share), rate=100 * rate),
            evidence=[Evidence("flow/cond_mode_share", middle(share), often if over.share > 0.5 else seldom, **span(share))],
            causes=[Cause("null-rate")],
            fixes=[edit("null_mask")],
            p=min(over.p, under.p),
        )
        return Fired((finding,))


KNOBS = ("null_rate", "cond_drop", "p_uncond", "cfg_dropout")
"""Names under which a script may declare the rate."""
