"""BAL801: the gradients of the losses are not in the proportion that the method asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import Share, share_above, share_below
from lossdoctor.record import Series
from lossdoctor.rules.finding import Evidence, Finding, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import balance, scale_weight
from lossdoctor.rules.opt704_update_too_large import EXPLODED
from lossdoctor.rules.rule import Rule, given
from lossdoctor.rules.strengths import blamed, factor_to, nothing_left, strengths, together
from lossdoctor.rules.view import LEAST, RunView, middle, span


@dataclass(frozen=True)
class RatioOutOfBand(Rule):
    """The gradient norms of distillation, velocity and KL are out of proportion.

    Symptom: one of them learns at the expense of another.
    Cause: weights that were chosen by the size of the losses, not of their gradients.
    Evidence: `grad_weighted` of a distillation over that of the velocity outside `distill_low` to `distill_high`, or of
    a KL outside `kl_low` to `kl_high`, in most steps after the warm-up. A warning when it is `far` times beyond its
    band, for a KL above it `kl_far` times; else a remark, as is a KL below its band, whatever its size.
    Steps before a schedule has ended, or a ratio controller has come near its last factor, are not judged.
    Fix: the ratio controller, or the factor that brings the weight back into the band.
    Ignore when: the run does what it should. The band is a good beginning and no law: a KL at 1e-6 is usual where only
    a reconstruction depends on it.
    Confirm: weight:<loss>*<factor>
    """

    code, name = "BAL801", "ratio-out-of-band"
    needs = ("grad_weighted/<loss>",)
    kind = "velocity"
    depth = "consequence"
    distill_low: float = given(0.2)  # the method's
    distill_high: float = given(0.5)  # the method's
    kl_low: float = given(0.1)  # the method's
    kl_high: float = given(0.3)  # the method's
    far: float = 5.0  # docs/log.md, the clinic: a healthy distillation reached 1.6 times the velocity, 3 times its band
    kl_far: float = 10.0  # docs/log.md, the clinic: against several losses at once a KL at its balance reached 2.5
    persistent: float = 0.75  # most of the measured steps, with room for a schedule at the end

    def follows(self, finding: Finding, root: Finding) -> bool:
        """From a rate only where a loss explodes under it."""
        return root.code != "OPT704" or root.message.key in EXPLODED

    def check(self, run: RunView) -> Outcome:
        """Each kind against the velocity."""
        strong = strengths(run)
        velocity = [loss for loss in strong if run.losses[loss] == "velocity"]
        bands = {"distill": (self.distill_low, self.distill_high), "kl": (self.kl_low, self.kl_high)}
        ratios = {
            kind: _ratio(strong, own, velocity)
            for kind in bands
            if velocity and (own := [loss for loss in strong if run.losses[loss] == kind])
        }
        if not ratios:
            return Skipped(say("skip.rivals"))
        longest = max(map(len, ratios.values()))
        if longest < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=longest), say("enable.longer"))
        found, tests = [], []
        learned = {loss for loss in strong if nothing_left(run, loss)}
        for kind, ratio in ratios.items():
            low, high = bands[kind]
            below, above = share_below(ratio, low), share_above(ratio, high)
            if len(ratio) < LEAST:
                continue
            if below.share >= self.persistent and not any(run.losses[loss] == kind for loss in learned):
                found.append(self._finding(run, kind, ratio, below, strong, below_band=True))
            elif above.share >= self.persistent and not set(velocity) <= learned:
                found.append(self._finding(run, kind, ratio, above, strong, below_band=False))
            else:
                tests += [below.p, above.p]
        waiting = next(filter(None, map(run.waits_for, bands)), None)
        if not found and waiting is not None:
            return Skipped(waiting, say("enable.longer"))
        return outcome(found, tests)

    def _finding(
        self, run: RunView, kind: str, ratio: Series, test: Share, strong: Mapping[str, Series], *, below_band: bool
    ) -> Finding:
        low, high = (self.distill_low, self.distill_high) if kind == "distill" else (self.kl_low, self.kl_high)
        loss = max((o for o in strong if run.losses[o] == kind), key=lambda o: middle(strong[o]))
        flow = max((o for o in strong if run.losses[o] == "velocity"), key=lambda o: middle(strong[o]))
        weak, other = (loss, flow) if below_band else (flow, loss)
        causes = blamed(run, weak, other, doubtful=loss)
        blamed_loss = weak if causes[0].code == "weight-too-small" else other
        value = middle(ratio)
        middle_of_band = math.sqrt(low * high)
        factor = factor_to(middle_of_band, value) if blamed_loss == loss else factor_to(value, middle_of_band)
        beyond = low / value if below_band else value / high
        far = (beyond > self.far and kind == "distill") or (beyond > self.kl_far and not below_band)
        return self.finding(
            say("rule.BAL801", loss=loss, velocity=flow, ratio=value, low=low, high=high, **span(ratio)),
            evidence=(
                Evidence(f"grad_weighted/{loss}", middle(strong[loss]), None, **span(ratio)),
                Evidence(f"grad_weighted/{flow}", middle(strong[flow]), None, **span(ratio)),
            ),
            causes=causes,
            fixes=(scale_weight(blamed_loss, factor), balance("ratio")),
            loss=blamed_loss,
            subject=loss,
            severity="warning" if far else "info",
            confirm=f"weight:{blamed_loss}*{factor:g}",
            p=test.p,
        )


def _ratio(strong: Mapping[str, Series], over: list[str], under: list[str]) -> Series:
    """One norm over another; of several losses of a kind, the root of the summed squares."""
    curves = dict(zip((*over, *under), together(strong[loss] for loss in (*over, *under)), strict=True))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        size, unit = (np.hypot.reduce([curves[loss].values for loss in losses]) for losses in (over, under))
        ratio = size / unit
    return Series(curves[over[0]].steps, ratio).finite
