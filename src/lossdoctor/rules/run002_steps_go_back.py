"""RUN002: records of a training that was taken back to a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView


@dataclass(frozen=True)
class StepsGoBack(Rule):
    """The last steps of the run are older than steps before them.

    Symptom: a curve with a seam: it jumps where training went back to a checkpoint and stopped before it had come as
    far as the first time.
    Cause: the run was resumed, and has not yet reached the step at which it was interrupted.
    Evidence: at least `least` steps whose records were written more than `seconds` before those of an earlier step.
    Fix: train on past the last old step, or give the resumed training a run of its own.
    Ignore when: you know of it. Where training went over all old steps again there is no trace and no harm: of two
    records of a step the later one counts.
    Confirm: the step at which the records get older
    """

    code, name = "RUN002", "steps-go-back"
    severity, depth = "info", "root"
    least: int = 2  # one odd clock reading is nothing
    seconds: float = 1.0  # clocks are put right by less; a training takes longer to start again

    def check(self, run: RunView) -> Outcome:
        """The wall clock of every step."""
        times = run.times
        if len(times) < 2:
            return Skipped(say("skip.times"))
        newest = np.maximum.accumulate(times.values)
        old = times.steps[times.values < newest - self.seconds]
        if len(old) < self.least:
            return Clear()
        seam, last = int(old[0]), int(old[-1])
        finding = self.finding(
            say("rule.RUN002", count=len(old), first_step=seam, last_step=last),
            evidence=(Evidence("steps out of order", float(len(old)), float(self.least), seam, last),),
            causes=(Cause("resumed-run"),),
            fixes=(edit("train_past", step=last),),
            certainty="likely",
        )
        return Fired((finding,))
