"""RUN003: a run of scalars only."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView


@dataclass(frozen=True)
class NeverMeasuredInFull(Rule):
    """No step has the gradients of the single losses, so whether a loss works cannot be told.

    Symptom: the rules of gradients, balance and heads are all skipped.
    Cause: the run was imported; or its total was trained with loss.backward() instead of doctor.backward(losses,
    weights); or gradients were switched off.
    Evidence: `grad/total` was never recorded.
    Fix: train a few hundred steps under lossdoctor.Doctor, with the losses handed in by name.
    Ignore when: only the curves are of interest.
    Confirm: doctor.ret has grad/total after the first measured step
    """

    code, name = "RUN003", "never-measured-in-full"
    severity, depth = "info", "root"

    def check(self, run: RunView) -> Outcome:
        """Whether there are gradients."""
        if not len(run):
            return Skipped(say("skip.short", least=LEAST, found=0), say("enable.longer"))
        if "grad/total" in run:
            return Clear()
        finding = self.finding(
            say("rule.RUN003", metrics=len(run), steps=run.last_step + 1),
            evidence=(Evidence("grad/total", 0.0, 1.0),),
            causes=(Cause("too-few-measurements"),),
            fixes=(edit("use_doctor_backward"),),
            certainty="likely",
        )
        return Fired((finding,))
