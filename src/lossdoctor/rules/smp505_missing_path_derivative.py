"""SMP505: a sampler that lacks the derivatives of its path. Only the functions themselves can show it."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.causes import CAUSES
from lossdoctor.rules.finding import Clear, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of
from lossdoctor.rules.view import RunView


@dataclass(frozen=True)
class MissingPathDerivative(Rule):
    """The sampler converts the prediction into a velocity without alpha'(t) and beta'(t) of its path.

    Symptom: training looks perfect; samples are at the wrong scale, or end beside the data.
    Cause: a formula for the straight path, where both derivatives are constants, is used on a curved one.
    Evidence: lossdoctor preflight calls the sampler on a problem with a known solution, and records what it found in
    the run as an event. Without that event this rule is skipped: curves cannot show it.
    Fix: make the velocity in one function that knows the path, and call it in training and in sampling.
    Ignore when: never.
    Confirm: lossdoctor preflight
    """

    code, name = "SMP505", "missing-path-derivative"
    severity, depth = "error", "root"
    explains = ("SMP501", "SMP502", "SMP503", "SMP504", "SMP506")

    def check(self, run: RunView) -> Outcome:
        """What the last preflight said."""
        told = [event for event in run.events if event.get("kind") == "preflight" and event.get("code") == self.code]
        if not told:
            return Skipped(say("skip.preflight"), say("enable.preflight"))
        if told[-1].get("outcome") != "fired":
            return Clear()
        named = told[-1].get("causes")
        codes = [code for code in named if code in CAUSES] if isinstance(named, (list, tuple)) else []
        finding = self.finding(
            say("rule.SMP505"),
            causes=causes_of((*codes, "path-derivative-missing", "inference-formula")),
            fixes=(edit("one_formula"),),
            certainty="confirmed",
            confirm="lossdoctor preflight",
        )
        return outcome([finding])
