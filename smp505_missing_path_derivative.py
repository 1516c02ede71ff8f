"""SMP505: a sampler without alpha' and beta'."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView

@dataclass(frozen=True)
class MissingPathDerivative(Rule):
    """The sampler lacks the derivatives alpha'(t) and beta'(t) of a curved path.

    Symptom: training is perfect, samples are wrong on curved paths only.
    Cause: the formula of the straight path is used for a curved one.
    Evidence: preflight puts the exact field in place of the network and integrates with your own sampler; what it
    finds is recorded in the run.
    Fix: dx/dt = alpha'(t) z0 + beta'(t) z1.
    Ignore when: the path is straight: both derivatives are constant.
    Confirm: preflight: sampler
    """

    code, name = "SMP505", "missing-path-derivative"
    severity = "error"
    depth = "root"
    explains = ("SMP501", "SMP503", "SMP504")

    def check(self, run: RunView) -> Outcome:
        told = [event for event in run.events if event.get("kind") == "preflight" and event.get("code") == self.code]
        if not told:
            return Skipped(say("skip.preflight"))
        if told[-1].get("outcome") != "fired":
            return Clear()
        finding = self.finding(
            say("rule.SMP505"),
            causes=[Cause("path-derivative-missing")],
            fixes=[edit("path_derivative")],
            certainty="likely",
        )
        return Fired((finding,))
