"""OPT703: weight decay that pulls a head back to 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lossdoctor.rules.finding import Cause, Certainty, Clear, Evidence, Finding, Fired, Message, Outcome, say
from lossdoctor.rules.fixes import set_decay
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import together
from lossdoctor.rules.view import RunView


@dataclass(frozen=True)
class HeadWeightDecay(Rule):
    """Weight decay acts on a head.

    Symptom: outputs that are a little too small, most of all those of a posterior or of a velocity, which have a scale.
    Cause: all parameters are in one group of AdamW, whose decay is 0.01 unless told otherwise.
    Evidence: the audit finds a decay above 0 on a parameter of a head. A warning when the decay is `chosen` or more, or
    when rate times decay, summed over the run, is above `pull`: by that share the head would shrink without a gradient.
    Else a remark: the default of AdamW over a short run does nothing.
    Fix: a group of its own for the heads, with a weight decay of 0.
    Ignore when: the head is large and part of the backbone in all but name.
    Confirm: wd:<head>=0
    """

    code, name = "OPT703", "head-weight-decay"
    needs = ("audit:heads",)
    chosen: float = 0.02  # the default of AdamW is 0.01, and what is chosen for a backbone 0.04 to 0.4
    pull: float = 0.02  # docs/log.md, the clinic: 0.003 with the default of AdamW in 600 steps

    def check(self, run: RunView) -> Outcome:
        """The last audit; all heads in one finding."""
        step, facts = run.audits[-1]
        decays = decaying(facts)
        if not decays:
            return Clear()
        pulls = {head: _pull(run, head, decay, facts["heads"][head]) for head, decay in decays.items()}
        hardest = max(pulls, key=lambda head: pulls[head])
        message = say("rule.OPT703", heads=", ".join(decays), decay=decays[hardest], percent=100 * pulls[hardest])
        seen = [Evidence(f"audit/heads/{head}/weight_decay", decay, 0.0, step, step) for head, decay in decays.items()]
        # That it acts is a fact; that it matters in a run this long is one only beyond the pull.
        certainty: Certainty = "likely" if pulls[hardest] > self.pull else "suspected"
        return Fired((self.acting(message, seen, decays, pulls[hardest], certainty=certainty),))

    def follows(self, finding: Finding, root: Finding) -> bool:
        """From a rate that does harm, unless the decay was chosen: such a one pulls at any rate."""
        return root.severity != "info" and all(seen.value < self.chosen for seen in finding.evidence)

    def acting(
        self,
        message: Message,
        seen: Sequence[Evidence],
        decays: Mapping[str, float],
        pull: float,
        *,
        certainty: Certainty,
    ) -> Finding:
        """That heads have decays. pull: the share of its weights that the hardest pulled one loses; 0 if unknown."""
        return self.finding(
            message,
            evidence=seen,
            causes=(Cause("weight-decay-on-head"),),
            fixes=tuple(set_decay(head) for head in decays),
            subject=next(iter(decays)) if len(decays) == 1 else None,
            severity="warning" if pull > self.pull or max(decays.values()) >= self.chosen else "info",
            certainty=certainty,
            confirm="+".join(f"wd:{head}=0" for head in decays),
        )


def decaying(facts: Mapping[str, Any]) -> dict[str, float]:
    """The decay of every head an audit found one on that can be trained."""
    return {
        str(head): float(fact["weight_decay"])
        for head, fact in (facts.get("heads") or {}).items()
        if fact.get("weight_decay") and fact.get("trainable")
    }


def _pull(run: RunView, head: str, decay: float, fact: dict[str, object]) -> float:
    """Rate times decay, summed over the steps of the run; the curves where recorded, else the audited rate."""
    steps = run.last_step + 1
    rate, wd = together((run[f"lr/{head}"].finite, run[f"wd/{head}"].finite))
    if len(rate):
        return float((rate.values * wd.values).mean()) * steps
    rates = fact.get("lr")
    return max(map(float, rates), default=0.0) * decay * steps if isinstance(rates, list) else 0.0
