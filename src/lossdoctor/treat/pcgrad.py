"""PCGrad (Yu et al. 2020, 2001.06782) from the Gram alone: what of a gradient opposes another is taken out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lossdoctor.treat.balancer import Advice, Balancer
from lossdoctor.treat.measured import Matrix, Measured
from lossdoctor.treat.reason import reason


def coefficients(gram: Matrix, order: np.random.Generator) -> Matrix:
    """c (K,) such that sum_j c_j g_j is PCGrad's update, for g with this Gram (K, K). order: of the projections.

    Each g_i is projected, one other after the other in random order, onto the normal plane of those it has a negative
    inner product with; the update is the sum of what is left.
    """
    k = len(gram)
    total = np.zeros(k)
    for i in range(k):
        own = np.zeros(k)
        own[i] = 1.0
        for j in order.permutation([other for other in range(k) if other != i]):
            inner = float(own @ gram[:, j])
            if inner < 0 < gram[j, j]:
                own[j] -= inner / gram[j, j]
        total += own
    return total


@dataclass(slots=True)
class PCGrad(Balancer):
    """Its coefficients of the last measurement, for all steps until the next. seed: of the order of projections."""

    seed: int = 0
    name: str = "pcgrad"

    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        """See `Balancer.advise`. The same order on every rank: it comes from the seed and the step."""
        weighted = seen.gram * np.outer(seen.weights, seen.weights)
        found = coefficients(weighted, np.random.default_rng((self.seed, seen.step)))
        after = dict(zip(seen.names, found.tolist(), strict=True))
        reasons = {name: reason("opposed") for name, c in after.items() if abs(c - 1) > 1e-12}
        return Advice(after, reasons)
