from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from syrupy.assertion import SnapshotAssertion

from lossdoctor.report.digest import digest
from lossdoctor.report.terminal import Summary
from lossdoctor.store import Run


def printed(run: Run, lang: str = "en", encoding: str = "utf-8", width: int = 80, colour: bool = False) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(
        file=file, width=width, force_terminal=colour, color_system="standard" if colour else None, legacy_windows=False
    )
    console.print(Summary(digest(run), lang))
    file.flush()
    return "\n".join(line.rstrip() for line in raw.getvalue().decode(encoding).splitlines())


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_whole_run(whole_run: Run, lang: str, snapshot: SnapshotAssertion) -> None:
    assert printed(whole_run, lang) == snapshot


def test_whole_run_on_an_ascii_terminal(whole_run: Run, snapshot: SnapshotAssertion) -> None:
    text = printed(whole_run, encoding="ascii")
    assert text.isascii()
    assert text == snapshot


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_troubled_run(troubled_run: Run, lang: str, snapshot: SnapshotAssertion) -> None:
    assert printed(troubled_run, lang) == snapshot


def test_empty_run(empty_run: Run, snapshot: SnapshotAssertion) -> None:
    assert printed(empty_run) == snapshot


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
@pytest.mark.parametrize("width", [80, 100])
def test_no_line_is_too_long_and_no_number_is_cut(whole_run: Run, lang: str, width: int) -> None:
    text = printed(whole_run, lang, width=width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "…" not in text


def test_colour_only_where_a_direction_is_better(whole_run: Run) -> None:
    green, red = "\x1b[32m", "\x1b[31m"
    lines = printed(whole_run, colour=True).splitlines()
    coloured = {line.split()[0].lstrip("\x1b[0m") for line in lines if green in line or red in line}
    assert coloured == {
        "flow/nmse",
        "flow/cos",
        "flow/cond_gain_cos",
        "flow/cond_ratio",
        "flow/time_ratio",
        "distill/agreement",
    }


def test_it_says_where_the_verdict_is(whole_run: Run, troubled_run: Run, empty_run: Run) -> None:
    for run in (whole_run, troubled_run, empty_run):
        assert "lossdoctor check" in printed(run)
