"""The grid a sampler really walks, read off its own calls: shifted, by Karras, from 1 down to 1/1000, ...

The references of `mistakes` walk even steps unless they are told otherwise. Few samplers of images do: a stale state
or a lost predictor on their grids ends somewhere else than on an even one, and would not be recognised.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lossdoctor.preflight.mistakes import EVEN, Grid, Ruler
from lossdoctor.preflight.standin import StandIn, few
from lossdoctor.preflight.trial import Trial

START = 0.1
"""Latest time at which a grid may begin: a noise floor, as of `flow.paths.Scheduled`."""
CLEAN = 1e-3
"""Part of a step that may lie beside the velocity it was taken with; half precision leaves 1e-3."""
APART = 0.01
"""Distance in time from which on two grids are two. The times of N and of N - 1 steps differ by 0.03 at 32 steps."""


@dataclass(frozen=True)
class Walk:
    """What a sampler did with one number of steps. times: at which it asked, from source to data.

    lengths: of its steps, each as a multiple of the velocity it got just before, negative where it went against it;
    None where steps are anything else, as those of methods with several evaluations are.
    """

    times: tuple[float, ...]
    lengths: tuple[float, ...] | None

    @property
    def reached(self) -> list[float]:
        """The times to which the steps lead: the first one asked at, then one for every step."""
        return list(itertools.accumulate(self.lengths or (), initial=self.times[0]))


def walks(trial: Trial) -> dict[int, Walk]:
    """By number of steps."""
    return {n: Walk(_times(standin), _lengths(standin, trial.ends[n])) for n, standin in trial.standins.items()}


def _times(standin: StandIn) -> tuple[float, ...]:
    times = [call.t / standin.unit for call in standin.calls]
    return tuple(times if standin.t_source == 0.0 else [1 - t for t in times])


def _lengths(standin: StandIn, end: Tensor) -> tuple[float, ...] | None:
    found = []
    states = [*(call.x for call in standin.calls), few(end)]
    for call, (before, after) in zip(standin.calls, itertools.pairwise(states), strict=True):
        step, slope = (after - before).double(), call.slope.double()
        square = float(slope.square().sum())
        length = float((step * slope).sum()) / square if square else 0.0
        if not length or not float((step - length * slope).square().sum()) <= CLEAN**2 * length**2 * square:
            return None
        found.append(length)
    return tuple(found)


def rulers(trial: Trial) -> Iterator[Ruler]:
    """Every grid the sampler may be meant to walk, as its calls show it, but the even one."""
    seen = {n: _forward(walk) for n, walk in walks(trial).items()}
    calls = _calls(seen)
    known = [(False, {n: EVEN.grid(n) for n in seen})]
    for read in (_every(calls), _middles, _ends, _stepped):
        grids = {n: _grid(read(walk)) for n, walk in seen.items()}
        whole = {n: grid for n, grid in grids.items() if grid is not None}
        if len(whole) < len(grids):
            continue
        plain_end = calls > 1 and all(len(walk.times) % calls == 1 for walk in seen.values())
        if not any(plain_end == end and all(_same(whole[n], other[n]) for n in whole) for end, other in known):
            known.append((plain_end, whole))
            yield Ruler(whole.__getitem__, plain_end, calls)


def _calls(seen: Mapping[int, Walk]) -> int:
    """How many calls a step has: at least as many as were paid for, and so many that its first times rise."""
    n = max(seen)
    times = seen[n].times
    paid = round(len(times) / n)
    return next((c for c in (1, 2, 4) if c >= paid and _rising(times[::c])), 1)


def _rising(points: Sequence[float]) -> bool:
    return all(b > a for a, b in itertools.pairwise(points))


def _forward(walk: Walk) -> Walk:
    """A sampler whose times are reversed still has a grid."""
    backwards = walk.times[0] > walk.times[-1]
    return Walk(tuple(1 - t for t in walk.times), walk.lengths) if backwards else walk


def _every(calls: int) -> Callable[[Walk], list[float]]:
    return lambda walk: [*walk.times[::calls], 1.0]


def _middles(walk: Walk) -> list[float]:
    """Asked at the middle of every step."""
    points = [0.0]
    for t in walk.times:
        points.append(2 * t - points[-1])
    return points


def _ends(walk: Walk) -> list[float]:
    """Asked at the end of every step."""
    return [0.0, *walk.times]


def _stepped(walk: Walk) -> list[float]:
    """The steps themselves, whatever the times."""
    lengths = [abs(length) for length in walk.lengths or ()]
    return [part / sum(lengths) for part in itertools.accumulate(lengths, initial=0.0)] if lengths else []


def _grid(points: Sequence[float]) -> Grid | None:
    """Of points from source to data; None where they are no such points."""
    if len(points) < 3 or not _rising(points) or not 0 <= points[0] <= START or abs(points[-1] - 1) > 1e-3:
        return None
    return [(a, b - a) for a, b in itertools.pairwise(points)]


def _same(one: Grid, other: Grid) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(
        abs(a - b) <= 1e-4 for left, right in pairs for a, b in zip(left, right, strict=True)
    )


def two_grids(trial: Trial) -> tuple[float, float] | None:
    """(reached, asked), as the sampler counts time, where the times it asks at are furthest from those its steps lead
    to, with the fewest steps.

    None where they are the same, where steps cannot be read, and where the times do not rise: that is another mistake.
    """
    worst = []
    for n, walk in walks(trial).items():
        if walk.lengths is None or min(walk.lengths) <= 0 or not 0 <= walk.times[0] <= START:
            return None
        if not _rising(walk.times):
            return None
        far = max(zip(walk.reached, walk.times, strict=False), key=lambda pair: abs(pair[0] - pair[1]))
        if abs(far[0] - far[1]) <= APART:
            return None
        standin = trial.standins[n]
        own = [standin.unit * (t if standin.t_source == 0.0 else 1 - t) for t in far]
        worst.append((own[0], own[1]))
    return worst[0]


def stuck(trial: Trial) -> tuple[bool, float | None]:
    """(Whether every call got the same state, the time of every call if it is the same, as the sampler counts it)."""
    calls = [standin.calls for standin in trial.standins.values()]
    state = all(torch.equal(one.x, some[0].x) for some in calls for one in some)
    time = calls[0][0].t
    return state, time if all(one.t == time for some in calls for one in some) else None
