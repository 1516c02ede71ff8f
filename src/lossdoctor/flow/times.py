"""How often training visits each time: samplers of t in [0, 1] and their densities.

A sampler that avoids the ends saves effort and starves them: the standard logit-normal draws t < 0.05 in 0.16 % of
the samples, where the uniform one draws 5 %.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lossdoctor.errors import UsageError, mismatch


class TimeSampler(ABC):
    """A distribution on [0, 1]."""

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """n times (n,) in [0, 1], ends included, on `device` (default: that of the generator, else torch's).

        Drawn where the generator lives and in float32 or wider, so that a seed means the same times on every device
        and in every dtype. With a generator the global random state is not touched.
        """
        origin = generator.device if generator is not None else device
        wide = torch.promote_types(dtype, torch.float32)
        return self._draw(n, generator, origin, wide).to(device, dtype)

    @abstractmethod
    def _draw(
        self, n: int, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor: ...

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """Probability density at t (any shape, floating): same shape, 0 outside [0, 1], NaN at NaN."""


@dataclass(frozen=True, slots=True)
class Uniform(TimeSampler):
    """Every time equally often."""

    def _draw(
        self, n: int, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor:
        return torch.rand(n, generator=generator, device=device, dtype=dtype)

    def density(self, t: Tensor) -> Tensor:
        """1 on [0, 1]; see `TimeSampler.density`."""
        return torch.where((t < 0) | (t > 1), 0.0, torch.where(t.isnan(), t, 1.0))


@dataclass(frozen=True, slots=True)
class LogitNormal(TimeSampler):
    """t = sigmoid(mean + std * n), n standard normal (Esser et al. 2024, 2403.03206, section 3.1).

    mean > 0 favours t near 1; std > 0, below about 1.5 it favours the middle. UsageError for other std or mean.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            rule, expected = "A logit-normal needs a mean and a spread.", "finite mean, finite std > 0"
            got = f"mean={self.mean}, std={self.std}"
            raise UsageError(mismatch(rule, expected, got, "Use mean=0.0, std=1.0 to begin with."))

    def _draw(
        self, n: int, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor:
        noise = torch.randn(n, generator=generator, device=device, dtype=dtype)
        return torch.sigmoid(self.mean + self.std * noise)

    def density(self, t: Tensor) -> Tensor:
        """exp(-(logit t - mean)^2 / (2 std^2)) / (std sqrt(2 pi) t (1 - t)), its limit 0 at the ends."""
        log_t, log_rest = t.log(), torch.log1p(-t)
        deviation = (log_t - log_rest - self.mean) / self.std
        log_density = -(deviation**2) / 2 - math.log(self.std * math.sqrt(2 * math.pi)) - log_t - log_rest
        return torch.where((t <= 0) | (t >= 1), 0.0, log_density.exp())


TIME_SAMPLERS: Final[Mapping[str, TimeSampler]] = {"logit_normal": LogitNormal(), "uniform": Uniform()}
