"""The part of the page about what a balancer did: its receipts, and the weights with the steps of the changes."""

from __future__ import annotations

import json

from lossdoctor.messages import languages
from lossdoctor.report.page.markup import each_language, element, say, table
from lossdoctor.report.page.overview import chart
from lossdoctor.report.receipts import COLUMNS, headline, rows, standing
from lossdoctor.rules.receipts import Treated
from lossdoctor.rules.view import RunView

MARKED = 200
"""Changes that are marked in the chart: more would be a wall."""


def treatment(view: RunView, treated: Treated) -> str:
    """Headline, chart and table."""
    parts = [element("p", each_language(lambda lang: headline(treated, lang)))]
    for i in range(len(standing(treated, "en"))):
        told = each_language(lambda lang, i=i: standing(treated, lang)[i])  # type: ignore[misc]
        parts.append(element("p", told, class_="verdict warning"))
    parts.append(_weights(view, treated))
    if treated.receipts:
        lines = {lang: rows(treated.receipts, lang) for lang in languages()}
        body = [
            [each_language(lambda lang, i=i, column=column: getattr(lines[lang][i], column)) for column in COLUMNS]  # type: ignore[misc]
            for i in range(len(lines["en"]))
        ]
        parts.append(table([say(f"receipts.{column}") for column in COLUMNS], body, class_="receipts"))
        parts.append(element("p", say("receipts.note"), class_="quiet"))
    return "".join(parts)


def _weights(view: RunView, treated: Treated) -> str:
    there = [name for loss in view.losses if len(view[name := f"weight/{loss}"]) > 1]
    if not there:
        return ""
    positive = all((view[name].finite.values > 0).any() for name in there)
    marks = json.dumps([receipt.step for receipt in treated.receipts[-MARKED:]])
    return element("div", chart(say("receipts.weights"), there, log=positive, data_marks=marks), class_="charts")
