"""VEL405: a network that does not use t."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_above, share_below
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

@dataclass(frozen=True)
class TimeIgnored(Rule):
    """The velocity does not depend on the time it is given.

    Symptom: the loss is almost as good as with it.
    Cause: the time embedding is not connected, multiplied by 0, or swamped by other inputs.
    Evidence: with times permuted over the batch the loss stays the same: `flow/time_ratio` below `used` in most
    steps.
    Fix: follow t through the network.
    Ignore when: the best velocity hardly depends on time, as between very near distributions.
    Confirm: shuffle of t in preflight
    """

    code, name = "VEL405", "time-ignored"
    needs = ("flow/time_ratio",)
    kind = "velocity"
    depth = "consequence"
    used: float = 1.01  # docs/log.md, the clinic: healthy 1.3 to 4.9; not connected 1.000
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        ratio = run.settled("flow/time_ratio")
        if len(ratio) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(ratio)), say("enable.longer"))
        below, above = share_below(ratio, self.used), share_above(ratio, 2 - self.used)
        if min(below.share, above.share) < self.persistent:
            return Clear((max(below.p, above.p),))
        finding = self.finding(
            say("rule.VEL405", ratio=middle(ratio)),
            evidence=[Evidence("flow/time_ratio", middle(ratio), self.used, **span(ratio))],
            causes=[Cause("time-not-connected")],
            fixes=[edit("connect_time")],
            loss=run.of_kind("velocity")[0],
            p=max(below.p, above.p),
        )
        return Fired((finding,))
