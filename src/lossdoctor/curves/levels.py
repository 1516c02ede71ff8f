"""Where a curve lies: on which side of a threshold, how spread out, and since when at rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossdoctor.curves.blocks import BLOCKS, after_warm_up, block_edges, block_medians, in_order, median
from lossdoctor.curves.trends import LEAST_BLOCKS, trend
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.record import Series

REST_BLOCKS = 25
"""Blocks of a plateau. Share of AR(1) noise about a constant, 1,000 points, 4,000 runs each, that is said to move at
its end, and that is said to come to rest only after the warm-up: 1.9 and 3.0 % at phi = 0.9, 3.8 and 7.5 % at 0.95, 10
and 23 % at 0.98; with 50 blocks, and their scatter judged by their steps alone, 3.5 and 11, 10 and 39, 29 and 63 %."""

REST_SCATTER = 3.0
"""Standard deviations that block medians at rest may lie from their level. See `REST_BLOCKS`."""

_SIGMA = 1.4826  # of a normal distribution, over its median absolute deviation


@dataclass(frozen=True, slots=True)
class Share:
    """On which side of a threshold a curve lies.

    share: of the finite points strictly on the side asked for, in [0, 1]; NaN without points. p: one-sided, of the
    typical value not lying there, in (0, 1]; 1 without points. n: finite points.
    """

    share: float
    p: float
    n: int


@dataclass(frozen=True, slots=True)
class Plateau:
    """Since when a curve is at rest.

    step: the first step of the rest; None when the curve still moves at its end, or has too few points to tell.
    level: the median of the last fifth of the points judged; NaN without points. n: finite points judged.
    """

    step: int | None
    level: float
    n: int


def share_below(series: Series, threshold: float, *, blocks: int = BLOCKS) -> Share:
    """How much of a curve lies strictly below a threshold, and whether its typical value does.

    p is of an exact sign test on the medians of `blocks` consecutive blocks; a median at the threshold is not below it.
    With fewer points than blocks the points themselves are tested. Each block should be longer than the memory of the
    noise, as in `trend`. Of AR(1) noise about the threshold, 1,000 points, 4,000 runs each, p < 0.01 has a share of
    0.3 % at phi = 0.9, 0.5 % at 0.95, 1.8 % at 0.98; with 32 blocks 1.0, 2.0 and 5.9 %. Raises UsageError when the
    threshold is NaN.
    """
    return _share(series, threshold, blocks, above=False)


def share_above(series: Series, threshold: float, *, blocks: int = BLOCKS) -> Share:
    """How much of a curve lies strictly above a threshold: `share_below` the other way up."""
    return _share(series, threshold, blocks, above=True)


def spread(series: Series) -> float:
    """The width of a curve relative to its level: 1.4826 times the median absolute deviation, over |median|.

    In [0, inf]: 0 when most values are equal, else infinite when the median is 0. NaN without finite points.
    """
    values = series.finite.values / 4  # so that no difference of the largest floats overflows
    if not len(values):
        return math.nan
    middle = median(values)
    width = _SIGMA * median(np.abs(values - middle))
    if not width:
        return 0.0
    return width / abs(middle) if middle else math.inf


def plateau(series: Series, *, skip: float = 0.1, tolerance: float = 0.02) -> Plateau:
    """From which step on a curve stays where it ends.

    skip: share of the range of steps that counts as warm-up. tolerance: how far from its end level it may be, as a
    share of the range it covered after the warm-up. Judged are the medians of 25 blocks, smoothed over three, and what
    they are expected to scatter is allowed on top. Not at rest is a curve that is further off within its last fifth, or
    has a significant trend there that carries it further than the tolerance. A slow ramp hides from this: ask `trend`
    too. Fewer than 40 points: no answer.
    """
    kept = after_warm_up(series, skip)
    end = Series(kept.steps[-(len(kept) // 5) :], kept.values[-(len(kept) // 5) :])
    level = median(end.values) if len(end) else math.nan
    drift = trend(end, skip=0.0, points=LEAST_BLOCKS)
    if drift.direction == "unknown":
        return Plateau(None, level, len(kept))
    blocks = block_medians(kept, REST_BLOCKS)
    curve = _of_three(blocks.values)
    with np.errstate(over="ignore", invalid="ignore"):
        tolerated = tolerance * float(np.ptp(curve))
        scatter = _scatter(blocks.values)
        off = ~(np.abs(curve - level) <= tolerated + REST_SCATTER * scatter)
        carried = abs(drift.slope) * (float(end.steps[-1]) - float(end.steps[0]))
    start = int(np.flatnonzero(off)[-1]) + 1 if off.any() else 0
    moving = drift.direction != "flat" and carried > tolerated
    if moving or start > len(blocks) - len(blocks) // 5:
        return Plateau(None, level, len(kept))
    return Plateau(int(kept.steps[block_edges(len(kept), len(blocks))[start]]), level, len(kept))


def _share(series: Series, threshold: float, blocks: int, *, above: bool) -> Share:
    if math.isnan(threshold):
        raise UsageError(mismatch("Nothing is below or above NaN.", "a number", "NaN", "pass a threshold"))
    values = in_order(series).values
    if not len(values):
        return Share(math.nan, 1.0, 0)

    def there(y: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        return y > threshold if above else y < threshold

    typical = there(block_medians(series, blocks).values)
    p = _sign_test(int(np.count_nonzero(typical)), len(typical))
    return Share(float(np.mean(there(values))), p, len(values))


def _sign_test(hits: int, n: int) -> float:
    """The chance of so many heads or more in n tosses of a coin, in whole numbers to the last division."""
    return float(sum(math.comb(n, k) for k in range(hits, n + 1)) / 2**n)


def _scatter(values: npt.NDArray[np.float64]) -> float:
    """How far block medians lie from a level, as a standard deviation: by their steps, which a slope hardly widens, or
    by their last third, which also sees noise that wanders slowly; the larger of the two."""
    end = values[-(len(values) // 3) :]
    by_steps = median(np.abs(np.diff(values))) / math.sqrt(2)
    return _SIGMA * max(by_steps, median(np.abs(end - median(end))))


def _of_three(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each value as the median of itself and its two neighbours; the ends as they are."""
    there = np.concatenate([values[:1], values, values[-1:]])
    middle: npt.NDArray[np.float64] = np.sort(np.lib.stride_tricks.sliding_window_view(there, 3), axis=1)[:, 1]
    return middle
