"""Where a curve breaks: single points that stand out, and a step at which its level jumps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossdoctor.curves.blocks import block_edges, block_medians, in_order, median, ranks
from lossdoctor.record import Series

WINDOW = 31
"""Points of a neighbourhood. Share of curves of AR(1) noise, 1,000 points, 4,000 runs each, that have a spike at factor
10: none at phi = 0.9, 0.05 % at 0.95, none at 0.98. Where the shocks are heavy-tailed (Student's t with 3 degrees of
freedom), 0.03 in a thousand points are spikes at phi = 0.9, and 1.8 in a thousand independent points."""

LEAST_AROUND = 13
"""Points below which a curve has no spike: the one odd value of 13 is just ten of their mean deviations away."""

JUMP_BLOCKS = 32
"""Blocks a jump is looked for in. Share of AR(1) noise without a jump, 1,000 points, 4,000 runs each, in which one is
found at alpha = 0.01: none at phi = 0.9, 0.03 % at 0.95, 0.2 % at 0.98. Found of jumps in the middle of the curve by 3
and by 5 standard deviations of the noise, 1,000 runs each: 67 and 97 % at phi = 0.9, 45 and 93 % at 0.95."""

SUDDEN = 2 / 3
"""Share of a jump that must happen between two neighbouring blocks. Called a jump, of changes by ten standard
deviations of the noise, phi = 0.95, 1,000 runs each: a rise over 3 % of the points in 97 %, over 6 % in 15 %, over 10 %
in 0.4 %, over 20 % never; a decay with a time constant of 10 % in 0.5 %. With one half instead, that decay in 4 %."""

BETTER_THAN_A_LINE = 0.5
"""Share of the squares left by a straight line that a jump may leave. Of a ramp, and of noise alone, it leaves more."""

NEAR = 4
"""Blocks on either side of the likeliest split in which the step of the jump is looked for."""

_SIGMA = 1.4826  # of a normal distribution, over its median absolute deviation
_SIGMA_OF_MEAN = 1.2533  # the same, over its mean absolute deviation
_FLOAT32 = float(np.finfo(np.float32).eps)  # a relative difference no larger is rounding
_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """A jump of the level. step: the first one at the new level. before, after: medians. p: two-sided, of no change."""

    step: int
    before: float
    after: float
    p: float


def spikes(series: Series, *, factor: float = 10.0) -> Series:
    """The points that stand out of their neighbourhood, in order of their steps; empty when none does.

    A point is a spike when it lies further from the median of the 31 points around it than `factor` standard
    deviations of these, estimated by their median absolute deviation, or by the mean one when most of them are equal:
    then up to two of the 31 can be spikes, and what is more frequent is the curve. What the curve begins with is never
    a spike, nor is a difference that a float32 could not hold. A curve of fewer than 13 points has none.
    """
    kept = in_order(series)
    n = len(kept)
    window = min(WINDOW, n - 1 + n % 2)
    if n < LEAST_AROUND:
        return Series(kept.steps[:0], kept.values[:0])
    middle, deviation = _neighbourhoods(kept.values, window)
    # Near the ends the neighbourhood is the first, or the last, that is whole.
    own = np.clip(np.arange(n) - window // 2, 0, n - window)
    with np.errstate(over="ignore"):
        found = np.abs(kept.values - middle[own]) > factor * deviation[own]
    if found.any():
        found[: int(np.argmin(found))] = False
    return Series(kept.steps[found], kept.values[found])


def change_point(series: Series, *, alpha: float = 0.01) -> ChangePoint | None:
    """The one step at which the level of a curve jumps; None when there is no such step.

    Three things are asked. The rank test of Pettitt (1979) on the medians of 32 blocks finds a change at level alpha;
    two thirds of the jump happen between two neighbouring blocks; and it leaves at most half of the squares that a
    straight line leaves. So neither a ramp nor a decay is a jump. One within the first or last fifth of the points is
    not found: the test has no power there.
    """
    kept = in_order(series)
    blocks = block_medians(kept, JUMP_BLOCKS).values
    count = len(blocks)
    if count < 2:
        return None
    p = min(1.0, 2 * math.exp(-6 * float(_balance(blocks).max()) ** 2 / (count**3 + count**2)))
    if p >= alpha:
        return None
    edges = block_edges(len(kept), count)
    split = _likeliest_split(blocks)
    cut = _cut(kept.values, int(edges[max(split - NEAR, 0)]), int(edges[min(split + NEAR, count)]))
    found = ChangePoint(int(kept.steps[cut]), median(kept.values[:cut]), median(kept.values[cut:]), p)
    block = len(kept) // count
    jump = found.after - found.before
    at_once = median(kept.values[cut : cut + block]) - median(kept.values[max(cut - block, 0) : cut])
    sudden = at_once * math.copysign(1.0, jump) >= SUDDEN * abs(jump) > _FLOAT32 * abs(found.before)
    # A block that the cut goes through is of neither level.
    before, after = blocks[edges[1:] <= cut], blocks[edges[:-1] >= cut]
    return found if sudden and _better_than_a_line(before, after) else None


def _neighbourhoods(y: npt.NDArray[np.float64], window: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Median and robust standard deviation of every `window` (odd) consecutive values: two arrays (N - window + 1,)."""
    half = window // 2
    windows = np.lib.stride_tricks.sliding_window_view(y, window)
    medians, deviations = [], []
    for start in range(0, len(windows), _AT_ONCE):
        part = windows[start : start + _AT_ONCE]
        middle = np.partition(part, half, axis=1)[:, half]
        with np.errstate(over="ignore"):
            off = np.abs(part - middle[:, None])
            mean = _SIGMA_OF_MEAN * off.mean(axis=1)
            typical = _SIGMA * np.partition(off, half, axis=1)[:, half]
        medians.append(middle)
        deviations.append(np.maximum(np.where(typical > 0, typical, mean), _FLOAT32 * np.abs(middle)))
    return np.concatenate(medians), np.concatenate(deviations)


def _balance(y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """For each place to cut (N - 1,): the pairs across it that rise less those that fall, or the reverse, if more."""
    up_to_here = np.cumsum(ranks(y))[:-1]
    return np.abs(2 * up_to_here - np.arange(1, len(y)) * (len(y) + 1))


def _likeliest_split(blocks: npt.NDArray[np.float64]) -> int:
    """Before which block high and low part best, by rank: so a decay parts in its middle and does not pass for a jump.

    Splits near an end have fewer pairs to count: their balance is smaller by nature, and weighed accordingly.
    """
    split = np.arange(1, len(blocks))
    return 1 + int(np.argmax(_balance(blocks) / np.sqrt(split * (len(blocks) - split))))


def _cut(y: npt.NDArray[np.float64], first: int, last: int) -> int:
    """Before which value, from first to last, one level ends and the other begins: the absolute errors are least."""
    first, last = max(first, 1), min(last, len(y) - 1)
    before, after = median(y[:first]), median(y[last:])
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.cumsum(np.abs(y[first:last] - before) - np.abs(y[first:last] - after))
    return first + int(np.argmin(np.concatenate([[0.0], errors])))


def _better_than_a_line(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> bool:
    y = np.concatenate([before, after])
    # Squares of huge numbers overflow, and of tiny ones vanish.
    y = y / max(float(np.abs(y).max()), np.finfo(np.float64).tiny)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    centred = y - y.mean()
    line = float(np.sum((centred - x * (x @ centred) / (x @ x)) ** 2))
    levels = (y[: len(before)], y[len(before) :])
    jump = sum(float(np.sum((level - level.mean()) ** 2)) for level in levels if len(level))
    return jump <= BETTER_THAN_A_LINE * line
