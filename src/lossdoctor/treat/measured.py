"""What a balancer is told: the gradients of one measured step, as inner products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lossdoctor.errors import UsageError, mismatch

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """names: the K losses. kinds: of each, see `kinds.KINDS`. gram: (K, K), G_ij = <g_i, g_j>, of unweighted gradients.
    weights: (K,), as the script gives them. losses: (K,), their values. step: the optimizer step.
    nats: the KL of the posterior that was handed in from its prior, of a whole sample; NaN where that is not known.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    gram: Matrix
    weights: Matrix
    losses: Matrix
    step: int = 0
    nats: float = math.nan

    def __post_init__(self) -> None:
        k = len(self.names)
        shapes = (len(self.kinds), self.gram.shape, self.weights.shape, self.losses.shape)
        if shapes != (k, (k, k), (k,), (k,)):
            expected = f"{k} kinds, a Gram of {(k, k)}, {k} weights, {k} values"
            raise UsageError(
                mismatch("A balancer takes all of K losses.", expected, repr(shapes), "pass them together")
            )

    @property
    def norms(self) -> Matrix:
        """(K,) of the unweighted gradients."""
        return np.sqrt(np.clip(np.diagonal(self.gram), 0.0, None))

    @property
    def finite(self) -> bool:
        """Whether everything is a number."""
        return all(bool(np.isfinite(part).all()) for part in (self.gram, self.weights, self.losses))

    def of_kind(self, kind: str) -> int | None:
        """Index of the one loss of a kind; None when there is none, or several."""
        found = [i for i, own in enumerate(self.kinds) if own == kind]
        return found[0] if len(found) == 1 else None


def measured(
    readings: Mapping[str, float],
    kinds: Mapping[str, str],
    weights: Mapping[str, float],
    step: int,
    dimensions: int | None = None,
) -> Measured | None:
    """From the readings of a due step: `grad/<loss>`, `grad_cos/<a>|<b>`, `loss/<loss>`. None when one is missing.

    kinds: of the losses, in their order. dimensions: of the posterior that `kl/per_dim` is of; None without one.
    A cosine that is not there, of a gradient that is zero, counts as 0; so does the gradient of a loss that has none
    while others have one.
    """
    names = tuple(name for name in kinds if name in weights)
    missing = 0.0 if any(f"grad/{name}" in readings for name in names) else math.nan
    norms = [readings.get(f"grad/{name}", missing) for name in names]
    losses = [readings.get(f"loss/{name}", math.nan) for name in names]
    if not names or not all(map(math.isfinite, [*norms, *losses])):
        return None
    gram = np.diag(np.square(norms))
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            cosine = readings.get(f"grad_cos/{a}|{b}", readings.get(f"grad_cos/{b}|{a}", 0.0))
            gram[i, j] = gram[j, i] = cosine * norms[i] * norms[j]
    own = np.array([float(weights[name]) for name in names])
    nats = math.nan if dimensions is None else dimensions * readings.get("kl/per_dim", math.nan)
    own_kinds = tuple(kinds[name] for name in names)
    return Measured(names, own_kinds, gram, own, np.array(losses), step, nats)


def state_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON of a balancer's memory: arrays as lists."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def cosines(gram: Matrix) -> Matrix:
    """(K, K) cosines of a Gram; 0 where a gradient is zero."""
    norms = np.sqrt(np.clip(np.diagonal(gram), 0.0, None))
    size = np.outer(norms, norms)
    return np.asarray(np.divide(gram, size, out=np.zeros_like(gram), where=size > 0))
