"""How often the rules were right, from the results of many cases."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lossdoctor.clinic.case import HEALTHY, Result
from lossdoctor.clinic.faults import BY_NAME


@dataclass(frozen=True, slots=True)
class Score:
    """Shares over cases, in [0, 1]; None where there was no case.

    sick: cases of faults that count, see `counted`. found: those in which a rule that stands for the fault raised a
    warning or an error. first: those found whose first cause named is a right one, of all sick; top3: among the first
    three. flagged: healthy cases with any warning or error.
    """

    sick: int
    healthy: int
    found: float | None
    first: float | None
    top3: float | None
    flagged: float | None


def score(results: Sequence[Result]) -> Score:
    """The score of some cases."""
    sick = [result for result in counted(results) if result.case.fault != HEALTHY]
    healthy = [result for result in results if result.case.fault == HEALTHY]
    return Score(
        sick=len(sick),
        healthy=len(healthy),
        found=_share(result.found for result in sick),
        first=_share(result.named(1) for result in sick),
        top3=_share(result.named(3) for result in sick),
        flagged=_share(bool(result.alarms) for result in healthy),
    )


@dataclass(frozen=True, slots=True)
class RuleScore:
    """One rule over all cases that count.

    asked: cases in which it was not skipped. sick: cases of the faults it stands for. sensitivity: share of those in
    which it raised an alarm; first: share of those in which the first cause named is a right one; None without such a
    case. healthy: healthy cases in which it was not skipped; false_alarms: those in which it raised an alarm. delay:
    share of the steps of a run after which it raised its first alarm, the median of the cases found; None without one.
    """

    code: str
    asked: int
    sick: int
    sensitivity: float | None
    first: float | None
    healthy: int
    false_alarms: int
    delay: float | None


def by_rule(results: Sequence[Result], codes: Iterable[str]) -> list[RuleScore]:
    """The score of every rule."""
    return [_rule_score(code, counted(results)) for code in codes]


def _rule_score(code: str, results: Sequence[Result]) -> RuleScore:
    sick = [result for result in results if code in result.case.rules]
    healthy = [result for result in results if result.case.fault == HEALTHY]
    delays = [result.after[code] / result.steps for result in sick if code in result.after and result.steps]
    return RuleScore(
        code=code,
        asked=sum(code not in result.skipped for result in results),
        sick=len(sick),
        sensitivity=_share(code in result.alarms for result in sick),
        first=_share(code in result.alarms and result.named(1) for result in sick),
        healthy=sum(code not in result.skipped for result in healthy),
        false_alarms=sum(code in result.alarms for result in healthy),
        delay=statistics.median(delays) if delays else None,
    )


# Does a fault hurt?


@dataclass(frozen=True, slots=True)
class Harm:
    """Of one program and one fault: the median harm of its cases, and the worst of the healthy ones.

    Infinite where a result is no number; healthy is None when no healthy case was trained.
    """

    sick: float
    healthy: float | None

    @property
    def shown(self) -> bool | None:
        """Whether the fault makes the result worse than that of any healthy case; None when that cannot be said."""
        return None if self.healthy is None else self.sick > self.healthy


def harms(results: Sequence[Result]) -> dict[tuple[str, str], Harm]:
    """For every program and fault, in order."""
    own: dict[tuple[str, str], list[float]] = {}
    for result in results:
        # A result that is not a number is as bad as can be, and a median cannot sort it.
        harm = result.harm if math.isfinite(result.harm) else math.inf
        own.setdefault((result.case.program, result.case.fault), []).append(harm)
    return {
        (program, fault): Harm(
            sick=statistics.median(found), healthy=max(own.get((program, HEALTHY), ()), default=None)
        )
        for (program, fault), found in sorted(own.items())
        if fault != HEALTHY
    }


def harmful(results: Sequence[Result]) -> dict[tuple[str, str], bool]:
    """For every program and fault whose proof is that it hurts: whether it does. Not told without a healthy case."""
    return {
        (program, fault): harm.shown
        for (program, fault), harm in harms(results).items()
        if BY_NAME[fault].proof == "hurts" and harm.shown is not None
    }


def counted(results: Sequence[Result]) -> list[Result]:
    """Without the faults that should hurt and do not: what is no harm need not be found."""
    hurts = harmful(results)
    return [result for result in results if hurts.get((result.case.program, result.case.fault), True)]


def _share(hits: Iterable[bool]) -> float | None:
    counts = list(hits)
    return sum(counts) / len(counts) if counts else None
