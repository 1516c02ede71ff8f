"""A run as rules see it: thinned curves, losses by kind, what belongs to a warm-up, the recorded audits.

Everything is read once and kept: hundreds of checks ask for the same few hundred curves.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lossdoctor.curves import ends
from lossdoctor.keys import Key, describe
from lossdoctor.kinds import guess_kind
from lossdoctor.record import Series
from lossdoctor.rules.finding import Message, say
from lossdoctor.rules.receipts import Treated, treated
from lossdoctor.rules.schedules import SETTLING, TEMPERATURES, ends_of, full_from, near_from, still_rises

WARM_UP = 0.1
"""Share of the run's steps that no rule judges: in the reference system rates and temperatures settle in it."""

LEAST = 12
"""Measured steps below which no statement about a whole run is made. A sign test on 12 agreeing values has p = 0.0002,
which survives the control of false discoveries among about 200 tests."""

_OF_TEMPERATURES = ("ent/", "distill/")
_LOSS = "loss/"


class ThinnedCurve(Protocol):
    """A few points of a curve, and how many of all its values are NaN or infinite, with the first such step."""

    @property
    def series(self) -> Series:
        """A few thousand points, first and last among them."""

    @property
    def broken(self) -> int:
        """Of all values."""

    @property
    def first_broken(self) -> int | None:
        """None when there is none."""


class Readable(Protocol):
    """What a view needs of a run; `lossdoctor.Run` has it."""

    def __iter__(self) -> Iterator[str]: ...

    def thinned(self, name: str, /) -> ThinnedCurve:
        """One curve."""

    @property
    def meta(self) -> dict[str, Any]:
        """What the run is."""

    @property
    def events(self) -> list[dict[str, Any]]:
        """What happened, in order."""

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """The steps measured in full."""


class RunView(Mapping[str, Series]):
    """Curves by name, and the questions most rules ask of a run. A metric that is not there is an empty series."""

    def __init__(self, run: Readable) -> None:
        self._run = run
        self.meta = run.meta
        self.events = run.events
        self._names = tuple(run)
        self._there = frozenset(self._names)
        self._curves: dict[str, ThinnedCurve] = {}

    def __getitem__(self, name: str) -> Series:
        """The curve, NaN and infinity included, sorted by step, thinned when it is long; empty when there is none."""
        if name not in self._there:
            return NOTHING
        if name not in self._curves:
            self._curves[name] = self._run.thinned(name)
        return self._curves[name].series

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._there

    def __len__(self) -> int:
        return len(self._names)

    # How long the run is

    @functools.cached_property
    def steps(self) -> npt.NDArray[np.int64]:
        """The steps measured in full; for a run that was imported, those of its longest curve."""
        full = self._run.steps
        if len(full):
            return full
        return max((self[name].steps for name in self._names), key=len, default=NOTHING.steps)

    @functools.cached_property
    def last_step(self) -> int:
        """The last step any loss or full record has, without them any curve; -1 for an empty run.

        What is measured after the training, such as end points, has the number of a step that was never made.
        """
        losses = [name for name in self._names if name.startswith("loss/")] or self._names
        lasts = [int(self[name].steps[-1]) for name in losses if len(self[name])]
        return max([-1, *(int(s) for s in self.steps[-1:]), *lasts])

    @functools.cached_property
    def begins(self) -> int:
        """The first step after the warm-up."""
        first = int(self.steps[0]) if len(self.steps) else 0
        return first + math.ceil(WARM_UP * (self.last_step - first))

    @functools.cached_property
    def times(self) -> Series:
        """The wall clock of every step that has a record, seconds; empty when the run does not tell."""
        told: Series = getattr(self._run, "times", NOTHING)
        return told

    # Curves

    def settled(self, name: str, *, loss: str | None = None) -> Series:
        """Finite values after the warm-up; with `loss`, after its weight has reached its full size.

        What tells of temperatures begins after their schedule, where the script has declared one.
        """
        start = self.begins if loss is None else max(self.begins, self.full_weight_from(loss))
        if name.startswith(_OF_TEMPERATURES):
            start = max(start, self._temperatures_from)
        curve = self[name].finite
        kept = curve.steps >= start
        return Series(curve.steps[kept], curve.values[kept])

    def broken(self, name: str) -> tuple[int, int | None]:
        """How many values are NaN or infinite, and the first step that has one; (0, None) when all are finite."""
        if not len(self[name]):
            return 0, None
        return self._curves[name].broken, self._curves[name].first_broken

    def now(self, name: str) -> float:
        """Where a curve has come to: the median of its last tenth. NaN when there is none."""
        return ends(self[name].values)[1]

    def ratio(self, over: str, under: str, *, loss: str | None = None) -> Series:
        """One settled curve over another, on the steps both have and where the second is not 0."""
        a, b = self.settled(over, loss=loss), self.settled(under, loss=loss)
        steps, i, j = np.intersect1d(a.steps, b.steps, assume_unique=True, return_indices=True)
        there = b.values[j] != 0
        with np.errstate(over="ignore", under="ignore"):
            return Series(steps[there], a.values[i][there] / b.values[j][there])

    def matching(self, pattern: str) -> dict[str, dict[str, str]]:
        """Names of this kind of metric, with what fills the holes of the pattern."""
        return {name: holes for name, (key, holes) in self._known.items() if key.pattern == pattern}

    def has(self, pattern: str) -> bool:
        """Whether any metric of this kind was recorded."""
        return any(key.pattern == pattern for key, _ in self._known.values())

    @functools.cached_property
    def _known(self) -> dict[str, tuple[Key, dict[str, str]]]:
        found = {name: describe(name) for name in self._names}
        return {name: (key, key.match(name) or {}) for name, key in found.items() if key is not None}

    # Losses

    @functools.cached_property
    def losses(self) -> dict[str, str]:
        """Every loss by name, with its kind."""
        told = {**(self.meta.get("losses") or {}), **(self.meta.get("kinds") or {})}
        names = [name.removeprefix(_LOSS) for name in self._names if name.startswith(_LOSS) and name != "loss/total"]
        return {name: told.get(name) or guess_kind(name) for name in names}

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """The losses of one kind."""
        return tuple(name for name, own in self.losses.items() if own == kind)

    def full_weight_from(self, loss: str) -> float:
        """The first step from which a loss is judged: its weight has come to where it ends.

        That is after a schedule that the script declared, once a ratio controller has brought it near its end, and from
        where the weight stays within 10 % of its last value or above it. Infinite for a weight that still rises, 0 when
        nothing is known.
        """
        return max(self._weight_from(loss), self._treated_from(loss), self._declared.get(f"weight/{loss}", 0))

    def _weight_from(self, loss: str) -> float:
        weight = self[f"weight/{loss}"].finite
        # What a balancer makes of a weight is no warm-up.
        balanced = f"balance/{loss}" in self
        return math.inf if not balanced and still_rises(weight) else full_from(weight)

    @functools.cached_property
    def treated(self) -> Treated | None:
        """What a balancer did; None without one."""
        unknown = "?" if "balance/age" in self else None
        return treated(self.events, str(self.meta.get("balance") or "") or unknown)

    def _treated_from(self, loss: str) -> int:
        settles = self.treated is not None and self.treated.balancer in SETTLING
        return near_from(self[f"balance/{loss}"].finite) if settles else 0

    @functools.cached_property
    def _declared(self) -> dict[str, float]:
        return ends_of(self.events)

    @functools.cached_property
    def _temperatures_from(self) -> float:
        return max((self._declared.get(name, 0) for name in TEMPERATURES), default=0)

    def waits_for(self, kind: str | None = None) -> Message | None:
        """Why a loss of this kind, or of any, has too few steps to be judged by although the run has enough; None else.

        A schedule that has not ended, or only just; a weight that still rises; a balancer still at work.
        """
        if self._left(self.begins) < LEAST:
            return None
        for loss in self.losses if kind is None else self.of_kind(kind):
            ends = {loss: self._declared.get(f"weight/{loss}", 0)}
            if self.losses[loss] == "distill":
                ends |= {name: self._declared.get(name, 0) for name in TEMPERATURES}
            name = max(ends, key=lambda one: ends[one])
            if self._left(ends[name]) < LEAST:
                key = "skip.scheduled" if math.isfinite(ends[name]) else "skip.endless"
                what = f"weight/{loss}" if name == loss else name
                return say(key, what=what, step=ends[name], last=self.last_step)
            if self._left(self._treated_from(loss)) < LEAST:
                return say("skip.balancing", loss=loss, step=self._treated_from(loss))
            if self._left(self._weight_from(loss)) < LEAST:
                return say("skip.ramping", loss=loss)
        return None

    def _left(self, start: float) -> int:
        return int(np.sum(self.steps >= start))

    def weighted(self, loss: str) -> bool:
        """Whether the loss takes part at the end: its weight, where one was recorded, is not 0."""
        weight = self[f"weight/{loss}"].finite
        return not len(weight) or bool(weight.values[-1] != 0)

    # Facts

    @functools.cached_property
    def audits(self) -> tuple[tuple[int, dict[str, Any]], ...]:
        """Every recorded audit with its step, oldest first."""
        told = [event for event in self.events if event.get("kind") == "audit"]
        return tuple((int(event.get("step", 0)), event.get("facts") or {}) for event in told)

    @property
    def facts(self) -> dict[str, Any]:
        """The last audit; empty when none was recorded."""
        return self.audits[-1][1] if self.audits else {}

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads named to the doctor."""
        return tuple(self.meta.get("heads") or ())

    def knob(self, name: str) -> float | None:
        """A number the script declared with `lossdoctor.knob`."""
        value = (self.meta.get("knobs") or {}).get(name)
        return float(value) if isinstance(value, (int, float)) else None


NOTHING = Series(np.empty(0, np.int64), np.empty(0, np.float64))


def span(series: Series) -> dict[str, int | None]:
    """`first_step` and `last_step` of a curve, for evidence."""
    if not len(series):
        return {"first_step": None, "last_step": None}
    return {"first_step": int(series.steps[0]), "last_step": int(series.steps[-1])}


def middle(series: Series) -> float:
    """The median of a curve; NaN when it is empty."""
    # Two middle values near the largest float overflow to infinity in their mean; that is their size, not a failure.
    with np.errstate(over="ignore"):
        return float(np.median(series.values)) if len(series) else math.nan
