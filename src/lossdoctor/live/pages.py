"""The pages that are served: their frame, and the parts of a run's page, which are those of the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from lossdoctor import __version__
from lossdoctor.live.growing import Growing
from lossdoctor.messages import languages
from lossdoctor.report.page import troubles
from lossdoctor.report.page.experiments import experiments
from lossdoctor.report.page.findings import findings, others
from lossdoctor.report.page.markup import each_language, element, escaped, say
from lossdoctor.report.page.overview import every_metric, facts, overview
from lossdoctor.report.page.shell import buttons, in_script, words
from lossdoctor.report.page.treatment import treatment
from lossdoctor.report.thin import ThinRun, glance
from lossdoctor.report.verdict.wording import headline, subject
from lossdoctor.rules import Finding, RunView
from lossdoctor.rules.finding import SEVERITIES

_STATES = ("absent", "empty", "growing", "silent", "ended", "deleted", "unreadable")
_WORDS: list[tuple[str, ...]] = [
    ("empty", "page.empty"),
    ("clear", "check.clear"),
    ("fresh", "live.fresh"),
    *((f"connection.{state}", f"live.connection.{state}") for state in ("open", "lost", "paused")),
    *((f"state.{state}", f"live.state.{state}") for state in _STATES),
    *((f"severity.{severity}", f"severity.{severity}") for severity in SEVERITIES),
    *((f"count.{severity}.one", f"check.count.{severity}.one") for severity in SEVERITIES),
    *((f"count.{severity}", f"check.count.{severity}", "n") for severity in SEVERITIES),
    ("rate", "progress.rate", "rate"),
    ("steps", "report.steps", "steps"),
    ("measured", "report.measured", "measured"),
    ("judging", "live.judging"),
    ("runs", "live.runs_count", "n", "all"),
    ("none", "live.no_runs"),
    ("most", "live.most", "n"),
]

LATER = ("treatment", "experiments")
"""Sections of a run's page that are shown as soon as there is something in them."""

COMPARED = 6
"""Runs on one page at most: as many as there are colours."""


def parts(one: Growing, run: ThinRun) -> dict[str, str]:
    """The parts of a run's page that are not curves, as HTML, by where they go. run: judged already."""
    judge = one.judge
    assert judge.diagnosis is not None
    standing = tuple(finding for group in judge.standing() for finding in group)
    diagnosis, view, digest = replace(judge.diagnosis, findings=standing), RunView(run), glance(run)
    leading = (group[0].severity for group in diagnosis.groups)
    worst = min(leading, key=SEVERITIES.index, default="quiet" if not diagnosis.judged else "good")
    verdict = element("p", each_language(lambda lang: headline(diagnosis, lang)), class_=f"verdict {worst}")
    return {
        "verdict": verdict
        + (element("p", say("live.asked", step=f"{diagnosis.steps - 1:,}"), class_="quiet") if diagnosis.steps else ""),
        "ranks": _ranks(one, run),
        "findings": findings(run, diagnosis),
        "others": others(diagnosis),
        "treatment": "" if view.treated is None else treatment(view, view.treated),
        "experiments": experiments(run),
        "troubles": "".join(troubles(digest.troubles)),
        "overview": overview(view, digest),
        "every": every_metric(view),
        "facts": facts(digest, [("lossdoctor", __version__)]),
        # For pages with several runs: which metrics come first.
        "headlines": "\n".join(line.name for line in digest.lines if line.count > 1 and "\n" not in line.name),
    }


def verdicts(groups: Sequence[tuple[Finding, ...]]) -> list[dict[str, Any]]:
    """The findings of a run in the fewest words, for a table of several runs."""
    return [
        {"severity": group[0].severity, "code": group[0].code, "name": group[0].name, "subject": subject(group[0])}
        for group in groups
    ]


def _ranks(shown: Growing, run: ThinRun) -> str:
    """The way to the other ranks of the run; nothing where there is one."""
    if len(run.ranks) < 2:
        return ""
    home = shown.name.rpartition("/")[0] or "." if shown.other else shown.name
    inside = "" if home == "." else f"{home}/"
    names = {rank: f"{inside}run.rank{rank}.db" if rank else home for rank in run.ranks}
    links = [
        element(
            "a",
            escaped(rank),
            href=f"run?{urlencode({'run': one})}",
            aria_current="page" if one == shown.name else None,
        )
        for rank, one in names.items()
    ]
    together = urlencode([("run", one) for one in list(names.values())[:COMPARED]])
    links.append(element("a", say("live.side_by_side"), href=f"compare?{together}"))
    return element("p", f"{say('live.ranks')} {' '.join(links)}", class_="quiet ranks")


def list_page(root: str, lang: str, version: str) -> str:
    """All runs: searched, sorted, chosen for a comparison."""
    columns = ("run", "state", "steps", "rate", "losses", "findings")
    head = element("th", element("span", say("live.choose"), class_="hidden"), scope="col")
    for column in columns:
        button = element("button", say(f"live.column.{column}"), type="button", data_sort=column)
        head += element("th", button, scope="col", class_=f"of-{column}")
    table = element("table", element("thead", element("tr", head)) + '<tbody id="rows"></tbody>', id="runs")
    search = element("label", say("page.search"), for_="search")
    search += '<input id="search" type="search" autocomplete="off" spellcheck="false">'
    compare = element("a", say("live.compare"), id="compare", href="compare", class_="button", aria_disabled="true")
    main = element("div", search + compare, class_="search")
    main += element("p", say("live.keys"), class_="quiet keys") + element("p", "", class_="quiet", id="count")
    main += element("div", table, class_="scroll")
    header = _header(element("h1", say("live.title")) + element("p", escaped(root), class_="quiet"), (), lang)
    return _document(
        "list",
        (),
        header + _news() + element("main", main, id="main"),
        lang=lang,
        skip=say("live.skip_runs"),
        version=version,
    )


def run_page(run: str, lang: str, version: str) -> str:
    """One run: the report, growing."""
    head = element("h1", escaped(run)) + element("p", "", id="state", role="status")
    head += element("p", "", id="extent", class_="quiet")
    head += element("div", "", data_part="ranks") + element("div", "", id="verdict")
    main = element("p", "", id="waiting", class_="quiet")
    main += _section("findings", element("div", "", data_part="findings") + element("div", "", data_part="others"))
    for name in LATER:
        main += _section(name, element("div", "", data_part=name))
    main += element("div", "", data_part="troubles")
    main += _section("overview", element("div", "", data_part="overview"))
    main += _section("every", element("div", "", data_part="every"))
    main += _section("facts", element("div", "", data_part="facts"))
    header = _header(head, ("findings", *LATER, "overview", "every"), lang)
    return _document(
        "run",
        (run,),
        header + _news() + element("main", main, id="main"),
        lang=lang,
        skip=say("page.skip"),
        version=version,
    )


def compare_page(runs: Sequence[str], lang: str, version: str) -> str:
    """Some runs in the same charts."""
    head = element("h1", say("live.comparison")) + element("ul", "", id="legend")
    main = _section("findings", element("div", "", id="verdicts"))
    main += _section("overview", element("div", "", class_="grid", id="charts"))
    search = element("label", say("page.search"), for_="search")
    search += '<input id="search" type="search" autocomplete="off" spellcheck="false">'
    main += _section("every", element("div", search, class_="search") + element("div", "", id="metrics"))
    main += element("p", say("compare.seeds"), class_="quiet")
    header = _header(head, ("findings", "overview", "every"), lang)
    return _document(
        "compare",
        runs,
        header + _news() + element("main", main, id="main"),
        lang=lang,
        skip=say("page.skip"),
        version=version,
    )


def _section(name: str, content: str) -> str:
    hidden = "hidden" if name in LATER else None
    return element("section", element("h2", say(f"page.{name}")) + content, id=name, hidden=hidden)


def _header(told: str, sections: Iterable[str], lang: str) -> str:
    each = "".join(
        element("a", say(f"page.{name}"), href=f"#{name}", hidden="hidden" if name in LATER else None)
        for name in sections
    )
    away = element("a", say("live.title"), href="./") if each else ""
    tools = element("nav", away + each) + buttons(lang) + element("p", "", id="connection", role="status")
    return element("header", element("div", told) + element("div", tools, class_="tools"))


def _news() -> str:
    """Where news are told to those who hear the page."""
    return element("p", "", id="news", role="status", class_="hidden")


def _document(page: str, runs: Sequence[str], body: str, *, lang: str, skip: str, version: str) -> str:
    title = " · ".join(runs) if runs else "lossdoctor"
    first = "#rows" if page == "list" else "#findings"
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escaped(title)}</title>",
        '<link rel="icon" href="data:,">',
        f'<link rel="stylesheet" href="assets/live.css?v={version}">',
        f'<script src="assets/early.js?v={version}"></script>',
    ]
    told = {"page": page, "runs": list(runs), "most": COMPARED, "words": words(_WORDS)}
    scripts = "".join(f'<script src="assets/{name}.js?v={version}"></script>' for name in ("charts", "live"))
    assert lang in languages()
    return (
        f'<!doctype html>\n<html lang="{lang}" data-lang="{lang}">\n<head>\n' + "\n".join(head) + "\n</head>\n"
        f'<body class="live">\n{element("a", skip, href=first, class_="skip")}\n{body}\n'
        f'<script type="application/json" id="data">{in_script(told)}</script>\n{scripts}\n</body>\n</html>\n'
    )
