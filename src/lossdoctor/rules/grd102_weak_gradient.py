"""GRD102: a loss whose gradient hardly takes part in the total."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import share_below
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Evidence, Finding, Fix, Outcome, Severity, Skipped, outcome, say
from lossdoctor.rules.fixes import balance, edit, scale_knob, scale_rate, scale_weight
from lossdoctor.rules.heads import heads_of
from lossdoctor.rules.opt704_update_too_large import EXPLODED
from lossdoctor.rules.posterior import role
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.strengths import blamed, causes_of, factor_to, nothing_left, strengths
from lossdoctor.rules.view import LEAST, RunView, middle, span

_GOALS = {"distill": 0.3, "kl": 0.2, "velocity": 1.0}
"""What to raise a weak norm to, over the strongest other: the middle of the band of BAL801."""


@dataclass(frozen=True)
class WeakGradient(Rule):
    """A loss is so weak in the gradient that it hardly takes part in the training.

    Symptom: the total falls, this loss does not, or only as a by-product of the others.
    Cause: its weight is too small, or that of another loss too large; for a distillation also temperatures that leave
    nothing to learn.
    Evidence: `grad_weighted/<loss>` under a share of `grad/total` in most steps after the warm-up: `distill` of a
    distillation (under `distill_error` an error), `velocity` of a velocity loss, `kl` of a KL. A KL that shapes no more
    than a reconstruction is not asked, and is only mentioned while the posterior stays near the prior.
    Fix: raise the weight by 2 or 4, or as far as the numbers say; check the temperatures; a higher rate for the head of
    this loss; GradNorm or PCGrad.
    Ignore when: its schedule has not ended; steps before that are not judged. Or the loss has reached its floor. A
    distillation that says what its teacher says, a posterior that is the prior and a velocity that is exact are left
    out for this reason.
    Confirm: weight:<loss>*4
    """

    code, name = "GRD102", "weak-gradient"
    needs = ("grad_weighted/<loss>", "grad/total")
    explains = ("BAL801", "VEL401", "PST301", "PST302", "PST305")
    distill: float = given(0.10)  # the method's
    distill_error: float = given(0.05)  # the method's
    velocity: float = given(0.10)  # the method's
    kl: float = 1e-3  # docs/log.md, the clinic: healthy 0.26 to 0.65, at 1e-4 of the weight 2e-5 to 2e-4
    far_from_prior: float = 0.5  # nats per dimension; docs/log.md, the clinic: 0.09 healthy, 2.3 without a KL
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def follows(self, finding: Finding, root: Finding) -> bool:
        """From a rate only where a loss explodes under it."""
        return root.code != "OPT704" or root.message.key in EXPLODED

    def check(self, run: RunView) -> Outcome:
        """Every loss of the three kinds that has a rival."""
        strong = strengths(run)
        limits = {"distill": self.distill, "velocity": self.velocity, "kl": self.kl}
        asked = [loss for loss in strong if run.losses[loss] in limits]
        if len(strong) < 2 or not asked:
            return Skipped(say("skip.rivals"))
        found, tests, longest = [], [], 0
        for loss in asked:
            kind = run.losses[loss]
            ratio = run.ratio(f"grad_weighted/{loss}", "grad/total", loss=loss)
            ratio = Series(ratio.steps, np.abs(ratio.values))
            longest = max(longest, len(ratio))
            if len(ratio) < LEAST or (kind == "kl" and not _shapes_a_source(run)):
                continue
            test = share_below(ratio, limits[kind])
            if test.share >= self.persistent and not nothing_left(run, loss):
                found.append(self._finding(run, loss, ratio, limits[kind], test.p))
            else:
                tests.append(test.p)
        if longest < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=longest), say("enable.longer"))
        shapes = _shapes_a_source(run)
        waits = (why for kind in limits if kind != "kl" or shapes if (why := run.waits_for(kind)) is not None)
        if not found and (waiting := next(waits, None)) is not None:
            return Skipped(waiting, say("enable.longer"))
        return outcome(found, tests)

    def _finding(self, run: RunView, loss: str, ratio: Series, limit: float, p: float) -> Finding:
        strong = strengths(run)
        rival = max((other for other in strong if other != loss), key=lambda other: middle(strong[other]))
        weights = blamed(run, loss, rival)
        total = middle(run.settled("grad/total", loss=loss))
        fixes = self._fixes(run, loss, rival, strong, lower_rival=weights[0].code == "weight-too-large")
        raised = next((fix for fix in fixes if fix.action == "scale_weight"), fixes[0])
        return self.finding(
            say("rule.GRD102", loss=loss, percent=100 * middle(ratio), rival=rival, **span(ratio)),
            evidence=(
                Evidence(f"grad_weighted/{loss}", middle(strong[loss]), limit * total, **span(ratio)),
                Evidence("grad/total", total, None, **span(ratio)),
            ),
            causes=_causes(run, loss, weights),
            fixes=fixes,
            loss=loss,
            severity=self._severity(run, loss, ratio),
            confirm=f"weight:{raised.target}*{raised.params['factor']:g}",
            p=p,
        )

    def _severity(self, run: RunView, loss: str, ratio: Series) -> Severity:
        match run.losses[loss]:
            case "distill":
                return "error" if share_below(ratio, self.distill_error).share >= self.persistent else "warning"
            case "kl":
                return "warning" if run.now("kl/per_dim") > self.far_from_prior else "info"
        return "warning"

    def _fixes(
        self, run: RunView, loss: str, rival: str, strong: Mapping[str, Series], *, lower_rival: bool
    ) -> tuple[Fix, ...]:
        kind = run.losses[loss]
        own, other = middle(strong[loss]), middle(strong[rival])
        wanted = factor_to(_GOALS[kind] * other, own)
        raise_it = [scale_weight(loss, factor) for factor in ((2.0, 4.0) if wanted <= 4 else (wanted,))]
        lower_it = [scale_weight(rival, factor_to(own, _GOALS[kind] * other))]
        weights = [*lower_it, *raise_it] if lower_rival else raise_it
        temperature = [scale_knob("teacher_temp", 2.0)] if run.knob("teacher_temp") else [edit("soften_teacher", loss)]
        return (
            *weights,
            *(scale_rate(head, 3.0) for head in heads_of(run, kind)),
            *(temperature if kind == "distill" else ()),
            balance("gradnorm"),
            balance("pcgrad"),
        )


def _shapes_a_source(run: RunView) -> bool:
    """Whether a flow or a distillation starts from the latent: in an autoencoder a KL at 1e-6 is usual."""
    return role(run) not in ("autoencoder", "target")


def _causes(run: RunView, loss: str, weights: tuple[Cause, Cause]) -> tuple[Cause, ...]:
    found: list[Cause | str] = list(weights)
    match run.losses[loss]:
        case "kl":
            found.insert(1, "kl-too-weak")
        case "distill":
            # One-hot targets that are the same for every sample, and a student that can say nothing else.
            if run.now("ent/teacher_norm") < 0.02 and run.now("ent/teacher_mi") < 0.05:
                found.insert(0, "teacher-temperature-low")
            elif run.now("ent/student_norm") < 0.02:
                found.insert(0, "student-temperature-low")
    return causes_of(found)
