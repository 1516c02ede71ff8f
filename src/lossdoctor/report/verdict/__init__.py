"""A diagnosis in every form it is given in: one file per form, one line per form here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lossdoctor.diagnose import Diagnosis
from lossdoctor.report.verdict import github, json, markdown, sarif

__all__ = ["DOCUMENTS"]

DOCUMENTS: Mapping[str, Callable[[Sequence[Diagnosis], str], str]] = {
    "json": json.document,
    "markdown": markdown.document,
    "sarif": sarif.document,
    "github": github.document,
}
"""Form to the function that writes it: diagnoses and a language to a text. `text.Verdict` is the form for terminals."""
