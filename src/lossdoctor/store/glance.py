"""A long series at a glance: of every full chunk a few points and its bounds, so that thinning reads 1 byte in 25.

A glance holds the points that thinning by `STRIDE` keeps. Thinning by any larger power of two keeps some of those, as
the roundest of many is the roundest of the roundest, so nothing is lost but the reading of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lossdoctor.record import Series
from lossdoctor.store.layout import CHUNK, join
from lossdoctor.store.thinned import Thinned, one_of_each, thin_further

STRIDE = 64
"""Points of which a glance holds one."""
_BYTES = 8 * (CHUNK // STRIDE)

GlanceRow = tuple[int, int, float, float, bytes]
"""first and last step, low, high, and the steps kept followed by their numbers."""


def glance(points: Series) -> GlanceRow | None:
    """Of a full chunk; None where a glance would hide something: broken numbers, steps that go back."""
    steps, values = points.steps, points.values
    if len(points) != CHUNK or not np.isfinite(values).all() or not (steps[1:] > steps[:-1]).all():
        return None
    few = one_of_each(STRIDE, points)
    packed = few.steps.astype("<i8", copy=False).tobytes() + few.values.astype("<f8", copy=False).tobytes()
    return int(steps[0]), int(steps[-1]), float(values.min()), float(values.max()), packed


def worth_it(chunks: int, points: int) -> bool:
    """Whether thinning so many full chunks to `points` leaves out all that glances do."""
    return chunks * CHUNK > STRIDE // 2 * points


def thin_glances(rows: Sequence[GlanceRow], begin: Series, rest: Series, points: int) -> Thinned | None:
    """What `thin` gives of the chunks of these rows and the rest after them.

    begin: at least the first point of the first chunk. rest: at least one point, sorted by step, each step once. None
    when steps go back from one to the next, when a glance is damaged, or when the rest has broken numbers.
    """
    first, last = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    whole = all(len(row[4]) == 2 * _BYTES for row in rows) and bool(np.isfinite(rest.values).all())
    if not (whole and (last < np.append(first[1:], rest.steps[0])).all()):
        return None
    steps = np.frombuffer(b"".join([row[4][:_BYTES] for row in rows]), "<i8").astype(np.int64)
    values = np.frombuffer(b"".join([row[4][_BYTES:] for row in rows]), "<f8").astype(np.float64)
    few = join((Series(steps, values), one_of_each(STRIDE, rest)))
    start, end = Series(begin.steps[:1], begin.values[:1]), Series(rest.steps[-1:], rest.values[-1:])
    return Thinned(
        series=thin_further(few, start, end, points),
        count=len(rows) * CHUNK + len(rest),
        low=min(float(rest.values.min()), *(row[2] for row in rows)),
        high=max(float(rest.values.max()), *(row[3] for row in rows)),
        broken=0,
        first_broken=None,
    )
