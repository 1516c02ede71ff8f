"""Sphinx configuration. The page of metrics is written from the vocabulary and the message catalogue at each build."""

from pathlib import Path

from lossdoctor import __version__ as release
from lossdoctor.keys import FAMILIES, KEYS
from lossdoctor.messages import text

project = "lossdoctor"
version = release
extensions = ["myst_parser"]
html_theme = "furo"
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
