"""How often training visits each time: distributions of t in [0, 1], their densities and importance weights.

A sampler that avoids the ends saves effort and starves them: the standard logit-normal draws t < 0.05 in 0.16 % of
the samples, where the uniform one draws 5 %. With its weights any sampler estimates the loss of uniform times, more or
less noisily; without them it trains another objective. The one that learns from the losses is `treat.times`.
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

TENTHS: Final = 10
_POINTS = 100
"""Of each tenth, at which a density is looked at."""


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

    def weighted(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """The times of `sample` and their importance weights, (n,) each: the mean of w(t) f(t) is that over uniform t.

        The weights belong to the density at the moment of the draw and to the times before rounding to a narrow dtype.
        """
        wide = torch.promote_types(dtype, torch.float32)
        t = self.sample(n, generator=generator, device=device, dtype=wide)
        return t.to(dtype), self.weight(t).to(dtype)

    def weight(self, t: Tensor) -> Tensor:
        """1 / density, same shape: 1 for the uniform one; infinite where the density is 0.

        Bounded by 1 / share where a share of the times is uniform. Of a logit-normal alone they have no finite
        variance: mix in uniform times before you weigh it.
        """
        return self.density(t).reciprocal()

    def tenths(self, device: torch.device | str | None = None) -> Tensor:
        """(10,), the mean density over each tenth of [0, 1], from 100 points each and normalised to a mean of 1."""
        middles = (torch.arange(TENTHS * _POINTS, device=device) + 0.5) / (TENTHS * _POINTS)
        means = self.density(middles).reshape(TENTHS, _POINTS).mean(1)
        return means / means.mean()

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


@dataclass(frozen=True, slots=True)
class EdgeWeighted(TimeSampler):
    """More often near both ends: density 1 - share + share (power + 1) |2t - 1|^power.

    share: of the times that come from the part that favours the ends, in [0, 1); the others are uniform, so that the
    weights stay under 1 / (1 - share). power > 0: how near to the ends. UsageError for others.
    """

    share: float = 0.5
    power: float = 2.0

    def __post_init__(self) -> None:
        if not (0 <= self.share < 1 and 0 < self.power < math.inf):
            got = f"share={self.share}, power={self.power}"
            expected = "share in [0, 1), finite power > 0"
            raise UsageError(mismatch("Times near the ends.", expected, got, "Use share=0.5, power=2.0 to begin with."))

    def _draw(
        self, n: int, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor:
        chosen, u = torch.rand(2, n, generator=generator, device=device, dtype=dtype)
        distance = 2 * u - 1
        favoured = distance.sign() * distance.abs() ** (1 / (self.power + 1))
        return (torch.where(chosen < self.share, favoured, distance) + 1) / 2

    def density(self, t: Tensor) -> Tensor:
        """In [1 - share, 1 + share power]; see `TimeSampler.density`."""
        inside = 1 - self.share + self.share * (self.power + 1) * (2 * t - 1).abs() ** self.power
        return torch.where((t < 0) | (t > 1), 0.0, inside)


@dataclass(frozen=True, slots=True)
class Stepwise(TimeSampler):
    """A constant density in each of equally wide bins. shares: of the times in each, >= 0, not all 0; scaled to sum 1.

    UsageError for others.
    """

    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0 <= share < math.inf for share in self.shares) or not 0 < sum(self.shares) < math.inf:
            got = repr(self.shares)
            raise UsageError(mismatch("Shares of bins.", "finite numbers >= 0, one of them > 0", got, "correct these"))

    def _draw(
        self, n: int, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor:
        chosen, u = torch.rand(2, n, generator=generator, device=device, dtype=dtype)
        shares = torch.tensor(self.shares, device=device, dtype=torch.float64)
        edges = (shares.cumsum(0) / shares.sum())[:-1].to(dtype)
        # Rounding the last bins up to 1 must not open an empty one: the last with a share is the last there is.
        last = max(place for place, share in enumerate(self.shares) if share > 0)
        place = torch.searchsorted(edges, chosen, right=True).clamp(max=last)
        return torch.as_tensor((place + u) / len(self.shares))

    def density(self, t: Tensor) -> Tensor:
        """That of the bin; t = 1 is in the last one. See `TimeSampler.density`."""
        heights = torch.tensor(self.shares, device=t.device, dtype=torch.float64)
        heights = (heights * (len(self.shares) / heights.sum())).to(t.dtype)
        inside = heights[bin_of(t, len(self.shares))]
        return torch.where((t < 0) | (t > 1), 0.0, torch.where(t.isnan(), t, inside))


@dataclass(frozen=True, slots=True)
class TimeMixture(TimeSampler):
    """Each time from one of several samplers: the usual cure of starved ends is a share of uniform times.

    parts: at least one. shares: of the times, one per part, > 0; scaled to sum 1. UsageError for others.
    """

    parts: tuple[TimeSampler, ...] = (LogitNormal(), Uniform())
    shares: tuple[float, ...] = (0.9, 0.1)

    def __post_init__(self) -> None:
        fits = 0 < len(self.parts) == len(self.shares) and all(isinstance(part, TimeSampler) for part in self.parts)
        if not fits or not all(0 < share < math.inf for share in self.shares):
            got = f"{len(self.parts)} parts, shares={self.shares}"
            raise UsageError(mismatch("A mixture.", "samplers, and a share > 0 for each", got, "correct these"))

    def _draw(
        self, n: int, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor:
        chosen = torch.rand(n, generator=generator, device=device, dtype=dtype)
        t, start = self.parts[0]._draw(n, generator, device, dtype), 0.0
        for part, before in zip(self.parts[1:], self.shares, strict=False):
            start += before / sum(self.shares)
            t = torch.where(chosen < start, t, part._draw(n, generator, device, dtype))
        return t

    def density(self, t: Tensor) -> Tensor:
        """Of the parts, by their shares; see `TimeSampler.density`."""
        total = torch.zeros_like(t)
        for part, share in zip(self.parts, self.shares, strict=True):
            total = total + share / sum(self.shares) * part.density(t)
        return total


def bin_of(t: Tensor, bins: int) -> Tensor:
    """The bin of each time, an index (same shape); t = 1 is in the last one, NaN and what lies outside in any."""
    return (
        (t.to(torch.promote_types(t.dtype, torch.float32)).nan_to_num(0.0).clamp(0, 1) * bins).long().clamp(0, bins - 1)
    )


TIME_SAMPLERS: Final[Mapping[str, TimeSampler]] = {
    "edge_weighted": EdgeWeighted(),
    "logit_normal": LogitNormal(),
    "mixture": TimeMixture(),
    "uniform": Uniform(),
}
