"""SMP501: an error that more steps do not lower."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Evidence, Fired, Outcome, Skipped, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.endpoints import errors
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import RunView

@dataclass(frozen=True)
class EndpointNotImproving(Rule):
    """More solver steps do not bring the samples nearer to where the field leads.

    Symptom: samples do not get better with more steps.
    Cause: the sampler integrates another formula than the one that was trained.
    Evidence: `flow/ode_error@K` at the largest K above `kept` of that at the smallest, and above `small`. The
    pairwise `flow/endpt_rmse@K` is judged only where it is clearly below its shuffled twin: without a pairing it
    rises with K in health.
    Fix: one formula for training and inference.
    Ignore when: the error is at the level of rounding.
    Confirm: preflight: sampler
    """

    code, name = "SMP501", "endpoint-not-improving"
    needs = ("flow/ode_error@K",)
    depth = "consequence"
    kept: float = 0.7  # docs/log.md, the clinic: from K = 8 to 64 healthy 0.09 to 0.18
    small: float = 0.02  # relative; below it there is nothing to gain
    paired: float = 0.7  # of the shuffled error; independent pairs have 0.98 to 1.02

    def check(self, run: RunView) -> Outcome:
        solved = errors(run, "flow/ode_error@K")
        if len(solved) < 2:
            return Skipped(say("skip.steps"))
        told = [("flow/ode_error", solved, self.small)]
        paired, shuffled = errors(run, "flow/endpt_rmse@K"), errors(run, "flow/endpt_rmse_shuffled@K")
        if paired and shuffled and paired[max(paired)] < self.paired * shuffled.get(max(paired), 0.0):
            told.append(("flow/endpt_rmse", paired, self.small))
        for name, found, small in told:
            few, many = found[min(found)], found[max(found)]
            limit = self.kept * few if name == "flow/ode_error" else few / self.kept
            if many > max(limit, small):
                finding = self.finding(
                    say("rule.SMP501", few=few, many=many, least=min(found), most=max(found)),
                    evidence=[Evidence(f"{name}@{max(found)}", many, limit), Evidence(f"{name}@{min(found)}", few)],
                    causes=[Cause("sampler-grid"), Cause("sampler-state"), Cause("inference-formula")],
                    fixes=[edit("one_sampler_formula")],
                )
                return Fired((finding,))
        return Clear()
