"""VEL406: a field that is better at 1 - t."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_below
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle, span

@dataclass(frozen=True)
class TimeReversed(Rule):
    """The field that inference calls fits the target better at 1 - t than at t.

    Symptom: training is perfect, samples are bad, sometimes only mildly.
    Cause: training and inference count time in opposite directions.
    Evidence: `flow/time_reversal`, the loss at 1 - t over the loss at t, below `level` in most steps.
    Fix: use one direction of time in both; `t_source` says which end of t is the source.
    Ignore when: the problem is symmetric in time.
    Confirm: preflight: sampler
    """

    code, name = "VEL406", "time-reversed"
    needs = ("flow/time_reversal",)
    kind = "velocity"
    severity = "error"
    depth = "root"
    explains = ("VEL405", "SMP501", "SMP503", "SMP504")
    level: float = 0.9  # docs/log.md, the clinic: healthy 1.5 to 9.9; reversed 0.58 to 0.62
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def check(self, run: RunView) -> Outcome:
        ratio = run.settled("flow/time_reversal")
        if len(ratio) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(ratio)), say("enable.longer"))
        test = share_below(ratio, self.level)
        if test.share < self.persistent:
            return Clear((test.p,))
        finding = self.finding(
            say("rule.VEL406", ratio=middle(ratio)),
            evidence=[Evidence("flow/time_reversal", middle(ratio), self.level, **span(ratio))],
            causes=[Cause("time-reversed")],
            fixes=[edit("one_time_direction")],
            loss=run.of_kind("velocity")[0],
            p=test.p,
        )
        return Fired((finding,))
