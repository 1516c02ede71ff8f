"""Does a curve rise, does it fall, by how much, and is that more than noise?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lossdoctor.curves.blocks import BLOCKS, after_warm_up, block_medians, ends, median
from lossdoctor.record import Series

Direction = Literal["up", "down", "flat", "unknown"]

LEAST_BLOCKS = 8
"""Under eight blocks the smallest attainable p is too near the usual alpha to decide anything."""


class MannKendall(NamedTuple):
    """Outcome of the rank test: `s` in [-n(n-1)/2, n(n-1)/2], its normal score `z`, and the two-sided `p` in [0, 1]."""

    s: int
    z: float
    p: float


@dataclass(frozen=True, slots=True)
class Trend:
    """Where a curve goes once its warm-up is over.

    direction: "up" or "down" when the rank test is significant, "flat" when it is not (a V is flat: there is no one
    direction), "unknown" when there are too few points to tell. slope: Theil-Sen, per step. p: two-sided, of no trend.
    first, last: medians of the first and last tenth of the points judged. n: finite points judged.
    Without a judgement slope and p are NaN; without points first and last are NaN too.
    """

    direction: Direction
    slope: float
    p: float
    first: float
    last: float
    n: int


def theil_sen(steps: npt.ArrayLike, values: npt.ArrayLike) -> float:
    """The median of the slopes between all pairs of points with different steps: (N,), (N,) to value per step.

    Undisturbed by up to 29 % of wild points (Sen 1968). NaN without two finite points at different steps.
    Memory grows with N^2: thin a long series first, with `block_medians`.
    """
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    i, j = np.triu_indices(len(x), k=1)
    different = x[i] != x[j]
    i, j = i[different], j[different]
    if not len(i):
        return math.nan
    with np.errstate(over="ignore"):
        return median((y[j] - y[i]) / (x[j] - x[i]))


def mann_kendall(values: npt.ArrayLike) -> MannKendall:
    """Does a sequence (N,) tend to rise or fall? Independent values are assumed; ties are corrected for.

    s counts rising pairs minus falling pairs; z is its normal approximation with continuity correction (Mann 1945,
    Kendall 1975), good from about eight values on. With fewer than three values, or all of them equal, z = 0 and p = 1.
    """
    y = np.asarray(values, np.float64)
    y = y[np.isfinite(y)]
    n = len(y)
    i, j = np.triu_indices(n, k=1)
    s = int(np.sum(y[j] > y[i])) - int(np.sum(y[j] < y[i]))
    ties = np.unique(y, return_counts=True)[1].astype(np.float64)
    variance = (n * (n - 1) * (2 * n + 5) - float(np.sum(ties * (ties - 1) * (2 * ties + 5)))) / 18
    if n < 3 or variance <= 0:
        return MannKendall(s, z=0.0, p=1.0)
    z = math.copysign(max(abs(s) - 1, 0), s) / math.sqrt(variance)
    return MannKendall(s, z, math.erfc(abs(z) / math.sqrt(2)))


def trend(series: Series, *, skip: float = 0.1, points: int = BLOCKS, alpha: float = 0.01) -> Trend:
    """The direction of a curve after its warm-up.

    skip: share of the range of steps that counts as warm-up, in [0, 1). points: blocks the rest is cut into; their
    medians are tested by `mann_kendall` at level alpha and fitted by `theil_sen`. Each block should be longer than the
    memory of the noise (about 1/(1 - phi) points for AR(1)): fewer points is safer, more is sharper.
    """
    kept = after_warm_up(series, skip)
    first, last = ends(kept.values)
    blocks = block_medians(kept, points)
    if len(blocks) < LEAST_BLOCKS:
        return Trend("unknown", math.nan, math.nan, first, last, len(kept))
    slope = theil_sen(blocks.steps, blocks.values)
    test = mann_kendall(blocks.values)
    direction: Direction = "flat"
    if test.p < alpha:
        direction = "up" if test.s > 0 else "down"
    return Trend(direction, slope, test.p, first, last, len(kept))
