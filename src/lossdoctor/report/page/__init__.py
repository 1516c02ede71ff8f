"""The report: one HTML file that needs nothing else. Findings first, each with its curve; then the run at a glance.

Everything is inside: styles, the script, the chart library uPlot, the curves. Nothing is loaded from anywhere, and the
content security policy of the page forbids it; names of metrics and texts of users are escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

from lossdoctor import __version__
from lossdoctor.diagnose import Diagnosis
from lossdoctor.report.digest import digest as sum_up
from lossdoctor.report.page.encoding import packed
from lossdoctor.report.page.findings import findings, others
from lossdoctor.report.page.markup import each_language, element, escaped, say
from lossdoctor.report.page.overview import every_metric, facts, overview
from lossdoctor.report.page.shell import asset, buttons, charts, in_script, style, words
from lossdoctor.report.verdict.wording import extent, headline
from lossdoctor.report.wording import trouble
from lossdoctor.rules import RunView
from lossdoctor.store import Run

__all__ = ["page"]

PICTURES = ("samples.png",)
LARGEST_PICTURE = 1_500_000
_PNG = b"\x89PNG\r\n\x1a\n"


def page(run: Run, diagnosis: Diagnosis, *, lang: str = "en", title: str | None = None) -> str:
    """The whole document. lang: the language it opens in; it holds all. title: by default the name of the run."""
    view = RunView(run)
    name = title or (run.path.name if run.path else diagnosis.run) or "run"
    places, curves = packed(((metric, run[metric]) for metric in run), len(run))
    script = charts() + "\n" + asset("page.js")
    data = {"places": places, "words": words([("empty", "page.empty")])}
    digest = sum_up(run)
    body = [
        element("a", say("page.skip"), href="#findings", class_="skip"),
        _header(name, diagnosis, lang),
        '<main id="main">',
        element(
            "section", element("h2", say("page.findings")) + findings(run, diagnosis) + others(diagnosis), id="findings"
        ),
        *troubles(digest.troubles),
        element("section", element("h2", say("page.overview")) + overview(view, digest), id="overview"),
        *_pictures(run),
        element("section", element("h2", say("page.every_metric")) + every_metric(view), id="every"),
        element("section", element("h2", say("page.facts")) + facts(digest, [("lossdoctor", __version__)]), id="facts"),
        "</main>",
        f'<script type="application/json" id="data">{in_script(data)}</script>',
        f'<script type="text/plain" id="curves">{curves}</script>',
        f"<script>{script}</script>",
    ]
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escaped(name)} - lossdoctor</title>",
        f"<style>{style()}</style>",
    ]
    return (
        f'<!doctype html>\n<html lang="{lang}" data-lang="{lang}">\n<head>\n'
        + "\n".join(head)
        + "\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _header(name: str, diagnosis: Diagnosis, lang: str) -> str:
    links = "".join(
        element("a", say(f"page.{key}"), href=f"#{place}")
        for key, place in (("findings", "findings"), ("overview", "overview"), ("every_metric", "every"))
    )
    worst = diagnosis.worst() or ("quiet" if not diagnosis.judged else "good")
    told = element("h1", escaped(name))
    told += element("p", each_language(lambda each: headline(diagnosis, each)), class_=f"verdict {worst}")
    told += element("p", each_language(lambda each: extent(diagnosis, each)), class_="quiet")
    tools = element("div", element("nav", links) + buttons(lang), class_="tools")
    return element("header", element("div", told) + tools)


def troubles(events: object) -> Iterator[str]:
    """The section on what went wrong in the doctor itself; nothing when nothing did."""
    told = [each_language(lambda lang, event=event: trouble(event, lang)) for event in events]  # type: ignore[attr-defined, misc]
    if told:
        lines = "".join(element("li", one) for one in told)
        yield element("section", element("h2", say("report.troubles")) + element("ul", lines), id="troubles")


def _pictures(run: Run) -> Iterator[str]:
    """Pictures that lie in the folder of the run, put into the page."""
    found = []
    for name in PICTURES:
        path = Path(run.path or "") / name
        if run.path is None or not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
            continue
        content = path.read_bytes()
        if content.startswith(_PNG):
            found.append(
                f'<img alt="{escaped(name)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
            )
    if found:
        yield element("section", element("h2", say("report.pictures")) + "".join(found), id="pictures")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
