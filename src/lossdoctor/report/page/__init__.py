"""The report: one HTML file that needs nothing else. Findings first, each with its curve; then the run at a glance.

Everything is inside: styles, the script, the chart library uPlot, the curves. Nothing is loaded from anywhere, and the
content security policy of the page forbids it; names of metrics and texts of users are escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

from lossdoctor import __version__
from lossdoctor.diagnose import Diagnosis
from lossdoctor.report.digest import digest as sum_up
from lossdoctor.report.page.document import document, header
from lossdoctor.report.page.encoding import packed
from lossdoctor.report.page.experiments import ablation_page, experiments
from lossdoctor.report.page.findings import findings, others
from lossdoctor.report.page.markup import each_language, element, escaped, say
from lossdoctor.report.page.overview import every_metric, facts, overview
from lossdoctor.report.page.treatment import treatment
from lossdoctor.report.verdict.wording import extent, headline
from lossdoctor.report.wording import trouble
from lossdoctor.rules import RunView
from lossdoctor.store import Run

__all__ = ["ablation_page", "page", "troubles"]

PICTURES = ("samples.png",)
LARGEST_PICTURE = 1_500_000
_LINKS = ("findings", "treatment", "experiments", "overview", "every")
_PNG = b"\x89PNG\r\n\x1a\n"


def page(run: Run, diagnosis: Diagnosis, *, lang: str = "en", title: str | None = None) -> str:
    """The whole document. lang: the language it opens in; it holds all. title: by default the name of the run."""
    view = RunView(run)
    name = title or (run.path.name if run.path else diagnosis.run) or "run"
    places, curves = packed(((metric, run[metric]) for metric in run), len(run))
    digest = sum_up(run)
    tried = experiments(run)
    sections = [
        element(
            "section", element("h2", say("page.findings")) + findings(run, diagnosis) + others(diagnosis), id="findings"
        ),
        *_treatment(view),
        *([element("section", element("h2", say("page.experiments")) + tried, id="experiments")] if tried else []),
        *troubles(digest.troubles),
        element("section", element("h2", say("page.overview")) + overview(view, digest), id="overview"),
        *_pictures(run),
        element("section", element("h2", say("page.every")) + every_metric(view), id="every"),
        element("section", element("h2", say("page.facts")) + facts(digest, [("lossdoctor", __version__)]), id="facts"),
    ]
    absent = {"treatment": view.treated is None, "experiments": not tried}
    links = [(say(f"page.{place}"), place) for place in _LINKS if not absent.get(place)]
    skip = element("a", say("page.skip"), href="#findings", class_="skip")
    top = header(lang, _headline(name, diagnosis), links)
    return document(name, lang, skip + top, sections, places=places, curves=curves)


def _headline(name: str, diagnosis: Diagnosis) -> str:
    worst = diagnosis.worst() or ("quiet" if not diagnosis.judged else "good")
    told = element("h1", escaped(name))
    told += element("p", each_language(lambda each: headline(diagnosis, each)), class_=f"verdict {worst}")
    return told + element("p", each_language(lambda each: extent(diagnosis, each)), class_="quiet")


def _treatment(view: RunView) -> Iterator[str]:
    if view.treated is not None:
        yield element("section", element("h2", say("page.treatment")) + treatment(view, view.treated), id="treatment")


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
