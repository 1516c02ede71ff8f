"""SMP502: a sampler that does not solve its equation as it should."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.endpoints import errors
from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView

@dataclass(frozen=True)
class WrongOrder(Rule):
    """The sampler does not solve the equation as well as its scheme can.

    Symptom: samples overshoot or stay behind, less so with more steps.
    Cause: a time grid of 1/(N-1) for N steps, a state or a time from the step before.
    Evidence: `flow/ode_order` below `order` of the nominal order; or, for a sampler of your own, an error above
    `worse` times that of plain Euler at every number of steps. An error that falls like 1/(K-1) instead of 1/K
    gives away a grid that is one step too short.
    Fix: t_k = k / N for k = 0 ... N-1, and v at the state and the time of the same k.
    Ignore when: the field has a kink, or the error is at the level of rounding.
    Confirm: preflight: sampler
    """

    code, name = "SMP502", "wrong-order"
    needs = ("flow/ode_error@K",)
    severity = "error"
    depth = "root"
    explains = ("SMP501", "SMP503", "SMP504")
    order: float = 0.5  # of the nominal one; docs/log.md, the clinic: healthy Euler 0.83 to 1.13
    small: float = 1e-3  # relative error below which an order means nothing
    worse: float = 1.5  # an honest Euler has exactly 1; a short grid 1.8 to 2.1, a stale state 2.5
    short: float = 1.08  # a grid of 1/(N-1) falls faster by 9/8 between 8 and 64 steps

    def check(self, run: RunView) -> Outcome:
        solved, plain = errors(run, "flow/ode_error@K"), errors(run, "flow/ode_error_euler@K")
        if len(solved) < 2:
            return Skipped(say("skip.steps"))
        least, most = min(solved), max(solved)
        both = [steps for steps in solved if plain.get(steps, 0.0) > 0]
        if len(both) > 1 and all(solved[steps] > self.worse * plain[steps] for steps in both):
            fall = (solved[least] / solved[most]) / (plain[least] / plain[most])
            codes = ["sampler-grid", "sampler-state"] if fall > self.short else ["sampler-state", "sampler-grid"]
            times = solved[least] / plain[least]
            finding = self.finding(
                say("rule.SMP502.worse", times=times, steps=least),
                evidence=[Evidence(f"flow/ode_error@{least}", solved[least], self.worse * plain[least])],
                causes=[Cause(code) for code in codes],
                fixes=[edit("right_grid")],
                certainty="likely",
            )
            return Fired((finding,))
        seen, nominal = run.now("flow/ode_order"), float((run.meta.get("endpoint") or {}).get("order") or 1)
        if seen < self.order * nominal and solved[most] > self.small:
            finding = self.finding(
                say("rule.SMP502", order=seen, nominal=nominal),
                evidence=[Evidence("flow/ode_order", seen, self.order * nominal)],
                causes=[Cause("sampler-state"), Cause("sampler-grid")],
                fixes=[edit("right_grid")],
            )
            return Fired((finding,))
        return Clear()
