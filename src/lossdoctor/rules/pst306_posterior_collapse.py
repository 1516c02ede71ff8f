"""PST306: a posterior that is the prior and says nothing."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_below
from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import ablate, edit, scale_weight, warm_up_weight
from lossdoctor.rules.heads import heads_of
from lossdoctor.rules.posterior import the_loss
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import causes_of, too_large
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class PosteriorCollapse(Rule):
    """The posterior has become the prior: the latent carries nothing about the input.

    Symptom: the KL goes to 0, and what is made from z no longer depends on the input.
    Cause: the KL is too strong, too early, or nothing else asks anything of the latent.
    Evidence: `kl/per_dim` under `nats` and `posterior/snr` under `snr` in most steps after the warm-up, and, where it
    was measured, `posterior/active_units` under `active`.
    Fix: lower the weight of the KL, warm it up, or leave each dimension some free bits.
    Ignore when: the posterior is the prior by construction: a mean of exactly 0 is left out for that reason.
    Confirm: weight:<kl>*0.1
    """

    code, name = "PST306", "posterior-collapse"
    needs = ("kl/per_dim", "posterior/snr")
    explains = ("VEL410", "GRD103", "BAL801")
    nats: float = 0.01  # Burda et al. 2015 count a dimension as active from a variance of 0.01 on: 0.005 nats
    snr: float = 0.01  # the same bar for what mu says against the noise; docs/log.md, the clinic: 0.2 healthy
    active: float = 0.01  # share of the dimensions: none of up to a hundred
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """Small, and not only small: without a signal."""
        loss = the_loss(run)
        mean = run.settled("mu/abs_mean", loss=loss)
        if len(mean) and not mean.values.any():
            return Skipped(say("skip.zero_mean"))
        bars = {"kl/per_dim": self.nats, "posterior/snr": self.snr, "posterior/active_units": self.active}
        curves = {name: run.settled(name, loss=loss) for name in bars if name in self.needs or name in run}
        shortest = min(map(len, curves.values()))
        if shortest < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=shortest), say("enable.longer"))
        tests = {name: share_below(curve, bars[name]) for name, curve in curves.items()}
        p = max(test.p for test in tests.values())
        if any(test.share < self.persistent for test in tests.values()):
            return Clear((p,))
        kl, snr = (curves[name] for name in self.needs)
        target = loss or "kl"
        finding = self.finding(
            say("rule.PST306", kl=middle(kl), snr=middle(snr), **span(kl)),
            evidence=[Evidence(name, middle(curve), bars[name], **span(curve)) for name, curve in curves.items()],
            causes=causes_of(_causes(run, loss)),
            fixes=(
                scale_weight(target, 0.1),
                warm_up_weight(target, max(1, round(0.2 * run.last_step))),
                edit("free_bits"),
                ablate(f"without:{target}"),
            ),
            loss=loss,
            confirm=f"weight:{target}*0.1",
            p=p,
        )
        return outcome([finding])


def _causes(run: RunView, loss: str | None) -> list[Cause | str]:
    causes: list[Cause | str] = ["kl-too-strong", too_large(loss)]
    heads, others = heads_of(run, "kl"), [loss for loss, kind in run.losses.items() if kind != "kl"]
    asked = [f"grad_module/{loss}/{head}" for loss in others for head in heads]
    # Only where the KL itself was seen on that head is the silence of the others news.
    seen = any(len(run[f"grad_module/{loss}/{head}"]) for loss in run.of_kind("kl") for head in heads)
    if others and seen and not any(run[name].finite.values.any() for name in asked):
        causes.insert(0, "wrong-wiring")
    return causes
