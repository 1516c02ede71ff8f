"""Probability paths x_t = alpha(t) z0 + beta(t) z1 and their exact velocities.

Inside this file time runs from the source z0 at 0 to the data z1 at 1, so alpha(0) = beta(1) = 1 and
alpha(1) = beta(0) = 0. Code in the wild has both directions: `t_source` names the end of the user's t at which z0
sits, 0.0 or 1.0, and everything handed in or out follows the user's direction.

Source: Lipman et al. 2022 (2210.02747), Albergo and Vanden-Eijnden 2022 (2209.15571), Liu et al. 2022 (2209.03003).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError, mismatch

Schedule = Callable[[Tensor], Tensor]


class Coefficients(NamedTuple):
    """The four numbers of a path at each time, all of the shape of t."""

    alpha: Tensor
    beta: Tensor
    d_alpha: Tensor
    d_beta: Tensor


class Path(ABC):
    """A way from source to data. A concrete path has a `name` and says its `coefficients`; the rest follows."""

    name: str

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha, beta and their derivatives at t: any shape, floating, 0 at the source."""

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the source at t (any shape, 0 at the source): 1 at t = 0, 0 at t = 1."""
        return self.coefficients(t).alpha

    def beta(self, t: Tensor) -> Tensor:
        """Share of the data at t (any shape, 0 at the source): 0 at t = 0, 1 at t = 1."""
        return self.coefficients(t).beta

    def d_alpha(self, t: Tensor) -> Tensor:
        """d alpha / dt at t (any shape, 0 at the source)."""
        return self.coefficients(t).d_alpha

    def d_beta(self, t: Tensor) -> Tensor:
        """d beta / dt at t (any shape, 0 at the source)."""
        return self.coefficients(t).d_beta

    def sample(self, z0: Tensor, z1: Tensor, t: Tensor | float, t_source: float = 0.0) -> tuple[Tensor, Tensor]:
        """The point x_t on the path and its velocity v_target = d x_t / dt, in the user's direction of t.

        z0, z1: (B, ...), same shape. t: scalar, (B,) or (B, 1, ...), meant to lie in [0, 1]: `check_times` looks,
        this function does not, because looking synchronises. t_source: the t of the source, 0.0 or 1.0.
        Returns two tensors of the shape and dtype of z0 and z1, computed in float32 or wider.
        Raises ShapeError when shapes do not belong together, UsageError for another t_source.
        """
        if z0.shape != z1.shape:
            raise ShapeError(_shapes("Source and data must have one shape.", f"{tuple(z0.shape)}, as z0", "z1", z1))
        dtype = torch.promote_types(z0.dtype, z1.dtype)
        wide = torch.promote_types(dtype, torch.float32)
        t = source_time(expand_time(t, z0).to(wide), t_source)
        at = self.coefficients(t)
        x_t = at.alpha * z0 + at.beta * z1
        toward_data = at.d_alpha * z0 + at.d_beta * z1
        v_target = toward_data if t_source == 0.0 else -toward_data
        narrow = dtype if dtype.is_floating_point else wide
        return x_t.to(narrow), v_target.to(narrow)


class Linear(Path):
    """alpha = 1 - t, beta = t: straight lines at constant speed (rectified flow, OT path)."""

    name = "linear"

    def coefficients(self, t: Tensor) -> Coefficients:
        """See `Path.coefficients`."""
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)


class Trigonometric(Path):
    """alpha = cos(pi t / 2), beta = sin(pi t / 2): alpha^2 + beta^2 = 1, so independent unit variances stay at 1."""

    name = "trigonometric"

    def coefficients(self, t: Tensor) -> Coefficients:
        """See `Path.coefficients`."""
        quarter = math.pi / 2
        # The sine of the complement is the cosine, and exactly 0 at t = 1 where a rounded cos(pi/2) is not.
        alpha, beta = torch.sin(quarter * (1 - t)), torch.sin(quarter * t)
        return Coefficients(alpha, beta, -quarter * beta, quarter * alpha)


class Polynomial(Path):
    """alpha = 1 - t^p, beta = t^p: straight lines at growing speed. p >= 1, or the speed is infinite at the source."""

    name = "polynomial"

    def __init__(self, power: float) -> None:
        if not (math.isfinite(power) and power >= 1):
            todo = "Choose a power of 1 or more; 1 is the linear path."
            raise UsageError(mismatch("A polynomial path needs a finite speed.", "power >= 1", f"{power}", todo))
        self.power = power

    def coefficients(self, t: Tensor) -> Coefficients:
        """See `Path.coefficients`."""
        beta, d_beta = t**self.power, self.power * t ** (self.power - 1)
        return Coefficients(1 - beta, beta, -d_beta, d_beta)


class Scheduled(Path):
    """Any alpha(t), beta(t) given as functions that act on each time by itself.

    A derivative that is not given is taken by automatic differentiation, exact up to rounding. The ends may be
    missed by up to 0.1, as a noise floor or a schedule that never quite reaches pure noise does (0.068 in Stable
    Diffusion). Raises UsageError when they are missed by more: most often the two functions are swapped, since many
    papers call the share of the *data* alpha.
    """

    name = "scheduled"
    _end_tolerance = 0.1

    def __init__(
        self,
        alpha: Schedule,
        beta: Schedule,
        d_alpha: Schedule | None = None,
        d_beta: Schedule | None = None,
    ) -> None:
        self._alpha, self._beta, self._d_alpha, self._d_beta = alpha, beta, d_alpha, d_beta
        with torch.no_grad():
            at = self.coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
            ends = torch.stack([at.alpha, at.beta])
        if not bool(((ends - torch.eye(2)).abs() <= self._end_tolerance).all()):
            raise UsageError(
                mismatch(
                    "A path must lead from the source at t = 0 to the data at t = 1.",
                    "alpha(0) = 1, alpha(1) = 0, beta(0) = 0, beta(1) = 1",
                    "alpha(0) = {:.3g}, alpha(1) = {:.3g}, beta(0) = {:.3g}, beta(1) = {:.3g}".format(*ends.flatten()),
                    "alpha multiplies the source, beta the data, and t is 0 at the source: swap or flip the functions.",
                )
            )

    def coefficients(self, t: Tensor) -> Coefficients:
        """See `Path.coefficients`. Raises ShapeError when a function does not keep the shape of t."""
        alpha, d_alpha = _with_derivative(self._alpha, self._d_alpha, t)
        beta, d_beta = _with_derivative(self._beta, self._d_beta, t)
        for value in (alpha, beta, d_alpha, d_beta):
            if value.shape != t.shape:
                expected = f"{tuple(t.shape)}, as t"
                raise ShapeError(_shapes("A schedule must act on each time by itself.", expected, "its value", value))
        return Coefficients(alpha, beta, d_alpha, d_beta)


def _with_derivative(function: Schedule, derivative: Schedule | None, t: Tensor) -> tuple[Tensor, Tensor]:
    """The function and its derivative at t; the Jacobian is diagonal, so one pull-back of ones reads it all."""
    if derivative is not None:
        return function(t), derivative(t)
    # In inference mode torch 2.5 takes every derivative for zero, without a word.
    with torch.inference_mode(False):
        value, pull_back, *_ = torch.func.vjp(function, t.clone() if t.is_inference() else t)
        return value, pull_back(torch.ones_like(value))[0]


PATHS: Final[Mapping[str, Path]] = {path.name: path for path in (Linear(), Polynomial(2.0), Trigonometric())}
"""The paths that are recognised by name; `polynomial` has power 2."""


def expand_time(t: Tensor | float, like: Tensor) -> Tensor:
    """t as (B, 1, ...), one axis per axis of `like` (B, ...), on its device and floating.

    t: scalar (or one element), (B,), or (B, 1, ...). Raises ShapeError for any other shape, so that a (B,) never
    broadcasts against the last axis of `like` into (B, B).
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    if not isinstance(t, Tensor):
        t = torch.full((), t, dtype=wide, device=like.device)
    if like.ndim == 0 or (t.numel() != 1 and (t.numel() != len(like) or len(t) != len(like))):
        expected = f"a scalar, (B,) or (B, 1, ..., 1), to go with samples of shape {tuple(like.shape)}"
        raise ShapeError(_shapes("There must be one time per sample.", expected, "t", t))
    ones = (1,) * (like.ndim - 1)
    t = t.to(like.device, t.dtype if t.is_floating_point() else wide)
    return t.reshape(t.numel(), *ones).expand(len(like), *ones)


def source_time(t: Tensor, t_source: float) -> Tensor:
    """The user's t (any shape) as time that runs from the source to the data. UsageError unless t_source is 0 or 1."""
    if t_source == 0.0:
        return t
    if t_source == 1.0:
        return 1 - t
    todo = "Give t_source=0.0 if t = 0 is the source (noise), t_source=1.0 if t = 0 is the data."
    raise UsageError(mismatch("The source sits at one end of time.", "t_source 0.0 or 1.0", f"{t_source!r}", todo))


def check_times(t: Tensor, tolerance: float = 1e-4) -> None:
    """Raise UsageError if a time (any shape) lies outside [0, 1] by more than `tolerance` or is NaN. Synchronises."""
    if t.numel() == 0:
        return
    low, high = (float(end) for end in t.detach().aminmax())
    if not (low >= -tolerance and high <= 1 + tolerance):
        todo = "Divide the time by its range (1000 in diffusion code) before it is handed in."
        got = f"times from {low:g} to {high:g}"
        raise UsageError(mismatch("Times must lie on the path.", "0 <= t <= 1", got, todo))


class PathFit(NamedTuple):
    """How well each known path explains a training batch. Tensors are (P,), float32 or wider, on their device.

    names: the P paths. residual: |x_t - (alpha z0 + beta z1)| / |x_t|; 0 is this path, NaN for an all-zero x_t.
    mismatch: |v_target - d x_t / dt| / |v_target|; 0 is the right target, not finite for an all-zero v_target.
    scale: the factor a that makes |v_target - a d x_t / dt| smallest; 1 is the right target, -1 the reversed one.
    """

    names: tuple[str, ...]
    residual: Tensor
    mismatch: Tensor
    scale: Tensor

    def target_mismatch(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """The mismatch (0-d) of the target, and whether any path fits (0-d, bool), without synchronising.

        A path fits when its residual is at most `tolerance`. Where several do, as at the ends of time where all
        paths meet, the target is given the benefit of the doubt: the smallest mismatch counts, and NaN wins over all.
        """
        fits = self.residual <= tolerance
        return torch.where(fits, self.mismatch, torch.inf).amin(), fits.any()

    def target_scale(self, tolerance: float) -> Tensor:
        """The scale (0-d) on the path that `target_mismatch` has chosen; means nothing when none fits."""
        chosen = torch.where(self.residual <= tolerance, self.mismatch, torch.inf).argmin(keepdim=True)
        return self.scale.gather(0, chosen).squeeze(0)


def fit_path(
    x_t: Tensor, z0: Tensor, z1: Tensor, t: Tensor | float, t_source: float = 0.0, *, v_target: Tensor
) -> PathFit:
    """Which known path was x_t drawn from, and is v_target its velocity? Never synchronises.

    x_t, z0, z1, v_target: (B, ...), same shape. t, t_source: as in `Path.sample`, which also names the errors raised.
    """
    for name, tensor in {"z0": z0, "z1": z1, "v_target": v_target}.items():
        if tensor.shape != x_t.shape:
            expected = f"{tuple(x_t.shape)}, as x_t"
            raise ShapeError(_shapes("All tensors of a batch must have one shape.", expected, name, tensor))
    wide = torch.promote_types(x_t.dtype, torch.float32)
    x_t, z0, z1, v_target = (tensor.to(wide) for tensor in (x_t, z0, z1, v_target))
    length = torch.linalg.vector_norm
    residual, deviation, scale = [], [], []
    for path in PATHS.values():
        x_path, v_path = path.sample(z0, z1, t, t_source)
        residual.append(length(x_t - x_path))
        deviation.append(length(v_target - v_path))
        # Dividing twice keeps the square of a tiny length from vanishing.
        scale.append((v_target * (v_path / length(v_path))).sum() / length(v_path))
    residuals, mismatches = torch.stack(residual) / length(x_t), torch.stack(deviation) / length(v_target)
    return PathFit(tuple(PATHS), residuals, mismatches, torch.stack(scale))


def _shapes(rule: str, expected: str, name: str, got: Tensor) -> str:
    todo = f"Reshape {name} so that nothing relies on broadcasting."
    return mismatch(rule, expected, f"{name} of shape {tuple(got.shape)}", todo)
