"""What an arm does: paired differences to the baseline of the same seed, with an interval over the seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lossdoctor.record import Series
from lossdoctor.store import Run

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantiles of Student's t distribution for 1, 2, ... degrees of freedom."""
NORMAL_975 = 1.960
LAST = 0.25
"""Share of a run whose median is its outcome."""
MOST_FLIPS = 12
"""Up to so many pairs every way to flip signs is counted; more are drawn."""
_DRAWN = 4096


@dataclass(frozen=True, slots=True)
class Effect:
    """Of one arm on one quantity. baseline, arm: means over the seeds that have both. low, high: 95 % interval of the
    mean paired difference, by Student's t. p: two-sided, of a sign-flip test. pairs: how many seeds.

    With one pair low and high are infinite: nothing is known of the spread.
    """

    baseline: float
    arm: float
    low: float
    high: float
    p: float
    pairs: int

    @property
    def difference(self) -> float:
        """Mean of arm minus baseline."""
        return (self.low + self.high) / 2 if math.isfinite(self.low) else self.arm - self.baseline

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def pairs_needed(self) -> int | None:
        """Pairs after which, with this spread, the interval would leave 0 out; None when that cannot be said."""
        if self.clear:
            return self.pairs
        half = (self.high - self.low) / 2
        if self.pairs < 2 or not math.isfinite(half) or self.difference == 0:
            return None
        spread = half * math.sqrt(self.pairs) / t_975(self.pairs - 1)
        for pairs in range(self.pairs + 1, 1001):
            if t_975(pairs - 1) * spread / math.sqrt(pairs) < abs(self.difference):
                return pairs
        return None


def outcome(series: Series) -> float:
    """Where a curve ends: the median of its last quarter, NaN for one without a finite value."""
    values = series.finite.values
    return float(np.median(values[-max(1, round(len(values) * LAST)) :])) if len(values) else math.nan


def beginning(series: Series) -> float:
    """Where a curve starts: its first finite value."""
    values = series.finite.values
    return float(values[0]) if len(values) else math.nan


def outcomes(runs: Mapping[int, Run], metric: str) -> dict[int, float]:
    """Seed to outcome, of the runs that have the metric."""
    found = {seed: outcome(run[metric]) for seed, run in runs.items() if metric in run}
    return {seed: value for seed, value in found.items() if math.isfinite(value)}


def effect(baseline: Mapping[int, float], arm: Mapping[int, float]) -> Effect | None:
    """Seed to value, of both; None when no seed has both."""
    seeds = sorted(baseline.keys() & arm.keys())
    if not seeds:
        return None
    before, after = (np.array([side[seed] for seed in seeds]) for side in (baseline, arm))
    difference = after - before
    middle = float(difference.mean())
    half = math.inf
    if len(seeds) > 1:
        half = t_975(len(seeds) - 1) * float(difference.std(ddof=1)) / math.sqrt(len(seeds))
    return Effect(
        float(before.mean()), float(after.mean()), middle - half, middle + half, sign_flip(difference), len(seeds)
    )


def t_975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; the normal one beyond the table, less than 2.5 % too small."""
    return T_975[freedom - 1] if freedom <= len(T_975) else NORMAL_975 * (1 + 1.2 / freedom)


def sign_flip(difference: Sequence[float] | np.ndarray) -> float:
    """Two-sided p value of paired differences (N,) under signs that could as well be flipped (Fisher 1935).

    Exact up to 12 pairs; never under 2^(1-N). Beyond, 4,096 flips are drawn, with private randomness.
    """
    d = np.asarray(difference, np.float64)
    if not len(d):
        return math.nan
    if len(d) <= MOST_FLIPS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(d))))
    else:
        drawn = np.random.default_rng(0).choice((1.0, -1.0), (_DRAWN - 1, len(d)))
        signs = np.concatenate([np.ones((1, len(d))), drawn])
    sums = np.abs(signs @ d)
    # Rounding must not make a flip that changes nothing count as smaller.
    return float((sums >= sums[0] * (1 - 1e-12)).mean())
