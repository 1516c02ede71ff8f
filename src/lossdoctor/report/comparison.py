"""Two runs side by side, as data: which findings and which curves differ, and how sure that is.

A curve's level is where it came to: its last quarter, in a few block medians because neighbouring points resemble each
other. Two levels differ when a rank test on these blocks says so after the control of false discoveries. Two runs with
other seeds differ by chance too; this compares two runs, not two recipes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossdoctor.curves import adjusted, block_medians
from lossdoctor.diagnose import Diagnosis
from lossdoctor.keys import KEYS, describe
from lossdoctor.record import Series
from lossdoctor.rules import Finding
from lossdoctor.store import Run

BLOCKS = 8
"""Blocks of the last quarter. Eight against eight, all apart, has p = 0.0008."""

LAST = 0.25
ALPHA = 0.05

_ORDER = {key.pattern: place for place, key in enumerate(KEYS)}


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the level of a metric differs between two runs, b - a.

    a, b: medians of the last quarter. low, high: 95 % interval of the shift (Hodges and Lehmann 1963), NaN with too few
    points. p: of no difference (Mann and Whitney 1947), adjusted over all metrics. size: shift over the spread of the
    blocks, infinite when there is none. better: "a", "b" or "" where no direction is better as such.
    """

    name: str
    a: float
    b: float
    low: float
    high: float
    p: float
    size: float
    better: str

    @property
    def differs(self) -> bool:
        """Whether the difference is more than noise."""
        return self.p < ALPHA


@dataclass(frozen=True, slots=True)
class Comparison:
    """only_a, only_b: findings of one run alone; both: of both, as in b. shifts: metrics of both, biggest difference
    first. missing_a, missing_b: metrics the run does not have and the other has.
    """

    only_a: tuple[Finding, ...]
    only_b: tuple[Finding, ...]
    both: tuple[Finding, ...]
    shifts: tuple[Shift, ...]
    missing_a: tuple[str, ...]
    missing_b: tuple[str, ...]


def compare(a: Run, b: Run, of_a: Diagnosis, of_b: Diagnosis) -> Comparison:
    """Compare two runs, given their diagnoses."""
    in_a, in_b = ({_key(finding): finding for finding in of.findings} for of in (of_a, of_b))
    names_a, names_b = set(a), set(b)
    return Comparison(
        only_a=tuple(finding for key, finding in in_a.items() if key not in in_b),
        only_b=tuple(finding for key, finding in in_b.items() if key not in in_a),
        both=tuple(finding for key, finding in in_b.items() if key in in_a),
        shifts=tuple(_shifts(a, b, sorted(names_a & names_b))),
        missing_a=tuple(sorted(names_b - names_a)),
        missing_b=tuple(sorted(names_a - names_b)),
    )


def _key(finding: Finding) -> tuple[str, str | None, str | None]:
    return finding.code, finding.loss, finding.subject


def _shifts(a: Run, b: Run, names: list[str]) -> Iterator[Shift]:
    found = [shift(name, a[name], b[name]) for name in names]
    known = [one for one in found if not math.isnan(one.p)]
    for one, p in zip(known, adjusted([one.p for one in known]).tolist(), strict=True):
        object.__setattr__(one, "p", p)
    yield from sorted(known, key=lambda one: (not one.differs, -abs(one.size), one.name))


def shift(name: str, a: Series, b: Series) -> Shift:
    """The difference of one metric; p is NaN when a run has no finite value of it."""
    left, right = _level(a), _level(b)
    if not len(left) or not len(right):
        return Shift(name, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, "")
    apart = np.sort((right[None, :] - left[:, None]).ravel())
    low, high, p = _interval(apart, len(left), len(right))
    middle = float(np.median(apart))
    key = describe(name)
    better = "" if key is None or key.better == "none" or middle == 0 else "ab"[(middle > 0) == (key.better == "up")]
    return Shift(
        name, float(np.median(left)), float(np.median(right)), low, high, p, _size(middle, left, right), better
    )


def _level(series: Series) -> npt.NDArray[np.float64]:
    """The block medians of the last quarter of the steps; a single late value stands for itself."""
    finite = series.finite
    if not len(finite):
        return finite.values
    start = finite.steps[-1] - LAST * (finite.steps[-1] - finite.steps[0])
    late = finite.steps >= start
    return block_medians(Series(finite.steps[late], finite.values[late]), BLOCKS).values


def _interval(apart: npt.NDArray[np.float64], n: int, m: int) -> tuple[float, float, float]:
    """Interval of the shift and p of none, by the normal approximation of the rank sum; good from 4 by 4 on."""
    if min(n, m) < 4:
        return math.nan, math.nan, 1.0
    wide = math.sqrt(n * m * (n + m + 1) / 12)
    rank = max(0, math.floor(n * m / 2 - 1.96 * wide))
    above = float(np.sum(apart > 0) + 0.5 * np.sum(apart == 0))
    z = max(abs(above - n * m / 2) - 0.5, 0) / wide
    return float(apart[rank]), float(apart[-1 - rank]), math.erfc(z / math.sqrt(2))


def _size(middle: float, left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    spread = 1.4826 * max(float(np.median(np.abs(side - np.median(side)))) for side in (left, right))
    if middle == 0:
        return 0.0
    return middle / spread if spread else math.copysign(math.inf, middle)
