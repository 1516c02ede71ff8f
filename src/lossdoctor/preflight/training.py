"""What is trained: the path of the user's target, and what its v_target is on that path.

Both are found by fitting. x_t is held against the known paths, and v_target against the derivative of x_t, taken
numerically from the user's own function, and against what people train instead: its negative, the data, the source,
the noise, the straight difference z1 - z0, each also times a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lossdoctor.flow.paths import PATHS, Coefficients, Linear, Path, source_time
from lossdoctor.preflight.given import Failed, Given, asked, draw, like, unlike

Kind = Literal["velocity", "negative", "straight", "data", "source", "noise", "scaled", "unknown"]

EXACT = 1e-3
"""Relative error under which a formula is the one: in float32 the numerical derivative is off by 1e-4, and formulas
differ by 0.1 and more."""
_END = 0.1
"""By how much a path may miss its ends, as `flow.paths.Scheduled` allows it."""
_STEP = 1e-3
_COARSE, _COARSE_STEP = 0.03, 0.04
"""For answers in half precision: bfloat16 rounds to 0.004."""
_TIMES = 7


@dataclass(frozen=True)
class Training:
    """The formula that the network is trained on.

    path: the known path that x_t follows, None for another one. residual: how far x_t is from the nearest known path,
    relative to x_t. kind: what v_target is. factor: the constant of "scaled", the best factor of "unknown". mismatch:
    |v_target - d x_t / dt| over |d x_t / dt|. reversed_source: x_t fits only if time runs the other way than t_source
    says.
    """

    path: Path | None
    residual: float
    kind: Kind
    factor: float
    mismatch: float
    reversed_source: bool = False


STRAIGHT = Training(Linear(), 0.0, "velocity", 1.0, 0.0)
"""What is assumed where no target is given."""


class OwnPath(Path):
    """alpha and beta read off the user's target: x_t of ones and zeros. Derivatives are numerical, times in [0, 1]."""

    name = "own"

    def __init__(self, given: Given, ask: Callable[[Tensor, Tensor, Tensor], Tensor], t_source: float) -> None:
        assert given.z0 is not None
        self._one = torch.ones_like(given.z0[:1]).double().expand(given.z0.shape)
        self._ask, self._t_source = ask, t_source
        self._known: dict[float, tuple[float, float]] = {}

    def coefficients(self, t: Tensor) -> Coefficients:
        """See `Path.coefficients`."""
        low, high = (t.double() - _STEP).clamp(0, 1), (t.double() + _STEP).clamp(0, 1)
        below, above, at = (self._shares(one) for one in (low, high, t.double().clamp(0, 1)))
        width = (high - low).reshape(t.shape)
        slopes = [(b - a) / width for a, b in zip(below, above, strict=True)]
        alpha, beta, d_alpha, d_beta = (one.to(t) for one in (*at, *slopes))
        return Coefficients(alpha, beta, d_alpha, d_beta)

    def _shares(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and beta at source times (n, 1, ...), each of the shape of t. A time is asked for once."""
        times = source_time(t, self._t_source).flatten().tolist()
        new = [time for time in dict.fromkeys(times) if time not in self._known]
        rows, ones = len(self._one), (1,) * (self._one.ndim - 1)
        for first in range(0, len(new), rows):
            block = new[first : first + rows]
            padded = self._one.new_tensor(block + block[-1:] * (rows - len(block))).reshape(-1, *ones)
            alpha = self._ask(self._one, 0 * self._one, padded).flatten(1)[:, 0].tolist()
            beta = self._ask(0 * self._one, self._one, padded).flatten(1)[:, 0].tolist()
            self._known |= dict(zip(block, zip(alpha[: len(block)], beta, strict=False), strict=True))
        shares = t.new_tensor([self._known[time] for time in times])
        return shares[:, 0].reshape(t.shape), shares[:, 1].reshape(t.shape)


class Shapes(Failed):
    """The target gives tensors of other shapes than its samples have."""


def read(given: Given) -> Training:
    """The formula behind `given.target`, z0 and z1. Raises Failed when it cannot be asked, Shapes for wrong shapes."""
    if given.target is None:
        return STRAIGHT
    assert given.z0 is not None
    assert given.z1 is not None
    z0, z1 = given.z0.double(), given.z1.double()
    if float((z1 - z0).abs().max()) == 0:
        z1 = z1 + draw(z1)  # a pair that does not move tells nothing
    sample = _sampled(given, z0, z1)
    x, v, slope, times = [], [], [], []
    for k in range(_TIMES):
        t = _times(z0, k)
        x_t, v_t = sample(t)
        forward, _ = sample(t + sample.step)
        backward, _ = sample(t - sample.step)
        x.append(x_t)
        v.append(v_t)
        slope.append((forward - backward) / (2 * sample.step))
        times.append(t)
    ends = (sample.z0.repeat(_per(z0)), sample.z1.repeat(_per(z1)))
    batch = _Batch(torch.cat(x), torch.cat(v), torch.cat(slope), torch.cat(times), *ends)
    return _fitted(batch, given, sample)


def _per(z: Tensor) -> tuple[int, ...]:
    return (_TIMES, *(1,) * (z.ndim - 1))


def _times(z: Tensor, k: int) -> Tensor:
    """Another time for every row, (B, 1, ...), all within [0.05, 0.95]."""
    rows = torch.arange(len(z), device=z.device, dtype=z.dtype)
    t = 0.05 + 0.9 * ((k + 0.5) / _TIMES + rows * 0.6180339887).remainder(1)
    return t.reshape(-1, *(1,) * (z.ndim - 1))


@dataclass(frozen=True)
class _Sample:
    """The user's target at a time (B, 1, ...), always under the same random numbers."""

    ask: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    z0: Tensor
    z1: Tensor
    coarse: bool
    """Whether the answer is in half precision: then it is differenced over a longer step, and must fit less well."""

    @property
    def step(self) -> float:
        """Half the length over which x_t is differenced."""
        return _COARSE_STEP if self.coarse else _STEP

    @property
    def tolerance(self) -> float:
        """Relative error of the formula that is the one; rounding counts in a derivative in float32."""
        return _COARSE if self.coarse else EXACT if self.z0.dtype == torch.float64 else 5 * EXACT

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.ask(self.z0, self.z1, t)


def _sampled(given: Given, z0: Tensor, z1: Tensor) -> _Sample:
    """The way to ask the target that works: in float64 or float32, with t as (B, 1, ...) or, failing that, (B,)."""
    failures: list[Failed] = []
    for flat in (False, True):
        for dtype in (torch.float64, torch.float32):

            def ask(
                z0: Tensor, z1: Tensor, t: Tensor, flat: bool = flat, dtype: torch.dtype = dtype
            ) -> tuple[Tensor, Tensor]:
                t = t.to(dtype)
                return ask_target(given, z0.to(dtype), z1.to(dtype), t.flatten() if flat else t)

            try:
                ask(z0, z1, _times(z0, 0))
            except Failed as failed:
                failures.append(failed)
            else:
                t = _times(z0, 0).to(dtype)
                coarse = _coarse(given, z0.to(dtype), z1.to(dtype), t.flatten() if flat else t)
                return _Sample(ask, z0.to(dtype), z1.to(dtype), coarse)
    # A shape is the better clue: with (B,) most functions fail in another way.
    raise next((failed for failed in failures if isinstance(failed, Shapes)), failures[0])


def _coarse(given: Given, z0: Tensor, z1: Tensor, t: Tensor) -> bool:
    assert given.target is not None
    answer = asked("target", given.target, z0.clone(), z1.clone(), t)
    return any(one.dtype in (torch.float16, torch.bfloat16) for one in answer)


def ask_target(given: Given, z0: Tensor, z1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(x_t, v_target) of the user's function, both like z0; the random numbers it may draw are the same each time."""
    assert given.target is not None
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        answer = asked("target", given.target, z0.clone(), z1.clone(), t)
    finally:
        torch.set_rng_state(state)
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        size = f" of {len(answer)}" if isinstance(answer, (tuple, list)) else ""
        raise Failed("target", unlike("target", "its result", "a pair of tensors", f"{type(answer).__name__}{size}"))
    for what, one in zip(("x_t", "v_target"), answer, strict=True):
        if isinstance(one, Tensor) and one.shape != z0.shape:
            got, expected = f"a tensor of shape {tuple(one.shape)}", f"a tensor of shape {tuple(z0.shape)}"
            raise Shapes("target", unlike("target", what, expected, got))
    x_t, v = (like("target", one, z0, what=what) for what, one in zip(("x_t", "v_target"), answer, strict=True))
    return x_t, v


@dataclass(frozen=True)
class _Batch:
    x: Tensor
    v: Tensor
    slope: Tensor
    t: Tensor
    z0: Tensor
    z1: Tensor


def _fitted(batch: _Batch, given: Given, sample: _Sample) -> Training:
    path, residual, turned = _path(batch, given, sample)
    candidates: dict[Kind, Tensor] = {"velocity": batch.slope, "negative": -batch.slope}
    straight = batch.z1 - batch.z0
    if path is None or path.name != "linear":
        candidates["straight"] = straight if given.t_source == 0.0 else -straight
    candidates |= {"data": batch.z1, "source": batch.z0}
    if (noise := _noise(given, batch.z0)) is not None:
        candidates["noise"] = noise
    mismatch = _far(batch.slope, batch.v)
    tolerance = sample.tolerance
    for kind, value in candidates.items():
        if _far(value, batch.v) <= tolerance:
            return Training(path, residual, kind, 1.0, mismatch, turned)
    factor = _scale(batch.slope, batch.v)
    scaled = math.isfinite(factor) and factor != 0 and _far(factor * batch.slope, batch.v) <= tolerance
    return Training(path, residual, "scaled" if scaled else "unknown", factor, mismatch, turned)


def _path(batch: _Batch, given: Given, sample: _Sample) -> tuple[Path | None, float, bool]:
    """The path that x_t follows, how far it is from it, and whether time runs the other way than declared."""
    nearest = math.inf
    for source in (given.t_source, 1 - given.t_source):
        own = OwnPath(given, lambda z0, z1, t: sample.ask(z0, z1, t)[0], source)
        for path in (*PATHS.values(), own):
            far = _far(batch.x, path.sample(batch.z0, batch.z1, batch.t, source)[0])
            if far <= (_COARSE if sample.coarse else EXACT) and (path is not own or _leads(own, batch.z0)):
                return path, far, source != given.t_source
            nearest = min(nearest, far)
    return None, nearest, False


def _leads(path: Path, like: Tensor) -> bool:
    """Whether a path begins at its source and ends in its data, up to a noise floor."""
    ends = torch.tensor([0.0, 1.0], dtype=like.dtype, device=like.device).reshape(-1, *(1,) * (like.ndim - 1))
    at = path.coefficients(ends)
    found = torch.stack([at.alpha.flatten(), at.beta.flatten()])
    return bool(((found - torch.eye(2).to(found)).abs() <= _END).all())


def _noise(given: Given, z0: Tensor) -> Tensor | None:
    """The noise that z0 = mu + std * noise was drawn with, where z0 is more than that noise."""
    if given.mu is None or given.logvar is None or given.z0 is None or given.mu.shape != given.z0.shape:
        return None
    noise = (given.z0 - given.mu) / (given.logvar / 2).exp()
    return noise.to(z0).repeat(_per(given.z0)) if bool(torch.isfinite(noise).all()) else None


def _far(wanted: Tensor, got: Tensor) -> float:
    """|got - wanted| / |wanted|, all as one vector."""
    size = float(torch.linalg.vector_norm(wanted))
    return float(torch.linalg.vector_norm(got - wanted)) / size if size else math.inf


def _scale(of: Tensor, value: Tensor) -> float:
    """The a that brings a * of nearest to value."""
    square = float(of.square().sum())
    return float((of * value).sum()) / square if square else math.nan
