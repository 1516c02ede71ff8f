"""How strong the losses are in the gradient, against one another: what the rules of balance compare.

Compared are weighted norms, `grad_weighted/<loss>`, and never signed shares: a loss at its balance with the others has
a share of 0 and is healthy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np

from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, say
from lossdoctor.rules.view import RunView, middle

LEARNED = {"distill": ("distill/kl", 0.05), "kl": ("kl/per_dim", 0.01), "velocity": ("flow/nmse", 0.02)}
"""Per kind, the metric of what is left to learn and the level under which nothing is: the student says what the teacher
says to 0.05 nats, the posterior is the prior, the velocity is known to 2 % of its power."""

_OUTWEIGHED = 0.05
"""A loss under this share of another is outweighed by it."""

_AS_FAR = 0.5
"""Decades by which one weight must be more unusual than the other to be the one to blame."""


def strengths(run: RunView) -> dict[str, Series]:
    """Weighted gradient norms after the warm-up, of every loss that takes part.

    A loss without a weight or without a gradient is not among them.
    """
    found = {}
    for loss in run.losses:
        curve = run.settled(f"grad_weighted/{loss}", loss=loss)
        curve = Series(curve.steps, np.abs(curve.values))
        if run.weighted(loss) and len(curve) and middle(curve) > 0:
            found[loss] = curve
    return found


def together(curves: Iterable[Series]) -> tuple[Series, ...]:
    """Curves, sorted by step, on the steps that all of them have."""
    given = tuple(curves)
    if not given:
        return ()
    steps = functools.reduce(np.intersect1d, (curve.steps for curve in given))
    return tuple(Series(steps, curve.values[np.searchsorted(curve.steps, steps)]) for curve in given)


def nothing_left(run: RunView, loss: str) -> bool:
    """Whether a loss has nothing left to learn: then a small gradient is as it should be."""
    if run.losses[loss] not in LEARNED:
        return False
    metric, floor = LEARNED[run.losses[loss]]
    return run.now(metric) < floor


def blamed(run: RunView, weak: str, strong: str, *, doubtful: str | None = None) -> tuple[Cause, Cause]:
    """Of a loss that another outweighs: whose weight is off, as causes that name both, the likelier first.

    It is the weight that is further from 1 in its own direction. Between weights that are as usual as each other it is
    that of `doubtful`; when that is None, the strong one if it outweighs several losses, else the weak one.
    """
    below, above = max(-_decades(run, weak), 0.0), max(_decades(run, strong), 0.0)
    if abs(above - below) > _AS_FAR:
        large = above > below
    elif doubtful is not None:
        large = doubtful == strong
    else:
        sizes = {loss: middle(curve) for loss, curve in strengths(run).items() if run.losses[loss] != "kl"}
        large = sum(size < _OUTWEIGHED * sizes.get(strong, 0.0) for size in sizes.values()) > 1
    of_weak, of_strong = too_small(weak, strong), too_large(strong, weak)
    return (of_strong, of_weak) if large else (of_weak, of_strong)


def too_small(loss: str | None, rival: str | None = None) -> Cause:
    """The weight of a loss is too small against a rival, or against all others."""
    return _weight("weight-too-small", loss, rival)


def too_large(loss: str | None, rival: str | None = None) -> Cause:
    """The weight of a loss is too large against a rival, or against all others."""
    return _weight("weight-too-large", loss, rival)


def _weight(code: str, loss: str | None, rival: str | None) -> Cause:
    return Cause(code) if loss is None else Cause(code, {"loss": loss, "rival": rival or say("cause_of.the_others")})


def causes_of(causes: Iterable[Cause | str]) -> tuple[Cause, ...]:
    """Causes, or what their codes stand for, each once, in order."""
    found: dict[str, Cause] = {}
    for cause in causes:
        one = Cause(cause) if isinstance(cause, str) else cause
        found.setdefault(one.code, one)
    return tuple(found.values())


def factor_to(goal: float, now: float) -> float:
    """What a weight > 0 is to be multiplied with to bring a norm from `now` to `goal`, to one digit."""
    return float(f"{min(max(goal / now, 1e-12), 1e12):.0e}")


def _decades(run: RunView, loss: str) -> float:
    """How far the weight of a loss is from 1, in decades; 0 where none was recorded."""
    weight = abs(run.now(f"weight/{loss}"))
    return math.log10(weight) if 0 < weight < math.inf else 0.0
