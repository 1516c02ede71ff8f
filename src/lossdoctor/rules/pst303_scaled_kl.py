"""PST303: a KL of latents that were multiplied by a constant."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.kl_formula import KNOWN_SCALES, formula
from lossdoctor.rules.posterior import the_loss
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView


@dataclass(frozen=True)
class ScaledKl(Rule):
    """The KL is computed on latents times a constant, so that it pulls the real ones to another width than 1.

    Symptom: the logged KL never comes near 0, or it is far too small; samples of the prior have the wrong scale.
    Cause: mu and std are multiplied by a scale factor such as 0.18215 before the KL.
    Evidence: the KL handed in is that of c mu and c std, or of c mu alone, at every step, for one c and one usual
    reduction: to 0.5 % for a known c, to 1e-5 for another, and much better than for c = 1.
    Fix: compute the KL on the latents as the encoder gives them; or, if the scaled latent is the one that is sampled,
    scale it first and use it everywhere.
    Ignore when: the prior is meant to have the standard deviation 1/c.
    Confirm: kl/ratio is constant once the scale is gone
    """

    code, name = "PST303", "scaled-kl"
    needs = ("kl/given_per_dim or kl/ratio", "kl/per_dim", "mu/rms", "logvar/mean")
    depth = "root"
    explains = ("PST301", "PST302", "PST305", "PST306", "GRD102", "GRD103", "BAL801")

    def check(self, run: RunView) -> Outcome:
        """A formula, so no test."""
        found = formula(run)
        if found is None:
            return Skipped(say("skip.formula", least=LEAST), say("enable.longer"))
        if found.kind != "scaled":
            return Clear()
        where = {"first_step": found.first_step, "last_step": found.last_step}
        finding = self.finding(
            say(
                "rule.PST303.mean" if found.mean_only else "rule.PST303",
                scale=found.scale,
                width=1 / found.scale,
                error=max(100 * found.error, 1e-3),  # what float32 can tell
                **where,
            ),
            evidence=(Evidence("kl/ratio", run.now("kl/ratio"), 1.0, **where),),
            causes=(Cause("kl-on-scaled-latent"),),
            fixes=(edit("unscaled_kl"), edit("scaled_prior", value=1 / found.scale)),
            loss=the_loss(run),
            severity="error" if found.scale in KNOWN_SCALES else "warning",
            certainty="likely",
            confirm="kl/ratio",
        )
        return outcome([finding])
