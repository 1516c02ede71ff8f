"""PST309: a log-variance without bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lossdoctor.curves import trend
from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Outcome, Severity, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.posterior import the_loss
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.view import LEAST, RunView, span

_FLOAT32 = 103.0
"""|logvar| of a std that float32 rounds to 0, or near to one whose square is infinite: told instead of infinity."""


@dataclass(frozen=True)
class UnclampedLogvar(Rule):
    """logvar leaves every reasonable range: the next step may overflow.

    Symptom: none for long, then a sudden infinity.
    Cause: logvar is not clamped where it is made.
    Evidence: the largest or smallest logvar, 2 ln of `std/max` or `std/min`, beyond plus or minus `limit` at `least`
    measured steps or more; or the largest rising by more than `rise` over the run. A std that is infinite counts.
    Fix: clamp logvar where it is made, for example to [-30, 20].
    Ignore when: the values sit on a clamp at -30. They are not beyond it, and do not fire; nor do the -17 to -23 of the
    autoencoder of Stable Diffusion.
    Confirm: std/max stays bounded once logvar is clamped
    """

    code, name = "PST309", "unclamped-logvar"
    needs = ("std/min", "std/max")
    depth = "root"
    explains = ("NUM901", "NUM903")
    limit: float = 30.0  # the clamp of latent diffusion; exp(88) is the largest in float32
    rise: float = 13.8  # the logarithm of a million: a std that grew a thousandfold
    least: int = 3  # a single odd batch is none

    def check(self, run: RunView) -> Outcome:
        """Both ends, infinities and zeros included."""
        high, low = _logvar(run["std/max"]), _logvar(run["std/min"])
        if max(len(high), len(low)) < self.least:
            return Skipped(say("skip.short", least=self.least, found=len(high)), say("enable.longer"))
        above = Series(high.steps[high.values > self.limit + 0.01], high.values[high.values > self.limit + 0.01])
        below = Series(low.steps[low.values < -self.limit - 0.01], low.values[low.values < -self.limit - 0.01])
        way = trend(high, skip=0.0)
        if len(above) >= self.least:
            return outcome([self._finding(run, "rule.PST309", "std/max", above, high)])
        if len(below) >= self.least:
            return outcome([self._finding(run, "rule.PST309.low", "std/min", below, low)])
        if len(high) >= LEAST and way.direction == "up" and way.last - way.first > self.rise:
            return outcome([self._finding(run, "rule.PST309.rising", "std/max", high, high)])
        return Clear()

    def _finding(self, run: RunView, sentence: str, metric: str, there: Series, whole: Series) -> Finding:
        worst = float(there.values[np.argmax(np.abs(there.values))])
        severity: Severity = "warning" if math.isfinite(worst) or worst < 0 else "error"
        value, first = (min(max(one, -_FLOAT32), _FLOAT32) for one in (worst, float(whole.values[0])))
        bound = math.exp(math.copysign(self.limit, value) / 2)
        return self.finding(
            say(sentence, value=value, first=first, limit=self.limit, **span(there)),
            evidence=(Evidence(metric, math.exp(value / 2), bound, **span(there)),),
            causes=(Cause("logvar-unclamped"),),
            fixes=(edit("bound_logvar"),),
            loss=the_loss(run),
            severity=severity,
            certainty="likely",
            confirm=metric,
        )


def _logvar(std: Series) -> Series:
    """From the std as recorded; NaN is left out, infinity and 0 are kept as plus and minus infinity."""
    there = ~np.isnan(std.values) & (std.values >= 0)
    with np.errstate(divide="ignore"):
        return Series(std.steps[there], 2 * np.log(std.values[there]))
