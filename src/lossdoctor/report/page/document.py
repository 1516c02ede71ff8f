"""The frame of every page: head, languages, theme, and a policy that lets nothing in from outside."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from lossdoctor.messages import languages, text
from lossdoctor.report.page.markup import element, escaped, say


def document(
    title: str, lang: str, header: str, sections: Iterable[str], *, places: dict[str, Any], curves: str
) -> str:
    """A whole document. header, sections: HTML. places, curves: of `encoding.packed`; without any no charts are drawn,
    and the library for them is left out."""
    script = (_file("uplot/uPlot.iife.min.js") + "\n" if places else "") + _file("page.js")
    style = (_file("uplot/uPlot.min.css") + "\n" if places else "") + _file("page.css")
    data = {
        "places": places,
        "words": {each: {key: text(f"page.{key}", each) for key in ("reset", "step", "empty")} for each in languages()},
    }
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escaped(title)} - lossdoctor</title>",
        f"<style>{style}</style>",
    ]
    body = [
        header,
        '<main id="main">',
        *sections,
        "</main>",
        f'<script type="application/json" id="data">{_in_script(json.dumps(data))}</script>',
        f'<script type="text/plain" id="curves">{curves}</script>',
        f"<script>{script}</script>",
    ]
    return (
        f'<!doctype html>\n<html lang="{lang}" data-lang="{lang}">\n<head>\n'
        + "\n".join(head)
        + "\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def header(lang: str, told: str, links: Sequence[tuple[str, str]]) -> str:
    """What stands on top. told: HTML. links: sentence, as HTML, and the id of the section."""
    chosen = "".join(
        element("button", label, type="button", data_set_lang=each, aria_pressed="true" if each == lang else "false")
        for each, label in zip(languages(), ("English", "中文"), strict=True)
    )
    themes = element("button", say("page.theme"), type="button", id="theme")
    nav = element("nav", "".join(element("a", name, href=f"#{place}") for name, place in links))
    tools = element("div", nav + element("div", chosen + themes, class_="buttons"), class_="tools")
    return element("header", element("div", told) + tools)


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"


def _in_script(told: str) -> str:
    """JSON that cannot end the element it stands in."""
    return told.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return resources.files("lossdoctor.report.page").joinpath(name).read_text(encoding="utf-8")
