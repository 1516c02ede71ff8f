"""Weights and temperatures that change with the step: warm-ups, cycles, free bits, a target for the KL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lossdoctor.errors import UsageError, mismatch


class Ramp(Protocol):
    """A number for every optimizer step, counted from 0."""

    def __call__(self, step: int) -> float:
        """At this step."""
        ...


@dataclass(frozen=True, slots=True)
class WarmUp:
    """From `start` at step 0 to `end` at step `steps`, and `end` from there on. shape: "linear" or "cosine"."""

    steps: int
    start: float = 0.0
    end: float = 1.0
    shape: str = "linear"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.shape not in ("linear", "cosine"):
            got = f"steps={self.steps}, shape={self.shape!r}"
            raise UsageError(mismatch("A warm-up.", 'steps >= 1, shape "linear" or "cosine"', got, "correct these"))

    def __call__(self, step: int) -> float:
        """In [start, end], monotone."""
        share = min(1.0, max(0.0, step / self.steps))
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share


def teacher_warm_up(steps: int, start: float = 0.04, end: float = 0.07) -> WarmUp:
    """The temperature of a teacher as DINO has it (Caron et al. 2021, 2104.14294): linear, sharp targets first."""
    return WarmUp(steps, start, end)


@dataclass(frozen=True, slots=True)
class Cyclical:
    """Cyclical annealing (Fu et al. 2019, 1903.10145): in each of `cycles` parts of `steps` steps a linear rise to 1.

    rising: the share of a cycle that rises; the rest stays at 1, as do the steps after the last cycle.
    """

    steps: int
    cycles: int = 4
    rising: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < self.cycles or self.cycles < 1 or not 0 < self.rising <= 1:
            got = f"steps={self.steps}, cycles={self.cycles}, rising={self.rising}"
            raise UsageError(mismatch("Cycles.", "steps >= cycles >= 1, rising in (0, 1]", got, "correct these"))

    def __call__(self, step: int) -> float:
        """In [0, 1]."""
        if step >= self.steps:
            return 1.0
        length = self.steps / self.cycles
        return min(1.0, (step % length) / length / self.rising)


def free_bits(kl: Tensor, bits: float) -> Tensor:
    """The KL with `bits` nats per dimension for free (Kingma et al. 2016, 1606.04934): 0-d, differentiable.

    kl: (B, D) or (B, ...), the KL of each dimension, >= 0. It is averaged over the batch first, and each dimension
    counts at least `bits`, so that below it has no gradient. Returns the sum over the dimensions, >= D bits.
    Raises UsageError for bits < 0 and for a kl without a batch axis.
    """
    if bits < 0 or kl.ndim < 2:
        got = f"bits={bits}, kl of shape {tuple(kl.shape)}"
        raise UsageError(
            mismatch("Free bits are per dimension.", "bits >= 0, kl (B, ...)", got, "pass the unsummed KL")
        )
    return torch.clamp(kl.mean(0), min=bits).sum()


@dataclass(slots=True)
class BetaTarget:
    """A weight of the KL that brings it to a target: a proportional-integral controller (Shao et al. 2020, 2004.05988).

    target: of the KL, in its own units, > 0. beta stays in [low, high]. gain: of the error's logarithm; memory:
    share of the old KL in its running mean. State: `beta`, `state_dict`.
    """

    target: float
    beta: float = 1.0
    low: float = 1e-6
    high: float = 1e2
    gain: float = 0.01
    memory: float = 0.9
    _mean: float = math.nan

    def __post_init__(self) -> None:
        if not (self.target > 0 and 0 < self.low <= self.beta <= self.high and self.gain > 0 and 0 <= self.memory < 1):
            got = f"target={self.target}, beta={self.beta} in [{self.low}, {self.high}], gain={self.gain}"
            expected = "target > 0, 0 < low <= beta <= high, gain > 0, memory in [0, 1)"
            raise UsageError(mismatch("A target for the KL.", expected, got, "correct these"))

    def __call__(self, kl: float) -> float:
        """The weight for the next step, after a step with this KL; one that is no positive number changes nothing."""
        if math.isfinite(kl) and kl > 0:
            self._mean = kl if math.isnan(self._mean) else self.memory * self._mean + (1 - self.memory) * kl
            # In logarithms: a KL of twice and of half the target are equally far.
            moved = self.beta * math.exp(self.gain * math.log(self._mean / self.target))
            self.beta = min(self.high, max(self.low, moved))
        return self.beta

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"beta": self.beta, "mean": self._mean}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on as in the checkpoint."""
        self.beta, self._mean = float(state["beta"]), float(state["mean"])
