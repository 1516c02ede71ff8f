from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt
from syrupy.assertion import SnapshotAssertion

from lossdoctor.report.digest import digest
from lossdoctor.report.markdown import markdown
from lossdoctor.store import Run

PARSER = MarkdownIt("commonmark").enable("table")


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_whole_run(whole_run: Run, lang: str, snapshot: SnapshotAssertion) -> None:
    assert markdown(digest(whole_run), title="demo", lang=lang, pictures=("curves.png",)) == snapshot


def test_troubled_run(troubled_run: Run, snapshot: SnapshotAssertion) -> None:
    assert markdown(digest(troubled_run), title="runs/a|b <script>") == snapshot


def test_every_table_is_a_table_with_even_rows(whole_run: Run, troubled_run: Run) -> None:
    for run in (whole_run, troubled_run):
        source = markdown(digest(run), title="demo")
        html = PARSER.render(source)
        assert html.count("<table>") == len(re.findall(r"^\| ---", source, flags=re.M)) > 0
        assert "| ---" not in html
        for table in re.findall(r"<table>.*?</table>", html, flags=re.S):
            widths = {len(re.findall(r"<t[dh]", row)) for row in re.findall(r"<tr>.*?</tr>", table, flags=re.S)}
            assert len(widths) == 1


def test_an_empty_run_says_what_is_missing(empty_run: Run) -> None:
    source = markdown(digest(empty_run), title="demo")
    assert "lossdoctor check" in source
    assert "doctor.backward" in source
    assert "\n\n\n" not in source
