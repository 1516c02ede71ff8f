"""OPT702: parameters that get a gradient and that no optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Certainty, Clear, Evidence, Finding, Fired, Message, Outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView

_TOLD = 3


@dataclass(frozen=True)
class NotInOptimizer(Rule):
    """Parameters are trainable and get a gradient, and no optimizer steps them.

    Symptom: the losses fall all the same, because the rest of the model works around the fixed part.
    Cause: a module that was made after the optimizer, or left out when its groups were put together.
    Evidence: the audit after the first measured backward, repeated during the run: parameters that require a gradient,
    have one, and are in no optimizer. An error when a head is among them.
    Fix: add them to a parameter group, or call requires_grad_(False) if they are meant to stay.
    Ignore when: a part is frozen by leaving it out. It costs its gradients all the same.
    Confirm: the step metrics of the head are absent
    """

    code, name = "OPT702", "not-in-optimizer"
    needs = ("audit:optimizers",)
    depth = "root"
    explains = ("OPT701", "GRD106", "VEL401", "DST202")

    def check(self, run: RunView) -> Outcome:
        """The last audit."""
        step, facts = run.audits[-1]
        told = facts.get("optimizers") or {}
        count, missing = int(told.get("missing_count") or 0), [str(name) for name in told.get("missing") or ()]
        if not count or not told.get("missing_with_grad"):
            return Clear()
        modules = [str(module) for module in told.get("missing_modules") or ()]
        heads = [module for module in modules if module in run.heads]
        names = ", ".join(heads or modules or missing[:_TOLD])
        message = say("rule.OPT702", names=names, count=count, example=missing[0] if missing else names)
        seen = Evidence("audit/optimizers/missing_count", float(count), 0.0, step, step)
        return Fired((self.left_out(message, seen, names, heads, certainty="likely"),))

    def left_out(
        self,
        message: Message,
        seen: Evidence,
        names: str,
        heads: Sequence[str],
        *,
        certainty: Certainty,
        confirm: str | None = None,
    ) -> Finding:
        """That parameters are in no optimizer. names: where they belong, for a reader; heads: those among it."""
        return self.finding(
            message,
            evidence=(seen,),
            causes=(Cause("not-in-optimizer"),),
            fixes=(edit("add_to_optimizer", names), edit("freeze", names)),
            subject=heads[0] if len(heads) == 1 else None,
            severity="error" if heads else "warning",
            certainty=certainty,
            confirm=confirm,
        )
