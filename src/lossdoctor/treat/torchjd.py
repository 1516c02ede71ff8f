"""Any weighting of the package torchjd (extra `torchjd`) as a balancer: it needs the Gram and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.treat.balancer import Advice, Balancer
from lossdoctor.treat.measured import Measured
from lossdoctor.treat.reason import reason

Weighting = Callable[[Any], Tensor]
"""A function of a Gram (K, K) that returns weights (K,)."""


@dataclass(slots=True)
class Weighted(Balancer):
    """Its weights on the weighted losses, as factors. weighting: for example `torchjd.aggregation.MGDAWeighting()`.

    Weightings that draw at random are seeded by the step, and give the global random state back, so that all ranks
    agree. Negative or broken weights stop it, as does a weighting that returns another shape (UsageError).
    """

    weighting: Weighting
    name: str = "torchjd"

    def __post_init__(self) -> None:
        self.name = type(self.weighting).__name__

    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        """See `Balancer.advise`."""
        gram = torch.as_tensor(seen.gram * np.outer(seen.weights, seen.weights))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seen.step)
            found = self.weighting(gram)
        if tuple(found.shape) != (len(seen.names),):
            expected, got = f"a weight for each of {len(seen.names)} losses", f"shape {tuple(found.shape)}"
            raise UsageError(
                mismatch(f"{self.name} is no weighting of a Gram", expected, got, "pass a GramianWeighting")
            )
        after = dict(zip(seen.names, found.double().tolist(), strict=True))
        if not all(0 <= factor < float("inf") for factor in after.values()):
            return Advice(dict(factors), {}, reason("no_weights", name=self.name, weights=str(after)))
        return Advice(after, dict.fromkeys(after, reason("weighting", name=self.name)))
