"""The steps of a series as its chunks lie, without its numbers.

Metrics of one run mostly lie on the same steps. Which of them a thinned curve keeps is the dearest part of reading a
long run, depends on the steps alone, and so is found once for all metrics on one grid.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lossdoctor.record import Series
from lossdoctor.store.layout import Steps, even_steps, strides
from lossdoctor.store.thinned import places_kept


@dataclass(frozen=True, slots=True)
class Grid:
    """Chunks whose steps run evenly, each beginning after the one before, and a tail after them.

    chunks: (3, N) int64 as bytes: first and last step and number of points of each. tail: (M,) int64 as bytes. Bytes,
    so that equal grids are equal.
    """

    chunks: bytes
    tail: bytes

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, bool, int]], tail: Steps) -> Grid | None:
        """From (first, last, evenly, bytes of numbers) of each chunk; None when the steps are of another kind."""
        if not rows:
            return None
        first, last, evenly, size = np.array(rows, np.int64).T
        _, whole = strides(first, last, size // 8)
        ends = np.append(last[:-1] < first[1:], np.diff(tail, prepend=last[-1]) > 0)
        if not (evenly.all() and whole.all() and (size % 8 == 0).all() and (size > 0).all() and ends.all()):
            return None
        return cls(np.stack((first, last, size // 8)).tobytes(), tail.tobytes())

    @property
    def rows(self) -> Iterator[tuple[int, int, int]]:
        """First and last step and bytes of numbers of each chunk."""
        first, last, counts = np.frombuffer(self.chunks, np.int64).reshape(3, -1)
        return zip(first.tolist(), last.tolist(), (8 * counts).tolist(), strict=True)

    @property
    def steps(self) -> Steps:
        """All of them."""
        first, last, counts = np.frombuffer(self.chunks, np.int64).reshape(3, -1)
        stride, _ = strides(first, last, counts)
        return np.concatenate((even_steps(first, stride, counts), np.frombuffer(self.tail, np.int64)))


@functools.lru_cache(maxsize=16)
def kept(grid: Grid, points: int) -> Series:
    """The steps a series on this grid keeps when it is thinned, each with its place in the series as the value."""
    return places_kept(grid.steps, points)
