"""GradNorm (Chen et al. 2018, 1711.02257) in closed form: losses that have fallen least get the larger gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossdoctor.errors import UsageError, mismatch
from lossdoctor.treat.balancer import Advice, Balancer
from lossdoctor.treat.measured import Matrix, Measured, state_of
from lossdoctor.treat.reason import reason


def gradient(weights: Matrix, norms: Matrix, losses: Matrix, first: Matrix, alpha: float) -> Matrix:
    """d/dw_i of sum_i |w_i n_i - T_i| with the targets T held fixed: sign(w_i n_i - T_i) n_i, (K,).

    T_i = mean(w n) r_i^alpha, r_i = (L_i / L_i(0)) over its mean. The same as by differentiating the norms twice.
    """
    relative = losses / first
    rate = relative / relative.mean()
    target = (weights * norms).mean() * rate**alpha
    return np.asarray(np.sign(weights * norms - target) * norms)


@dataclass(slots=True)
class GradNorm(Balancer):
    """Descent on the weights by the sign of their gradient, in logarithms; they keep their sum.

    The norms differ by orders of magnitude, and so would the steps; the paper's optimizer, Adam, evens them out too.
    alpha: how much losses that have fallen less are favoured; 0 wants all gradients equally large. rate: how much the
    logarithm of a weight moves at a measurement. Losses must be > 0 at the first measurement; one
    that is not stops it. Raises UsageError for other alpha or rate.
    """

    alpha: float = 1.5
    rate: float = 0.1
    name: str = "gradnorm"
    _first: Matrix | None = None
    _names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and 0 < self.rate <= 1):
            got = f"alpha={self.alpha}, rate={self.rate}"
            raise UsageError(mismatch("GradNorm's settings.", "alpha >= 0, rate in (0, 1]", got, "correct these"))

    def advise(self, seen: Measured, factors: Mapping[str, float]) -> Advice:
        """See `Balancer.advise`."""
        current = np.array([float(factors.get(name, 1.0)) for name in seen.names])
        if self._first is None or self._names != seen.names:
            self._first, self._names = seen.losses, seen.names
        told = dict(zip(seen.names, current.tolist(), strict=True))
        if (self._first <= 0).any() or (seen.losses <= 0).any():
            return Advice(told, {}, reason("not_positive"))
        weights, norms = current * seen.weights, seen.norms
        used = (weights > 0) & (norms > 0)
        if used.sum() < 2:
            return Advice(told, {})
        w, n = weights[used], norms[used]
        moved = w * np.exp(-self.rate * np.sign(gradient(w, n, seen.losses[used], self._first[used], self.alpha)))
        # The sum of the weights sets the learning rate, which is not GradNorm's to change.
        moved *= w.sum() / moved.sum()
        after = current.copy()
        after[used] = current[used] * moved / w
        reasons = {name: reason("fall", value=value) for name, value in zip(
            np.array(seen.names)[used].tolist(), (seen.losses / self._first)[used].tolist(), strict=True
        )}  # fmt: skip
        return Advice(dict(zip(seen.names, after.tolist(), strict=True)), reasons)

    def state_dict(self) -> dict[str, Any]:
        """See `Balancer.state_dict`."""
        return state_of({"first": self._first, "names": list(self._names)})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Balancer.load_state_dict`."""
        self._first = None if state["first"] is None else np.array(state["first"], np.float64)
        self._names = tuple(state["names"])
