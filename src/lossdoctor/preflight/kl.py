"""Which formula the user's KL is, found by calling it on posteriors made up for the purpose.

Every candidate is computed on the same mu and logvar and held against the answer, up to a constant factor whose name
is the reduction. The right one is exact to rounding; on eight posteriors as different as these any other is off by
7 % and more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lossdoctor.losses.kl import gaussian_kl
from lossdoctor.preflight.answers import Answers, all_skipped, fired, only
from lossdoctor.preflight.given import Failed, Given, asked, finite, unlike
from lossdoctor.rules.finding import Cause, Clear, Evidence, Finding, Severity, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.kl_formula import KNOWN_SCALES
from lossdoctor.rules.pst303_scaled_kl import ScaledKl
from lossdoctor.rules.pst304_kl_on_sample import KlOnSample
from lossdoctor.rules.pst307_kl_reduction import KlReduction
from lossdoctor.rules.pst309_unclamped_logvar import UnclampedLogvar

RULES = (ScaledKl, KlOnSample, KlReduction, UnclampedLogvar)
NEEDS = ("kl",)

EXACT = 5e-3
"""Relative error of the formula that is the one: 1e-6 in float32, 2e-3 where the function works in half precision. The
nearest other formula is off by 0.07."""
_LEVELS = ((0.3, -0.5), (1.0, -1.0), (2.0, 0.5), (0.5, -3.0), (3.0, -0.2), (0.1, 1.0), (1.5, -2.0), (0.8, 0.3))
"""Size of mu and middle of logvar of the posteriors."""
_ROWS, _DIMENSIONS = 13, (6,)
"""13 samples, so that a mean over the batch is no other reduction by chance."""
_SCALES = (1e-2, 1e2)


@dataclass(frozen=True)
class _Case:
    mu: Tensor
    logvar: Tensor
    told: float


@dataclass(frozen=True)
class _Fit:
    """A candidate: its name, the constant between it and the answer, and how far it is off at worst."""

    name: str
    factor: float
    error: float


def ask(given: Given) -> Answers:
    """Answers for `RULES`. Raises Failed when the function fails."""
    bounds = _bounds(given)
    cases = _cases(given)
    noisy = _random(given, cases[0])
    best = min(_fits(cases), key=lambda fit: fit.error)
    closed = _fit("closed", cases, [_per_sample(case) for case in cases])
    if closed.error <= EXACT:
        answers = fired(RULES[:3], _reduced(closed, cases[0].mu))
    elif noisy:
        answers = only(RULES[:3], _formula("sample", closed))
    elif best.error <= EXACT:
        answers = only(RULES[:3], _formula(best.name, best))
    elif (scaled := _scaled(cases, given.latent_scale)) is not None:
        answers = only(RULES[:3], _scaled_finding(*scaled))
    elif _bounded(given, cases[0]):
        answers = only(RULES[:3], _formula("bounded", closed, "info"))
    else:
        answers = only(RULES[:3], _formula("other", closed))
    return {**answers, **bounds}


# Asking


def _cases(given: Given) -> list[_Case]:
    device = torch.device("cpu") if given.mu is None else given.mu.device
    shape = (_ROWS, *(_DIMENSIONS if given.mu is None else given.mu.shape[1:]))
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for mean, middle in _LEVELS:
        mu = mean * torch.randn(shape, generator=generator, dtype=torch.float64)
        logvar = middle + 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)
        drawn.append((mu.to(device), logvar.to(device)))
    return [_at(given, mu, logvar) for mu, logvar in drawn]


def _told(given: Given, mu: Tensor, logvar: Tensor) -> float:
    torch.manual_seed(0)
    answer = asked("kl", given.kl, mu.clone(), logvar.clone())  # type: ignore[arg-type]
    if isinstance(answer, (int, float)):
        answer = torch.tensor(float(answer))
    if not isinstance(answer, Tensor) or answer.shape not in ((), (1,), (len(mu),)):
        got = f"a tensor of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise Failed("kl", unlike("kl", "its result", "one number", got))
    # One number per sample is averaged, as a training loop would.
    return float(finite("kl", answer).double().mean())


def _random(given: Given, case: _Case) -> bool:
    """Whether the answer changes with the random numbers: then it is computed from a sample."""
    torch.manual_seed(1)
    mu, logvar = case.mu.clone(), case.logvar.clone()
    try:
        again = asked("kl", given.kl, mu, logvar)  # type: ignore[arg-type]
    except Failed:
        again = asked("kl", given.kl, mu.float(), logvar.float())  # type: ignore[arg-type]
    return abs(float(torch.as_tensor(again).double().mean()) - case.told) > 1e-5 * abs(case.told)


def _bounds(given: Given) -> Answers:
    if given.logvar is None:
        return all_skipped((UnclampedLogvar,), say("preflight.skip.needs", check="kl", missing="logvar"))
    rule = UnclampedLogvar()
    low, high = (float(end) for end in given.logvar.aminmax())
    limit = 30.0  # the clamp of latent diffusion; see the rule
    if max(high, -low) <= limit:
        return {UnclampedLogvar: Clear()}
    value = high if high > limit else low
    finding = rule.finding(
        say("preflight.kl.logvar", value=value, limit=limit),
        evidence=(Evidence("preflight/logvar", value, math.copysign(limit, value)),),
        causes=(Cause("logvar-unclamped"),),
        fixes=(edit("bound_logvar"),),
        subject="logvar",
        certainty="confirmed",
    )
    return fired((UnclampedLogvar,), [finding])


# Candidates


def _per_sample(case: _Case) -> float:
    return float(gaussian_kl(case.mu, case.logvar, reduction="sum"))


def _candidates(mu: Tensor, logvar: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Formulas people have in place of the KL, per element."""
    square, variance, std = mu.square(), logvar.exp(), (logvar / 2).exp()
    yield "no_mean", (variance - 1 - logvar) / 2
    yield "mean_only", square / 2
    yield "no_logvar", (square + variance - 1) / 2
    yield "no_variance", (square - 1 - logvar) / 2
    yield "no_one", (square + variance - logvar) / 2
    yield "std_for_variance", (square + std - 1 - logvar) / 2
    yield "log_std", (square + variance - 1 - logvar / 2) / 2
    yield "mean_not_halved", square + (variance - 1 - logvar) / 2
    yield "mean_not_squared", (mu.abs() + variance - 1 - logvar) / 2
    yield "logvar_is_std", (square + (2 * logvar).exp() - 1 - 2 * logvar) / 2
    yield "logvar_sign", (square + variance - 1 + logvar) / 2
    yield "turned_around", (square / variance + 1 / variance - 1 + logvar) / 2
    yield "sixth_power", (0.3 * mu) ** 6 + (variance - 1 - logvar) / 2


def _fits(cases: Sequence[_Case]) -> Iterator[_Fit]:
    names = [name for name, _ in _candidates(cases[0].mu, cases[0].logvar)]
    values: dict[str, list[float]] = {name: [] for name in names}
    for case in cases:
        for name, value in _candidates(case.mu, case.logvar):
            values[name].append(float(value.flatten(1).sum(1).mean()))
    for name, found in values.items():
        yield _fit(name, cases, found)


def _fit(name: str, cases: Sequence[_Case], values: Sequence[float]) -> _Fit:
    told = torch.tensor([case.told for case in cases], dtype=torch.float64)
    value = torch.tensor(values, dtype=torch.float64)
    factor = float((told * value).sum() / value.square().sum())
    size = float(told.abs().max())
    if not factor or not size:
        return _Fit(name, factor, math.inf)
    return _Fit(name, factor, float((told - factor * value).abs().max()) / size)


def _scaled(cases: Sequence[_Case], latent_scale: float | None) -> tuple[_Fit, float, bool] | None:
    """The KL of the latent times a constant that fits best: the fit, the constant, and whether only mu is scaled."""
    known = [*KNOWN_SCALES, *((latent_scale, 1 / latent_scale) if latent_scale else ())]
    found = [(_with_scale(cases, scale, only), scale, only) for scale in known for only in (False, True)]
    best = min(found, key=lambda one: one[0].error, default=None)
    if best is not None and best[0].error <= EXACT:
        return best
    for mean_only in (False, True):
        scale, fit = _searched(cases, mean_only=mean_only)
        if fit.error <= EXACT and not 0.98 < scale < 1.02:
            return fit, float(f"{scale:.4g}"), mean_only
    return None


def _with_scale(cases: Sequence[_Case], scale: float, mean_only: bool) -> _Fit:
    shift = 0.0 if mean_only else 2 * math.log(scale)
    values = [float(gaussian_kl(scale * case.mu, case.logvar + shift, reduction="sum")) for case in cases]
    return _fit("scaled", cases, values)


def _searched(cases: Sequence[_Case], *, mean_only: bool) -> tuple[float, _Fit]:
    """On a grid, then on finer ones around the best place."""
    low, high = math.log(_SCALES[0]), math.log(_SCALES[1])
    best = (1.0, _Fit("scaled", 0.0, math.inf))
    for _ in range(4):
        grid = torch.linspace(low, high, 41).tolist()
        fits = [(math.exp(place), _with_scale(cases, math.exp(place), mean_only)) for place in grid]
        best = min(fits, key=lambda one: one[1].error)
        step = (high - low) / 40
        low, high = math.log(best[0]) - step, math.log(best[0]) + step
    return best


def _bounded(given: Given, case: _Case) -> bool:
    """Free bits: the closed form where every dimension is far from the prior, and more than 0 at the prior itself."""
    zero = torch.zeros_like(case.mu)
    far = [_at(given, zero + size, zero - size) for size in (6.0, 9.0)]
    ratios = [one.told / _per_sample(one) for one in far]
    return abs(ratios[0] / ratios[1] - 1) <= EXACT and _at(given, zero, zero).told > 0 if ratios[1] > 0 else False


def _at(given: Given, mu: Tensor, logvar: Tensor) -> _Case:
    """The answer for one posterior, in float64, or in float32 for a function that has float32 inside."""
    try:
        return _Case(mu, logvar, _told(given, mu, logvar))
    except Failed:
        return _Case(mu, logvar, _told(given, mu.float(), logvar.float()))


# What is said

_HINTS = ("mean", "batch_sum")
"""Reductions that are a choice, and only matter for the weight."""


def _reduced(fit: _Fit, mu: Tensor) -> list[Finding]:
    dimensions, batch = mu[0].numel(), len(mu)
    factors = {"sum": 1.0, "mean": 1 / dimensions, "double": 2.0, "half": 0.5}
    factors |= {"double_mean": 2 / dimensions, "half_mean": 0.5 / dimensions}
    factors |= {"batch_sum": float(batch), "batch_mean": 1 / batch, "batch_mean_twice": 1 / (batch * dimensions)}
    name = next((one for one, f in factors.items() if abs(abs(fit.factor) / f - 1) <= EXACT), "other")
    if name == "sum" and fit.factor > 0:
        return []
    severity: Severity = "info" if name in _HINTS else "warning"
    sentence = f"preflight.kl.factor.{name}"
    if fit.factor < 0:
        severity, sentence = "error", "preflight.kl.factor.sign"
    return [
        KlReduction().finding(
            say(sentence, factor=fit.factor, dimensions=dimensions, batch=batch),
            evidence=(Evidence("preflight/kl_ratio", fit.factor, 1.0),),
            causes=(Cause("kl-reduction" if fit.factor > 0 else "kl-formula"),),
            fixes=(edit("one_reduction"),),
            subject="kl",
            severity=severity,
            certainty="confirmed",
            confirm="lossdoctor preflight",
        )
    ]


def _scaled_finding(fit: _Fit, scale: float, mean_only: bool) -> Finding:
    return ScaledKl().finding(
        say("preflight.kl.scaled.mean" if mean_only else "preflight.kl.scaled", scale=scale, width=1 / scale),
        evidence=(Evidence("preflight/kl_scale", scale, 1.0),),
        causes=(Cause("kl-on-scaled-latent"),),
        fixes=(edit("unscaled_kl"), edit("scaled_prior", value=1 / scale)),
        subject="kl",
        severity="error",
        certainty="confirmed",
        confirm="lossdoctor preflight",
    )


def _formula(name: str, fit: _Fit, severity: Severity = "error") -> Finding:
    cause = "kl-on-sample" if name == "sample" else "kl-formula"
    return KlOnSample().finding(
        say(f"preflight.kl.formula.{name}", error=fit.error),
        evidence=(Evidence("preflight/kl_unexplained", fit.error, EXACT),),
        causes=(Cause(cause),),
        fixes=(edit("closed_form_kl"),),
        subject="kl",
        severity=severity,
        certainty="confirmed" if name not in ("other", "bounded") else "likely",
        confirm="lossdoctor preflight",
    )
