"""Does the user's own sampler reach z1, with the exact field in place of the network? If not: why not.

The sampler is called with 8, 16 and 32 steps, where nothing known explains it also with 64 and 128. Where it ends is
compared with where sound methods end, and with every known mistake (`mistakes`), on even steps and on those it takes
itself (`grids`). The one that reproduces its end points at all numbers of steps is named. Where none does, mistakes are
taken back one by one (`undone`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossdoctor.preflight.answers import Answers, all_clear, all_skipped, only
from lossdoctor.preflight.given import Given
from lossdoctor.preflight.grids import rulers, stuck, two_grids
from lossdoctor.preflight.mistakes import EVEN, Mistake, Ruler, mistakes, sound
from lossdoctor.preflight.standin import Problem, few
from lossdoctor.preflight.training import read
from lossdoctor.preflight.trial import COUNTS, Bench, Trial
from lossdoctor.preflight.undone import MORE, converges, errors_of, order, undone
from lossdoctor.rules.finding import Cause, Certainty, Evidence, Finding, Fix, Severity, say
from lossdoctor.rules.fixes import edit
from lossdoctor.rules.smp501_endpoint_not_improving import EndpointNotImproving
from lossdoctor.rules.smp502_wrong_order import WrongOrder
from lossdoctor.rules.smp503_endpoint_off_scale import EndpointOffScale
from lossdoctor.rules.smp505_missing_path_derivative import MissingPathDerivative
from lossdoctor.rules.smp506_inference_field_differs import InferenceFieldDiffers
from lossdoctor.rules.vel407_off_scale_latent import SCALES

RULES = (EndpointNotImproving, WrongOrder, EndpointOffScale, MissingPathDerivative, InferenceFieldDiffers)
NEEDS = ("sampler", "z0", "z1")

SAME = 2e-3
"""Distance from a reference, relative to the way to go, that is rounding: 1e-6 in float32, 1e-3 for a sampler that
works in half precision. The smallest mistake, Heun without its predictor on a curved path, is at 0.012."""
EXPLAINED = 0.02
"""The same relative to what is to be explained, for a known mistake. The nearest other one leaves
0.024 on all three paths; a mistake integrated the same way leaves rounding."""
SHORT = 0.02
"""By how much the steps may add up to something else than the whole way, how far from z1 a sampler may stop, and by how
much that may look like another scale: some leave out a little of time at its ends."""
STEP = 5e-3
"""By how much that sum may differ from N/(N - 1): (N + 1)/N is 0.018 away with 8 steps."""
_ROUNDING = 1e-5  # of float32 over 32 steps: nothing can be nearer

_BY_CODE = {rule.code: rule for rule in RULES}


def ask(given: Given) -> Answers:
    """Answers for all of `RULES`. Raises Failed when the sampler, or the target that says what to hand it, fails."""
    assert given.z0 is not None
    assert given.z1 is not None
    training = read(given)
    if training.path is None:
        return all_skipped(RULES, say("preflight.sampler.no_path", residual=training.residual))
    bench = Bench.of(given, training)
    problem = bench.problem
    if problem.size <= 1e-4 * float(given.z1.abs().max().clamp(min=1e-12)):
        return all_skipped(RULES, say("preflight.sampler.no_way", size=problem.size))
    if bench.unit is None:
        return only(RULES, _off_time(bench))
    if bench.random():
        return all_skipped(RULES, say("preflight.sampler.random"), say("preflight.sampler.random.todo"))
    trial = bench.run(COUNTS)
    if (lost := _condition_lost(given, trial)) is not None:
        return only(RULES, lost)
    found = _judged(bench, trial)
    return all_clear(RULES) if found is None else only(RULES, found)


# What can be told from the calls alone


def _off_time(bench: Bench) -> Finding:
    few, many = COUNTS[0], COUNTS[-1]
    ranges = bench.ranges
    return _finding(
        "SMP506",
        "inference-time",
        "preflight.sampler.time_range",
        {"few": few, "many": many, "low": ranges[few][0], "high": ranges[few][1], "far": ranges[many][1]},
        (Evidence(f"preflight/sampler_time@{many}", ranges[many][1], 1.0),),
    )


def _condition_lost(given: Given, trial: Trial) -> Finding | None:
    """Whether the condition never arrives: None in its place, or other values of the same shape."""
    seen = [call.cond for standin in trial.standins.values() for call in standin.calls]
    if given.cond is None or any(not _lost(given, cond) for cond in seen):
        return None
    return _finding(
        "SMP506",
        "inference-condition",
        "preflight.sampler.condition",
        {"got": "None" if seen[0] is None else type(seen[0]).__name__},
        (Evidence("preflight/sampler_condition", 0.0, None),),
    )


def _lost(given: Given, cond: Any) -> bool:
    if cond is None:
        return True
    wanted = given.cond
    if isinstance(cond, Tensor) and isinstance(wanted, Tensor) and cond.shape == wanted.shape:
        return not torch.equal(cond.to(wanted), wanted)
    return False  # doubled for guidance, embedded, or of a type that cannot be compared


# Where it ends


def _judged(bench: Bench, trial: Trial) -> Finding | None:
    problem, small = bench.problem, bench.problem.few()
    errors = errors_of(problem, trial.ends)
    if max(errors.values()) <= SAME:
        return None
    grids = [EVEN, *rulers(trial)]
    right = _best(small, trial.ends, [one for ruler in grids for one in sound(ruler)])
    if right.far <= SAME:
        return _midpoint_time(trial, right.mistake, errors)
    slopes = _slopes(trial)
    for ruler in grids:
        wrong = _best(small, trial.ends, list(mistakes(slopes, bench.given.latent_scale, ruler)))
        if wrong.far <= EXPLAINED * max(right.far, SAME) or wrong.far <= SAME:
            return _named(wrong.mistake, errors, wrong.far, right.far)
    way = bench.way()
    if way is not None and max(way.values()) - min(way.values()) <= 0.01 * abs(way[COUNTS[0]]):
        # The same part of the way whatever the number of steps: a constant factor, if anything.
        slopes, way = [*slopes, sum(way.values()) / len(way)], None
    if (apart := _off_grid(way, trial, errors)) is not None:
        return apart
    if (scale := _output_scale(small, trial.ends, grids)) is not None:
        return _scaled(bench.given, scale, errors)
    unexplained = {n: float((few(trial.ends[n]) - small.z1).square().mean().sqrt()) / small.size for n in COUNTS}
    errors |= errors_of(problem, bench.run(MORE).ends)
    if max(errors[n] for n in MORE) <= SHORT or (converges(errors) and _as_good(small, unexplained)):
        return None
    if (back := undone(bench, slopes)) is not None:
        return _finding(back.code, back.cause, back.sentence, back.params, _proof(errors))
    if converges(errors):
        told = {"first": errors[COUNTS[0]], "order": order(errors)}
        return _finding(
            "SMP502", "sampler-grid", "preflight.sampler.worse", told, _proof(errors, order(errors)),
            certainty="suspected", severity="warning",
        )  # fmt: skip
    told = {
        "first": errors[COUNTS[0]], "last": errors[MORE[-1]], "few": COUNTS[0], "many": MORE[-1], "order": order(errors)
    }  # fmt: skip
    return _finding(
        "SMP501", "inference-formula", "preflight.sampler.unknown", told, _proof(errors, order(errors)),
        certainty="likely",
    )  # fmt: skip


def _off_grid(way: Mapping[int, float] | None, trial: Trial, errors: Mapping[int, float]) -> Finding | None:
    """What the calls and steps themselves say, whatever the method: that nothing is passed on, that they are no whole
    way, or that times and steps do not belong together."""
    state, time = stuck(trial)
    if state:
        return _finding("SMP502", "sampler-state", "preflight.sampler.state.initial", {}, _proof(errors))
    if time is not None:
        return _finding("SMP506", "inference-time", "preflight.sampler.state.one", {"t": time}, _proof(errors))
    if way is not None and all(abs(part - 1) > SHORT for part in way.values()):
        told = {"few": COUNTS[0], "total": way[COUNTS[0]]}
        over, short = (
            all(abs(part - one / other) <= STEP for part, one, other in parts)
            for parts in ([(p, n, n - 1) for n, p in way.items()], [(p, n - 1, n) for n, p in way.items()])
        )
        sentence = "preflight.sampler.way" + (".over" if over else ".short" if short else "")
        return _finding("SMP502", "sampler-grid", sentence, told, _proof(errors))
    if (apart := two_grids(trial)) is not None:
        told = {"few": COUNTS[0], "reached": apart[0], "asked": apart[1]}
        return _finding("SMP502", "sampler-grid", "preflight.sampler.grid.two", told, _proof(errors))
    return None


@dataclass(frozen=True)
class _Match:
    mistake: Mistake
    far: float


def _best(problem: Problem, ends: Mapping[int, Tensor], candidates: Sequence[Mistake]) -> _Match:
    """The reference whose end points are nearest at the number of steps where it is worst."""
    best = _Match(candidates[0], math.inf)
    for one in candidates:
        worst = 0.0
        for n in COUNTS:
            off = few(ends[n]) - one.end(problem, n)
            far = float(off.square().mean().sqrt()) / problem.size
            worst = max(worst, far if math.isfinite(far) else math.inf)
            if worst > 2 * best.far + SAME:
                break
        # Equally good but for rounding: the plainer explanation.
        tie = abs(worst - best.far) <= 1e-4 and one.rank < best.mistake.rank
        if tie or worst < best.far - (1e-4 if one.rank >= best.mistake.rank else 0.0):
            best = _Match(one, worst)
        if best.mistake.sound and best.far <= _ROUNDING:
            break
    return best


def _slopes(trial: Trial) -> list[float]:
    """By which factor the sampler's steps are longer than the velocity it got, as its own calls show."""
    found = []
    for standin in trial.standins.values():
        calls = standin.calls
        if len(calls) < 3:
            return []
        for one, other in itertools.pairwise(calls[:3]):
            step, time = other.x - one.x, abs(other.t - one.t) / standin.unit
            square = float(one.slope.square().sum()) * time
            if square > 0:
                found.append(float((step * one.slope).sum()) / square)
    if not found or max(found) - min(found) > 0.01 * abs(found[0]) or abs(abs(found[0]) - 1) < 0.02 or not found[0]:
        return []
    return [sum(found) / len(found)]


def _as_good(problem: Problem, errors: Mapping[int, float]) -> bool:
    """Whether the end points are about as near as those of Euler's method."""
    euler = next(one for one in sound() if one.solver == "euler")
    n = COUNTS[-1]
    far = float((euler.end(problem, n) - problem.z1).square().mean().sqrt()) / problem.size
    return errors[n] <= 3 * far


def _output_scale(problem: Problem, ends: Mapping[int, Tensor], grids: Sequence[Ruler]) -> float | None:
    """The constant that a sound method's end points are multiplied with, if there is one."""
    for one in (one for ruler in grids for one in sound(ruler)):
        if one.rank:
            continue
        scales = []
        for n in COUNTS:
            sound_end, end = one.end(problem, n), few(ends[n])
            scale = float((end * sound_end).sum() / sound_end.square().sum())
            far = float((end - scale * sound_end).square().mean().sqrt()) / problem.size
            if not far <= SAME * max(1.0, abs(scale)):
                break
            scales.append(scale)
        if len(scales) == len(COUNTS) and max(scales) - min(scales) <= 0.01 * abs(scales[0]):
            mean = sum(scales) / len(scales)
            return mean if abs(mean - 1) > SHORT else None
    return None


# What is said


def _midpoint_time(trial: Trial, method: Mistake, errors: Mapping[int, float]) -> Finding | None:
    if method.solver != "euler_mid":
        return None
    calls = [len(trial.standins[n].calls) / n for n in COUNTS]
    paid = min(calls) >= 1.5
    return _finding(
        "SMP502",
        "sampler-state",
        "preflight.sampler.midpoint_time",
        {"order": order(errors)},
        _proof(errors, order(errors)),
        severity="warning" if paid else "info",
    )


def _named(mistake: Mistake, errors: Mapping[int, float], far: float, right: float) -> Finding:
    evidence = (*_proof(errors, order(errors)), Evidence("preflight/sampler_unexplained", far, right))
    return _finding(mistake.code, mistake.cause, mistake.sentence, {**mistake.params}, evidence)


def _scaled(given: Given, scale: float, errors: Mapping[int, float]) -> Finding:
    known = {value: model for model, one in SCALES.items() for value in (one, 1 / one)}
    if given.latent_scale:
        known |= {given.latent_scale: "latent_scale", 1 / given.latent_scale: "latent_scale"}
    name = next((model for value, model in known.items() if abs(scale / value - 1) < 0.01), None)
    params = {"scale": scale, **({"model": name} if name else {})}
    sentence = "preflight.sampler.output.known" if name else "preflight.sampler.output"
    return _finding(
        "SMP503", "latent-scale", sentence, params, (Evidence("preflight/sampler_scale", scale, 1.0), *_proof(errors))
    )


def _proof(errors: Mapping[int, float], falls: float | None = None) -> tuple[Evidence, ...]:
    counts = sorted(errors)
    found = [Evidence(f"preflight/sampler_error@{n}", errors[n], None) for n in (counts[0], counts[-1])]
    if falls is not None:
        found.append(Evidence("preflight/sampler_order", falls, None))
    return tuple(found)


def _finding(
    code: str,
    cause: str,
    sentence: str,
    params: Mapping[str, Any],
    evidence: Sequence[Evidence],
    *,
    severity: Severity = "error",
    certainty: Certainty = "confirmed",
) -> Finding:
    return _BY_CODE[code]().finding(
        say(sentence, **params),
        evidence=evidence,
        causes=(Cause(cause),),
        fixes=(_FIXES.get(cause, edit("one_formula")),),
        subject="sampler",
        severity=severity,
        certainty=certainty,
        confirm="lossdoctor preflight",
    )


_FIXES: Mapping[str, Fix] = {
    "inference-sign": edit("same_sign"),
    "inference-time": edit("same_time"),
    "inference-condition": edit("same_condition"),
    "sampler-grid": edit("check_grid"),
    "sampler-state": edit("current_state"),
    "latent-scale": edit("return_latents"),
}
