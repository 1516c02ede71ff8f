"""What every page has around its content: styles and scripts, the buttons for language and theme."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources

from lossdoctor.messages import languages, text
from lossdoctor.report.page.markup import element, say


def asset(name: str) -> str:
    """One of the files beside this one, as text."""
    return resources.files("lossdoctor.report.page").joinpath(name).read_text(encoding="utf-8")


def style(*, drawing: bool = True) -> str:
    """The style sheet of charts and page. drawing: whether there are charts."""
    return (asset("uplot/uPlot.min.css") + "\n" if drawing else "") + asset("page.css")


def charts(*, drawing: bool = True) -> str:
    """The script that draws charts; a page adds the one that gives it its curves. drawing: whether it has any."""
    return (asset("uplot/uPlot.iife.min.js") + "\n" if drawing else "") + asset("charts.js")


def buttons(lang: str) -> str:
    """Language and theme. lang: the one the page opens in."""
    chosen = "".join(
        element("button", label, type="button", data_set_lang=each, aria_pressed="true" if each == lang else "false")
        for each, label in zip(languages(), ("English", "中文"), strict=True)
    )
    return element("div", chosen + element("button", say("page.theme"), type="button", id="theme"), class_="buttons")


def words(keys: Iterable[tuple[str, ...]]) -> dict[str, dict[str, str]]:
    """What a script has to say, by language. keys: its name in the script, the message, and holes the script fills."""
    told = list(keys)
    return {
        lang: {name: text(key, lang, **{hole: f"{{{hole}}}" for hole in holes}) for name, key, *holes in told}
        for lang in languages()
    }


def in_script(told: object) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(told).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
