"""What a check answers: an outcome for every rule it stands for, so that nothing unchecked looks healthy."""

from __future__ import annotations

from collections.abc import Sequence

from lossdoctor.rules import Rule
from lossdoctor.rules.finding import Clear, Finding, Fired, Message, Outcome, Skipped, say

Rules = Sequence[type[Rule]]
Answers = dict[type[Rule], Outcome]


def all_clear(rules: Rules) -> Answers:
    """None of the problems is there."""
    return {rule: Clear() for rule in rules}


def all_skipped(rules: Rules, reason: Message, enable: Message | None = None) -> Answers:
    """None of them could be looked for."""
    return {rule: Skipped(reason, enable) for rule in rules}


def only(rules: Rules, found: Finding) -> Answers:
    """One problem is there, and hides whether the others are."""
    hidden = Skipped(say("preflight.skip.hidden", code=found.code, name=found.name))
    return {rule: Fired((found,)) if rule.code == found.code else hidden for rule in rules}


def fired(rules: Rules, findings: Sequence[Finding]) -> Answers:
    """Those problems are there, and no other."""
    return {rule: _of(rule, findings) for rule in rules}


def _of(rule: type[Rule], findings: Sequence[Finding]) -> Outcome:
    own = tuple(one for one in findings if one.code == rule.code)
    return Fired(own) if own else Clear()
