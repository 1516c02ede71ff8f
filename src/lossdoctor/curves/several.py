"""Several curves, several tests: do two curves go together, and which of many small p values are still small?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lossdoctor.curves.blocks import ranks
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.record import Series

LEAST_COMMON = 5
"""Points two curves must share. On fewer, 1 of 24 pairs of unrelated curves has a correlation of 1."""


def adjusted(p_values: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """p values (N,) of N tests, adjusted for there being so many, in the order given.

    Those at or under q are, of independent tests, false in a share of at most q (Benjamini and Hochberg 1995). NaN is a
    test that was not made: it stays NaN and does not count. Raises UsageError for a value outside [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    made = ~np.isnan(p)
    if p.ndim != 1 or np.any((p[made] < 0) | (p[made] > 1)):
        raise UsageError(
            mismatch(
                "p values are probabilities.", "a flat sequence of numbers in [0, 1]", repr(p_values), "pass those"
            )
        )
    tests = p[made]
    order = np.argsort(tests)
    share = tests[order] * (len(tests) / np.arange(1, len(tests) + 1))
    smallest_from_here = np.minimum.accumulate(share[::-1])[::-1]
    tests[order] = np.minimum(smallest_from_here, 1.0)
    p = p.copy()
    p[made] = tests
    return p


def correlation(a: Series, b: Series) -> float:
    """Spearman's rank correlation of two curves on the steps both have, in [-1, 1].

    NaN with fewer than 5 common finite points, or when one of the curves is constant on them. It comes without a p
    value: any two curves with a trend are correlated, whether or not one has to do with the other.
    """
    one, other = a.finite, b.finite
    _, i, j = np.intersect1d(one.steps, other.steps, return_indices=True)
    if len(i) < LEAST_COMMON:
        return math.nan
    x, y = (ranks(values) - (len(i) + 1) / 2 for values in (one.values[i], other.values[j]))
    size = math.sqrt(float(x @ x) * float(y @ y))
    return max(-1.0, min(1.0, float(x @ y) / size)) if size else math.nan
