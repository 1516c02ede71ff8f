"""Curves for a page: few enough points to draw at once, with every spike, in one compressed piece of text."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable

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
    places: dict[str, Place] = {}
    steps: list[npt.NDArray[np.float64]] = []
    values: list[npt.NDArray[np.float32]] = []
    total = 0
    for name, series in curves:
        few = thinned(series, buckets)
        places[name] = (total, len(few))
        total += len(few)
        # Steps as differences: they repeat, and compress to almost nothing.
        steps.append(np.diff(few.steps, prepend=0).astype("<f8"))
        with np.errstate(over="ignore"):
            values.append(few.values.astype("<f4"))
    whole = b"".join([*(part.tobytes() for part in steps), *(part.tobytes() for part in values)])
    return places, base64.b64encode(gzip.compress(whole, 6, mtime=0)).decode("ascii")
