"""Mistakes undone: with which other answers in the network's place would the user's own sampler reach z1?

That asks nothing of the solver or its grid. A sampler that goes the wrong way reaches z1 when it is told minus the
velocity, however many evaluations and earlier steps its method uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lossdoctor.flow.solvers import observed_order
from lossdoctor.preflight.given import Failed
from lossdoctor.preflight.mistakes import ANGLES, known_factors
from lossdoctor.preflight.standin import Problem
from lossdoctor.preflight.training import Kind
from lossdoctor.preflight.trial import COUNTS, Bench

MORE = (64, 128)
REACHED = 0.1
"""Error after 128 steps under which a method that matches none of the references has converged; Euler leaves 0.028."""
FALLING = 0.7
"""Observed order from which on a method converges; Euler has 0.93 on all three paths."""
_HOPELESS = 0.4
"""Error after 32 steps from which on more steps are not worth a try: Euler leaves 0.11."""


@dataclass(frozen=True)
class Undone:
    """A mistake that, taken back, lets the sampler reach z1. code, cause, sentence, params: as of a `Mistake`."""

    code: str
    cause: str
    sentence: str
    params: Mapping[str, Any] = field(default_factory=dict)


def undone(bench: Bench, slopes: Sequence[float]) -> Undone | None:
    """The first that does; None where nothing does. slopes: factors of the velocity worth a try."""
    return next((told for told, other in _candidates(bench, slopes) if _reaches(other)), None)


def converges(errors: Mapping[int, float]) -> bool:
    """Whether end points come near z1, and nearer with more steps. errors: by number of steps, MORE among them."""
    return errors[MORE[-1]] <= REACHED and order(errors) >= FALLING


def order(errors: Mapping[int, float]) -> float:
    """The observed order of the three finest runs."""
    counts = sorted(errors)[-3:]
    return float(observed_order([max(errors[n], 1e-9) for n in counts], counts))


def errors_of(problem: Problem, ends: Mapping[int, Tensor]) -> dict[int, float]:
    """Root mean square distance of end points from z1, over the distance to go. ends: by number of steps."""
    return {n: float((end - problem.z1).square().mean().sqrt()) / problem.size for n, end in ends.items()}


def _reaches(other: Bench) -> bool:
    try:
        errors = errors_of(other.problem, other.run(COUNTS).ends)
        if not errors[COUNTS[-1]] <= _HOPELESS:
            return False
        errors |= errors_of(other.problem, other.run(MORE).ends)
    except Failed:
        return False
    return converges(errors) or max(errors[n] for n in MORE) <= 2e-3


def _candidates(bench: Bench, slopes: Sequence[float]) -> Iterator[tuple[Undone, Bench]]:
    velocity = bench.training.kind == "velocity"
    negative = bench.saying("negative")
    turned = replace(bench, turned=True)
    if velocity:
        yield Undone("SMP506", "inference-sign", "preflight.sampler.undone.sign"), negative
        backwards = replace(negative, turned=True)
        yield Undone("SMP506", "inference-time", "preflight.sampler.undone.backwards"), backwards
    yield Undone("SMP506", "inference-time", "preflight.sampler.undone.reversed"), turned
    yield from _kinds(bench)
    if not velocity:
        return
    for factor, model in known_factors(bench.given.latent_scale, slopes).items():
        named = {"factor": factor, **({"model": model} if model else {})}
        scaled = bench.saying("scaled", 1 / factor)
        if factor in ANGLES:
            yield Undone("SMP505", "path-derivative-missing", "preflight.sampler.angle", {"factor": factor}), scaled
            continue
        sentence = "preflight.sampler.undone.factor" + (".known" if model else "")
        yield Undone("SMP506", "inference-scale", sentence, named), scaled
        if model:
            sentence = "preflight.sampler.undone.state"
            yield Undone("SMP506", "inference-scale", sentence, named), replace(bench, handed=factor)


def _kinds(bench: Bench) -> Iterator[tuple[Undone, Bench]]:
    """Other things that a network may predict."""
    kinds: tuple[Kind, ...] = ("velocity", "negative", "data", "source", "straight")
    linear = bench.problem.path.name == "linear"
    for kind in kinds:
        if kind == bench.training.kind or (kind == "straight" and linear):
            continue
        if kind == "negative" and bench.training.kind == "velocity":
            continue  # that is the sign
        yield Undone("SMP506", "inference-formula", f"preflight.sampler.kind.{kind}"), bench.saying(kind)
