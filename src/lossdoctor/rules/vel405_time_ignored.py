"""VEL405: a network that answers the same whatever the time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import Share, share_below
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Outcome, Severity, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.velocity import learned, settled, the_loss, too_short
from lossdoctor.rules.view import RunView, middle, span


@dataclass(frozen=True)
class TimeIgnored(Rule):
    """The velocity is the same whatever time it is asked for.

    Symptom: the loss is a little worse than it should be; samples stop half way, or are blurred.
    Cause: the time embedding is not added, is multiplied by 0, or gets a constant.
    Evidence: `flow/time_ratio`, the loss with the times permuted over the batch over the loss, is 1 to `exact` in most
    steps: then no time reaches the network. Within `near` of 1 it is only mentioned.
    Fix: follow t from the call to the embedding; check its range, too: an embedding made for 0 to 1000 hardly notices
    times in [0, 1].
    Ignore when: the network is meant to work without the time. A ratio near 1 that is not exact is also healthy where
    the best velocity hardly depends on the time, as on straight paths between given pairs. A network that has learned
    nothing yet is not judged.
    Confirm: flow/time_ratio above 1 once the embedding is connected
    """

    code, name = "VEL405", "time-ignored"
    needs = ("flow/time_ratio",)
    depth = "root"
    exact: float = 1e-6  # docs/log.md, the clinic: 0 where time is not connected, 4e-4 and more where it is
    near: float = 0.02  # the same: healthy 0.3 and more above 1, dropout and small batches scatter by 0.01
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        """How far the ratio is from 1."""
        ratio = settled(run, "time_ratio")
        if (short := too_short(ratio)) is not None:
            return short
        if not learned(run):
            return Skipped(say("skip.not_learned"), say("enable.longer"))
        off = Series(ratio.steps, np.abs(ratio.values - 1))
        same, like = share_below(off, self.exact), share_below(off, self.near)
        if same.share >= self.persistent:
            return outcome([self._finding(run, ratio, "rule.VEL405", same, "error")])
        if like.share >= self.persistent:
            return outcome([self._finding(run, ratio, "rule.VEL405.near", like, "info")])
        return Clear((like.p,))

    def _finding(self, run: RunView, ratio: Series, sentence: str, test: Share, severity: Severity) -> Finding:
        return self.finding(
            say(sentence, ratio=middle(ratio), **span(ratio)),
            evidence=(Evidence("flow/time_ratio", middle(ratio), 1.0, **span(ratio)),),
            causes=(Cause("time-not-connected"),),
            fixes=(edit("connect_time"),),
            loss=the_loss(run),
            severity=severity,
            certainty="likely" if severity == "error" else "suspected",
            confirm="flow/time_ratio",
            p=test.p,
        )
