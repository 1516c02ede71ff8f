"""HTML as it is written here: every text is escaped, every sentence is there in every language."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Any

from lossdoctor.messages import languages, text
from lossdoctor.report.wording import visible


def escaped(value: object) -> str:
    """Any text as the content of an element or an attribute; characters that cannot be shown are replaced."""
    return html.escape(visible(str(value)))


def each_language(told: Callable[[str], str]) -> str:
    """A sentence in all languages; the page shows the one chosen. told: language to text."""
    said = {lang: told(lang) for lang in languages()}
    if len(set(said.values())) == 1:
        return escaped(next(iter(said.values())))
    return "".join(f'<span class="in" lang="{lang}">{escaped(one)}</span>' for lang, one in said.items())


def say(key: str, **params: Any) -> str:
    """A message of the catalogues, in all languages."""
    return each_language(lambda lang: text(key, lang, **params))


def element(tag: str, content: str = "", /, **attributes: object) -> str:
    """`<tag attributes>content</tag>`; content is HTML already, attributes are escaped; None leaves one out.

    A trailing underscore is dropped (`class_`), other underscores are dashes (`data_name`).
    """
    told = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{told}>{content}</{tag}>"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], class_: str | None = None) -> str:
    """A table of cells that are HTML already."""
    top = element("tr", "".join(element("th", cell, scope="col") for cell in head))
    body = "".join(element("tr", "".join(element("td", cell) for cell in row)) for row in rows)
    whole = element("table", element("thead", top) + element("tbody", body), class_=class_)
    return element("div", whole, class_="scroll")
