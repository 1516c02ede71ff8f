"""The first part of the page: what was found, each with the curve it rests on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np

from lossdoctor.diagnose import Diagnosis
from lossdoctor.report.page.markup import each_language, element, escaped, say, table
from lossdoctor.report.verdict.wording import confirmation, follows, proof, subject
from lossdoctor.rules import Evidence, Finding
from lossdoctor.store import Run

OPEN = 3
"""Findings that are open when the page is."""


def findings(run: Run, diagnosis: Diagnosis) -> str:
    """All groups of findings; one sentence when there is none."""
    if not diagnosis.judged:
        return element("p", say("page.nothing_judged"), class_="quiet")
    if not diagnosis.findings:
        return element("p", say("page.no_findings"), class_="good")
    return "".join(_group(run, place, group) for place, group in enumerate(diagnosis.groups))


def others(diagnosis: Diagnosis) -> str:
    """Rules that are clear, and those that could not be asked, with the reason of each."""
    clear = element("p", f"{say('check.clear_rules')} {escaped(' '.join(diagnosis.clear) or '-')}")
    rows = []
    for code, skipped in diagnosis.skipped:
        enable = "" if skipped.enable is None else each_language(skipped.enable.text)
        rows.append((escaped(code), each_language(skipped.reason.text), enable))
    head = (say("check.rule"), say("check.skipped_because"), say("check.enable"))
    told = table(head, rows) if rows else ""
    summary = element("summary", say("check.others", clear=len(diagnosis.clear), skipped=len(diagnosis.skipped)))
    return element("details", summary + clear + told, class_="others")


def _group(run: Run, place: int, group: tuple[Finding, ...]) -> str:
    leader, followers = group[0], group[1:]
    about = element("span", escaped(subject(leader)), class_="subject") if subject(leader) else ""
    head = (
        element("span", say(f"severity.{leader.severity}"), class_=f"badge {leader.severity}")
        + element("span", escaped(leader.code), class_="code")
        + element("span", escaped(leader.name), class_="name")
        + about
        + element("span", say(f"certainty.{leader.certainty}"), class_="certainty")
    )
    body = element("p", each_language(leader.message.text), class_="sentence")
    body += element("div", element("div", "".join(_words(leader))) + _charts(run, leader), class_="columns")
    if followers:
        body += element("p", each_language(lambda lang: follows(followers, lang)), class_="quiet")
        body += element("ul", "".join(element("li", each_language(one.message.text)) for one in followers))
    opened = "open" if place < OPEN else None
    return element(
        "details",
        element("summary", head) + body,
        class_=f"finding {leader.severity}",
        id=f"finding-{place + 1}",
        data_key=" ".join(filter(None, (leader.code, leader.loss, leader.subject))),
        open=opened,
    )


def _words(finding: Finding) -> Iterator[str]:
    proofs = [each_language(lambda lang, one=one: proof(one, lang)) for one in finding.evidence]  # type: ignore[misc]
    causes = [each_language(cause.message.text) for cause in finding.causes]
    fixes = [each_language(fix.message.text) for fix in finding.fixes]
    confirm = [each_language(lambda lang: confirmation(finding, lang))] if finding.confirm else []
    for label, lines, ordered in (
        ("evidence", proofs, "ul"),
        ("cause", causes, "ol"),
        ("try", fixes, "ol"),
        ("confirm", confirm, "ul"),
    ):
        if lines:
            yield element("h3", say(f"check.{label}"))
            yield element(ordered, "".join(element("li", line) for line in lines))


def _charts(run: Run, finding: Finding) -> str:
    shown = [one for one in finding.evidence if one.metric in run and len(run[one.metric]) > 1][:2]
    return element("div", "".join(_chart(run, one) for one in shown), class_="charts") if shown else ""


def _chart(run: Run, evidence: Evidence) -> str:
    values = run[evidence.metric].finite.values
    wide = len(values) > 0 and values.min() > 0 and values.max() > 50 * values.min()
    return element(
        "figure",
        element("figcaption", escaped(evidence.metric)),
        class_="chart",
        data_series=json.dumps([evidence.metric]),
        data_log="1" if wide else None,
        data_threshold=evidence.threshold if _same_quantity(run, evidence) else None,
        data_from=evidence.first_step,
        data_to=evidence.last_step,
    )


def _same_quantity(run: Run, evidence: Evidence) -> bool:
    """Whether value and threshold are of the curve itself: a rule may have judged a ratio or a trend of it."""
    if evidence.threshold is None or not math.isfinite(evidence.value):
        return False
    curve = run[evidence.metric].finite.values
    if not len(curve):
        return False
    low, high = float(np.min(curve)), float(np.max(curve))
    return low - 1e-12 <= evidence.value <= high + 1e-12
