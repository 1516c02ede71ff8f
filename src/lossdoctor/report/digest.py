"""A run at a glance, as data: what each form of the report then only has to set in type.

The digest measures nothing new and judges nothing. "Now" is the median over the last tenth of the values recorded, so
that one wild step does not speak for a run; but a metric that has become NaN or infinite is that now.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossdoctor.curves import Trend, block_medians, ends, trend
from lossdoctor.keys import KEYS, Key, describe
from lossdoctor.kinds import guess_kind
from lossdoctor.record import Series
from lossdoctor.report.grids import Grid, grids
from lossdoctor.store import Run

SHAPE = 12
"""Points of the small curve beside a metric."""

_LOSS = "loss/"
_ORDER = {key: place for place, key in enumerate(KEYS)}

_SIGNS_OF_LIFE = {
    "gradients": ("grad/total",),
    "heads": ("step/<head>_update_ratio",),
    "velocity": ("flow/nmse",),
    "condition": ("flow/cond_ratio", "flow/cond_gain_cos"),
    "time": ("flow/time_ratio",),
    "endpoint": ("flow/endpt_std_ratio", "flow/endpt_rmse@K"),
    "posterior": ("mu/abs_mean",),
    "distillation": ("ent/teacher",),
    "teacher": ("teacher/distance", "teacher/moved"),
    "ema": ("ema/distance", "ema/momentum"),
}
"""What can be measured, and the patterns of which one is there whenever it was."""


TROUBLES = ("failure", "sink_failure", "rejected", "stopped")
"""Kinds of events that a reader must be told of."""


@dataclass(frozen=True, slots=True)
class Line:
    """One metric: where it starts and ends, its shape (block medians) and its trend after the warm-up.

    count: values recorded. broken: how many of them are NaN or infinite.
    """

    name: str
    key: Key
    start: float
    end: float
    shape: tuple[float, ...]
    trend: Trend
    count: int
    broken: int


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss now: its weight, the norm of its gradient alone and weighted, and its signed share of the total's.

    None where not measured.
    """

    name: str
    kind: str
    weight: float | None
    gradient: float | None
    weighted: float | None
    share: float | None


@dataclass(frozen=True, slots=True)
class Digest:
    """Everything a summary shows.

    steps: optimizer steps. measured: those measured in full. seconds: from the first record to the last. pace: seconds
    per step, pauses left out; both None where they cannot be known. facts: what the run is, by code. absent: what was
    never measured, by code. troubles: the events that tell of something gone wrong; of a run of several ranks each
    has `ranks`, those it happened to.
    """

    steps: int
    measured: int
    seconds: float | None
    pace: float | None
    facts: dict[str, str]
    losses: tuple[Loss, ...]
    lines: tuple[Line, ...]
    grids: tuple[Grid, ...]
    absent: tuple[str, ...]
    troubles: tuple[dict[str, Any], ...]

    def family(self, name: str) -> tuple[Line, ...]:
        """The lines of one family, in the order of the vocabulary."""
        return tuple(line for line in self.lines if line.key.family == name)


def digest(run: Run) -> Digest:
    """Sum up a run. Works on any run, also an empty or broken one; what is not there is listed in `absent`."""
    known = {name: key for name in run if (key := describe(name)) is not None}
    now = {name: _ends(run[name])[1] for name in known}
    patterns = {key.pattern for key in known.values()}
    losses = tuple(_losses(run, now))
    return Digest(
        steps=_steps(run, known),
        measured=len(run.steps),
        seconds=_seconds(run),
        pace=_pace(run),
        facts=_facts(run),
        losses=losses,
        lines=tuple(_lines(run, known)),
        grids=tuple(grids(known, now, [loss.name for loss in losses])),
        absent=tuple(code for code, signs in _SIGNS_OF_LIFE.items() if not patterns.intersection(signs)),
        troubles=tuple(_troubles(run)),
    )


def line(run: Run, name: str, key: Key) -> Line:
    """One metric of a run as a line."""
    series = run[name]
    start, end = _ends(series)
    shape = tuple(block_medians(series, SHAPE).values.tolist())
    broken = int(np.sum(~np.isfinite(series.values)))
    return Line(name, key, start, end, shape, trend(series), len(series), broken)


def _steps(run: Run, known: Iterable[str]) -> int:
    """Losses are recorded on every step; an evaluation after the last step belongs to no step."""
    lasts = [run[name].steps[-1] for name in known if name.startswith(_LOSS)]
    return 1 + int(max([-1, *run.steps[-1:], *lasts]))


def _seconds(run: Run) -> float | None:
    clock = run.times.values
    # A log that was imported without a clock has one and the same time everywhere.
    return float(clock.max() - clock.min()) or None if len(clock) > 1 else None


def _pace(run: Run) -> float | None:
    """Between steps measured in full, the only ones with a time of their own. The median leaves evaluations out."""
    times = run.times
    own = np.isin(times.steps, run.steps)
    passed, made = np.diff(times.values[own]), np.diff(times.steps[own])
    return float(np.median(passed / made)) or None if len(made) else None


def _facts(run: Run) -> dict[str, str]:
    meta = run.meta
    versions = meta.get("versions")
    given = {
        "model": meta.get("model"),
        "parameters": f"{meta['parameters']:,}" if isinstance(meta.get("parameters"), int) else None,
        "gradients": meta.get("gradients"),
        "seed": meta.get("seed"),
        "torch": versions.get("torch") if isinstance(versions, dict) else None,
        "git": meta.get("git"),
    }
    return {code: str(value) for code, value in given.items() if value is not None}


def _troubles(run: Run) -> Iterator[dict[str, Any]]:
    """In the order of the ranks. What happened alike to several is told once."""
    several = run.rank_events
    told: dict[str, dict[str, Any]] = {}
    for rank, events in several.items():
        for event in events:
            if event.get("kind") in TROUBLES:
                alike = json.dumps({name: value for name, value in event.items() if name != "time"}, sort_keys=True)
                told.setdefault(alike, {**event, "ranks": []})["ranks"].append(rank)
    for event in told.values():
        yield event if len(several) > 1 else {name: value for name, value in event.items() if name != "ranks"}


def _ends(series: Series) -> tuple[float, float]:
    """Start and end of a curve; one that has become NaN or infinite ends as what it became."""
    start, end = ends(series.values)
    last = float(series.values[-1]) if len(series) else math.nan
    return start, end if math.isfinite(last) else last


def _losses(run: Run, now: Mapping[str, float]) -> Iterator[Loss]:
    kinds = run.meta.get("kinds") or {}
    for name in (name.removeprefix(_LOSS) for name in now if name.startswith(_LOSS) and name != "loss/total"):
        yield Loss(
            name=name,
            kind=kinds.get(name) or guess_kind(name),
            weight=now.get(f"weight/{name}"),
            gradient=now.get(f"grad/{name}"),
            weighted=now.get(f"grad_weighted/{name}"),
            share=now.get(f"grad_share/{name}"),
        )


def _lines(run: Run, known: dict[str, Key]) -> Iterator[Line]:
    """The headlines, in the order of the vocabulary; of metrics per step count only the finest, a grid has them all."""
    finest: dict[Key, int] = {}
    for name, key in known.items():
        count = int((key.match(name) or {}).get("K", 0))
        finest[key] = max(finest.get(key, 0), count)
    for name, key in sorted(known.items(), key=lambda item: (_ORDER[item[1]], item[0])):
        if key.headline and int((key.match(name) or {}).get("K", 0)) == finest[key]:
            yield line(run, name, key)
