"""What several rules of the velocity ask: has it learned anything, which times it saw, whose fault a mismatch is.

A regression of random directions has a floor above 0 that nobody knows in advance. What is known is how well a
predictor does that knows nothing, so that is what a velocity is held against.
"""

from __future__ import annotations

import math

import numpy as np

from lossdoctor.record import Series
from lossdoctor.rules.finding import Cause, Evidence, Skipped, say
from lossdoctor.rules.strengths import causes_of, together
from lossdoctor.rules.view import LEAST, RunView, middle, span

LEARNED = 0.95
"""`flow/nmse` over that of the best predictor that knows nothing, under which something has been learned. docs/log.md,
the clinic: healthy 0.12 to 0.46, at the floor of independent unit Gaussians 0.785; every prediction against every
target 0.98 to 1.00."""

DIFFERS = 0.05
"""Relative difference of two velocities that rounding and dropout do not explain. docs/log.md, the clinic: healthy 0 to
0.02 with dropout; the mildest mistake 0.36."""

_SAME = 0.2
"""Share of a mismatch that an explanation of it may leave."""

_PROPORTIONAL = 0.05
"""By how much the mismatch may differ from that of a constant factor, relative to itself, and still be one."""

_ALIKE = 0.02
"""Relative difference of two mismatches that are the same up to the noise of dropout."""

_SIZE = 0.15
"""By how much the power of a target may differ from that of what it is taken for: z0 and z1 need not be independent."""

_INITIAL = 0.1
"""Share of the initial weights that an average may still hold at the end, as in OPT706."""

_BINS = range(10)


def the_loss(run: RunView) -> str | None:
    """The velocity loss that takes part, where there is exactly one."""
    losses = [loss for loss in run.of_kind("velocity") if run.weighted(loss)]
    return losses[0] if len(losses) == 1 else None


def settled(run: RunView, metric: str) -> Series:
    """`flow/<metric>` after the warm-up of the run and of the weight of the loss."""
    return run.settled(f"flow/{metric}", loss=the_loss(run))


def typical(run: RunView, metric: str) -> float:
    """The median of `settled`; NaN when there is none."""
    return middle(settled(run, metric))


def seen(run: RunView, metric: str, threshold: float | None = None) -> tuple[Evidence, ...]:
    """`flow/<metric>` as evidence; nothing where it was not measured."""
    curve = settled(run, metric)
    return (Evidence(f"flow/{metric}", middle(curve), threshold, **span(curve)),) if len(curve) else ()


def too_short(curve: Series) -> Skipped | None:
    """What to answer when a curve has too few points to judge a run by; None when it has enough."""
    if len(curve) >= LEAST:
        return None
    return Skipped(say("skip.short", least=LEAST, found=len(curve)), say("enable.longer"))


# Has it learned anything?


def over_trivial(run: RunView) -> Series:
    """`flow/nmse` over that of the best predictor that knows nothing: 0, or the mean of the batch where known."""
    nmse, mean = settled(run, "nmse"), settled(run, "nmse_mean")
    if not len(mean):
        return nmse
    nmse, mean = together((nmse, mean))
    trivial = np.minimum(mean.values, 1.0)
    there = trivial > 0
    with np.errstate(over="ignore"):
        return Series(nmse.steps[there], nmse.values[there] / trivial[there]).finite


def learned(run: RunView, below: float = LEARNED) -> bool:
    """Whether the velocity has learned something; taken for granted where its error was not recorded."""
    ratio = over_trivial(run)
    return not len(ratio) or middle(ratio) < below


def width(ratio: Series) -> float:
    """The range of the middle nine tenths over |median|: 0 for a constant, infinite for a median of 0."""
    if not len(ratio):
        return math.nan
    low, high = np.quantile(ratio.values, [0.05, 0.95]).tolist()
    level = abs(middle(ratio))
    return (high - low) / level if level else math.inf


def unsteady_loss(run: RunView) -> bool:
    """Whether the loss is no constant multiple of the squared error, beyond rounding: where VEL409 begins."""
    return 1e-4 < width(settled(run, "loss_ratio")) < math.inf


def outweighed(run: RunView, limit: float = 0.1) -> bool:
    """Whether the gradient of the velocity loss is under `limit` of the total, where GRD102 begins."""
    loss = the_loss(run)
    share = abs(middle(run.ratio(f"grad_weighted/{loss}", "grad/total", loss=loss)))
    return 0 < share < limit


# Which times were seen?


def visits(run: RunView) -> tuple[list[float], int]:
    """The share of all times that fell into each tenth of the way, and the number of times these shares rest on.

    Times that a batch has in common count once. Ten zeros and 0 where nothing was counted.
    """
    counts = [run[f"flow/count_t{i}"].finite for i in _BINS]
    sums = [float(np.sum(np.clip(curve.values, 0, 1e9))) for curve in counts]
    total = sum(sums)
    if not total:
        return [0.0] * len(sums), 0
    different = run["flow/t_unique"].finite
    n = min(total, float(np.sum(np.clip(different.values, 0, 1e9)))) if len(different) else total
    return [x / total for x in sums], int(n)


def declared(run: RunView) -> list[float] | None:
    """The share of all times that the sampler asks for in each tenth, where the script named it to `ld.flow`."""
    asked = [middle(run[f"flow/density_t{i}"].finite) for i in _BINS]
    return [share / len(asked) for share in asked] if all(map(math.isfinite, asked)) else None


# What explains a mismatch?


def inference_codes(run: RunView) -> tuple[str, ...]:
    """Why the field that inference calls is not the one that was trained, likeliest first; empty where it is."""
    mismatch = typical(run, "field_mismatch")
    if not mismatch > DIFFERS:
        return ()
    scale, other = typical(run, "field_scale"), typical(run, "field_other_cond")
    if typical(run, "field_reversed") <= _SAME * mismatch:
        return ("inference-time", "time-reversed")
    if proportional(mismatch, scale):
        if scale < 0:
            return ("inference-sign",) if abs(scale + 1) < 0.1 else ("inference-sign", "inference-scale")
        # d/dt of a quarter turn is pi/2 times what a network says that predicts d/d angle.
        quarter = min(abs(scale * math.pi / 2 - 1), abs(scale / (math.pi / 2) - 1)) < 0.01
        return ("inference-scale", "path-derivative-missing") if quarter else ("inference-scale", "inference-formula")
    if other <= _SAME * mismatch or abs(other / mismatch - 1) <= _ALIKE:
        return ("inference-condition", "inference-formula")
    return ("inference-formula", "path-derivative-missing", "inference-condition")


def proportional(mismatch: float, scale: float) -> bool:
    """Whether two velocities that differ by `mismatch` (relative) differ by the factor `scale` and nothing else."""
    return abs(mismatch - abs(1 - scale)) <= _PROPORTIONAL * mismatch


def target_codes(run: RunView) -> tuple[str, ...]:
    """Why the target is not the velocity of the path that x_t is on, likeliest first; empty where it is."""
    mismatch, scale = typical(run, "target_mismatch"), typical(run, "target_scale")
    if not mismatch > DIFFERS:
        return ()
    if abs(scale + 1) < 0.1 and abs(mismatch - 2) < 0.1:
        return ("target-sign", "target-formula")
    if target_resembles(run) == "straight":
        return ("path-derivative-missing", "target-formula")
    return ("target-formula", "path-derivative-missing")


def target_resembles(run: RunView) -> str | None:
    """What the target is by its size, where it is not the velocity: "data", "noise", "end", "straight", or None.

    "end" is one of the first two, where both ends have one scale; "straight" is z1 - z0.
    """
    size, z0, z1 = typical(run, "mse_zero"), typical(run, "z0_std"), typical(run, "z1_std")
    sizes = {"data": z1 * z1, "noise": z0 * z0, "straight": z0 * z0 + z1 * z1}
    near = {name: off for name, own in sizes.items() if 0 < own < math.inf and (off := abs(size / own - 1)) < _SIZE}
    if {"data", "noise"} <= near.keys():
        return "end"
    return min(near, key=lambda name: near[name], default=None)


def field_causes(run: RunView) -> tuple[Cause, ...]:
    """What is known to be wrong with the field that was integrated, likeliest first: for what happens at its end."""
    codes = [*inference_codes(run), *target_codes(run)]
    ema = run.now("ema/momentum")
    if ema >= 1:
        codes.append("ema-not-updated")
    elif ema > 0 and ema**run.last_step > _INITIAL:
        codes.append("ema-too-slow")
    if not learned(run):
        codes.append("velocity-not-learned")
    return causes_of(codes)
