"""VEL404: parts of the path that training hardly ever visits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossdoctor.rules.finding import Cause, Clear, Evidence, Outcome, Skipped, outcome, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.velocity import declared, visits
from lossdoctor.rules.view import RunView, span

_ENOUGH = 100_000
"""Times to test by: more change nothing but the cost."""

_FEW = 10
"""Different times in a batch up to which they come from a short list on purpose, as in training for a few steps."""


@dataclass(frozen=True)
class StarvedTimeBins(Rule):
    """Some part of the path from source to data hardly gets any training samples.

    Symptom: the mean loss looks fine, and is fine where it is measured; sampling has to cross times nobody trained.
    Cause: times drawn from a narrow or shifted distribution, or clamped, scaled or rounded by mistake.
    Evidence: over the run, a tenth of [0, 1] got less than `starved` of all times, by a binomial test. Two such tenths
    or more are a warning; one, or a tenth under `few`, is only mentioned: the usual logit-normal times give 0.014 to
    each end, and shifted ones still less. Where the script names its sampler to `ld.flow` and that asks for `other`
    times as many, these are not its times, which is a warning in any case.
    Fix: mix in some uniform times, for example one sample in four; check the range of t.
    Ignore when: sampling does not go there either: a network for one part of the path, or times that inference shifts
    in the same way. Times from a short list, as in training for a few steps, are not judged.
    Confirm: train with uniform times and compare the end points
    """

    code, name = "VEL404", "starved-time-bins"
    needs = ("flow/count_t{0..9}",)
    depth = "root"
    explains = ("VEL403",)
    starved: float = 0.005  # docs/log.md, the clinic: logit-normal times of width 0.3 leave six tenths under 0.0025
    few: float = 0.02  # a standard logit-normal, common and healthy, gives each end 0.014
    several: int = 2  # tenths; a single one is what a shifted logit-normal for large pictures leaves out
    other: float = 3.0  # times the share found; the binomial test has ruled out chance
    alpha: float = 0.001  # of the binomial test, ten of them; 2,000 times with none in a tenth have p = 4e-5

    def check(self, run: RunView) -> Outcome:
        """The whole run: times are drawn the same way from the first step on."""
        different = run["flow/t_unique"].finite
        if len(different) and 1 < different.values.max() <= _FEW:
            return Skipped(say("skip.short_list", count=int(different.values.max())))
        shares, n = visits(run)
        n = min(n, _ENOUGH)
        tests = [_at_most(share * n, n, self.starved) for share in shares]
        starved = [i for i, p in enumerate(tests) if p < self.alpha]
        few = [i for i, share in enumerate(shares) if _at_most(share * n, n, self.few) < self.alpha]
        if not few and not starved:
            if n * self.starved < -math.log(self.alpha):
                return Skipped(say("skip.few_times", found=n), say("enable.longer"))
            return Clear((min(1.0, 10 * min(tests)),))
        named = starved or few
        many = len(starved) >= self.several
        worst = min(named, key=lambda i: shares[i])
        counted = span(run[f"flow/count_t{worst}"])
        asked = sum(wanted[i] for i in named) if (wanted := declared(run)) is not None else 0.0
        others = asked > self.other * sum(shares[i] for i in named)
        sentence = "rule.VEL404.declared" if others else "rule.VEL404" if many else "rule.VEL404.few"
        finding = self.finding(
            say(
                sentence,
                asked=100 * asked,
                ranges=", ".join(f"{first:g}-{last:g}" for first, last in _joined(named)),
                percent=100 * sum(shares[i] for i in named),
                even=10 * len(named),
                **counted,
            ),
            evidence=[
                Evidence(f"flow/count_t{i}", shares[i], self.starved if starved else self.few, **counted) for i in named
            ],
            causes=(Cause("time-sampling"),),
            fixes=(edit("mix_uniform_times"),),
            severity="warning" if many or others else "info",
            certainty="likely" if many or others else "suspected",
            p=min(1.0, 10 * max(tests[i] for i in starved)) if many else None,
        )
        return outcome([finding])


def _joined(tenths: list[int]) -> list[tuple[float, float]]:
    """Neighbouring tenths as one range of t."""
    ranges: list[tuple[int, int]] = []
    for i in tenths:
        if ranges and ranges[-1][1] == i:
            ranges[-1] = (ranges[-1][0], i + 1)
        else:
            ranges.append((i, i + 1))
    return [(first / 10, last / 10) for first, last in ranges]


def _at_most(found: float, n: int, share: float) -> float:
    """The chance of so few in n draws of a share that is truly `share`: binomial, one-sided."""
    if n == 0 or not 0 < share < 1:
        return 1.0
    if found >= share * n:
        return 1.0
    logs = (
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(share)
        + (n - k) * math.log1p(-share)
        for k in range(math.floor(found) + 1)
    )
    return min(1.0, sum(math.exp(log) for log in logs))
