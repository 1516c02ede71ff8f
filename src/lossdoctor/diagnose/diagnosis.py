"""What the rules say of one run, as a value and as JSON."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass
from typing import Any

from lossdoctor import __version__
from lossdoctor.messages import default_language
from lossdoctor.rules import Finding, Skipped
from lossdoctor.rules.finding import SEVERITIES, Severity
from lossdoctor.rules.preflight_events import events_of
from lossdoctor.rules.receipts import Treated, to_json

SCHEMA = "lossdoctor/diagnosis@1"


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
            "findings": [finding_json(finding, lang) for finding in self.findings],
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


def headline(finding: Finding, lang: str) -> dict[str, Any]:
    """What a finding says, without what it rests on: plain JSON, as the event of a new one holds it."""
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "certainty": finding.certainty,
        "loss": finding.loss,
        "subject": finding.subject,
        "message": finding.message.text(lang),
    }


def finding_json(finding: Finding, lang: str) -> dict[str, Any]:
    """One finding as plain JSON, texts in `lang`."""
    return {
        **headline(finding, lang),
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
        "causes": [
            {"code": cause.code, "loss": cause.params.get("loss"), "text": cause.message.text(lang)}
            for cause in finding.causes
        ],
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
