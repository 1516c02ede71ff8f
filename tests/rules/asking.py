"""Curves as a run, one rule asked about it, and what every finding must be fit for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lossdoctor.diagnose import Diagnosis, diagnose
from lossdoctor.record import Record
from lossdoctor.rules import Finding, Rule
from lossdoctor.rules.causes import CAUSES
from lossdoctor.store import MemoryWriter, Run

Curve = list[float | None]
Curves = dict[str, Curve]


def record(
    curves: Curves,
    *,
    every: int,
    facts: Mapping[str, Any] | None = None,
    times: Callable[[int], float] = float,
    full: bool = True,
    **meta: Any,
) -> Run:
    """Curves as a run: None is an absent value. facts: of an audit. times: the wall clock of the i-th record."""
    writer = MemoryWriter(meta)
    for i in range(max(map(len, curves.values()), default=0)):
        values = {name: x for name, curve in curves.items() if i < len(curve) and (x := curve[i]) is not None}
        writer.append([Record(i * every, values, full=full, time=times(i))])
    if facts is not None:
        writer.event("audit", step=0, facts=facts)
    return writer.run()


@dataclass(frozen=True)
class Asking:
    """recorded: makes a run of curves, with the meta data of a family of rules."""

    recorded: Callable[..., Run]

    def ask(self, rule: Rule, curves: Curves, **more: Any) -> Diagnosis:
        return diagnose(self.recorded(curves, **more), rules=[rule])

    def fired(self, rule: Rule, curves: Curves, **more: Any) -> list[Finding]:
        diagnosis = self.ask(rule, curves, **more)
        assert not [reason for _, reason in diagnosis.skipped if "failed" in reason.reason.key]
        told(diagnosis)
        return list(diagnosis.findings)

    def one(self, rule: Rule, curves: Curves, **more: Any) -> Finding:
        (finding,) = self.fired(rule, curves, **more)
        return finding

    def clear(self, rule: Rule, curves: Curves, **more: Any) -> bool:
        return self.ask(rule, curves, **more).clear == (rule.code,)


def told(diagnosis: Diagnosis) -> None:
    """Every finding can be told in both languages, and rests on finite numbers of known steps."""
    for finding in diagnosis.findings:
        assert finding.evidence
        for evidence in finding.evidence:
            assert math.isfinite(evidence.value)
            if evidence.first_step is not None:
                assert evidence.last_step is not None
                assert 0 <= evidence.first_step <= evidence.last_step < diagnosis.steps
        assert finding.causes
        assert all(cause.code in CAUSES for cause in finding.causes)
        assert all("loss" in cause.params for cause in finding.causes if cause.code.startswith("weight-too")), finding
        assert finding.p is None or 0 <= finding.p <= 1
    for lang in ("en", "zh-CN"):
        diagnosis.to_json(lang)


def codes(finding: Finding) -> list[str]:
    return [cause.code for cause in finding.causes]
