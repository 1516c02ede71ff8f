"""From curves to findings: the only loop over the rules.

A rule that lacks its metrics is skipped and says so. Of the findings that rest on a statistical test, those stay that
survive the control of false discoveries over all tests of the run. Findings that follow from one another are put
together, the one nearest to the root first.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lossdoctor import __version__
from lossdoctor.curves import adjusted
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.messages import default_language, languages
from lossdoctor.rules import Clear, Finding, Fired, Message, Outcome, Rule, RunView, Skipped, every_rule
from lossdoctor.rules.finding import CERTAINTIES, DEPTHS, SEVERITIES, Severity, say
from lossdoctor.rules.preflight_events import events_of, with_preflight
from lossdoctor.rules.receipts import Treated, to_json
from lossdoctor.rules.view import Readable

__all__ = ["SCHEMA", "Diagnosis", "assembled", "configured", "diagnose"]

SCHEMA = "lossdoctor/diagnosis@1"

FALSE_DISCOVERIES = 0.05
"""Share of the findings that may be chance. See docs/log.md, the clinic."""

_ENABLE = {
    "grad": "absent.gradients.todo",
    "weight": "absent.gradients.todo",
    "descent": "absent.gradients.todo",
    "step": "absent.heads.todo",
    "lr": "absent.heads.todo",
    "wd": "absent.heads.todo",
    "ent": "absent.distillation.todo",
    "distill": "absent.distillation.todo",
    "mu": "absent.posterior.todo",
    "std": "absent.posterior.todo",
    "logvar": "absent.posterior.todo",
    "z_init": "absent.posterior.todo",
    "kl": "absent.posterior.todo",
    "posterior": "absent.posterior.todo",
    "teacher": "absent.teacher.todo",
    "ema": "absent.ema.todo",
    "flow/endpt": "absent.endpoint.todo",
    "flow/ode": "absent.endpoint.todo",
    "flow/cond": "absent.condition.todo",
    "flow/time": "absent.time.todo",
    "flow/field": "absent.time.todo",
    "flow": "absent.velocity.todo",
    "ranks": "enable.inputs",
}
"""What to add to the script for a metric, by the beginning of its name; the longer beginning counts."""


_ABOUT = {
    **dict.fromkeys(("ent/", "distill/", "teacher"), "distill"),
    **dict.fromkeys(("mu/", "std/", "logvar/", "z_init/", "kl/", "posterior/"), "kl"),
    "flow/": "velocity",
}
"""The kind of loss a metric is about, by the beginning of its name."""

_LACKS_STEPS = ("skip.short", "skip.rivals", "skip.kl_off")
"""What rules answer when a loss has no steps after its warm-up."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the rules say of one run.

    findings: most important first; a finding that follows from another stands right after it. clear, skipped: codes of
    the other rules, skipped ones with their reason. Every rule asked is in exactly one of the three. treated: what a
    balancer did in the run.
    """

    run: str
    steps: int
    measured: int
    findings: tuple[Finding, ...]
    clear: tuple[str, ...]
    skipped: tuple[tuple[str, Skipped], ...]
    treated: Treated | None = None

    @property
    def groups(self) -> tuple[tuple[Finding, ...], ...]:
        """The findings, each leader with those that follow from it."""
        groups: list[list[Finding]] = []
        for finding in self.findings:
            if finding.explained_by is None:
                groups.append([finding])
            else:
                groups[-1].append(finding)
        return tuple(map(tuple, groups))

    @property
    def judged(self) -> bool:
        """Whether any rule that judges the training, not only the log, could."""
        told = {*self.clear, *(finding.code for finding in self.findings)}
        return any(not code.startswith("RUN") for code in told)

    def worst(self) -> Severity | None:
        """The highest severity found; None without a finding."""
        return min((finding.severity for finding in self.findings), key=SEVERITIES.index, default=None)

    def events(self) -> list[dict[str, Any]]:
        """A diagnosis of preflight as the fields of events of kind "preflight", with which a run remembers it."""
        return list(events_of(self.findings, self.clear, (code for code, _ in self.skipped)))

    def to_json(self, lang: str | None = None) -> dict[str, Any]:
        """The diagnosis as plain JSON, texts in `lang` (default: the language of the locale)."""
        lang = default_language() if lang is None else lang
        return {
            "schema": SCHEMA,
            "run": self.run,
            "steps": self.steps,
            "measured": self.measured,
            "findings": [_finding_json(finding, lang) for finding in self.findings],
            "clear": list(self.clear),
            "skipped": [
                {
                    "code": code,
                    "reason": skipped.reason.text(lang),
                    "enable": None if skipped.enable is None else skipped.enable.text(lang),
                }
                for code, skipped in self.skipped
            ],
            "treatment": to_json(self.treated, lang),
            "versions": {
                "lossdoctor": __version__,
                "python": ".".join(map(str, sys.version_info[:3])),
                "numpy": importlib.metadata.version("numpy"),
            },
        }


def diagnose(run: Readable | RunView, *, rules: Iterable[Rule] | None = None, name: str | None = None) -> Diagnosis:
    """Judge a run by every rule, or by those given. Never raises for what is in the run; needs no torch.

    rules: ours and those of plugins by default. name: what to call the run, by default its folder. A rule
    that fails is skipped, with its error as the reason.
    """
    view = run if isinstance(run, RunView) else RunView(run)
    asked = configured() if rules is None else tuple(rules)
    outcomes = {rule.code: (rule, _judge(rule, view)) for rule in asked}
    path = getattr(run, "path", None)
    return assembled(
        _settled(with_preflight(_without_chance(outcomes), view.events), view),
        run=name if name is not None else str(path) if path is not None else "",
        steps=view.last_step + 1,
        measured=len(view.steps),
        treated=view.treated,
    )


def assembled(
    outcomes: Mapping[str, tuple[Rule, Outcome]],
    *,
    run: str = "",
    steps: int = 0,
    measured: int = 0,
    treated: Treated | None = None,
) -> Diagnosis:
    """The diagnosis that outcomes by code make, whoever found them: findings that follow from another behind it."""
    found = [f for _, outcome in outcomes.values() if isinstance(outcome, Fired) for f in outcome.findings]
    return Diagnosis(
        run=run,
        steps=steps,
        measured=measured,
        findings=tuple(_grouped(found, {code: rule for code, (rule, _) in outcomes.items()})),
        clear=tuple(code for code, (_, outcome) in outcomes.items() if isinstance(outcome, Clear)),
        skipped=tuple((code, outcome) for code, (_, outcome) in outcomes.items() if isinstance(outcome, Skipped)),
        treated=treated,
    )


def configured(
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Rule, ...]:
    """The rules to ask. select, ignore: codes, or beginnings of codes such as "VEL". settings: code to field to value.

    Raises UsageError for a code that begins no rule, a field the rule does not have, or a value of another type.
    """
    rules = every_rule()
    for given in (*select, *ignore, *(settings or {})):
        if not any(_means(given, rule) for rule in rules):
            known = ", ".join(sorted({rule.code[:3] for rule in rules}))
            raise UsageError(
                mismatch(
                    "There is no such rule.",
                    f"a code such as GRD101, or its beginning: {known}",
                    given,
                    "list the rules with: lossdoctor explain",
                )
            )
    asked = [rule for rule in rules if not select or any(_means(code, rule) for code in select)]
    asked = [rule for rule in asked if not any(_means(code, rule) for code in ignore)]
    return tuple(_with_settings(rule, (settings or {}).get(rule.code, {})) for rule in asked)


def _means(code: str, rule: type[Rule]) -> bool:
    return bool(code) and (rule.code.startswith(code.upper()) or rule.name == code)


def _with_settings(rule: type[Rule], settings: Mapping[str, Any]) -> Rule:
    known = rule.thresholds()
    values = {}
    for field, value in settings.items():
        if field not in known:
            names = ", ".join(known) or "none"
            raise UsageError(
                mismatch(
                    f"{rule.code} has no such setting.",
                    f"one of: {names}",
                    field,
                    f"see lossdoctor explain {rule.code}",
                )
            )
        try:
            values[field] = type(known[field])(value)
        except (TypeError, ValueError) as error:
            raise UsageError(
                mismatch(f"{rule.code}.{field} is a number.", type(known[field]).__name__, repr(value), "give a number")
            ) from error
    return rule(**values)


# Asking one rule


def _judge(rule: Rule, run: RunView) -> Outcome:
    try:
        return _told(rule, _asked(rule, run))
    except (Exception, SystemExit) as error:  # the other rules still have something to say
        return Skipped(say("skip.failed", error=f"{type(error).__name__}: {error}"))


def _asked(rule: Rule, run: RunView) -> Outcome:
    if rule.kind is not None and not run.of_kind(rule.kind):
        return Skipped(say("skip.kind", kind=rule.kind), say("enable.kind", kind=rule.kind))
    missing = [need for need in rule.needs if not any(_there(one, run) for one in need.split(" or "))]
    if missing:
        return _unasked(rule, run, missing)
    return _in_time(rule, rule.check(run), run)


def _told(rule: Rule, outcome: Outcome) -> Outcome:
    """The outcome, if every form of a diagnosis can tell it, which of rules by others nobody knows. Raises if not."""
    if not isinstance(outcome, Fired | Clear | Skipped):
        raise TypeError(f"check answered {outcome!r}, which is neither Fired, Clear nor Skipped")
    if isinstance(outcome, Skipped):
        for message in filter(None, (outcome.reason, outcome.enable)):
            _ = [message.text(lang) for lang in languages()]
        return outcome
    for finding in outcome.findings if isinstance(outcome, Fired) else ():
        if finding.code != rule.code:
            raise ValueError(f"a finding of {finding.code}, not of {rule.code}")
        _importance(finding)  # raises for words that have no place in the order
        numbers = [number for one in finding.evidence for number in (one.value, one.threshold)]
        if not all(number is None or isinstance(number, int | float) for number in numbers):
            raise TypeError(f"evidence that is no number: {numbers}")
        _ = [json.dumps(_finding_json(finding, lang)) for lang in languages()]
    if wrong := [p for p in _tests([outcome]) if not 0 <= p <= 1]:
        raise ValueError(f"no probabilities: {wrong}")
    return outcome


def _in_time(rule: Rule, outcome: Outcome, run: RunView) -> Outcome:
    """Where a schedule, and not the length of the run, left a rule without steps to judge, that is the reason."""
    if isinstance(outcome, Skipped) and outcome.reason.key in _LACKS_STEPS:
        kind = rule.kind or next(filter(None, map(_kind_of, rule.needs)), None)
        if (why := run.waits_for(kind)) is not None:
            return Skipped(why, say("enable.longer"))
    return outcome


def _kind_of(need: str) -> str | None:
    """The kind of loss that a metric or an audit is about; None for one that is about any."""
    return next((kind for start, kind in _ABOUT.items() if need.removeprefix("audit:").startswith(start)), None)


def _unasked(rule: Rule, run: RunView, missing: Sequence[str]) -> Skipped:
    """Why a rule that lacks metrics was not asked: it does not apply, or something is to be added to the script."""
    why = rule.beside_the_point(run)
    if why is not None:
        return Skipped(why)
    kind = _kind_of(missing[0])
    if kind is not None and not run.of_kind(kind):
        return Skipped(say("skip.kind", kind=kind), say("enable.kind", kind=kind))
    return Skipped(say("skip.missing", metrics=", ".join(missing)), _enable(missing[0]))


def _there(need: str, run: RunView) -> bool:
    if need == "audit" or need.startswith("audit:"):
        topic = need.removeprefix("audit").removeprefix(":")
        return any(not topic or topic in facts for _, facts in run.audits)
    return need in run or run.has(need)


def _enable(need: str) -> Message:
    if need.startswith("audit"):
        topic = need.removeprefix("audit").removeprefix(":")
        return say(f"absent.{topic}.todo") if topic in ("teacher", "ema") else say("enable.audit")
    starts = [start for start in _ENABLE if need.startswith(start)]
    return say(_ENABLE[max(starts, key=len)]) if starts else say("enable.other", metrics=need)


# False discoveries


def _without_chance(outcomes: dict[str, tuple[Rule, Outcome]]) -> dict[str, tuple[Rule, Outcome]]:
    """Findings whose test could be chance among all tests made are withdrawn (Benjamini and Hochberg 1995)."""
    tests = list(_tests(outcome for _, outcome in outcomes.values()))
    bar = max((p for p, q in zip(tests, adjusted(tests).tolist(), strict=True) if q <= FALSE_DISCOVERIES), default=0.0)
    kept: dict[str, tuple[Rule, Outcome]] = {}
    for code, (rule, outcome) in outcomes.items():
        kept[code] = (rule, _sure(outcome, bar) if isinstance(outcome, Fired) else outcome)
    return kept


def _sure(fired: Fired, bar: float) -> Fired | Clear:
    findings = tuple(finding for finding in fired.findings if finding.p is None or finding.p <= bar)
    return replace(fired, findings=findings) if findings else Clear(fired.p)


def _tests(outcomes: Iterable[Outcome]) -> Iterator[float]:
    for outcome in outcomes:
        if not isinstance(outcome, Skipped):
            yield from outcome.p
        if isinstance(outcome, Fired):
            yield from (finding.p for finding in outcome.findings if finding.p is not None)


# Experiments


def _settled(outcomes: dict[str, tuple[Rule, Outcome]], run: RunView) -> dict[str, tuple[Rule, Outcome]]:
    """What experiments have said of this run's findings since: some are confirmed, some withdrawn."""
    # As texts: in an event may stand anything.
    told = {
        tuple(str(event.get(part)) for part in ("code", "loss", "subject")): event
        for event in run.events
        if event.get("kind") == "experiment"
    }
    settled = dict(outcomes)
    for code, (rule, outcome) in outcomes.items() if told else ():
        if isinstance(outcome, Fired):
            kept = []
            for finding in outcome.findings:
                event = told.get((finding.code, str(finding.loss), str(finding.subject)), {})
                certainty = event.get("certainty", finding.certainty)
                if certainty in CERTAINTIES:
                    kept.append(replace(finding, certainty=certainty))
            # Nothing is lost: a rule whose findings are all withdrawn says so.
            gone = Skipped(say("skip.withdrawn"))
            settled[code] = (rule, replace(outcome, findings=tuple(kept)) if kept else gone)
    return settled


# Putting findings together


def _grouped(findings: Sequence[Finding], rules: Mapping[str, Rule]) -> Iterator[Finding]:
    """Leaders, each followed by what it explains; the group with the worst finding in it comes first."""
    ordered = sorted(findings, key=_importance)
    leader_of = {id(finding): _leader(finding, ordered, rules) for finding in ordered}
    groups = [
        (finding, tuple(_followers(finding, ordered, leader_of)))
        for finding in ordered
        if leader_of[id(finding)] is None
    ]
    for leader, followers in sorted(groups, key=lambda group: _worst((group[0], *group[1]))):
        yield leader
        yield from followers


def _followers(
    leader: Finding, ordered: Sequence[Finding], leader_of: Mapping[int, Finding | None]
) -> Iterator[Finding]:
    for finding in ordered:
        if leader_of[id(finding)] is leader:
            yield replace(finding, explained_by=leader.code)


def _leader(finding: Finding, ordered: Sequence[Finding], rules: Mapping[str, Rule]) -> Finding | None:
    """The most important finding that this one follows from, directly or over others; None for a leader."""
    seen = {id(finding)}
    reached = [finding]
    best: Finding | None = None
    while reached:
        one = reached.pop()
        for other in ordered:
            if id(other) not in seen and _explains(other, one, rules):
                seen.add(id(other))
                reached.append(other)
    roots = [one for one in ordered if id(one) in seen and not any(_explains(o, one, rules) for o in ordered)]
    best = roots[0] if roots else None
    return None if best is finding else best


def _explains(root: Finding, other: Finding, rules: Mapping[str, Rule]) -> bool:
    if root is other or (root.code == other.code and root.subject == other.subject and root.loss == other.loss):
        return False
    if root.loss is not None and other.loss is not None and root.loss != other.loss:
        return False
    back = rules[other.code].explains
    if root.code in back or root.code[:3] in back:
        return False
    named = rules[root.code].explains
    if other.code in named or other.code[:3] in named:
        return True
    # The same root named first by both: the one that is nearer to it leads.
    same = bool(root.causes) and bool(other.causes) and root.causes[0].code == other.causes[0].code
    return same and _importance(root) < _importance(other)


def _worst(group: Sequence[Finding]) -> tuple[int, tuple[int, int, int, str, str]]:
    return min(SEVERITIES.index(finding.severity) for finding in group), _importance(group[0])


def _importance(finding: Finding) -> tuple[int, int, int, str, str]:
    return (
        SEVERITIES.index(finding.severity),
        DEPTHS.index(finding.depth),
        CERTAINTIES.index(finding.certainty),
        finding.code,
        f"{finding.loss} {finding.subject}",
    )


def _finding_json(finding: Finding, lang: str) -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "certainty": finding.certainty,
        "loss": finding.loss,
        "subject": finding.subject,
        "message": finding.message.text(lang),
        "explained_by": finding.explained_by,
        "evidence": [
            {
                "metric": e.metric,
                "value": e.value,
                "threshold": e.threshold,
                "first_step": e.first_step,
                "last_step": e.last_step,
            }
            for e in finding.evidence
        ],
        "causes": [{"code": cause.code, "text": cause.message.text(lang)} for cause in finding.causes],
        "fixes": [
            {
                "action": fix.action,
                "target": fix.target,
                "params": fix.params,
                "reach": fix.reach,
                "text": fix.message.text(lang),
            }
            for fix in finding.fixes
        ],
        "confirm": finding.confirm,
    }
