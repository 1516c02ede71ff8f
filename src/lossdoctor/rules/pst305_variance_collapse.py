"""PST305: a posterior that becomes a deterministic code."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_below, trend
from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import warm_up_weight
from lossdoctor.rules.posterior import HELD, pull, role, stronger, the_loss
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import too_small
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class VarianceCollapse(Rule):
    """The standard deviation of the posterior goes to 0: the latent becomes a deterministic code.

    Symptom: std falls for the whole run; the KL grows by its logarithm.
    Cause: another loss wants a precise latent, and the KL is too weak to hold std up.
    Evidence: `std/mean` under `collapsed` in most steps, or under `falling` and still falling; the weighted gradient of
    the KL under `weak` of the total; and z is what a flow starts from.
    Fix: two remedies contradict each other. The textbook says to lower the weight of the KL and to warm it up: that
    fits posterior collapse, where the code carries nothing (PST306). Here std goes to 0, not to 1, and the KL is
    usually too weak: raise its weight. The paired experiment without:kl decides: if std falls as fast without the KL,
    the KL was not what drove it.
    Ignore when: z is the latent of an autoencoder: logvar at -17 to -23 is healthy in the one of Stable Diffusion, and
    does not fire. Nor does a small std that a strong KL holds, as in a code that carries much.
    Confirm: without:kl
    """

    code, name = "PST305", "variance-collapse"
    needs = ("std/mean",)
    kind = "kl"
    explains = ("PST301", "PST302")
    collapsed: float = 0.1  # 2 nats of information per dimension or more
    falling: float = 0.5  # docs/log.md, the clinic: 0.38 and falling with a weak KL; 0.71 and rising healthy
    weak: float = HELD  # as PST301
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """Small or on its way, and not held."""
        if not any(run.weighted(one) for one in run.of_kind("kl")):
            return Skipped(say("skip.kl_off"))
        loss = the_loss(run)
        std = run.settled("std/mean", loss=loss)
        if len(std) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(std)), say("enable.longer"))
        force, way = pull(run, self.weak), trend(std, skip=0.0)
        if force is None or role(run) != "source":
            return Clear()
        small, low = share_below(std, self.collapsed), share_below(std, self.falling)
        falls = way.direction == "down" and low.share >= self.persistent
        p = max(force[1].p, min(small.p, max(low.p, way.p if falls else 1.0)))
        if force[1].share < self.persistent or not (small.share >= self.persistent or falls):
            return Clear((p,))
        total, there = middle(run.settled("grad/total", loss=loss)), small.share >= self.persistent
        finding = self.finding(
            say(
                "rule.PST305" if there else "rule.PST305.falling",
                first=way.first,
                last=way.last,
                percent=100 * middle(force[0]),
                **span(std),
            ),
            evidence=(
                Evidence("std/mean", way.last, self.collapsed if there else self.falling, **span(std)),
                Evidence(f"grad_weighted/{loss}", middle(force[0]) * total, self.weak * total, **span(force[0])),
            ),
            causes=(Cause("kl-too-weak"), too_small(loss)),
            fixes=(*stronger(run), warm_up_weight(loss or "kl", max(1, round(0.1 * run.last_step)))),
            loss=loss,
            confirm=f"without:{loss or 'kl'}",
            p=p,
        )
        return outcome([finding])
