"""The diagnosis as Markdown, for a pull request or a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lossdoctor.diagnose import Diagnosis
from lossdoctor.messages import text
from lossdoctor.report.receipts import COLUMNS, rows, standing
from lossdoctor.report.receipts import headline as headline_of
from lossdoctor.report.verdict.wording import confirmation, extent, follows, headline, proof, subject
from lossdoctor.report.wording import visible
from lossdoctor.rules import Finding
from lossdoctor.rules.receipts import Treated


def document(diagnoses: Sequence[Diagnosis], lang: str) -> str:
    """One document with a chapter per run."""
    return "\n".join(line for diagnosis in diagnoses for line in _chapter(diagnosis, lang)).rstrip() + "\n"


def _chapter(diagnosis: Diagnosis, lang: str) -> Iterator[str]:
    yield from (f"# {_plain(diagnosis.run) or 'run'}", "")
    yield from (f"**{headline(diagnosis, lang)}**  ", extent(diagnosis, lang), "")
    for place, group in enumerate(diagnosis.groups, 1):
        yield from _group(place, group, lang)
    if diagnosis.treated is not None:
        yield from _treated(diagnosis.treated, lang)
    yield from (f"## {text('check.not_found', lang)}", "")
    if diagnosis.clear:
        yield from (f"{text('check.clear_rules', lang)} {' '.join(diagnosis.clear)}", "")
    if diagnosis.skipped:
        yield from (
            f"| {text('check.rule', lang)} | {text('check.skipped_because', lang)} | {text('check.enable', lang)} |",
            "|---|---|---|",
        )
        for code, skipped in diagnosis.skipped:
            enable = "" if skipped.enable is None else skipped.enable.text(lang)
            yield f"| {code} | {_plain(skipped.reason.text(lang))} | {_plain(enable)} |"
    yield ""


def _treated(treated: Treated, lang: str) -> Iterator[str]:
    yield from (f"## {_plain(headline_of(treated, lang))}", "")
    if treated.receipts:
        yield f"| {' | '.join(text(f'receipts.{column}', lang) for column in COLUMNS)} |"
        yield "|" + "---|" * len(COLUMNS)
        for row in rows(treated.receipts, lang):
            yield f"| {' | '.join(_plain(getattr(row, column)) for column in COLUMNS)} |"
        yield from ("", text("receipts.note", lang), "")
    for told in standing(treated, lang):
        yield from (_plain(told), "")


def _group(place: int, group: tuple[Finding, ...], lang: str) -> Iterator[str]:
    leader, followers = group[0], group[1:]
    about = f" · {_plain(subject(leader))}" if subject(leader) else ""
    yield from (f"## {place}. {leader.code} {leader.name}{about}", "")
    severity, certainty = text(f"severity.{leader.severity}", lang), text(f"certainty.{leader.certainty}", lang)
    yield from (f"*{severity}, {certainty}.* {_plain(leader.message.text(lang))}", "")
    for label, told in (
        ("evidence", [proof(evidence, lang) for evidence in leader.evidence]),
        ("cause", [cause.message.text(lang) for cause in leader.causes]),
        ("try", [fix.message.text(lang) for fix in leader.fixes]),
        ("confirm", [how] if (how := confirmation(leader, lang)) else []),
    ):
        if told:
            yield from (f"**{text(f'check.{label}', lang)}**", "")
            yield from (f"{n}. {_plain(one)}" for n, one in enumerate(told, 1))
            yield ""
    if followers:
        yield from (_plain(follows(followers, lang)), "")


def _plain(told: str) -> str:
    """Text that Markdown sets as it is, whatever a metric is called."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", visible(told))
