"""PST301: a posterior that does not go to its prior although there is a KL."""

from __future__ import annotations

from dataclasses import dataclass

from lossdoctor.curves import share_above
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Outcome, Skipped, outcome, say
from lossdoctor.rules.posterior import FAR, HELD, approaching, distance, pull, role, stronger, the_loss
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import too_small
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class PriorNotApproached(Rule):
    """The KL is on, and the posterior does not approach the prior.

    Symptom: mu does not shrink, std does not go to 1, logvar not to 0, while the KL is in the loss.
    Cause: the KL is too weak against a loss that wants a precise latent; its weight is too small, or its formula wrong.
    Evidence: the true KL, from `mu/rms`, `std/rms` and `logvar/mean`, is above `far` nats per dimension in most steps
    and does not fall; the weighted gradient of the KL is under `weak` of the total; and z is what a flow starts from,
    as `z_init/var` and `flow/z0_std` agree. Without gradients, or where the use of z is not known, it is a remark.
    Fix: raise the weight of the KL; check the formula. The ablation without:kl settles it: if nothing changes without
    it, it did nothing.
    Ignore when: another loss shapes the latent and the KL holds against it. Then a posterior that stands still, or a KL
    that rises, is a balance, and does not fire. Nor does the latent of an autoencoder, whose KL is meant to be faint.
    Confirm: without:kl
    """

    code, name = "PST301", "prior-not-approached"
    needs = ("mu/abs_mean", "std/mean", "logvar/mean")
    kind = "kl"
    depth = "consequence"
    far: float = FAR  # docs/log.md, the clinic: 0.09 healthy, 0.54 and rising where the KL is too weak
    weak: float = HELD  # docs/log.md, the clinic: 0.17 to 0.26 healthy, 0.012 and 4e-5 where too weak
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """Far, staying there, and not held."""
        if not any(run.weighted(loss) for loss in run.of_kind("kl")):
            return Skipped(say("skip.kl_off"))
        apart = distance(run)
        if len(apart) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=len(apart)), say("enable.longer"))
        far, force = share_above(apart, self.far), pull(run, self.weak)
        p = far.p if force is None else max(far.p, force[1].p)
        weak = force is None or force[1].share >= self.persistent
        if far.share < self.persistent or not weak or approaching(apart) or role(run) in ("autoencoder", "target"):
            return Clear((p,))
        return outcome([self._finding(run, apart, None if force is None else force[0], p)])

    def _finding(self, run: RunView, apart: Series, force: Series | None, p: float) -> Finding:
        loss = the_loss(run)
        told = [Evidence(name, run.now(name), None, **span(run.settled(name, loss=loss))) for name in self.needs]
        if force is not None:
            total = middle(run.settled("grad/total", loss=loss))
            told.append(Evidence(f"grad_weighted/{loss}", middle(force) * total, self.weak * total, **span(force)))
        return self.finding(
            say(
                "rule.PST301" if force is not None else "rule.PST301.unmeasured",
                mu=run.now("mu/abs_mean"),
                std=run.now("std/mean"),
                logvar=run.now("logvar/mean"),
                kl=middle(apart),
                percent=100 * middle(force) if force is not None else 0.0,
                **span(apart),
            ),
            evidence=told,
            causes=(Cause("kl-too-weak"), too_small(loss)),
            fixes=stronger(run),
            loss=loss,
            severity="warning" if force is not None and role(run) == "source" else "info",
            confirm=f"without:{loss or 'kl'}",
            p=p,
        )
