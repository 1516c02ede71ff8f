"""The diagnosis as SARIF 2.1.0, which code hosts and editors show beside the code."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Sequence
from typing import Any

from lossdoctor import __version__
from lossdoctor.diagnose import Diagnosis
from lossdoctor.report.wording import visible
from lossdoctor.rules import Finding, every_rule

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVEL = {"error": "error", "warning": "warning", "info": "note"}


def document(diagnoses: Sequence[Diagnosis], lang: str) -> str:
    """One SARIF log with one run of the tool per training run."""
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [_run(diagnosis, lang) for diagnosis in diagnoses]}
    return json.dumps(log, ensure_ascii=False, indent=2) + "\n"


def _run(diagnosis: Diagnosis, lang: str) -> dict[str, Any]:
    found = {finding.code for finding in diagnosis.findings}
    rules = [
        {"id": rule.code, "name": rule.name, "shortDescription": {"text": rule.page().strip().splitlines()[0]}}
        for rule in every_rule()
        if rule.code in found
    ]
    place = {rule["id"]: index for index, rule in enumerate(rules)}
    return {
        "tool": {"driver": {"name": "lossdoctor", "semanticVersion": _semantic(__version__), "rules": rules}},
        "automationDetails": {"id": visible(diagnosis.run) or "run"},
        "results": [
            _result(finding, diagnosis, place[finding.code], lang)
            for finding in diagnosis.findings
            if finding.code in place
        ],
    }


def _result(finding: Finding, diagnosis: Diagnosis, rule: int, lang: str) -> dict[str, Any]:
    where = [
        {"name": visible(name), "kind": "member"}
        for name in dict.fromkeys([evidence.metric for evidence in finding.evidence])
    ]
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": urllib.parse.quote(f"{diagnosis.run or 'run'}/run.db")}}
    }
    if where:
        location["logicalLocations"] = where
    told = [finding.message.text(lang), *(cause.message.text(lang) for cause in finding.causes)]
    return {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": _LEVEL[finding.severity],
        "message": {"text": visible(" ".join(told))},
        "locations": [location],
        "properties": {"certainty": finding.certainty, "loss": finding.loss, "explained_by": finding.explained_by},
    }


def _semantic(version: str) -> str:
    """A version of Python packaging as one of semver.org: 0.1.0.dev0 is 0.1.0-dev0."""
    parts = version.split(".")
    return ".".join(parts[:3]) + ("-" + ".".join(parts[3:]) if parts[3:] else "")
