"""The frame of every page: head, languages, theme, and a policy that lets nothing in from outside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from lossdoctor.report.page.markup import element, escaped
from lossdoctor.report.page.shell import asset, buttons, charts, in_script, style, words


def document(
    title: str, lang: str, header: str, sections: Iterable[str], *, places: dict[str, Any], curves: str
) -> str:
    """A whole document. header, sections: HTML. places, curves: of `encoding.packed`; without any no charts are drawn,
    and the library for them is left out."""
    script = charts(drawing=bool(places)) + "\n" + asset("page.js")
    data = {"places": places, "words": words([("empty", "page.empty")])}
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escaped(title)} - lossdoctor</title>",
        f"<style>{style(drawing=bool(places))}</style>",
    ]
    body = [
        header,
        '<main id="main">',
        *sections,
        "</main>",
        f'<script type="application/json" id="data">{in_script(data)}</script>',
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
    nav = element("nav", "".join(element("a", name, href=f"#{place}") for name, place in links))
    tools = element("div", nav + buttons(lang), class_="tools")
    return element("header", element("div", told) + tools)


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
