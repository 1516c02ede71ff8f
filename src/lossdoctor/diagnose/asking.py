"""Asking one rule: whether it can be asked, what it answers, and why not.

Rules by others may answer anything; what no form of a diagnosis could tell is taken for a failure of the rule.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from lossdoctor.diagnose.chance import tests_of
from lossdoctor.diagnose.diagnosis import finding_json
from lossdoctor.diagnose.grouping import importance
from lossdoctor.messages import languages
from lossdoctor.rules import Clear, Fired, Message, Outcome, Rule, RunView, Skipped
from lossdoctor.rules.finding import say

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


def judge(rule: Rule, run: RunView) -> Outcome:
    """What a rule answers; Skipped, with the reason, where it cannot be asked or fails. Never raises."""
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
        importance(finding)  # raises for words that have no place in the order
        numbers = [number for one in finding.evidence for number in (one.value, one.threshold)]
        if not all(number is None or isinstance(number, int | float) for number in numbers):
            raise TypeError(f"evidence that is no number: {numbers}")
        _ = [json.dumps(finding_json(finding, lang)) for lang in languages()]
    if wrong := [p for p in tests_of([outcome]) if not 0 <= p <= 1]:
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
