"""PST302: samples of the posterior that do not look like samples of the prior."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lossdoctor.curves import Share, share_above, share_below
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Evidence, Finding, Outcome, Severity, Skipped, outcome, say
from lossdoctor.rules.posterior import adrift, held, role, stronger, the_loss
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.strengths import too_small
from lossdoctor.rules.view import LEAST, RunView, middle, span


class _Test(NamedTuple):
    """One side of one bar: what is said when it is crossed, of which curve, and the test."""

    sentence: str
    metric: str
    curve: Series
    threshold: float
    found: Share


@dataclass(frozen=True)
class OffPriorSample(Rule):
    """The latent is not a sample of the prior at the end of the run: its mean is far from 0 or its variance from 1.

    Symptom: what is generated from standard normal noise is bad, what is generated from an encoded latent is fine.
    Cause: the KL is too weak; it is computed on scaled latents; the latent is scaled or shifted.
    Evidence: over the last half of the run, `z_init/var` under `low` or above `high`, or `z_init/mean` beyond `mean`,
    in most steps. All of z is asked together, so a std well below 1 is healthy while mu spreads the samples.
    Fix: raise the weight of the KL; take scale and shift out of the latent, or give them to the prior too.
    Ignore when: z is the latent of an autoencoder, which a later model rescales, or the KL holds against another loss:
    then it is only mentioned. A warning needs a KL under 5 % of the gradient, and a flow that starts from z, or ends in
    latents that began at a standard deviation of 1 and are twice as wide now.
    Confirm: weight:<kl>*4
    """

    code, name = "PST302", "off-prior-sample"
    needs = ("z_init/mean", "z_init/var")
    kind = "kl"
    depth = "consequence"
    low: float = 0.25  # docs/log.md, the clinic: 0.33 to 0.71 healthy, 0.18 where the KL is too weak; half the std
    high: float = 4.0  # twice the std, as `low` is half of it
    mean: float = 0.5  # of the prior's std
    persistent: float = 0.75  # most of the measured steps

    def check(self, run: RunView) -> Outcome:
        """Variance, then mean."""
        if not any(run.weighted(loss) for loss in run.of_kind("kl")):
            return Skipped(say("skip.kl_off"))
        variance, mean = _end(run, "z_init/var"), _end(run, "z_init/mean")
        if len(variance) < LEAST or len(mean) < LEAST:
            return Skipped(say("skip.short", least=LEAST, found=min(len(variance), len(mean))), say("enable.longer"))
        tests = [
            _Test("rule.PST302.small", "z_init/var", variance, self.low, share_below(variance, self.low)),
            _Test("rule.PST302", "z_init/var", variance, self.high, share_above(variance, self.high)),
            _Test("rule.PST302.mean", "z_init/mean", mean, self.mean, share_above(mean, self.mean)),
            _Test("rule.PST302.mean", "z_init/mean", mean, -self.mean, share_below(mean, -self.mean)),
        ]
        found = [self._finding(run, test) for test in tests if test.found.share >= self.persistent]
        return outcome(found, [test.found.p for test in tests if test.found.share < self.persistent])

    def _finding(self, run: RunView, test: _Test) -> Finding:
        value, loss = middle(test.curve), the_loss(run)
        matters = role(run) == "source" or adrift(run)
        severity: Severity = "warning" if matters and held(run) is False else "info"
        return self.finding(
            say(test.sentence, value=value, std=max(value, 0.0) ** 0.5, **span(test.curve)),
            evidence=(Evidence(test.metric, value, test.threshold, **span(test.curve)),),
            causes=tuple(_causes(test.metric, loss)),
            fixes=stronger(run),
            loss=loss,
            subject=test.metric,
            severity=severity,
            confirm=f"weight:{loss or 'kl'}*4",
            p=test.found.p,
        )


def _causes(metric: str, loss: str | None) -> Iterator[Cause]:
    if metric == "z_init/mean":
        yield Cause("latent-offset")
    yield Cause("kl-too-weak")
    yield too_small(loss)
    if metric == "z_init/var":
        yield Cause("latent-scale")


def _end(run: RunView, name: str) -> Series:
    """The last half of the settled curve, or all of it where that would be too short."""
    curve = run.settled(name, loss=the_loss(run))
    kept = len(curve) if len(curve) < 2 * LEAST else len(curve) // 2
    return Series(curve.steps[-kept:], curve.values[-kept:]) if kept else curve
