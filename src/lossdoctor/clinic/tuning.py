"""Are the thresholds tuned to the programs they are shown on? Choose them on the others, and look at the one left out.

Every rule is tuned by itself, one of its thresholds after the other, but for those that are given by the method and not
chosen by anyone who looked at runs: each is tried at half and at twice its default,
and the setting is kept that is right in most cases of the other programs, the one before on a tie. A rule is right in a
sick case of a fault it stands for when it raises an alarm, and in a healthy case when it does not; a healthy case
counts for ten. And there must be room to spare: a setting is not taken when one step further flags more healthy cases
than the one before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lossdoctor.clinic.case import HEALTHY, Case, Result
from lossdoctor.clinic.processes import Failed, spread
from lossdoctor.clinic.recorded import Recorded
from lossdoctor.clinic.score import counted
from lossdoctor.clinic.ward import judge_all
from lossdoctor.diagnose import diagnose
from lossdoctor.errors import LossDoctorError, mismatch
from lossdoctor.rules import RULES, Rule, RunView
from lossdoctor.store import Run

FACTORS = (0.5, 2.0)
HEALTHY_COUNTS = 10

Thresholds = dict[str, Any]
"""Of one rule: field to value, those alone that differ from the default."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One program left out. settings: thresholds by rule, chosen on the others. results: what they say of it."""

    settings: dict[str, Thresholds]
    results: list[Result]


def left_out(
    results: Sequence[Result],
    home: Path,
    *,
    jobs: int,
    rules: Sequence[type[Rule]] = RULES,
    on_done: Callable[[], None] = lambda: None,
) -> dict[str, LeftOut]:
    """For every program: the thresholds chosen on all the others, and what they say of this one.

    results: of all cases, with the default thresholds. on_done is called once for every rule and once for every case.
    """
    wanted = [result.case for result in results]
    programs = sorted({case.program for case in wanted})
    # Faults that do not hurt are not asked for here either.
    training = tuple(result.case for result in counted(results))
    chosen = spread(_Tuning(training, home), rules, jobs=jobs, on_done=lambda rule, answer: on_done())
    settings: dict[str, dict[str, Thresholds]] = {program: {} for program in programs}
    for rule, answer in chosen.items():
        if isinstance(answer, Failed):
            raise LossDoctorError(_broken_off(rule.code, answer.reason))
        for program, thresholds in answer.items():
            if thresholds:
                settings[program][rule.code] = thresholds
    asked = {program: _set(rules, own) for program, own in settings.items()}
    judged, failed = judge_all(wanted, home, jobs=jobs, rules=asked, early=False, on_done=lambda case, why: on_done())
    for case, reason in failed.items():
        raise LossDoctorError(_broken_off(case.name, reason))
    return {
        program: LeftOut(settings[program], [one for one in judged if one.case.program == program])
        for program in programs
    }


def tuned(rule: type[Rule], cases: Iterable[Case], home: Path) -> dict[str, Thresholds]:
    """For every program: the thresholds of one rule, chosen on the cases of all the other programs."""
    wanted = list(cases)
    views = {
        case: RunView(Recorded.of(Run.open(home / case.name)))
        for case in wanted
        if case.fault == HEALTHY or rule.code in case.rules
    }

    @functools.cache
    def right(asked: Rule, case: Case) -> int:
        alarm = any(finding.severity != "info" for finding in diagnose(views[case], rules=[asked]).findings)
        return (0 if alarm else HEALTHY_COUNTS) if case.fault == HEALTHY else int(alarm)

    def right_without(program: str, asked: Rule) -> int:
        return sum(right(asked, case) for case in views if case.program != program)

    def quiet_without(program: str, asked: Rule) -> int:
        healthy = (case for case in views if case.fault == HEALTHY and case.program != program)
        return sum(right(asked, case) for case in healthy)

    found, defaults = {}, rule.thresholds()
    for program in sorted({case.program for case in wanted}):
        best = _best(rule, functools.partial(right_without, program), functools.partial(quiet_without, program))
        found[program] = {name: value for name, value in vars(best).items() if value != defaults[name]}
    return found


def _best(rule: type[Rule], right: Callable[[Rule], int], quiet: Callable[[Rule], int]) -> Rule:
    best = rule()
    most = right(best)
    for name, default in rule.set_by_runs().items():
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            continue
        for factor in FACTORS:
            other, further = (replace(best, **{name: type(default)(default * by)}) for by in (factor, factor**2))
            if (now := right(other)) > most and quiet(further) >= quiet(best):
                best, most = other, now
    return best


def _set(rules: Sequence[type[Rule]], settings: dict[str, Thresholds]) -> tuple[Rule, ...]:
    """These rules with these thresholds."""
    return tuple(rule(**settings.get(rule.code, {})) for rule in rules)


def _broken_off(what: str, reason: str) -> str:
    return mismatch(
        "Thresholds could not be chosen without each program in turn.",
        "rules and runs that can be asked again",
        f"{what}: {reason}",
        "run the same command again, which trains nothing a second time, with fewer --jobs or with --no-left-out",
    )


@dataclass(frozen=True, slots=True)
class _Tuning:
    cases: tuple[Case, ...]
    home: Path

    def __call__(self, rule: type[Rule]) -> dict[str, Thresholds]:
        return tuned(rule, self.cases, self.home)
