"""What a clinic came to, as Markdown and as JSON. Failures are listed, not hidden."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lossdoctor import __version__
from lossdoctor.clinic.case import HEALTHY, Case, Result
from lossdoctor.clinic.faults import BY_NAME
from lossdoctor.clinic.score import Harm, Score, by_rule, counted, harmful, harms, score
from lossdoctor.clinic.tuning import LeftOut
from lossdoctor.messages import text
from lossdoctor.report.wording import number
from lossdoctor.rules import RULES

SCHEMA = "lossdoctor/clinic@1"

Say = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Clinic:
    """One clinic from beginning to end. failed: cases without a result, with the reason. command, machine: what made it
    and where.
    """

    results: Sequence[Result]
    failed: Mapping[Case, str]
    left_out: Mapping[str, LeftOut]
    command: str
    machine: str

    @property
    def every_left_out(self) -> Score:
        """The score over the programs the rules were not tuned on."""
        return score([result for one in self.left_out.values() for result in one.results])


# For programs


def as_json(clinic: Clinic) -> dict[str, Any]:
    """Everything, ready for strict JSON: a harm that is no number is null."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "command": clinic.command,
        "machine": clinic.machine,
        "score": dataclasses.asdict(score(clinic.results)),
        "left_out": {
            program: {"settings": one.settings, "score": dataclasses.asdict(score(one.results))}
            for program, one in clinic.left_out.items()
        },
        "rules": [dataclasses.asdict(one) for one in by_rule(clinic.results, [rule.code for rule in RULES])],
        "harmful": [
            {"program": program, "fault": fault, "hurts": hurts}
            for (program, fault), hurts in harmful(clinic.results).items()
        ],
        "cases": [_case(result) for result in clinic.results],
        "failed": [{**dataclasses.asdict(case), "reason": reason} for case, reason in sorted(clinic.failed.items())],
    }


def _case(result: Result) -> dict[str, Any]:
    return {
        **dataclasses.asdict(result),
        "after": dict(result.after),
        "harm": result.harm if math.isfinite(result.harm) else None,
        "found": result.found,
        "first": result.named(1),
        "top3": result.named(3),
        "detected": result.detected,
    }


# For people


def as_markdown(clinic: Clinic, lang: str = "en") -> str:
    """The page."""
    return "\n".join(_page(clinic, partial(text, lang=lang))).rstrip() + "\n"


def _page(clinic: Clinic, say: Say) -> Iterator[str]:
    results = clinic.results
    pairs = {(result.case.program, result.case.fault) for result in results if result.case.fault != HEALTHY}
    cases = [*(result.case for result in results), *clinic.failed]
    runs = Counter((case.program, case.fault) for case in cases)
    yield from (f"# {say('clinic.page.title')}", "", say("clinic.page.intro"), "")
    yield say("clinic.page.made", command=clinic.command, machine=clinic.machine)
    yield say("clinic.page.size", pairs=len(pairs), seeds=_range(runs.values()))
    if clinic.left_out:
        yield from ("", f"## {say('clinic.page.left_out')}", "", say("clinic.page.left_out.how"), "")
        scores = {program: score(one.results) for program, one in clinic.left_out.items()}
        yield from _scores(scores, clinic.every_left_out, say)
        yield from ("", *(f"- {_settings(program, one, say)}" for program, one in clinic.left_out.items()))
    yield from ("", f"## {say('clinic.page.as_they_are')}", "")
    programs = sorted({result.case.program for result in results})
    own = {program: score([result for result in results if result.case.program == program]) for program in programs}
    yield from _scores(own, score(results), say)
    if pairs:
        yield from (
            "",
            f"## {say('clinic.page.faults')}",
            "",
            say("clinic.page.faults.how"),
            "",
            *_faults(results, say),
        )
    yield from ("", f"## {say('clinic.page.rules')}", "", *_rules(results, say))
    yield from ("", f"## {say('clinic.page.wrong')}", "", *_wrong(clinic, say))


def _range(counts: Iterable[int]) -> str:
    """Both ends, or one number where all are the same."""
    return "-".join(str(count) for count in sorted({min(counts, default=0), max(counts, default=0)}))


def _scores(scores: Mapping[str, Score], every: Score, say: Say) -> Iterator[str]:
    rows = {**scores, f"**{say('clinic.page.all')}**": every}
    cells = [
        (name, one.sick, *map(_percent, (one.found, one.first, one.top3)), one.healthy, _percent(one.flagged))
        for name, one in rows.items()
    ]
    yield from _table(say("clinic.page.scores.columns"), cells)


def _settings(program: str, one: LeftOut, say: Say) -> str:
    changed = [f"`{code}.{field}={value:g}`" for code, own in one.settings.items() for field, value in own.items()]
    if not changed:
        return say("clinic.page.left_out.default", program=program)
    return say("clinic.page.left_out.changed", program=program, settings=", ".join(changed))


def _faults(results: Sequence[Result], say: Say) -> Iterator[str]:
    by_pair: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        by_pair.setdefault((result.case.program, result.case.fault), []).append(result)
    rows = [
        (program, fault, *_fault(by_pair[program, fault], harm)) for (program, fault), harm in harms(results).items()
    ]
    yield from _table(say("clinic.page.faults.columns"), rows)
    yield ""
    yield from (f"- `{fault}`: {say(f'fault.{fault}')}" for fault in BY_NAME if any(fault == row[1] for row in rows))


def _fault(own: Sequence[Result], harm: Harm) -> tuple[object, ...]:
    detected = [result.detected for result in own if result.detected is not None]
    return (
        len(own),
        sum(result.found for result in own),
        sum(result.named(1) for result in own),
        sum(result.named(3) for result in own),
        f"{statistics.median(detected):.0f} / {own[0].steps}" if detected else "",
        number(harm.sick) + ("" if harm.healthy is None else f" ({number(harm.healthy)})"),
    )


def _rules(results: Sequence[Result], say: Say) -> Iterator[str]:
    names = {rule.code: rule.name for rule in RULES}
    yield from _table(
        say("clinic.page.rules.columns"),
        (
            (
                f"{one.code} {names[one.code]}",
                one.sick,
                _percent(one.sensitivity),
                _percent(one.first),
                "" if one.delay is None else f"{100 * one.delay:.0f} %",
                one.healthy,
                one.false_alarms,
            )
            for one in by_rule(results, names)
        ),
    )


def _wrong(clinic: Clinic, say: Say) -> Iterator[str]:
    lines = [
        say("clinic.page.wrong.failed", case=case.name, reason=reason.replace("`", "'"))
        for case, reason in sorted(clinic.failed.items())
    ]
    for (program, fault), hurts in harmful(clinic.results).items():
        if not hurts:
            lines.append(say("clinic.page.wrong.harmless", program=program, fault=fault))
    lines += [line for result in counted(clinic.results) for line in _mistake(result, say)]
    yield from (f"- {line}" for line in lines or [say("clinic.page.wrong.nothing")])


def _mistake(result: Result, say: Say) -> Iterator[str]:
    nothing = say("clinic.page.wrong.none")
    alarms = ", ".join(result.alarms) or nothing
    if result.case.fault == HEALTHY:
        if result.alarms:
            yield say("clinic.page.wrong.flagged", case=result.case.name, alarms=alarms)
    elif not result.found:
        expected = ", ".join(result.case.rules)
        yield say("clinic.page.wrong.missed", case=result.case.name, expected=expected, alarms=alarms)
    elif not result.named(1):
        right = ", ".join(BY_NAME[result.case.fault].causes)
        causes = ", ".join(result.causes[:3]) or nothing
        yield say("clinic.page.wrong.cause", case=result.case.name, right=right, causes=causes)


def _table(columns: str, rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    """columns: the names, with | between them."""
    yield f"| {columns} |"
    yield "|" + "---|" * len(columns.split("|"))
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
