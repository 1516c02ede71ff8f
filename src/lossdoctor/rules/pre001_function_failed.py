"""PRE001: a function handed to preflight could not be used. Only preflight itself can see it."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Finding, Message, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView


@dataclass(frozen=True)
class FunctionFailed(Rule):
    """A function handed to preflight raised an error, or gave back something that cannot be used.

    Symptom: a check of preflight did not take place.
    Cause: arguments in another order or shape than the function expects, a tensor of another shape or type returned,
    NaN from finite input; or a mistake in the function that training or sampling would have met too.
    Evidence: the error itself, with the function it came from, what was expected and what was got.
    Fix: adapt the signature with a lambda, for example velocity=lambda x, t, c: net(t, x, c).
    Ignore when: never.
    Confirm: lossdoctor preflight
    """

    code, name = "PRE001", "function-failed"
    severity, depth = "error", "root"

    def check(self, run: RunView) -> Outcome:
        """What the last preflight recorded, if one did."""
        told = [event for event in run.events if event.get("kind") == "preflight" and event.get("code") == self.code]
        if not told:
            return Skipped(say("skip.preflight"), say("enable.preflight"))
        if told[-1].get("outcome") != "fired":
            return Clear()
        return outcome([self.failure(say("rule.PRE001"))])

    def failure(self, message: Message, function: str | None = None) -> Finding:
        """The finding about one function."""
        return self.finding(
            message,
            causes=(Cause("function-failed"),),
            fixes=(edit("adapt_function"),),
            subject=function,
            certainty="confirmed",
            confirm="lossdoctor preflight",
        )
