"""Curves for a page: few enough points to draw at once, with every spike, in one compressed piece."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from lossdoctor.record import Series

BUCKETS = 1000
"""Per curve. A chart is at most about a thousand pixels wide; each bucket keeps its lowest and its highest point."""

BUDGET = 400_000
"""Points on a page. 8 bytes each, of which compression leaves about 6 and base64 makes 8: 3.2 MB."""

Place = tuple[int, int]
"""Where a curve begins in the packed piece, in points, and how many points it has."""


def thinned(series: Series, buckets: int = BUCKETS) -> Series:
    """At most 2 points per bucket of equal count: the lowest and the highest, in order; NaN only if nothing else is."""
    n = len(series)
    if n <= 2 * buckets:
        return series
    width = -(-n // buckets)
    whole = n - n % width
    low, high = _extremes(series.values[:whole].reshape(-1, width))
    rest_low, rest_high = _extremes(series.values[whole:].reshape(-1, max(n - whole, 1)))
    kept = np.unique(np.concatenate([[0, n - 1], low, high, whole + rest_low, whole + rest_high]))
    return Series(series.steps[kept], series.values[kept])


def _extremes(rows: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Of each row of (N, width) the places of its lowest and its highest number in the flat array, NaN last."""
    if not rows.size:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    begin, nan = np.arange(len(rows)) * rows.shape[1], np.isnan(rows)
    if not nan.any():  # argmin calls NaN the lowest; putting something else there costs more than the rest
        return begin + rows.argmin(axis=1), begin + rows.argmax(axis=1)
    return (
        begin + np.where(nan, np.inf, rows).argmin(axis=1),
        begin + np.where(nan, -np.inf, rows).argmax(axis=1),
    )


def packed(curves: Iterable[tuple[str, Series]], count: int) -> tuple[dict[str, Place], str]:
    """All curves in one base64 text of a gzip stream: first every step as float64, then every value as float32.

    count: how many curves there are, to share the points of the page among them. Returns where each curve lies.
    """
    buckets = max(20, min(BUCKETS, BUDGET // (2 * max(count, 1))))
    few = {name: thinned(series, buckets) for name, series in curves}
    places: dict[str, Place] = {}
    total = 0
    for name, series in few.items():
        places[name] = (total, len(series))
        total += len(series)
    return places, base64.b64encode(gzip.compress(_flat(list(few.values())), 6, mtime=0)).decode("ascii")


def sent(curves: Iterable[Series]) -> bytes:
    """Some curves over the wire, a gzip stream: how many points each has as float64, then as in `packed`."""
    few = [thinned(series) for series in curves]
    counts = np.array([len(series) for series in few], "<f8").tobytes()
    return gzip.compress(counts + _flat(few), 1, mtime=0)  # made while somebody waits


def _flat(few: Sequence[Series]) -> bytes:
    # Steps as differences: they repeat, and compress to almost nothing.
    steps = [np.diff(series.steps, prepend=0).astype("<f8").tobytes() for series in few]
    with np.errstate(over="ignore"):
        values = [series.values.astype("<f4").tobytes() for series in few]
    return b"".join([*steps, *values])
