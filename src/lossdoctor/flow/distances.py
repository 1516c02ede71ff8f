"""How far apart two sets of samples are, as distributions: no pairing is assumed.

Everything is computed in float64: near-equal sets differ by little, and training scripts often lower the precision of
float32 matrix products (`torch.set_float32_matmul_precision`), which would show up here as distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError, mismatch

_BLOCK = 2**22  # distances held at once, 32 MB


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    projections: int = 128,
    generator: torch.Generator | None = None,
    directions: Tensor | None = None,
) -> Tensor:
    """Sliced 2-Wasserstein distance: root of the mean squared W2 of one-dimensional projections.

    x: (N, ...), y: (M, ...) with the same trailing shape, taken as D numbers per sample. Returns 0-d float64 in the
    unit of the samples, >= 0, 0 for equal sets; about |shift| / sqrt(D) under a shift. It has a floor > 0 between two
    finite sets of one distribution: compare with real against real at the same sizes.
    projections: how many random directions, from `generator` (then the global random state is not touched).
    directions: (D, P) unit columns to use instead. NaN in, NaN out. Never synchronises.
    Raises ShapeError when trailing shapes differ, UsageError for an empty set. Source: Bonneel et al. 2015.
    """
    x, y = _points(x, y)
    if directions is None:
        directions = _random_directions(x, projections, generator)
    elif directions.ndim != 2 or len(directions) != x.shape[1]:
        expected, got = f"({x.shape[1]}, P)", f"directions of shape {tuple(directions.shape)}"
        raise ShapeError(mismatch("Directions live in the space of the samples.", expected, got, "Pass unit columns."))
    directions = directions.to(x)
    return _squared_w2(x @ directions, y @ directions).mean().sqrt()


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'|: the V-statistic, not rooted.

    x: (N, ...), y: (M, ...) with the same trailing shape, taken as D numbers per sample. Returns 0-d float64 in the
    unit of the samples, >= 0, 0 (up to rounding) for equal sets. Pairs of a sample with itself count (hence V and
    hence >= 0), which puts the floor between two sets of one distribution near E|x - x'| (1/N + 1/M).
    NaN in, NaN out. Memory stays bounded, time grows with (N + M)^2 D. Never synchronises.
    Raises ShapeError when trailing shapes differ, UsageError for an empty set. Source: Szekely and Rizzo 2013.
    """
    x, y = _points(x, y)
    # The distance of a pair is found from inner products, which lose digits far from the origin.
    center = x.mean(0)
    x, y = x - center, y - center
    energy = 2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)
    return energy.clamp(min=0)  # rounding may leave -1e-16


def _points(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[1:] != y.shape[1:] or x.ndim == 0 or y.ndim == 0:
        expected, got = "(N, ...) and (M, ...) with one trailing shape", f"{tuple(x.shape)} and {tuple(y.shape)}"
        todo = "Flatten both the same way, samples first."
        raise ShapeError(mismatch("Both sets must hold samples of one space.", expected, got, todo))
    if x.numel() == 0 or y.numel() == 0:
        got = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise UsageError(
            mismatch("An empty set has no distribution.", "at least one sample", got, "Skip the distance.")
        )
    return x.reshape(len(x), -1).double(), y.reshape(len(y), -1).double()


def _random_directions(x: Tensor, projections: int, generator: torch.Generator | None) -> Tensor:
    if projections < 1:
        got = f"projections={projections}"
        raise UsageError(mismatch("A slice needs a direction.", "projections >= 1", got, "128 is a good number."))
    device = x.device if generator is None else generator.device
    normal = torch.randn(x.shape[1], projections, generator=generator, device=device, dtype=torch.float64)
    unit: Tensor = normal / normal.norm(dim=0)
    return unit


def _squared_w2(u: Tensor, v: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of each column of u (N, P) and v (M, P): (P,).

    Optimal transport on a line matches quantiles. Both quantile functions are constant between the levels i/N and
    j/M; counting levels in units of 1/(N M) keeps the steps exact integers, also for N != M.
    """
    n, m = len(u), len(v)
    levels = torch.cat([torch.arange(n, device=u.device) * m, torch.arange(m, device=u.device) * n]).sort().values
    width = torch.diff(levels, append=levels.new_full((1,), n * m))
    gap = u.sort(dim=0).values[levels // m] - v.sort(dim=0).values[levels // n]
    return (width.to(u.dtype) / (n * m)) @ gap.square()


def _mean_distance(x: Tensor, y: Tensor) -> Tensor:
    rows = max(1, _BLOCK // len(y))
    sums = [torch.cdist(x[first : first + rows], y).sum() for first in range(0, len(x), rows)]
    return torch.stack(sums).sum() / (len(x) * len(y))
