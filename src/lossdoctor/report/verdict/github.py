"""The diagnosis as annotations of GitHub Actions: one workflow command per finding, on standard output."""

from __future__ import annotations

from collections.abc import Sequence

from lossdoctor.diagnose import Diagnosis
from lossdoctor.report.wording import visible

_COMMAND = {"error": "error", "warning": "warning", "info": "notice"}


def document(diagnoses: Sequence[Diagnosis], lang: str) -> str:
    """The commands, most important finding first; nothing for a run without findings."""
    lines = []
    for diagnosis in diagnoses:
        for finding in diagnosis.findings:
            parts = [visible(finding.message.text(lang)), *(cause.message.text(lang) for cause in finding.causes[:1])]
            title = _property(f"{finding.code} {finding.name} ({visible(diagnosis.run)})")
            lines.append(f"::{_COMMAND[finding.severity]} title={title}::{_data(' '.join(parts))}")
    return "".join(f"{line}\n" for line in lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
