"""What every form of a diagnosis says in the same words."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from lossdoctor.arms import parse
from lossdoctor.diagnose import Diagnosis
from lossdoctor.errors import UsageError
from lossdoctor.keys import describe
from lossdoctor.messages import text
from lossdoctor.report.wording import number, visible
from lossdoctor.rules import Evidence, Finding
from lossdoctor.rules.finding import SEVERITIES


def headline(diagnosis: Diagnosis, lang: str) -> str:
    """The outcome in one line: how many findings of which severity, or that nothing was found, or judged."""
    if not diagnosis.judged:
        return text("check.nothing_judged", lang)
    leaders = Counter(group[0].severity for group in diagnosis.groups)
    if not leaders:
        return text("check.clear", lang)
    return ", ".join(_counted(severity, leaders[severity], lang) for severity in SEVERITIES if leaders[severity])


def _counted(severity: str, n: int, lang: str) -> str:
    return text(f"check.count.{severity}" + (".one" if n == 1 else ""), lang, n=n)


def extent(diagnosis: Diagnosis, lang: str) -> str:
    """How much of the run there was to judge."""
    if diagnosis.judged and not diagnosis.steps:
        return text("check.before", lang)
    return text("check.extent", lang, steps=f"{diagnosis.steps:,}", measured=f"{diagnosis.measured:,}")


def subject(finding: Finding) -> str:
    """The loss, head or metric a finding is about; empty for the whole run."""
    return visible(" ".join(dict.fromkeys(filter(None, (finding.loss, finding.subject)))))


def proof(evidence: Evidence, lang: str) -> str:
    """One number of the evidence with its threshold and its steps."""
    told = f"{visible(evidence.metric)} = {number(evidence.value)}"
    if evidence.threshold is not None:
        told += " " + text("check.threshold", lang, threshold=number(evidence.threshold))
    if evidence.first_step is not None and evidence.last_step is not None:
        told += ", " + text("check.steps", lang, first=f"{evidence.first_step:,}", last=f"{evidence.last_step:,}")
    return told


def confirmation(finding: Finding, lang: str) -> str:
    """How to make sure: an experiment as a command, a metric as what to look at; empty where the rule names nothing."""
    told = finding.confirm or ""
    if describe(told) is not None:
        return text("check.confirm.metric", lang, metric=told)
    try:
        parse(told)
    except UsageError:
        return told
    return f"lossdoctor ablate --arms {shlex.quote(told)} -- python train.py"


def follows(followers: Sequence[Finding], lang: str) -> str:
    """The findings that follow from a leader, by code and name."""
    names = ", ".join(dict.fromkeys(f"{one.code} {one.name}" for one in followers))
    return text("check.follows", lang, findings=names)
