"""Sphinx configuration. The pages of metrics and of rules are written from the program itself at each build."""

import inspect
import re
from pathlib import Path
from typing import Any

from docutils import nodes

from lossdoctor import __version__ as release
from lossdoctor.keys import FAMILIES, KEYS
from lossdoctor.messages import text
from lossdoctor.rules import RULES

project = "lossdoctor"
version = release
extensions = ["myst_parser"]
html_theme = "furo"
html_show_copyright = False
exclude_patterns = ["_build"]
myst_heading_anchors = 3

HEAD = """# Metrics

Every name a metric can have. `<loss>`, `<head>` and `<module>` stand for your names, `{0..9}` for a tenth of the
way from source to target, `@K` for a number of solver steps. Formulas, ranges and the cases in which a metric is
undefined (and then absent) are in the docstrings of `lossdoctor.metrics`.
"""


def metrics_page() -> str:
    """The table of every family."""
    parts = [HEAD]
    for family in FAMILIES:
        rows = [f"| `{key.pattern}` | {text(f'metric.{key.pattern}')} |" for key in KEYS if key.family == family]
        rows = [row.replace("a>|<b", "a>\\|<b") for row in rows]
        parts.append("\n".join([f"## {family.capitalize()}", "", "| name | meaning |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


(Path(__file__).parent / "metrics.md").write_text(metrics_page(), encoding="utf-8")

RULES_HEAD = """# Rules

What `lossdoctor check` asks, sorted by code. `lossdoctor explain CODE` shows the same pages, `--lang zh-CN` in Chinese.
"""


def rules_page() -> str:
    """The docstring of every rule, with what it needs and its thresholds."""
    parts = [RULES_HEAD]
    for rule in RULES:
        page = inspect.cleandoc(rule.page()).replace("<", "\\<").replace("|", "\\|")
        needs = ", ".join(f"`{need}`" for need in rule.needs) or "nothing"
        fields = ", ".join(f"`{name} = {value}`" for name, value in rule.thresholds().items())
        told = f"Severity: {rule.severity}. Needs: {needs}." + (f" Thresholds: {fields}." if fields else "")
        parts.append(f"## {rule.code} {rule.name}\n\n{page}\n\n{told}\n")
    return "\n".join(parts)


(Path(__file__).parent / "rules.md").write_text(rules_page(), encoding="utf-8")

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


def setup(app: Any) -> None:
    app.connect("doctree-resolved", link_rules)
