"""Which formula the KL that was handed in follows, told from the curves of the posterior's moments.

Handed in is one number per step. Candidates are functions of what was measured on the same batch: the mean squares of
mu and std, the mean of logvar, and the moments of the sample z. A candidate that reproduces the number at every step
up to a usual reduction is what was computed; measured on exact arithmetic, the right one is off by 1e-6 and the next
best by 1e-2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lossdoctor.record import Series
from lossdoctor.rules.posterior import the_loss
from lossdoctor.rules.view import LEAST, RunView

Array = npt.NDArray[np.float64]

EXACT = 0.005
"""Relative error, at nine tenths of the steps, of a formula that is the one. docs/log.md, the clinic: at most 1e-5 for
the right one, from 0.02 on for another, 0.0025 where the other is the same at this mu."""
NEAR = 0.15
"""The same for a formula that holds up to the noise of a sample that is not known. docs/log.md, the clinic: 0.02 to
0.09 for the right one."""
NOISE = 0.05
"""Nats per dimension that are added to the size of the KL for it: near the prior there is nothing but noise."""
BETTER = 0.3
"""Times the error of the closed form that a formula may have to be named instead."""

UNKNOWN_SCALE = 1e-5
"""As EXACT, for a scale that is not among these: any number could be one."""
KNOWN_SCALES = (0.18215, 0.13025, 0.2325, 1 / 0.18215, 1 / 0.13025, 1 / 0.2325)
"""Of the latents of Stable Diffusion, SDXL and MAR, and back."""
_SCALES = (1e-2, 1e2)
_POINTS = 200
_CLOSED = "(mu^2 + std^2 - 1 - logvar) / 2"
_SMALLEST = 1e-3  # nats per dimension; nearer to the prior rounding decides


@dataclass(frozen=True, slots=True)
class Formula:
    """What the given KL is.

    kind: "closed" the KL of mu and logvar; "scaled" that of the latent times `scale`, of mu alone with `mean_only`;
    "sample" computed from z; "part" a KL with a term missing or changed; "other" none of these. name: the formula per
    dimension, empty where it is not known. factor: the given KL over this formula, summed over dimensions. reduction:
    the name of that factor, None for one that has none. error: relative, at nine tenths of the steps. exact: it is this
    formula, and not one near it. low, high: the middle nine tenths of given over true. first_step, last_step: judged.
    """

    kind: str
    name: str
    factor: float
    reduction: str | None
    error: float
    exact: bool
    low: float
    high: float
    first_step: int
    last_step: int
    scale: float = 1.0
    mean_only: bool = False


@dataclass(frozen=True, slots=True)
class _Moments:
    """Per step, (N,) each: the KL given and true per dimension, and what it can be a function of."""

    steps: npt.NDArray[np.int64]
    given: Array
    true: Array
    mean: Array  # of mu^2
    variance: Array  # of std^2
    std: Array
    logvar: Array
    square: Array  # of z^2
    square_known: bool
    spread: Array  # std of z over the batch


def formula(run: RunView) -> Formula | None:
    """The formula of the KL that was handed in; None when too few steps tell."""
    found = _moments(run)
    if found is None:
        return None
    factors = _reductions(run)
    factor, error = _free(found.given, found.true)
    if error <= EXACT:
        return _told(found, "closed", _CLOSED, _named(factor, factors), error)
    if _estimates(found, factor, factors):
        return _told(found, "closed", _CLOSED, _named(factor, factors, 0.05), error)
    best = _best(found, factors)
    if best is not None and best.error <= EXACT and best.error <= BETTER * error:
        return best
    near, follows = _nearest(found, factors), _follows_noise(found)
    closed = min(_error(found.given, f * found.true, NOISE * f) for f in factors.values())
    if near is not None and near.error <= min(NEAR, BETTER * closed) and (follows or _noise_about(found, near)):
        return near
    kind = "sample" if follows else "other"
    return _told(found, kind, "", _Multiple(factor, None), error)


@dataclass(frozen=True, slots=True)
class _Multiple:
    """A factor, and its name if it has one."""

    factor: float
    reduction: str | None


def _told(m: _Moments, kind: str, name: str, of: _Multiple, error: float, *, known: bool = True) -> Formula:
    low, high = np.quantile(m.given / m.true, [0.05, 0.95]).tolist()
    exact, ends = known and error <= EXACT, (int(m.steps[0]), int(m.steps[-1]))
    return Formula(kind, name, of.factor, of.reduction, error, exact, low, high, *ends)


def _moments(run: RunView) -> _Moments | None:
    names = ["kl/per_dim", "mu/rms", "std/mean", "logvar/mean"]
    given = run["kl/given_per_dim"].finite
    if not len(given):
        # Runs from before it was recorded: the ratio is the given KL over D times the true one.
        ratio, true = run["kl/ratio"].finite, run["kl/per_dim"].finite
        steps, i, j = np.intersect1d(ratio.steps, true.steps, return_indices=True)
        given = Series(steps, ratio.values[i] * true.values[j]).finite
    curves = {name: run[name].finite for name in names}
    steps = given.steps
    for curve in curves.values():
        steps = np.intersect1d(steps, curve.steps)
    if not len(steps):
        return None
    at = {name: curve.values[np.searchsorted(curve.steps, steps)] for name, curve in curves.items()}
    with np.errstate(over="ignore", invalid="ignore"):
        mean = at["mu/rms"] ** 2
        variance = _at(run["std/rms"], steps) ** 2
        # The three moments and the KL are bound by one equation.
        variance = np.where(np.isnan(variance), 2 * at["kl/per_dim"] + 1 + at["logvar/mean"] - mean, variance)
        square = _at(run["z_init/var"], steps) + _at(run["z_init/mean"], steps) ** 2
        known = ~np.isnan(square)
        square = np.where(known, square, mean + variance)
        moments = _Moments(
            steps,
            given.values[np.searchsorted(given.steps, steps)],
            at["kl/per_dim"],
            mean,
            variance,
            at["std/mean"],
            at["logvar/mean"],
            square,
            bool(known.all()),
            _at(run["z_init/std_per_dim_mean"], steps),
        )
    kept = (moments.true > _SMALLEST) & (moments.given != 0) & np.isfinite(square) & np.isfinite(mean + variance)
    there = np.flatnonzero(kept)
    if len(there) < LEAST:
        return None
    few = there[np.linspace(0, len(there) - 1, min(len(there), _POINTS)).round().astype(np.int64)]
    return _only(moments, few)


def _at(series: Series, steps: npt.NDArray[np.int64]) -> Array:
    """Values at these steps, NaN where there is none."""
    finite = series.finite
    values = np.full(len(steps), math.nan)
    _, i, j = np.intersect1d(steps, finite.steps, return_indices=True)
    values[i] = finite.values[j]
    return values


def _only(moments: _Moments, kept: npt.NDArray[np.int64]) -> _Moments:
    values = {name: getattr(moments, name)[kept] for name in _Moments.__slots__ if name != "square_known"}
    return _Moments(**values, square_known=moments.square_known)


# Reductions


def _reductions(run: RunView) -> Mapping[str, float]:
    """Factors that have a name, the likelier first: the given KL over the formula summed over its dimensions."""
    shapes = run.meta.get("shapes") or {}
    dimensions, batch = shapes.get("posterior_dimensions"), shapes.get("batch")
    loss = the_loss(run)
    weight = abs(run.now(f"weight/{loss}")) if loss is not None else math.nan
    found = {"sum": 1.0}
    if isinstance(dimensions, int) and dimensions > 1:
        found |= {"mean": 1 / dimensions, "double mean": 2 / dimensions, "half mean": 0.5 / dimensions}
    found |= {"double": 2.0, "half": 0.5}
    if isinstance(batch, int) and batch > 1:
        found |= {"batch sum": float(batch), "batch mean": 1 / batch}
    if 0 < weight < math.inf and weight != 1:
        found["weighted"] = weight
        if "mean" in found:
            found["weighted mean"] = weight * found["mean"]
    return found


def _named(factor: float, factors: Mapping[str, float], tolerance: float = EXACT) -> _Multiple:
    return _Multiple(factor, next((name for name, f in factors.items() if abs(factor / f - 1) <= tolerance), None))


# Candidates


def _parts(m: _Moments) -> Iterator[tuple[str, str, Array]]:
    """Kind, name and value per dimension of formulas that are exact when they are the one."""
    with np.errstate(over="ignore", invalid="ignore"):
        if m.square_known:
            yield "sample", "(z^2 + std^2 - 1 - logvar) / 2", (m.square + m.variance - 1 - m.logvar) / 2
            yield "sample", "z^2 / 2", m.square / 2
        yield "part", "(std^2 - 1 - logvar) / 2", (m.variance - 1 - m.logvar) / 2
        yield "part", "mu^2 / 2", m.mean / 2
        yield "part", "(mu^2 + std^2) / 2", (m.mean + m.variance) / 2
        yield "part", "-logvar / 2", -m.logvar / 2
        yield "part", "(mu^2 + std - 1 - logvar) / 2", (m.mean + m.std - 1 - m.logvar) / 2
        yield "part", "mu^2 + (std^2 - 1 - logvar) / 2", (2 * m.mean + m.variance - 1 - m.logvar) / 2
        yield "part", "(mu^2 + std^2 - 1 - ln std) / 2", (m.mean + m.variance - 1 - m.logvar / 2) / 2


def _expectations(m: _Moments) -> Iterator[tuple[str, str, Array]]:
    """Formulas of a sample that was not handed in, up to its noise."""
    square = m.mean + m.variance
    with np.errstate(all="ignore"):
        yield "sample", "(z^2 + std^2 - 1 - logvar) / 2", (square + m.variance - 1 - m.logvar) / 2
        yield "sample", "z^2 / 2", square / 2
        # E ln z^2 of a normal z is ln E z^2 - 1.2704.
        yield "sample", "(z^2 - 1 - ln z^2) / 2", (m.square - 1 - np.log(m.square) + 1.2704) / 2
        yield "sample", "(mean(z)^2 + var(z) - 1 - ln var(z)) / 2", (m.square - 1 - 2 * np.log(m.spread)) / 2


def _best(m: _Moments, factors: Mapping[str, float]) -> Formula | None:
    """The exact candidate that fits best, over all reductions, and all scales of the latent."""
    found = [*_fits(m, _parts(m), factors), *_scaled(m, factors)]
    return min(found, key=lambda one: one.error, default=None)


def _nearest(m: _Moments, factors: Mapping[str, float]) -> Formula | None:
    return min(_fits(m, _expectations(m), factors, NOISE), key=lambda one: one.error, default=None)


def _fits(
    m: _Moments, candidates: Iterator[tuple[str, str, Array]], factors: Mapping[str, float], noise: float = 0.0
) -> Iterator[Formula]:
    for kind, name, value in candidates:
        for reduction, factor in factors.items():
            error = _error(m.given, factor * value, noise * factor)
            yield _told(m, kind, name, _Multiple(factor, reduction), error, known=not noise)


def _scaled(m: _Moments, factors: Mapping[str, float]) -> Iterator[Formula]:
    """The KL of the latent times a constant: of mu and std, or of mu alone."""
    for reduction, factor in factors.items():
        for mean_only in (False, True):
            scale, off = _scale(m, factor, mean_only=mean_only)
            known = [one for one in KNOWN_SCALES if abs(scale / one - 1) < 0.02]
            # A scale at the end of the range, or none at all, is no scale.
            if 1.1 * _SCALES[0] < scale < _SCALES[-1] / 1.1 and off <= (EXACT if known else UNKNOWN_SCALE):
                fit = _told(m, "scaled", _CLOSED, _Multiple(factor, reduction), off)
                yield replace(fit, scale=known[0] if known else scale, mean_only=mean_only)


def _scale(m: _Moments, factor: float, *, mean_only: bool) -> tuple[float, float]:
    """The constant that fits best, and its error: on a grid, then on finer ones around the best place."""
    low, high = math.log(_SCALES[0]), math.log(_SCALES[-1])
    best = (math.nan, math.inf)
    for _ in range(4):
        grid = np.linspace(low, high, 401)
        square = np.exp(2 * grid)[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            if mean_only:
                value = (square * m.mean + m.variance - 1 - m.logvar) / 2
            else:
                value = (square * (m.mean + m.variance) - 1 - m.logvar - 2 * grid[:, None]) / 2
            errors = np.quantile(np.abs(m.given - factor * value) / np.abs(m.given), 0.9, axis=1)
        place = int(np.argmin(errors))
        best = (math.exp(grid[place]), float(errors[place]))
        low, high = grid[max(place - 2, 0)], grid[min(place + 2, len(grid) - 1)]
    return best


# How well a candidate fits


def _error(given: Array, predicted: Array, noise: float = 0.0) -> float:
    """Relative to the given KL plus the noise, at nine tenths of the steps; infinite for a formula not defined."""
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.quantile(np.abs(given - predicted) / (np.abs(given) + noise), 0.9)
    return float(off) if math.isfinite(off) else math.inf


def _free(given: Array, true: Array) -> tuple[float, float]:
    """The factor that fits best, whatever it is, and its error."""
    factor = float(np.median(given / true))
    return factor, _error(given, factor * true)


def _estimates(m: _Moments, factor: float, factors: Mapping[str, float]) -> bool:
    """Whether the ratio is a usual one and only noise about it: log q(z) - log p(z) of a sample, or half precision."""
    return _named(factor, factors, 0.05).reduction is not None and _rough(m.given / m.true) > 0.5


def _noise_about(m: _Moments, near: Formula) -> bool:
    """Whether the given KL scatters about this formula, instead of going its own way beside it."""
    value = next(value for kind, name, value in _expectations(m) if name == near.name)
    return _rough(m.given / (near.factor * value)) > 0.3


def _rough(ratio: Array) -> float:
    """1 for noise, near 0 for what changes slowly, as all functions of mu and std do; 0 for a constant.

    Half the mean square of the steps over the variance (von Neumann 1941). Right formulas of a sample had 0.5 to 1.3,
    a wrong one 0.07; docs/log.md, the clinic.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        steps, variance = float(np.mean(np.diff(ratio) ** 2)) / 2, float(np.var(ratio))
    return steps / variance if variance > 0 else 0.0


def _follows_noise(m: _Moments) -> bool:
    """Whether the given KL moves with the noise of z, which mu and std know nothing of."""
    if not m.square_known:
        return False
    noise, change = np.diff(m.square - m.mean - m.variance), np.diff(m.given)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        together = float(np.mean((noise - noise.mean()) * (change - change.mean()))) / float(noise.std() * change.std())
    return abs(together) > max(0.3, 3 / math.sqrt(len(noise)))
