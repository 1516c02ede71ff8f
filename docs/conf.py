"""Sphinx configuration. The pages of metrics and of rules are written from the program itself at each build.

English pages are in this folder, Chinese ones in zh-CN; `translations.py` knows which there are. Each page that is in
both languages gets a link to the other one below its title.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from furo.navigation import get_navigation_tree
from sphinx.addnodes import toctree
from sphinx.application import Sphinx
from sphinx.environment.adapters.toctree import TocTree

from lossdoctor import __version__ as release
from lossdoctor.keys import FAMILIES, KEYS
from lossdoctor.messages import text
from lossdoctor.rules import RULES

sys.path.insert(0, str(Path(__file__).parent))
from translations import ENGLISH_ONLY, GENERATED, TRANSLATED

project = "lossdoctor"
version = release
extensions = ["myst_parser"]
html_theme = "furo"
html_show_copyright = False
exclude_patterns = ["_build"]
myst_heading_anchors = 3
smartquotes = False  # alpha'(t) and --lang are meant as they are

METRICS_HEADS = {
    "en": """# Metrics

Every name a metric can have. `<loss>`, `<head>` and `<module>` stand for your names, `{0..9}` for a tenth of the
way from source to target, `@K` for a number of solver steps. Formulas, ranges and the cases in which a metric is
undefined (and then absent) are in the docstrings of `lossdoctor.metrics`.
""",
    "zh-CN": (
        "# 指标\n\n指标可能有的每一个名字。`<loss>`、`<head>` 和 `<module>` 代表你自己的名字，"
        "`{0..9}` 代表从源端到目标的十分之一段，`@K` 代表求解器的步数。"
        "公式、取值范围，以及指标在什么情况下没有定义（这时它不出现），见 `lossdoctor.metrics` 的文档字符串（英文）。\n"
    ),
}
COLUMNS = {"en": "| name | meaning |", "zh-CN": "| 名字 | 含义 |"}


def metrics_page(lang: str) -> str:
    """The table of every family."""
    parts = [METRICS_HEADS[lang]]
    for family in FAMILIES:
        title = family.capitalize() if lang == "en" else text(f"family.{family}", lang)
        rows = [f"| `{key.pattern}` | {text(f'metric.{key.pattern}', lang)} |" for key in KEYS if key.family == family]
        rows = [row.replace("a>|<b", "a>\\|<b") for row in rows]
        parts.append("\n".join([f"## {title}", "", COLUMNS[lang], "|---|---|", *rows, ""]))
    return "\n".join(parts)


RULES_HEADS = {
    "en": """# Rules

What `lossdoctor check` asks, sorted by code. `lossdoctor explain CODE` shows the same pages, `--lang zh-CN` in Chinese.
""",
    "zh-CN": """# 规则

`lossdoctor check` 所问的问题，按编号排列。`lossdoctor explain CODE --lang zh-CN` 显示同样的说明。
""",
}


def rules_page(lang: str) -> str:
    """The page of every rule, with what it needs and its thresholds."""
    parts = [RULES_HEADS[lang]]
    for rule in RULES:
        needs = ", ".join(f"`{need}`" for need in rule.needs)
        fields = ", ".join(f"`{name} = {value}`" for name, value in rule.thresholds().items())
        if lang == "en":
            told = inspect.cleandoc(rule.page())
            facts = f"Severity: {rule.severity}. Needs: {needs or 'nothing'}."
            facts += f" Thresholds: {fields}." if fields else ""
        else:
            told = text(f"rule.{rule.code}.page", lang).replace("\n", "\n\n")
            facts = f"严重程度：{text(f'severity.{rule.severity}', lang)}。需要：{needs or '无'}。"
            facts += f"阈值：{fields}。" if fields else ""
        parts.append(f"## {rule.code} {rule.name}\n\n{literal(told)}\n\n{facts}\n")
    return "\n".join(parts)


ANCHORS = {rule.code: f"{rule.code}-{rule.name}".lower() for rule in RULES}
CODE = re.compile(rf"\b({'|'.join(ANCHORS)})\b")
PLAIN = (nodes.reference, nodes.literal, nodes.literal_block, nodes.title)


def link_rules(app: Any, doctree: nodes.document, page: str) -> None:
    """Every code of a rule in running text leads to the rule's page, so that no author has to write the link."""
    home = "zh-CN/rules" if page.startswith("zh-CN/") and "zh-CN/rules" in app.env.found_docs else "rules"
    for words in list(doctree.findall(nodes.Text)):
        if any(isinstance(above, PLAIN) for above in _above(words)) or not CODE.search(words):
            continue
        pieces: list[nodes.Node] = []
        for piece in CODE.split(words):
            if piece in ANCHORS:
                uri = f"{app.builder.get_relative_uri(page, home)}#{ANCHORS[piece]}"
                pieces.append(nodes.reference("", piece, refuri=uri, internal=True))
            elif piece:
                pieces.append(nodes.Text(piece))
        words.parent.replace(words, pieces)


def _above(node: nodes.Node) -> Any:
    while (node := node.parent) is not None:
        yield node


def literal(told: str) -> str:
    """A text in which nothing but backquotes is markup."""
    parts = re.split(r"(`[^`]*`)", told)
    return "".join(part if part.startswith("`") else re.sub(r"([<|*])", r"\\\1", part) for part in parts)


for lang, folder in (("en", Path(__file__).parent), ("zh-CN", Path(__file__).parent / "zh-CN")):
    (folder / "metrics.md").write_text(metrics_page(lang), encoding="utf-8")
    (folder / "rules.md").write_text(rules_page(lang), encoding="utf-8")


def link_languages(_app: Sphinx, page: str, source: list[str]) -> None:
    """Put a link to the page in the other language below the title; list what is in English only."""
    name = page.removeprefix("zh-CN/")
    if name not in (*TRANSLATED, *GENERATED):
        return
    top = "../" * page.count("/")
    link = f"[English]({top}{name}.md)" if page.startswith("zh-CN/") else f"[简体中文]({top}zh-CN/{name}.md)"
    source[0] = re.sub(r"^# .*$", lambda title: f"{title[0]}\n\n{link}", source[0], count=1, flags=re.MULTILINE)
    if page == "zh-CN/index":
        source[0] += "\n只有英文的页面：\n\n" + "".join(f"* [](../{name}.md)\n" for name in ENGLISH_ONLY)


def frame(app: Sphinx, page: str, _template: str, context: dict[str, Any], _tree: object) -> None:
    """Around a page: its language, by which browsers choose the font, and ways to pages of the same language."""
    chinese, top = page.startswith("zh-CN/"), "../" * page.count("/")
    for way in ("prev", "next"):
        if (there := context.get(way)) and there["link"].startswith(top if chinese else f"{top}zh-CN/"):
            context[way] = None
    if not chinese:
        return
    groups = app.env.get_doctree("zh-CN/index").findall(toctree)
    tree = TocTree(app.env)
    pages, *more = (tree.resolve(page, app.builder, one, titles_only=True, includehidden=True) for one in groups)
    for one in more:
        pages += one.children
    context["furo_navigation_tree"] = get_navigation_tree(app.builder.render_partial(pages)["fragment"])
    context |= {"language": "zh-CN", "master_doc": "zh-CN/index", "docstitle": f"{project} {release} 文档"}


def setup(app: Sphinx) -> None:
    app.connect("source-read", link_languages)
    app.connect("doctree-resolved", link_rules)
    app.connect("html-page-context", frame, priority=900)  # after the theme's
