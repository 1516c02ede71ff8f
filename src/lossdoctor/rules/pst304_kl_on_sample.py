"""PST304: a KL that does not follow mu and logvar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, Severity, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.kl_formula import Formula, formula
from lossdoctor.rules.posterior import the_loss
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView


@dataclass(frozen=True)
class KlOnSample(Rule):
    """What is trained as KL is another formula: computed from the sample z, or with a term missing or changed.

    Symptom: the logged KL falls while the true one does not; std shrinks or grows without an end.
    Cause: z where mu and logvar belong, a lost term, std for variance, a formula from elsewhere.
    Evidence: `kl/ratio` is not constant, beyond 0.5 % and beyond noise about a usual value. Candidates are then held
    against the KL that was handed in: the one that reproduces it is named. An estimate log q(z) - log p(z) is right on
    average, and does not fire.
    Fix: the closed form, 0.5 (mu^2 + exp(logvar) - 1 - logvar), summed over dimensions.
    Ignore when: the KL is bounded from below on purpose, as free bits do, which is only mentioned; or its prior is not
    N(0, 1) but learned, or a mixture. Then hand in no `kl`.
    Confirm: kl/ratio is constant once the formula is right
    """

    code, name = "PST304", "kl-on-sample"
    needs = ("kl/given_per_dim or kl/ratio", "kl/per_dim", "mu/rms", "logvar/mean")
    depth = "root"
    explains = ("PST301", "PST302", "PST305", "PST306", "GRD102", "GRD103", "BAL801")
    floor: float = 0.25  # share of the steps at the smallest value from which on that is a bound and no chance

    def check(self, run: RunView) -> Outcome:
        """A formula, so no test."""
        found = formula(run)
        if found is None:
            return Skipped(say("skip.formula", least=LEAST), say("enable.longer"))
        if found.kind in ("closed", "scaled"):
            return Clear()
        severity: Severity = "error" if found.exact else "warning"
        sentence = f"rule.PST304.{found.kind}" if found.name else "rule.PST304"
        if not found.exact and self._bounded(run):
            severity, sentence = "info", "rule.PST304.bounded"
        where = {"first_step": found.first_step, "last_step": found.last_step}
        finding = self.finding(
            say(sentence, low=found.low, high=found.high, formula=found.name, **where),
            evidence=(
                Evidence("kl/ratio", found.low, None, **where),
                Evidence("kl/ratio", found.high, None, **where),
            ),
            causes=_causes(found),
            fixes=(edit("closed_form_kl"),),
            loss=the_loss(run),
            severity=severity,
            certainty="likely" if found.exact else "suspected",
            confirm="kl/ratio",
        )
        return outcome([finding])

    def _bounded(self, run: RunView) -> bool:
        """Free bits: the given KL is never below the true one, and often stands at one value."""
        given, true = run["kl/given_per_dim"].finite, run["kl/per_dim"].finite
        steps, i, j = np.intersect1d(given.steps, true.steps, return_indices=True)
        if not len(steps):
            return False
        over, under = given.values[i], true.values[j]
        return bool(np.mean(over <= 1.001 * over.min()) >= self.floor and (over >= 0.99 * under).all())


def _causes(found: Formula) -> tuple[Cause, ...]:
    codes = ("kl-on-sample", "kl-formula") if found.kind == "sample" else ("kl-formula", "kl-on-sample")
    return tuple(map(Cause, codes[:1] if found.exact else codes))
