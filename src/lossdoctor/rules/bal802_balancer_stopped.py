"""BAL802: a balancer that has given up."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.finding import Clear, Evidence, Message, Outcome, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView


@dataclass(frozen=True)
class BalancerStopped(Rule):
    """The balancer that was asked for has stopped, and the weights stay as they are since.

    Symptom: the factors `balance/<loss>` no longer move, although the losses are not in balance.
    Cause: a band that no weight reaches, a loss without a gradient, no single loss of the kind to compare with, or a
    change after which a velocity or distillation loss became more than twice as large, so that it was taken back.
    Evidence: the balancer's own record of the stop. The sentence gives its reason.
    Fix: what the reason says: give the loss a gradient, name the kinds of the losses, choose a band that can be
    reached, or another balancer.
    Ignore when: the weights are good as they are. A balancer that has stopped does no harm; it does nothing.
    Confirm: train without balance= and compare
    """

    code, name = "BAL802", "balancer-stopped"
    needs = ("balance/age",)
    depth = "consequence"

    def check(self, run: RunView) -> Outcome:
        """A fact, and no statistics."""
        told = run.treated
        if told is None or told.stopped is None:
            return Clear()
        step, why = told.stopped
        factors = [name for name in run if name.startswith("balance/") and name != "balance/age"]
        finding = self.finding(
            say("rule.BAL802", balancer=told.balancer, step=step, reason=why),
            evidence=[
                Evidence(name, run.now(name), None, step, run.last_step) for name in factors if len(run[name].finite)
            ],
            fixes=(edit("other_balancer", told.balancer),),
            certainty="confirmed",
        )
        return outcome([finding])

    def beside_the_point(self, run: RunView) -> Message | None:
        """No balancer was asked for."""
        return None if run.treated is not None else say("skip.not_balanced")
