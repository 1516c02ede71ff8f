"""PST307: a KL that is off by a constant factor."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Evidence, Fix, Outcome, Severity, Skipped, outcome, say
from lossdoctor.rules.fixes import edit, scale_weight
from lossdoctor.rules.kl_formula import EXACT, Formula, formula
from lossdoctor.rules.posterior import FAR, HELD, distance, pull, role, the_loss
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, middle

_MISTAKES = ("double", "half", "double mean", "half mean", "batch mean")
"""Factors that nobody chooses. A mean over dimensions, a sum over the batch and a weight inside are choices."""


@dataclass(frozen=True)
class KlReduction(Rule):
    """The KL is the right formula times a constant: another reduction than its weight was chosen for, or a lost 1/2.

    Symptom: the KL goes to 0 or runs away under a weight that works elsewhere.
    Cause: a mean over dimensions against a reconstruction that is summed, or the reverse; a lost factor 1/2.
    Evidence: `kl/ratio`, the KL handed in over the sum over dimensions, is constant to 0.5 % and not 1. 2 is a lost
    1/2, 1/D a mean over D dimensions, 1/B a mean that was taken twice. Below 0 the sign is wrong, which is an error.
    Fix: one reduction for all losses; or divide the weight by the factor.
    Ignore when: the weight was chosen for this reduction. A mean over dimensions, a sum over the batch and a weight
    that is already inside are only mentioned. A mean is a warning where the KL has less than 5 % of the gradient, a sum
    would have `low` to `high`, and the posterior is far from the prior.
    Confirm: weight:<kl>*<1/factor>
    """

    code, name = "PST307", "kl-reduction"
    needs = ("kl/given_per_dim or kl/ratio", "kl/per_dim", "mu/rms", "logvar/mean")
    depth = "root"
    explains = ("PST301", "PST302", "PST305", "PST306", "GRD102", "GRD103", "BAL801")
    low: float = 0.1  # of the total gradient; the lower end of BAL801
    high: float = 1.0  # no more than the total; docs/log.md, the clinic: 0.29 and 0.38 where the weight was for a sum

    def check(self, run: RunView) -> Outcome:
        """A factor, so no test."""
        found = formula(run)
        if found is None:
            return Skipped(say("skip.formula", least=LEAST), say("enable.longer"))
        if found.kind != "closed" or found.reduction == "sum" or abs(found.factor - 1) <= EXACT:
            return Clear()
        force, loss = pull(run), the_loss(run)
        share = middle(force[0]) if force is not None else 0.0
        starved = found.reduction == "mean" and self._starved(run, share, share / found.factor)
        severity: Severity = "warning" if starved or found.reduction in _MISTAKES else "info"
        if found.factor < 0:
            severity = "error"
        where = {"first_step": found.first_step, "last_step": found.last_step}
        fixes: list[Fix] = [edit("one_reduction")]
        if loss is not None and found.factor > 0:
            fixes.append(scale_weight(loss, float(f"{1 / found.factor:.3g}")))
        finding = self.finding(
            say(
                _sentence(found, starved=starved),
                factor=found.factor,
                dimensions=round(1 / found.factor) if 0 < found.factor < 1 else 1,
                percent=100 * share,
                whole=100 * share / found.factor,
                **where,
            ),
            evidence=(Evidence("kl/ratio", found.factor, 1.0, **where),),
            causes=(Cause("kl-reduction" if found.factor > 0 else "kl-formula"),),
            fixes=fixes,
            loss=loss,
            severity=severity,
            certainty="likely",
            confirm=f"weight:{loss or 'kl'}*{1 / found.factor:.3g}" if found.factor > 0 else "kl/ratio",
        )
        return outcome([finding])

    def _starved(self, run: RunView, mean: float, whole: float) -> bool:
        """Whether the KL is too weak as a mean, would be right as a sum, and there is something for it to do."""
        fits = mean < HELD and self.low <= whole <= self.high
        return fits and middle(distance(run)) > FAR and role(run) != "autoencoder"


def _sentence(found: Formula, *, starved: bool) -> str:
    if found.factor < 0:
        return "rule.PST307.sign"
    match found.reduction:
        case "mean":
            return "rule.PST307.starved" if starved else "rule.PST307.mean"
        case "double" | "double mean":
            return "rule.PST307.double"
        case "half" | "half mean":
            return "rule.PST307.half"
        case "batch sum" | "batch mean":
            return "rule.PST307.batch"
        case "weighted" | "weighted mean":
            return "rule.PST307.weighted"
    return "rule.PST307"
