"""RUN001: too few measured steps to say anything about a whole run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView


@dataclass(frozen=True)
class TooShort(Rule):
    """The run has too few measured steps for its curves to be judged.

    Symptom: most rules are skipped.
    Cause: the run has only begun, or is measured too seldom for its length.
    Evidence: fewer than `least` steps were measured in full after the warm-up, the first tenth of the run.
    Fix: train longer, or measure more often.
    Ignore when: facts were all you wanted to know: wiring, optimizers and numbers that are NaN are judged all the same.
    Confirm: more measured steps
    """

    code, name = "RUN001", "too-short"
    severity, depth = "info", "root"
    least: int = LEAST  # see view.LEAST

    def check(self, run: RunView) -> Outcome:
        """The steps measured in full."""
        steps = run.steps[run.steps >= run.begins]
        if len(steps) >= self.least:
            return Clear()
        where = {"first_step": int(np.min(steps)), "last_step": int(np.max(steps))} if len(steps) else {}
        finding = self.finding(
            say("rule.RUN001", count=len(steps), least=self.least, steps=run.last_step + 1),
            evidence=(Evidence("steps measured", float(len(steps)), float(self.least), **where),),
            causes=(Cause("too-few-measurements"),),
            fixes=(edit("measure_more"),),
            certainty="likely",
        )
        return Fired((finding,))
