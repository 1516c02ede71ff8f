"""A long series, thinned: as much of a million points as a rule or a picture needs, and exactly what a few hide.

One point of every k consecutive ones is kept, k a power of two. Of the k it is the one whose step is divisible by the
highest power of two: on even steps from 0 that is every k-th point. So two metrics of one run keep the same steps also
when one of them lacks a point here and there; counted from the first point, one missing point would part them for the
rest of the run, and no rule could compare them any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossdoctor.record import Series
from lossdoctor.store.layout import CHUNK, NOTHING, join

POINTS = 4096
"""Points kept by default: more than a picture has columns, and 256 for each block of a trend."""

PIECE = 32 * CHUNK
"""Points looked at together, few enough to stay in a processor's cache and in memory that is not given back between."""


@dataclass(frozen=True, slots=True)
class Thinned:
    """A few points of a series, and what is true of all of them.

    series: sorted by step, each step once, first and last point included; the whole series when it is short enough.
    count: all points. low, high: of all finite values; NaN when there are none. broken: values that are NaN or
    infinite, of all. first_broken: the first step that has one; None when there is none.
    """

    series: Series
    count: int
    low: float
    high: float
    broken: int
    first_broken: int | None


def thin(pieces: Iterable[Series], points: int) -> Thinned:
    """Thin a series that comes in pieces, sorted by step, each step once, to at most `points` >= 3 points."""
    sieve = _Sieve(points)
    low, high = math.inf, -math.inf
    broken, first_broken = 0, None
    for piece in _no_longer_than(PIECE, pieces):
        sieve.add(piece)
        finite = np.isfinite(piece.values)
        values = piece.values
        if not finite.all():
            values = values[finite]
            broken += len(finite) - len(values)
            if first_broken is None:
                first_broken = int(piece.steps[int(np.argmin(finite))])
        if len(values):
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low > high:
        low = high = math.nan
    return Thinned(sieve.kept(), sieve.count, low, high, broken, first_broken)


def thin_further(few: Series, first: Series, last: Series, points: int) -> Series:
    """What thinning to at most `points` keeps of a series of which it kept `few` at first.

    few: one of every k points, k a power of two, as `one_of_each` keeps them. first, last: the ends of the series.
    """
    sieve = _Sieve(points)
    sieve.add(few)
    return sieve.kept(first, last)


class _Sieve:
    """Keeps one point of every `stride` consecutive ones; the stride doubles when there are too many."""

    def __init__(self, points: int) -> None:
        self._points = points
        self._stride = 1
        self._kept = self._first = self._last = NOTHING
        self.count = 0

    def add(self, piece: Series) -> None:
        """Take in the points that follow."""
        if not self.count:
            self._first = _part(piece, 0, 1)
        # What is kept of the last group counts until its other points are here.
        missing = -self.count % self._stride
        if missing:
            open_group = join((_part(self._kept, -1, None), _part(piece, 0, missing)))
            self._kept = join((_part(self._kept, 0, -1), one_of_each(len(open_group), open_group)))
        self._kept = join((self._kept, one_of_each(self._stride, _part(piece, missing, None))))
        self._last = _part(piece, -1, None)
        self.count += len(piece)
        while len(self._kept) > self._points:
            self._double()

    def kept(self, first: Series | None = None, last: Series | None = None) -> Series:
        """At most `points` points, the first and the last among them, or those given."""
        first, last = self._first if first is None else first, self._last if last is None else last
        while len(found := self._with_ends(first, last)) > self._points:
            self._double()
        return Series(found.steps.copy(), found.values.copy())

    def _double(self) -> None:
        self._kept = one_of_each(2, self._kept)
        self._stride *= 2

    def _with_ends(self, first: Series, last: Series) -> Series:
        kept = self._kept
        if not len(kept):
            return kept
        before = first if first.steps[0] != kept.steps[0] else NOTHING
        after = last if last.steps[0] != kept.steps[-1] else NOTHING
        return join((before, kept, after))


def one_of_each(stride: int, points: Series) -> Series:
    """The roundest step of every `stride` consecutive points, the last group may be shorter; the first of equals."""
    if stride == 1 or not len(points):
        return points
    whole = len(points) - len(points) % stride
    round_by = _roundness(points.steps)
    places = round_by[:whole].reshape(-1, stride).argmax(axis=1) + np.arange(0, whole, stride)
    if whole < len(points):
        places = np.append(places, whole + int(round_by[whole:].argmax()))
    return Series(points.steps[places], points.values[places])


def _roundness(steps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """The highest power of two that divides each step, less 1; of step 0, which all divide, the largest number."""
    lowest_bit = -steps
    lowest_bit &= steps
    power = lowest_bit.view(np.uint64)
    power -= np.uint64(1)
    return power


def _no_longer_than(length: int, pieces: Iterable[Series]) -> Iterable[Series]:
    for piece in pieces:
        for start in range(0, len(piece), length):
            yield _part(piece, start, start + length)


def _part(series: Series, start: int, stop: int | None) -> Series:
    return Series(series.steps[start:stop], series.values[start:stop])
