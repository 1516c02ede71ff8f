"""ConFIG (Liu et al. 2024, 2408.11104) from the Gram alone: an update that has the same cosine with every gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lossdoctor.treat.balancer import Advice, Balancer
from lossdoctor.treat.measured import Matrix, Measured, cosines
from lossdoctor.treat.reason import reason


def coefficients(gram: Matrix) -> Matrix:
    """c (K,) such that sum_j c_j g_j is ConFIG's update, for g with this Gram (K, K).

    The direction x solves <g_i / |g_i|, x> = 1 for all i, the shortest if there are many; the update is as long as the
    projections of all g_i onto x together. A gradient of zero has the coefficient 0, as have all when x is zero.
    """
    norms = np.sqrt(np.clip(np.diagonal(gram), 0.0, None))
    used = norms > 0
    alike = cosines(gram)[np.ix_(used, used)]
    # x = sum_i a_i g_i / |g_i| with C a = 1. Eigenvalues of a Gram are squares, hence 1e-12.
    a = np.linalg.pinv(alike, rcond=1e-12, hermitian=True) @ np.ones(int(used.sum()))
    squared = float(a @ alike @ a)
    found = np.zeros(len(gram))
    if squared > 0:
        found[used] = a / norms[used] * float(norms[used] @ (alike @ a)) / squared
    return found


@dataclass(slots=True)
class ConFIG(Balancer):
    """Its coefficients of the last measurement, for all steps until the next.

    With three losses or more one of them can be negative. Turning a loss around is right at the measured step only, so
    then the factors stay as they are.
    """

    name: str = "config"

    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        """See `Balancer.advise`."""
        found = coefficients(seen.gram * np.outer(seen.weights, seen.weights))
        if (found < 0).any():
            return Advice({name: float(factors.get(name, 1.0)) for name in seen.names}, {})
        after = dict(zip(seen.names, found.tolist(), strict=True))
        return Advice(after, dict.fromkeys(after, reason("conflict_free")))
